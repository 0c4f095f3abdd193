"""`Monitor`: a model's attention while it trains, within a share of the training's time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attnviz.comparison.from_runs import grouping_of
from attnviz.data.samples import batches, displayed
from attnviz.diagnosis.recurring import Recurring
from attnviz.errors import InputError, UnsupportedError, unknown_name
from attnviz.evaluation.answers import Target, target_of
from attnviz.evaluation.evaluation import device_of, evaluating
from attnviz.evaluation.measuring import measured, reference_levels, sample_columns
from attnviz.evaluation.saving import kept
from attnviz.maps import resized
from attnviz.metrics import METRICS
from attnviz.runs.writer import RunWriter
from attnviz.statistics.summary import summarised
from attnviz.trackers import Picture, Tracker, scores_table
from attnviz.training.budget import Budget
from attnviz.training.calibration import Calibration, undisturbed
from attnviz.training.preparation import Preparation, settle
from attnviz.training.recording import is_main

SCORES = ("energy_pointing_game", "pointing_game")
"""Metrics without a threshold, which a calibration split would have to choose."""

LEAST = 4
"""Images below which an epoch is left out."""

EXAMINED = 4
"""Images that the doctor examines."""

EXPECTED = 30
"""Forward passes of one image that the first examination is expected to cost."""

MAPS, FINDINGS = "maps and scores", "findings"
_NOTHING = (
    "monitor: maps and scores were not measured in this training ({}); expected a longer training, "
    "final=True for one measurement at the end, or budget=None for one at every epoch"
)
_TABLE = 0.15, 0.25  # seconds that the last table takes, and its share of the cost of its images


@dataclass(frozen=True)
class Look:
    """What was seen of some images at one epoch.

    Attributes:
        indices: Which images of the calibration set.
        columns: Column → one number per image; scores are named `"<map>/<metric>"`.
        maps: Map → `(n, h, w)`, of those images.
    """

    indices: tuple[int, ...]
    columns: dict[str, np.ndarray]
    maps: dict[str, Tensor]


class Monitor:
    """Measure a model's maps during its training, called once per epoch from any loop.

    Each measurement looks at a few images of known places: the scores of the model's primary map,
    the maps of the pinned images, and the findings that weights and gates show. They join the
    run's curves together with the numbers that the caller gives. The model trains as without it, to
    the last bit: it runs in evaluation mode, and modes, buffers, gradients and random generators
    are as before.

    The time between two calls is training and earns a share of itself; a measurement begins once
    its expected cost has been earned. So the first epochs of a training have no scores: the map is
    found and scored first, on four images, then the findings follow, and from then on an epoch is
    measured on as many images as there is time for, or left out where it is fewer than four.
    `not_measured` says what is missing still, and how long a training it takes. An epoch that is
    not measured keeps the caller's numbers; one that is says on how many images it rests.

    Reading the images, a row per epoch and the last table are no measurement: they are always
    written, and what they take is paid back before the next measurement.

    In a distributed training the process of rank 0 measures the plain module, without any
    collective operation; in the others a call returns an empty row at once.

    Args:
        data: A small calibration set: whatever `attnviz.data.samples_of` reads, best with masks.
            At most 64 images are held, evenly spaced.
        run: Where curves, maps and findings go: what `attnviz.start_run` yields. None keeps rows
            in memory alone.
        maps: Keys of `attnviz.maps.CONSTRUCTIONS`; None takes the model's primary map, or Grad-CAM
            at the last convolution of a model without attention or gates.
        metrics: Localisation metrics without a threshold.
        pinned: Of how many images, or of which by number, the maps are kept at each measured epoch.
        every: Measure at every so many epochs.
        budget: The share of the training time that measuring may take; None sets no limit.
        target: Which output maps with gradients explain; None takes the label, or the predicted
            class where images have no label.
        findings: Whether the doctor looks for faults.
        final: Measure all images once more at the end, whatever it takes. The row of the last
            epoch and the run's summary are then of all images, also after a short training.
        trackers: Where rows, pictures and the last table go besides; see `attnviz.trackers`.
        clock: A monotonic clock in seconds.

    Attributes:
        rows: The rows so far, one per epoch.
        findings: What appeared, as dicts with the epoch.
        budget: The account of time: `trained`, `spent`, `share`.
        not_measured: What has not been measured yet, and what it takes, by name.

    Raises:
        InputError: Arguments that cannot be right.
        UnsupportedError: On a call, a model whose parameters are spread over processes.

    Examples:
        >>> import attnviz as av, torch
        >>> model = av.build_model("mha")
        >>> images, masks = torch.zeros(4, 3, 96, 96), torch.zeros(4, 96, 96, dtype=torch.bool)
        >>> masks[:, 30:60, 30:60] = True
        >>> monitor = av.Monitor(list(zip(images, masks)), budget=None)
        >>> row = monitor(model, 1, train_loss=0.7)
        >>> sorted(row)[:3]
        ['epoch', 'findings', 'monitor_images']
    """

    def __init__(
        self,
        data: Any,
        *,
        run: RunWriter | None = None,
        maps: Sequence[str] | None = None,
        metrics: Sequence[str] | None = None,
        pinned: int | Sequence[int] = 4,
        every: int = 1,
        budget: float | None = 0.03,
        target: Target | None = None,
        findings: bool = True,
        final: bool = False,
        trackers: Sequence[Tracker] = (),
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        if every < 1:
            raise InputError(f"monitor: expected every to be 1 or more epochs, got {every}")
        self.rows: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self.budget = Budget(budget, clock)
        self.every, self.maps = every, None if maps is None else tuple(maps)
        self.metrics, self.final = _scores(metrics), final
        self.not_measured: dict[str, str] = {}
        self._active = is_main()
        if not self._active:
            return
        self.run, self.trackers = run, tuple(trackers)
        self._lacks: list[str] = []
        with undisturbed():
            self.data = Calibration(data)
            self.pinned = _pinned(pinned, self.data)
            answer = target_of(
                ("label" if self.data.labelled else "predicted") if target is None else target
            )
            self._ready = Preparation(self.data, self.maps, self.metrics, answer, self.budget)
            if run is not None:
                self._describe(run)
        self._doctor = Recurring() if findings else None
        self._examining: float | None = None  # seconds that the doctor took last
        self._last: Look | None = None
        self._reached: float = math.inf
        self.budget.end()

    def __repr__(self) -> str:
        counts = [row["monitor_images"] for row in self.rows if "monitor_images" in row]
        told = f"{len(counts)} of {len(self.rows)} epochs measured"
        if counts:
            told += f" on {min(counts)} to {max(counts)} images"
        missing = [f"not measured yet: {name}, {why}" for name, why in self.not_measured.items()]
        share = f"{self.budget.spent:.1f} s beside {self.budget.trained:.0f} s of training"
        return "\n".join([f"Monitor: {told}; {share}", *missing])

    def __call__(self, model: nn.Module, epoch: int, **values: Any) -> dict[str, Any]:
        """Measure what is due and has been earned, and append a row to the curves.

        Args:
            model: The model that trains; a wrapper of `DistributedDataParallel`, `DataParallel` or
                `torch.compile` is taken off.
            epoch: The number of the epoch that has ended. Of an epoch that was there already, as
                after an interruption, it and all later ones are replaced.
            **values: The loop's own numbers for this row, such as `train_loss=…`.

        Returns:
            The row: the caller's numbers, and where it was measured `val_<metric>`, `val_accuracy`
            and `val_loss` of the calibration images where they have labels, `monitor_images`, how
            many these are, `monitor_seconds`, and `findings`, how many there are now.
        """
        if not self._active:
            return {}
        epoch, model = _epoch(epoch), _plain_module(model)
        settle(model)
        self.budget.begin()
        self._rewind(epoch)
        row = {"epoch": epoch}
        if self._last is None or epoch % self.every == 0:
            row |= self._measure(model, epoch)
        row |= {name: _number(value) for name, value in values.items()}
        self._note(row)
        self.budget.end()
        return row

    def finish(self) -> dict[str, Any]:
        """Write the table of the images that were looked at last, and hand it to the trackers.

        The end of an `attnviz.start_run` block does so by itself.

        Returns:
            What joins the run's summary: the scores with interval and reference levels, the layers,
            the findings, at which epoch and on how many images they were measured, and what was
            not measured.
        """
        if not self._active or not self.rows:
            return {}
        self.budget.begin()
        self.budget.held = 0.0
        if self.final:
            self._measure_all()
        summary: dict[str, Any] = {"not_measured": self.not_measured}
        if self._lacks:
            summary["lacks"] = self._lacks
        if self._last is None:
            warnings.warn(_NOTHING.format(self.not_measured.get(MAPS, "")), stacklevel=2)
        else:
            summary |= self._summary(self._last)
            if self.run is not None:
                self._write_last(self.run, self._last)
        for tracker in self.trackers:
            if "metrics" in summary:
                tracker.table("scores", scores_table(summary["metrics"]), self.rows[-1]["epoch"])
            tracker.finish()
        self.budget.end()
        return summary

    def _measure_all(self) -> None:
        """Measure all images at the last epoch, whatever it takes, and complete its row."""
        model = self._ready.model
        if model is None:
            return
        row, found = self.rows[-1], {}
        self._rewind(row["epoch"])
        try:
            with self.budget.unlimited():
                found = self._measure(model, row["epoch"])
        finally:
            self._note(row | found)

    def _measure(self, model: nn.Module, epoch: int) -> dict[str, Any]:
        """What has been earned of a measurement: numbers for the row."""
        if self.budget.left <= 0:
            self._say()
            return {}
        begun = self.budget.clock()
        row: dict[str, Any] = {}
        with undisturbed(), evaluating(model, device_of(model)):
            if self._doctor is not None and self._ready.model is not model:
                self._doctor = Recurring()
            if self._ready.ready(model):
                row |= self._scored(epoch)
                row |= self._examined(model, epoch)
        self._say()
        if row:
            row["monitor_seconds"] = self.budget.clock() - begun
        return row

    def _scored(self, epoch: int) -> dict[str, Any]:
        """Scores and pinned maps of as many images as there is time for."""
        count = self._affordable()
        if not count:
            return {}
        begun = self.budget.clock()
        seen = self._look(self.data.order[:count])
        took = self.budget.clock() - begun
        self._ready.each = took / count
        self.budget.held = _TABLE[0] + _TABLE[1] * took
        missing = [index for index in self.pinned if index not in seen.indices]
        pinned = _chosen([seen, self._look(missing)] if missing else [seen], self.pinned)
        self._keep(epoch, pinned)
        self._last, self._measured_at = seen, epoch
        return self._scores(seen) | {"monitor_images": count}

    def _affordable(self) -> int:
        """How many images to look at now; 0 to leave the epoch out."""
        most, each = len(self.data), self._ready.each
        if self.budget.share is None:
            return most
        if self._last is not None and self._doctor is not None and self._examining is None:
            return 0  # the findings come before a second look
        left = self.budget.left + self.budget.held - _TABLE[0]
        left -= each * sum(index not in self.data.order[:LEAST] for index in self.pinned)
        left -= self._examining or 0.0
        count = int(min(most, left / max(each * (1 + _TABLE[1]), 1e-9)))
        return count if count >= min(LEAST, most) else 0

    def _look(self, indices: Sequence[int]) -> Look:
        assert self._ready.job is not None
        answers, plan = self._ready.job
        parts = []
        for batch in batches(self.data, indices, plan.batch):
            found = measured(answers, batch, plan)
            parts.append(Look(batch.indices, found.columns, found.maps))
        return _joined(parts)

    def _say(self) -> None:
        """Note what has not been measured yet; the run's summary has it too."""
        missing = {}
        if self._last is None:
            missing[MAPS] = self._ready.missing or self.budget.price(LEAST * self._ready.each)
        if self._doctor is not None and self._examining is None:
            missing[FINDINGS] = self.budget.price(self._expected())
        if missing.keys() != self.not_measured.keys() and self.run is not None:
            self.run.describe(summary={"not_measured": missing})
        self.not_measured = missing

    def _expected(self) -> float:
        """Seconds that an examination is expected to take."""
        if self._examining is not None:
            return self._examining
        return EXPECTED * (self._ready.forward or 0.0)

    def _scores(self, seen: Look) -> dict[str, Any]:
        """Means over the images, named as the curves of a training."""
        row = {}
        first = next(iter(self._ready.layers), "")
        for name, column in seen.columns.items():
            known = np.isfinite(column)
            if "/" in name and known.any():
                row[f"val_{name.removeprefix(f'{first}/')}"] = float(column[known].mean())
        for name, key in (("val_accuracy", "correct"), ("val_loss", "loss")):
            column = seen.columns.get(key, np.array([np.nan]))
            if np.isfinite(column).all():
                row[name] = float(column.mean())
        return row

    def _examined(self, model: nn.Module, epoch: int) -> dict[str, Any]:
        """Note the findings that are new, where looking for them has been earned."""
        if self._doctor is None or not self.budget.allows(self._expected()):
            return {}
        begun = self.budget.clock()
        some = next(batches(self.data, self.data.order[:EXAMINED], EXAMINED))
        now = self._doctor(model, some.images.to(device_of(model)))
        known = {(one["code"], one["where"]) for one in self.findings}
        new = [one.as_dict() for one in now if (one.code, one.where) not in known]
        if new:
            self.findings += [{**one, "epoch": epoch} for one in new]
            if self.run is not None:
                self.run.describe(summary={"findings": self.findings})
        self._examining = self.budget.clock() - begun
        return {"findings": len(now)}

    def _keep(self, epoch: int, pinned: Look) -> None:
        """Write the pinned images' maps, and hand them to the trackers as pictures."""
        if not pinned.indices:
            return
        for name, maps in pinned.maps.items():
            if self.run is not None:
                about = {"epoch": epoch, "images": list(pinned.indices)}
                about["layer"] = self._ready.layers.get(name, "")
                self.run.maps(f"{name}@{epoch:04d}", maps.numpy(), about=about)
            if self.trackers:
                pictures = self._pictures(name, pinned)
                for tracker in self.trackers:
                    tracker.pictures(name, pictures, epoch)

    def _pictures(self, name: str, pinned: Look) -> list[Picture]:
        scores = pinned.columns.get(f"{name}/{self.metrics[0]}") if self.metrics else None
        pictures = []
        for place, index in enumerate(pinned.indices):
            sample = self.data[index]
            words = [sample.name or f"image {index}"]
            if scores is not None and np.isfinite(scores[place]):
                words.append(f"{self.metrics[0]} {scores[place]:.3f}")
            picture = Picture.of(
                displayed(sample).numpy(),
                pinned.maps[name][place].numpy(),
                mask=None if sample.mask is None else sample.mask.numpy(),
                boxes=None if sample.boxes is None else sample.boxes.numpy(),
                caption=", ".join(words),
                thing=self.data.thing or "object",
            )
            pictures.append(picture)
        return pictures

    def _summary(self, seen: Look) -> dict[str, Any]:
        shown = [index for index in seen.indices if self.data.shows(index)]
        parts = [(one.masks, one.ignore) for one in batches(self.data, shown, 32)]
        masks, ignored = [one for one, _ in parts], [one for _, one in parts]
        group = grouping_of(_table(self.data, seen).iloc[list(seen.indices)])
        scores: dict[str, dict[str, Any]] = {}
        for name, maps in seen.maps.items():
            grid = (int(maps.shape[-2]), int(maps.shape[-1]))
            levels = reference_levels(masks, grid, self.metrics, None, ignored=ignored)
            scores[name] = {
                key: summarised(key, seen.columns[f"{name}/{key}"], levels.get(key), group=group)
                for key in self.metrics
            }
        correct = seen.columns.get("correct", np.array([np.nan]))
        return {
            "map": next(iter(self._ready.layers), ""),
            "layers": dict(self._ready.layers),
            "metrics": scores,
            "accuracy": float(correct.mean()) if np.isfinite(correct).all() else None,
            "measured_at": {"epoch": self._measured_at, "images": len(seen.indices)},
            **({} if self._doctor is None else {"findings": self.findings}),
        }

    def _write_last(self, run: RunWriter, seen: Look) -> None:
        """The last table, and the maps where all images were looked at."""
        run.samples(_table(self.data, seen))
        if len(seen.indices) == len(self.data):
            rows = np.argsort(seen.indices)
            for name, maps in seen.maps.items():
                run.maps(
                    name, maps.numpy()[rows], about={"layer": self._ready.layers.get(name, "")}
                )

    def _describe(self, run: RunWriter) -> None:
        """What the run says about the images; and what it holds of an interrupted training."""
        digest, self._lacks = kept(run.path.parent, self.data, self.data.thing or "object")
        run.describe(dataset=digest, thing=self.data.thing, classes=self.data.classes)
        run.before_finish(self.finish)
        self.findings = [one for one in run.summary.get("findings") or [] if "epoch" in one]

    def _rewind(self, epoch: int) -> None:
        """Forget this epoch and the later ones, which are trained again."""
        if epoch > self._reached:
            return
        self.rows = [row for row in self.rows if row["epoch"] < epoch]
        earlier = [one for one in self.findings if one["epoch"] < epoch]
        if self.run is not None:
            self.run.rewind(epoch)
            if len(earlier) < len(self.findings):
                self.run.describe(summary={"findings": earlier})
        self.findings = earlier

    def _note(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._reached = row["epoch"]
        if self.run is not None:
            self.run.curve(**row)
            self.run.heartbeat(epoch=row["epoch"])
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "epoch"}
        for tracker in self.trackers:
            tracker.scalars(numbers, row["epoch"])


