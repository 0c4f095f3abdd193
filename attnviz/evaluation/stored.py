"""Scores of a stored run: its maps, its test images and its model, a piece at a time.

A run is read a piece at a time, so that the maps of ten thousand images never are in memory at
once. Pieces and numbers are the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.baseline_images import ValueRange, black_and_white
from attnviz.data.samples import Batch, Sample
from attnviz.errors import InputError, RunError
from attnviz.evaluation.answers import Answers, Target, target_of, task_of, tensor_of
from attnviz.evaluation.measuring import reference_levels, usable
from attnviz.evaluation.saving import BOXES, IGNORED, MODEL_IMAGES
from attnviz.maps import resized
from attnviz.metrics import METRICS, localization
from attnviz.metrics.counted import BOXES as OF_BOXES
from attnviz.metrics.registry import of_any_axes
from attnviz.model_state import frozen, misfit
from attnviz.models import rebuild_model, reference_of
from attnviz.runs import Dataset, Run, open_run
from attnviz.statistics.summary import summarised

if TYPE_CHECKING:
    from pandas import DataFrame

PIECE = 256
"""Images read and scored at a time."""

Scale = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, of pixels from 0 to 1."""

_SYMMETRIC: Scale = ((0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class StoredRun:
    """A complete run, the images that it was measured on, and its model.

    Attributes:
        path: The run's folder.
        build: Builds the model of a run of one's own, untrained; None for a reference model of
            `attnviz.models`. A run holds the name of its model's factory as text: nothing
            is ever imported because a run names it.
        device: Where to compute.
        scale: How images are normalised; None takes the run's own.
        target: Which output is explained; None is the label's where labels are known, else the
            predicted one's.
    """

    path: Path
    build: Callable[[], nn.Module] | None = None
    device: str = "cpu"
    scale: Scale | None = None
    target: Target | None = None

    @cached_property
    def run(self) -> Run:
        """The run, opened."""
        return open_run(self.path)

    @cached_property
    def dataset(self) -> Dataset:
        """Its test images."""
        return self.run.test_set()

    @cached_property
    def model(self) -> nn.Module:
        """Its trained model in evaluation mode; built when it is first needed.

        Raises:
            InputError: Its factory is not known, or the weights are those of another model.
            RunError: The run kept no weights.
        """
        if self.build is not None:
            return trained(self.build(), self.run).to(self.device).eval()
        name = reference_of(self.run.variant, self.run.settings)
        weights = self.run.weights()
        if name is None:
            raise InputError(f"{self.run.id}: {_unknown_factory(self.run)}")
        try:
            return rebuild_model(name, self.run.settings, weights).to(self.device)
        except InputError as error:
            raise InputError(f"{self.run.id}: {error}") from error

    @cached_property
    def answers(self) -> Answers:
        """Its model, read as one score per output that a map can explain."""
        labels = [None if label < 0 else int(label) for label in self.dataset.labels().tolist()]
        labelled = any(label is not None for label in labels)
        target: Target = "label" if labelled else "predicted"
        if self.target is not None:
            target = target_of(self.target, self.run.classes)
        outputs = tensor_of(self._outputs)
        answers = Answers(self.model, target, task_of(outputs, len(self._first), labels, target))
        answers.check_target(answers.scores(self._outputs).shape[1])
        return answers

    @cached_property
    def explained(self) -> nn.Module:
        """Its model itself where its output is scores, so that its layers keep their names."""
        return self.answers.unwrapped(self._outputs)

    @cached_property
    def _first(self) -> Batch:
        return self.batch(self.by_size(range(min(8, self.dataset.count)))[0])

    @cached_property
    def _outputs(self) -> Any:
        with frozen(self.model), torch.no_grad():
            return self.model(self._first.images)

    def chosen(self, batch: Batch) -> list[int] | None:
        """Which output each image's map explains, None for a model of one output."""
        with frozen(self.model), torch.no_grad():
            return self.answers.chosen(self.answers(batch.images), batch)

    @cached_property
    def normalisation(self) -> Scale:
        """Mean and standard deviation by which the model's images are normalised.

        Raises:
            InputError: Neither the run, its images nor the caller gives it.
        """
        if self.scale is not None:
            return self.scale
        for told in (self.run, self.dataset):
            if told.mean is not None and told.std is not None:
                return told.mean, told.std
        if reference_of(self.run.variant, self.run.settings) is not None:
            return _SYMMETRIC
        raise InputError(
            f"{self.run.id}: neither the run nor its images say how they were normalised: give "
            "--mean and --std, or --normalise"
        )

    @property
    def value_range(self) -> ValueRange:
        """What black and white pixels are for the model, one number per channel."""
        mean, std = self.normalisation
        return black_and_white(mean=mean, std=std)

    @property
    def lacks(self) -> frozenset[str]:
        """What the run does not keep of its data; see `attnviz.evaluation.saving`."""
        noted = self.run.settings.get("evaluation")
        noted = noted if isinstance(noted, Mapping) else {}
        return frozenset(noted.get("lacks") or self.run.summary.get("lacks") or ())

    def check_pixels(self) -> None:
        """Refuse localisation scores of a run without the pixels that its evaluation left out.

        Raises:
            InputError: Pixels were ignored.
        """
        if IGNORED in self.lacks:
            raise InputError(
                f"{self.run.id}: some pixels counted neither as inside nor as outside, and a run "
                "does not keep which: maps are scored by attnviz evaluate, which takes "
                "--attributions too; measure --metrics, without a key, leaves localisation out"
            )

    def _keys(
        self, metrics: Sequence[str] | None, thresholds: Mapping[str, float], masks: Tensor
    ) -> list[str]:
        """The metrics that are named, or that can be computed of what the run keeps.

        Raises:
            InputError: One of boxes is named, and the boxes were annotated.
        """
        keys = _keys(metrics, thresholds, masks)
        of_boxes = [key for key in keys if key in OF_BOXES]
        if not of_boxes or BOXES not in self.lacks:
            return keys
        if metrics is not None:
            raise InputError(
                f"{self.run.id}: {', '.join(of_boxes)} is of boxes that were annotated, of which a "
                "run does not keep the single ones: attnviz evaluate scores it; name other "
                "--metrics"
            )
        return [key for key in keys if key not in of_boxes]

    def by_size(self, part: Sequence[int]) -> list[list[int]]:
        """These numbers of images, those of one size together, in their order."""
        indices = list(part)
        found: dict[tuple[int, ...], list[int]] = {}
        for index, size in zip(indices, self.dataset.sizes(indices).tolist(), strict=True):
            found.setdefault(tuple(size), []).append(index)
        return list(found.values())

    def each_size(
        self, part: Sequence[int], scores: Callable[[list[int]], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Scores of these images, computed for one size after the other, in their order."""
        groups = self.by_size(part)
        if len(groups) == 1:
            return dict(scores(groups[0]))
        place = {index: row for row, index in enumerate(part)}
        whole: dict[str, np.ndarray] = {}
        for group in groups:
            for key, column in scores(group).items():
                whole.setdefault(key, np.full(len(place), np.nan))
                whole[key][[place[index] for index in group]] = column
        return whole

    def batch(self, part: Sequence[int]) -> Batch:
        """The images of these numbers as the model takes them, with masks and labels.

        Raises:
            InputError: They are of several sizes; see `by_size`. Or they are not the images that
                the model took.
        """
        indices = list(part)
        if self.dataset.depth is not None:
            raise InputError(
                f"{self.run.id}: its test images are volumes or videos, which are kept as bytes "
                "and not as the model takes them: evaluate the model on its data again"
            )
        if MODEL_IMAGES in self.lacks:
            raise InputError(
                f"{self.run.id}: its test images are kept as pictures at the size of their masks, "
                "and are not those that the model took: these had another size, or were normalised "
                "in a way that was not told. Evaluate the model on its data again, with what is "
                "wanted of it; masks of the images' size and Sample(value_range=…), or a "
                "transform=, keep images that serve"
            )
        pixels = self.dataset.images(indices)
        masks = torch.from_numpy(np.array(self.dataset.masks(indices)))
        labels = self.dataset.labels()[indices]
        mean, std = (torch.tensor(list(one)).view(-1, 1, 1) for one in self.normalisation)
        shares = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
        images = (shares - mean) / std
        samples = tuple(
            Sample(image, mask, label=None if label < 0 else int(label))
            for image, mask, label in zip(images, masks, labels, strict=True)
        )
        return Batch(
            tuple(indices), images.to(self.device), masks, torch.ones(len(indices)).bool(), None,
            samples,
        )  # fmt: skip

    def masks(self, part: Sequence[int]) -> Tensor:
        """`(k, h, w)`, True where the object is."""
        return torch.from_numpy(np.array(self.dataset.masks(list(part))))

    def maps(self, name: str, part: Sequence[int]) -> Tensor:
        """`(k, h, w)` maps on their own grid, of volumes `(k, d, h, w)`; heads are averaged."""
        maps = torch.from_numpy(np.array(self.run.maps(name, list(part))))
        return maps.mean(1) if maps.ndim > self.map_axes else maps

    @property
    def map_axes(self) -> int:
        """Axes of a map without heads, those of the images before them counted: 3, of volumes 4."""
        return 3 if self.dataset.depth is None else 4

    def upsampled(self, name: str, part: Sequence[int]) -> Tensor:
        """`(k, H, W)` maps at the size of the images, which is one, bilinearly."""
        size = tuple(self.masks(list(part)[:1]).shape[1:])
        return resized(self.maps(name, part), size, "bilinear").to(self.device)

    def thresholds(self, name: str) -> Mapping[str, float]:
        """A map's τ by metric, from the calibration images."""
        found: Mapping[str, Mapping[str, float]] = self.run.summary.get("thresholds") or {}
        return found.get(name) or {}

    def localized(
        self, name: str, part: Sequence[int], metrics: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Localisation scores of a map of these images, `(k,)` by metric.

        Args:
            name: A map of the run.
            part: Numbers of images.
            metrics: Keys of `attnviz.metrics.METRICS`; None takes all that can be computed.
        """
        self.check_pixels()
        taus = self.thresholds(name)

        def scores(alike: list[int]) -> dict[str, np.ndarray]:
            masks = self.masks(alike)
            return localized(self.maps(name, alike), masks, self._keys(metrics, taus, masks), taus)

        return self.each_size(part, scores)

    def summarised(
        self,
        columns: Mapping[str, np.ndarray],
        grid: Sequence[int],
        metrics: Sequence[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
        *,
        group: Any = None,
    ) -> dict[str, dict[str, Any]]:
        """Mean, interval and counts of each column; of localisation the reference levels too.

        Args:
            columns: Metric → `(n,)` scores of all images.
            grid: Height and width of the map's own grid, of volumes depth before them.
            metrics: Localisation metrics; None as in `localized`.
            thresholds: By metric.
            group: The images' groups.
        """
        keys = self._keys(metrics, thresholds or {}, self.masks([0]))
        masks = [self.masks(part) for part in self.by_size(range(self.dataset.count))]
        levels = reference_levels(masks, grid, keys, thresholds or None) if keys else {}
        return {
            key: summarised(key, column, levels.get(key), group=group)
            for key, column in columns.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: not the model and not the open run."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def trained(model: nn.Module, run: Run) -> nn.Module:
    """A model with a run's weights.

    Raises:
        InputError: They are those of another model.
        RunError: The run kept none.
    """
    weights = {key: torch.from_numpy(np.array(one)) for key, one in run.weights().items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        said = misfit(model, weights) or " ".join(str(error).split())[:200]
        raise InputError(f"{run.id}: its weights do not fit the model given: {said}") from error
    return model


def _unknown_factory(run: Run) -> str:
    told = run.settings.get("factory")
    if isinstance(told, str) and told:
        return (
            f"its model was built by {told}, and nothing is imported because a run names it; "
            f"give --model {told}"
        )
    return (
        "it does not say that its model is one of attnviz.models; give the factory of a model of "
        "your own, --model module:callable"
    )


def localized(
    maps: Tensor,
    masks: Tensor,
    metrics: Sequence[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Localisation scores of maps on their own grid, made larger bilinearly.

    Args:
        maps: `(k, h, w)`, of volumes `(k, d, h, w)`.
        masks: `(k, H, W)`, or `(k, D, H, W)`.
        metrics: Keys of `attnviz.metrics.METRICS`; None takes all that can be computed.
        thresholds: By metric, from the calibration images.

    Returns:
        Metric → `(k,)` scores.
    """
    large = resized(maps.cpu(), tuple(masks.shape[1:]), "bilinear")
    keys = _keys(metrics, thresholds or {}, masks)
    scores = localization(large, masks, keys, threshold=thresholds or None)
    return {key: score.numpy() for key, score in scores.items()}


def _keys(
    metrics: Sequence[str] | None, thresholds: Mapping[str, float], masks: Tensor
) -> list[str]:
    if metrics is not None:
        return list(metrics)
    return usable(of_any_axes(tuple(METRICS), masks), thresholds)


def in_order(parts: Sequence[tuple[range, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The columns of all pieces as one; NaN where a piece has no such column, or a shorter one."""
    count = sum(len(part) for part, _ in parts)
    whole: dict[str, np.ndarray] = {}
    for part, columns in parts:
        for key, column in columns.items():
            whole.setdefault(key, np.full(count, np.nan, column.dtype))
            whole[key][part.start : part.start + len(column)] = column
    return whole


def with_columns(
    samples: DataFrame, name: str, columns: Mapping[str, np.ndarray], *, anew: bool = False
) -> DataFrame:
    """The samples with a map's scores; `anew` drops the scores it had before."""
    import pandas as pd

    if anew:
        samples = samples[[c for c in samples.columns if not c.startswith(f"{name}/")]]
    fresh = {f"{name}/{key}": column for key, column in columns.items()}
    for key, column in fresh.items():
        if len(column) != len(samples):
            raise RunError(
                f"{key}: expected {len(samples)} scores, one per sample, got {len(column)}"
            )
    kept = samples[[column for column in samples.columns if column not in fresh]]
    return pd.concat([kept, pd.DataFrame(fresh, index=samples.index)], axis=1)


def merged_metrics(
    run: Run, fresh: Mapping[str, Mapping[str, Any]], *, anew: bool = False
) -> dict[str, Any]:
    """The summary's metrics with these put in; maps and metrics that are not named stay."""
    before = dict(run.summary.get("metrics") or {})
    for name, scores in fresh.items():
        before[name] = {**({} if anew else before.get(name, {})), **scores}
    return before
