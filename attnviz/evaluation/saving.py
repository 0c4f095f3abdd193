"""An evaluation as a run folder: begun before the work, so that it can go on after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from attnviz.capture import watch
from attnviz.comparison.text import records
from attnviz.data.samples import Sample, Samples, batches, displayed
from attnviz.errors import InputError, RunError
from attnviz.evaluation.answers import Answers
from attnviz.evaluation.measuring import sample_columns
from attnviz.evaluation.pieces import FOLDER, Pieces
from attnviz.maps import drawings
from attnviz.runs import open_run, resume_run, save_dataset, start_run
from attnviz.runs.outputs import outside_runs
from attnviz.runs.writer import RunWriter

_FACTS = "evaluation.json"


Result: TypeAlias = Any
"""An `Evaluation`, whose file lies above this one."""


@dataclass
class Place:
    """Where an evaluation keeps what it has done.

    Attributes:
        pieces: The pieces of the data set.
        writer: The run, None for an evaluation that is not saved.
        facts: What was found out before the pieces and is not found out again.
    """

    pieces: Pieces
    writer: RunWriter | None
    facts: dict[str, Any]

    def remembered(self, key: str, find: Callable[[], Any]) -> Any:
        """A fact, found once; an evaluation that goes on takes the one of its beginning."""
        if key not in self.facts:
            self.facts[key] = find()
            if self.writer is not None:
                self.writer.write(_FACTS, json.dumps(self.facts).encode())
        return self.facts[key]


@contextmanager
def opened(
    save: str | Path | None,
    about: Mapping[str, Any],
    samples: Samples,
    variant: str,
    seed: int | None,
    thing: str,
    classes: Sequence[str] | None,
    settings: Mapping[str, Any] | None,
) -> Iterator[Place]:
    """Begin a run, or go on with the one that was interrupted.

    Raises:
        RunError: A complete run is there, or one that was begun with other settings.
    """
    if save is None:
        yield Place(Pieces(), None, {})
        return
    path = Path(save)
    outside_runs(path.parent)
    scale = _normalisation(samples[0])
    known = {
        "evaluation": {**about, **scale},
        "thing": thing,
        "classes": list(classes or ()),
        **(settings or {}),
    }
    if (path / "run.json").exists():
        writer = _resumed(path, known)
    else:
        digest = kept(path.parent, samples, thing)
        writer = start_run(
            path.parent, path.name, variant=variant, settings=known, seed=seed, dataset=digest,
            classes=classes or (), thing=thing, mean=scale.get("mean"), std=scale.get("std"),
        )  # fmt: skip
    with writer:
        folder = path / FOLDER
        pieces = Pieces(folder, lambda name, content: writer.write(f"{FOLDER}/{name}", content))
        facts = path / _FACTS
        found = json.loads(facts.read_text()) if facts.exists() else {}
        yield Place(pieces, writer, found)


def _normalisation(sample: Sample) -> dict[str, list[float]]:
    """Mean and standard deviation by which images were normalised, where that is known."""
    if sample.value_range is None:
        return {}
    black, white = (torch.tensor(level, dtype=torch.float64) for level in sample.value_range)
    if len(black) not in (1, 3) or not bool((white > black).all()):
        return {}
    std = 1 / (white - black).expand(3)
    return {"mean": (-black * std).tolist(), "std": std.tolist()}


def _resumed(path: Path, known: Mapping[str, Any]) -> RunWriter:
    run = open_run(path)
    if run.state == "complete":
        raise RunError(f"evaluate: {path} holds a complete run; save= needs a new folder")
    before = dict(run.settings)
    differ = [key for key in known if json.dumps(before.get(key), sort_keys=True, default=str)
              != json.dumps(known[key], sort_keys=True, default=str)]  # fmt: skip
    if differ:
        raise RunError(
            f"evaluate: {path} was begun with another {', '.join(differ)}; "
            "save= to a new folder, or remove this one"
        )
    return resume_run(path)


def kept(root: Path, samples: Samples, thing: str) -> str:
    """Keep images, masks, boxes and labels beside the runs that share them, a few at a time.

    Returns:
        The digest by which a run names them.

    Raises:
        InputError: Images of different sizes.
    """
    return save_dataset(root, _arrays(samples), info={"thing": thing})


def _arrays(samples: Samples) -> Iterator[dict[str, np.ndarray]]:
    """What is kept of the images, in their order."""
    size: tuple[int, ...] | None = None
    for batch in batches(samples, range(len(samples)), 64):
        here = tuple(batch.masks.shape[-2:])
        size = size or here
        if here != size:
            raise InputError(
                f"save: expected images of one size, got {sorted({size, here})}; "
                "resize image and mask to one size, or evaluate without save="
            )
        boxes = sample_columns(batch.samples)[0]
        yield {
            "images": torch.stack([_shown(sample, size) for sample in batch.samples]).numpy(),
            "masks": batch.masks.numpy(),
            "boxes": np.stack([boxes[key] for key in ("x0", "y0", "x1", "y1")], 1),
            "labels": np.array([_label(sample.label) for sample in batch.samples]),
        }


def _shown(sample: Any, size: Sequence[int]) -> torch.Tensor:
    pixels = displayed(sample)
    if tuple(pixels.shape[:2]) == tuple(size):
        return pixels
    h, w = int(size[0]), int(size[1])
    large = torch.nn.functional.interpolate(
        pixels.permute(2, 0, 1)[None].float(), size=(h, w), mode="bilinear", antialias=True
    )
    return large[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)


def _label(label: Any) -> int:
    """A class as a whole number; −1 where there is none."""
    if label is None or (isinstance(label, torch.Tensor) and label.ndim):
        return -1
    return int(label)


def finished(
    place: Place,
    result: Result,
    model: nn.Module,
    answers: Answers,
    samples: Samples,
    rows: int,
) -> Path | None:
    """Complete the run: table, maps, whole attention of a few images, weights, summary."""
    if place.writer is None:
        return None
    writer = place.writer
    _write(writer, result, model)
    if rows:
        _write_rows(writer, result, answers, samples, rows)
    for part in result.parts:
        path = next(iter(place.pieces.folder.glob(f"{part.start:08d}-*")))
        writer.drop(f"{FOLDER}/{path.name}")
    writer.drop(_FACTS)
    run = writer.finish(_summary(result))
    return Path(run.path)


def saved(
    result: Result, path: Any, model: nn.Module | None, settings: Mapping[str, Any] | None
) -> Any:
    """An evaluation that was not saved, as a run without its images."""
    target = Path(path)
    with start_run(
        target.parent, target.name, variant=result.variant, seed=result.seed,
        settings={"thing": result.thing, "classes": list(result.classes), **(settings or {})},
        thing=result.thing, classes=result.classes,
    ) as writer:  # fmt: skip
        _write(writer, result, model)
        return writer.finish(_summary(result))


def _write(writer: RunWriter, result: Result, model: nn.Module | None) -> None:
    writer.samples(result.samples)
    for name in result.maps:
        about = {"layer": result.layers.get(name, ""), "drawn": result.about.get(name, "")}
        writer.maps(name, result.raw(name), about=about)
    if model is not None:
        state = model.state_dict().items()
        writer.weights({name: tensor.detach().cpu().numpy() for name, tensor in state})


def _write_rows(
    writer: RunWriter, result: Result, answers: Answers, samples: Samples, rows: int
) -> None:
    """Whole attention of the first images, for each layer that has a map."""
    names = {layer: name for name, layer in result.layers.items()}
    batch = next(batches(samples, range(min(rows, len(samples))), rows))
    device = next(iter(answers.parameters())).device
    with torch.no_grad(), watch(answers.model, empty=True) as seen:
        answers.model(batch.images.to(device))
    for drawing in drawings(seen):
        record = drawing.records[-1]
        if record.kind != "attention" or record.weights is None or drawing.layer not in names:
            continue
        about = {
            "layer": record.name,
            "query_grid": record.query_grid and list(record.query_grid),
            "key_grid": record.key_grid and list(record.key_grid),
            "prefix": record.prefix,
        }
        writer.rows(drawing.name, record.weights.cpu().numpy(), batch.indices, about=about)


def _summary(result: Result) -> dict[str, Any]:
    found = result.findings
    return {
        "accuracy": None if np.isnan(result.accuracy) else result.accuracy,
        "map": result.primary,
        "thing": result.thing,
        "classes": list(result.classes),
        "layers": dict(result.layers),
        "about": dict(result.about),
        "left_out": dict(result.left_out),
        "unmeasured": dict(result.unmeasured),
        "thresholds": {name: dict(taus) for name, taus in result.thresholds.items()},
        "metrics": result.summary,
        **({} if result.knockout is None else {"knockout": records(result.knockout.table)}),
        **({} if found is None else {"findings": found.as_dicts(), "diagnosis": found.headline}),
    }