def _scores(metrics: Sequence[str] | None) -> tuple[str, ...]:
    keys = tuple(SCORES if metrics is None else metrics)
    for key in keys:
        if key not in METRICS:
            raise unknown_name("metric", key, METRICS)
        if METRICS[key].thresholded:
            raise InputError(
                f"monitor: {key} needs a threshold, which is chosen on other images; expected "
                f"metrics without one, such as {', '.join(SCORES)}, and attnviz.evaluate afterwards"
            )
    return keys


def _pinned(pinned: int | Sequence[int], data: Calibration) -> tuple[int, ...]:
    if isinstance(pinned, int):
        return tuple(sorted(data.order[: max(0, pinned)]))
    for index in pinned:
        if not 0 <= index < len(data):
            raise InputError(
                f"monitor: expected pinned images from 0 to {len(data) - 1}, got {index}"
            )
    return tuple(pinned)


def _epoch(epoch: Any) -> int:
    if isinstance(epoch, bool) or not isinstance(epoch, int | np.integer) or epoch < 0:
        raise InputError(f"monitor: expected the number of an epoch, 0 or more, got {epoch!r}")
    return int(epoch)


def _number(value: Any) -> Any:
    """A scalar tensor as a number; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _plain_module(model: nn.Module) -> nn.Module:
    """The model without the wrappers of data-parallel training and `torch.compile`.

    Raises:
        InputError: It is no module.
        UnsupportedError: Its parameters are spread over processes.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"monitor: expected a torch module, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    for name, parameter in model.named_parameters():
        if {type(parameter).__name__, type(parameter.data).__name__} & {"DTensor", "FlatParameter"}:
            raise UnsupportedError(
                f"monitor: {name} is spread over processes (FSDP or tensor parallel), and one "
                "process alone cannot run the model; monitor a copy that holds the full weights"
            )
    return model


def _joined(parts: Sequence[Look]) -> Look:
    """Looks at different images as one; maps take the first one's grid."""
    maps: dict[str, Tensor] = {}
    for name in parts[0].maps:
        h, w = (int(side) for side in parts[0].maps[name].shape[-2:])
        maps[name] = torch.cat([resized(one.maps[name], (h, w), "bilinear") for one in parts])
    names = [name for name in parts[0].columns if all(name in one.columns for one in parts)]
    columns = {name: np.concatenate([one.columns[name] for one in parts]) for name in names}
    return Look(tuple(index for one in parts for index in one.indices), columns, maps)


def _chosen(parts: Sequence[Look], indices: Sequence[int]) -> Look:
    """Of looks at different images those of some images, in their order."""
    whole = _joined(parts)
    rows = [whole.indices.index(index) for index in indices]
    return Look(
        tuple(indices),
        {name: column[rows] for name, column in whole.columns.items()},
        {name: maps[rows] for name, maps in whole.maps.items()},
    )


def _table(data: Calibration, seen: Look) -> pd.DataFrame:
    """One row per image of the set; NaN where it was not looked at."""
    numbers, text = sample_columns(list(data))
    known = {key: values for key, values in text.items() if any(values)}
    columns: dict[str, Any] = {"index": np.arange(len(data)), **known, **numbers}
    for name, values in seen.columns.items():
        columns[name] = np.full(len(data), np.nan)
        columns[name][list(seen.indices)] = values
    return pd.DataFrame(columns)
