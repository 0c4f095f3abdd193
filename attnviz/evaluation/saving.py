"""An evaluation as a run folder: begun before the work, so that it can go on after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from attnviz.capture import watch
from attnviz.comparison.text import records
from attnviz.data.samples import (
    Sample,
    Samples,
    batches,
    channel_axis,
    checked,
    displayed,
    scored_size,
)
from attnviz.data.scenes import box_of
from attnviz.errors import InputError, RunError
from attnviz.evaluation.answers import Answers
from attnviz.evaluation.measuring import Plan, sample_columns
from attnviz.evaluation.pieces import FOLDER, Pieces
from attnviz.maps import drawings, resized
from attnviz.places import placed
from attnviz.runs import open_run, resume_run, save_dataset, start_run
from attnviz.runs.documents import plain
from attnviz.runs.outputs import outside_runs
from attnviz.runs.records import kept_of
from attnviz.runs.tensors import to_bytes
from attnviz.runs.writer import RunWriter

_FACTS = "evaluation.json"

_SPOKEN = {"data": "data set (its images, masks, labels or groups)", "calibration": "calibration"}
"""What a message calls parts of an evaluation's identity."""

IGNORED, BOXES, MODEL_IMAGES = "ignored pixels", "annotated boxes", "the model's images"
"""What of a data set a run may lack, as it is noted in its settings."""

TOGETHER = 64
"""Images that are read, and kept, at a time."""

HEAD_SCORES = "head_scores.safetensors"
"""The file of a run with each head's score of each image, `"<map>/<metric>"` → `(n, heads)`."""

ROWS_BYTES = 128 << 20
"""What the whole attention that a run keeps may take: 24 images of 4 × 576 × 576 in float32."""


Result: TypeAlias = Any
"""An `Evaluation`, whose file lies above this one."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The whole attention of a few images in one layer.

    Attributes:
        weights: `(k, heads, q, keys)`.
        images: Their numbers; windows of one image share it.
        about: What it takes to read them: the layer, and how tokens lie; see `attnviz.runs`.
    """

    weights: np.ndarray
    images: tuple[int, ...]
    about: Mapping[str, Any]


@dataclass
class Place:
    """Where an evaluation keeps what it has done.

    Attributes:
        pieces: The pieces of the data set.
        writer: The run, None for an evaluation that is not saved.
        facts: What was found out before the pieces and is not found out again.
        shared: Whether the run holds more than this evaluation, and is finished elsewhere.
    """

    pieces: Pieces
    writer: RunWriter | None
    facts: dict[str, Any]
    shared: bool = False

    def remembered(self, key: str, find: Callable[[], Any]) -> Any:
        """A fact, found once; an evaluation that goes on takes the one of its beginning."""
        if key not in self.facts:
            self.facts[key] = find()
            if self.writer is not None:
                self.writer.write(_FACTS, json.dumps(self.facts).encode())
        return self.facts[key]


@contextmanager
def opened(
    save: str | Path | RunWriter | None,
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
    if isinstance(save, RunWriter):
        yield _shared(save, about)
        return
    path = Path(save)
    outside_runs(path.parent)
    if path.exists() and not path.is_dir():
        raise RunError(f"evaluate: {path} is a file; save= needs a folder for the run (--out)")
    if path.is_dir() and not (path / "run.json").exists() and any(path.iterdir()):
        raise RunError(
            f"evaluate: {path} holds files that are no run; save= needs a new folder (--out)"
        )
    scale = _normalisation(samples[0])
    known = {
        "evaluation": {**about, **scale},
        "thing": thing,
        "classes": list(classes or ()),
        "target": about["target"],
        **(settings or {}),
    }
    if (path / "run.json").exists():
        writer = _resumed(path, known, variant, seed)
    else:
        digest, lacks = kept(path.parent, samples, thing)
        if lacks:
            known["evaluation"] |= {"lacks": lacks}
        writer = start_run(
            path.parent, path.name, variant=variant, settings=known, seed=seed, dataset=digest,
            classes=classes or (), thing=thing, mean=scale.get("mean"), std=scale.get("std"),
        )  # fmt: skip
    with writer:
        yield Place(_pieces_of(writer), writer, _facts_of(writer))


def _pieces_of(writer: RunWriter) -> Pieces:
    return Pieces(
        writer.path / FOLDER, lambda name, content: writer.write(f"{FOLDER}/{name}", content)
    )


def _facts_of(writer: RunWriter) -> dict[str, Any]:
    path = writer.path / _FACTS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _shared(writer: RunWriter, about: Mapping[str, Any]) -> Place:
    """A place in a run of someone else; what another evaluation left there is removed."""
    known = json.loads(json.dumps(dict(about), default=str))
    if _facts_of(writer).get("evaluation") != known:
        _dropped(writer)
        writer.write(_FACTS, json.dumps({"evaluation": known}).encode())
    return Place(_pieces_of(writer), writer, _facts_of(writer), shared=True)


def _dropped(writer: RunWriter) -> None:
    """Remove what an evaluation keeps to go on after an interruption."""
    for path in sorted((writer.path / FOLDER).glob("*")):
        writer.drop(f"{FOLDER}/{path.name}")
    if (writer.path / _FACTS).exists():
        writer.drop(_FACTS)
    with suppress(OSError):
        (writer.path / FOLDER).rmdir()


def _normalisation(sample: Sample) -> dict[str, list[float]]:
    """Mean and standard deviation by which images were normalised, where that is known."""
    if sample.value_range is None:
        return {}
    black, white = (torch.tensor(level, dtype=torch.float64) for level in sample.value_range)
    if len(black) not in (1, 3) or not bool((white > black).all()):
        return {}
    std = 1 / (white - black).expand(3)
    return {"mean": (-black * std).tolist(), "std": std.tolist()}


def _resumed(path: Path, known: Mapping[str, Any], variant: str, seed: int | None) -> RunWriter:
    """The writer of an interrupted run; what its version did not note yet is not compared.

    Raises:
        RunError: It is complete, or was begun with something else.
    """
    run = open_run(path)
    if run.state == "complete":
        raise RunError(f"evaluate: {path} holds a complete run; save= needs a new folder (--out)")
    noted = dict(run.settings)
    inner = noted.get("evaluation")
    evaluation = {**known["evaluation"], **(inner if isinstance(inner, Mapping) else {})}
    before = {"target": known["target"], **noted, "evaluation": evaluation}
    same = {"variant": run.variant == variant, "seed": run.seed == seed}
    differ = [key for key, agrees in same.items() if not agrees]
    differ += [key for key in known if key != "evaluation" and _other(before.get(key), known[key])]
    differ += [
        _SPOKEN.get(key, f"evaluation ({key})")
        for key, value in known["evaluation"].items()
        if key not in ("target", "mean", "std") and _other(evaluation[key], value)
    ]
    if differ:
        raise RunError(
            f"evaluate: {path} was begun with another {', '.join(differ)}; "
            "save= to a new folder, or remove this one"
        )
    return resume_run(path)


def _other(one: Any, value: Any) -> bool:
    """Whether two settings differ as a run's header holds them."""
    first, second = (json.dumps(each, sort_keys=True, default=str) for each in (one, value))
    return first != second


def kept(root: Path, samples: Samples, thing: str) -> tuple[str, list[str]]:
    """Keep images, masks, boxes and labels beside the runs that share them, a few at a time.

    Returns:
        The digest by which a run names them, and what of the data is not kept: `IGNORED`, `BOXES`,
        `MODEL_IMAGES`.
    """
    lacks: set[str] = set()
    info = {"thing": thing}
    if samples[0].image.ndim == 4:
        video = channel_axis(samples[0]) == 1
        info["axis"] = str(getattr(samples, "axis", "frame" if video else "slice"))
    digest = save_dataset(root, _arrays(samples, lacks), info=info)
    return digest, sorted(lacks)


def _arrays(samples: Samples, lacks: set[str]) -> Iterator[dict[str, np.ndarray]]:
    """What is kept of the images, in their order; neighbours of one size together.

    Args:
        samples: The data set.
        lacks: What is not kept is added here.
    """
    scales = _scales(samples[0])
    alike: list[Sample] = []
    for index in range(len(samples)):
        sample = checked(samples[index], index)
        if alike and (scored_size(sample) != scored_size(alike[0]) or len(alike) == TOGETHER):
            yield _kept(alike)
            alike = []
        alike.append(sample)
        if sample.ignore is not None and bool(sample.ignore.any()):
            lacks.add(IGNORED)
        if sample.boxes is not None and not _is_boxed(sample):
            lacks.add(BOXES)
        scales = [scale for scale in scales if _gives_back(sample, *scale)]
        if not scales:
            lacks.add(MODEL_IMAGES)
    yield _kept(alike)


def _is_boxed(sample: Sample) -> bool:
    """Whether the box of the mask is the only one that was annotated: then it says all of them."""
    if sample.boxes is None or len(sample.boxes) != 1 or sample.mask is None:
        return False
    return sample.mask.ndim == 2 and box_of(sample.mask) == sample.boxes[0].tolist()


def _scales(sample: Sample) -> list[tuple[Sequence[float], Sequence[float]]]:
    """Mean and standard deviation by which a data set's images may be normalised.

    Where that is not known they may be shades, from 0 to 1 or from −1 to 1, as `displayed` takes
    them.
    """
    known = _normalisation(sample)
    return [(known["mean"], known["std"])] if known else [((0.0,), (1.0,)), ((0.5,), (0.5,))]


def _gives_back(sample: Sample, mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether a picture as it is kept, normalised, is the image that the model took.

    It is kept as bytes, and within 0 to 1: up to a shade in the mean.
    """
    if sample.image.ndim == 4:
        return True  # volumes are never given to a model again
    shares = _shown(sample, scored_size(sample)).permute(2, 0, 1).float() / 255
    if shares.shape != sample.image.shape:
        return False
    scale = [torch.tensor(list(one)).view(-1, 1, 1) for one in (mean, std)]
    own = sample.image.detach().cpu().float() * scale[1] + scale[0]
    return float((own - shares).abs().mean()) <= 1 / 255


def _kept(alike: Sequence[Sample]) -> dict[str, np.ndarray]:
    boxes = sample_columns(alike)[0]
    size = scored_size(alike[0])
    nothing = torch.zeros(size, dtype=torch.bool)
    return {
        "images": torch.stack([_shown(sample, size) for sample in alike]).numpy(),
        "masks": torch.stack([nothing if one.mask is None else one.mask for one in alike]).numpy(),
        "boxes": np.stack([boxes[key] for key in ("x0", "y0", "x1", "y1")], 1),
        "labels": np.array([_label(sample.label) for sample in alike]),
    }


def _shown(sample: Any, size: Sequence[int]) -> torch.Tensor:
    pixels = displayed(sample)
    if tuple(pixels.shape[:-1]) == tuple(size):
        return pixels
    if len(size) == 3:
        large = resized(pixels.movedim(-1, 0).float(), tuple(size), "bilinear")
        return large.movedim(0, -1).round().clamp(0, 255).to(torch.uint8)
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


def finished(place: Place, result: Result, model: nn.Module) -> Path | None:
    """Complete the run: table, maps, weights, summary; nothing where others finish it."""
    if place.writer is None or place.shared:
        return None
    written(result, place.writer, model)
    return Path(place.writer.finish(summary_of(result)).path)


def saved(
    result: Result, path: Any, model: nn.Module | None, settings: Mapping[str, Any] | None
) -> Any:
    """An evaluation that was not saved, as a run without its images."""
    target = Path(path)
    with start_run(
        target.parent, target.name, variant=result.variant, seed=result.seed,
        settings={
            "thing": result.thing, "classes": list(result.classes), "target": result.target,
            **(settings or {}),
        },
        thing=result.thing, classes=result.classes,
    ) as writer:  # fmt: skip
        written(result, writer, model)
        return writer.finish(summary_of(result))


def written(result: Result, writer: RunWriter, model: nn.Module | None) -> None:
    """Put everything but the summary into a run, and remove the pieces that it was made of."""
    writer.samples(result.samples)
    held = set(result.pieces.names(result.parts))
    for name in result.maps:
        about: dict[str, Any] = {
            "layer": result.layers.get(name, ""),
            "drawn": result.about.get(name, ""),
            **kept_options(result.options.get(name, {})),
        }
        about |= several_grids(result.pieces.joined(f"grid/{name}", result.parts))
        writer.maps(name, result.raw(name), about=about)
        if f"heads/{name}" in held:
            writer.maps(f"{name}.heads", result.pieces.joined(f"heads/{name}", result.parts), about)
        if f"gates/{name}" in held:
            writer.gates(name, result.pieces.joined(f"gates/{name}", result.parts), about)
    if result.by_head:
        writer.write(HEAD_SCORES, to_bytes(result.by_head))
    for name, rows in result.rows.items():
        writer.rows(name, rows.weights, rows.images, about=rows.about)
    if model is not None:
        state = model.state_dict().items()
        writer.weights({name: tensor.detach().cpu().numpy() for name, tensor in state})
    if result.pieces.folder == writer.path / FOLDER:
        _dropped(writer)


def kept_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `attribute` as a run can hold them.

    Args:
        options: The arguments.

    Returns:
        Those that JSON can hold; and under `"not_kept"` the names of the others, such as a tensor.
    """
    kept: dict[str, Any] = {}
    for name, value in options.items():
        with suppress(InputError):
            kept[name] = plain(value, name)
    lost = sorted(options.keys() - kept.keys())
    return kept | ({"not_kept": lost} if lost else {})


def several_grids(grids: np.ndarray) -> dict[str, Any]:
    """What is noted beside maps that were resized to one grid: the grids that they had.

    Args:
        grids: `(n, 2)`, each map's own height and width.
    """
    found = np.unique(grids.astype(int), axis=0).tolist()
    return {"grids": found} if len(found) > 1 else {}


def whole_attention(
    answers: Answers, samples: Samples, plan: Plan, layers: Mapping[str, str], count: int
) -> dict[str, Rows]:
    """The whole attention of the first images in each layer that has a map.

    Args:
        answers: The model.
        samples: The data set.
        plan: What was computed: the device and given places.
        layers: Map → the dotted name of its layer.
        count: How many images; fewer where they would take more than `ROWS_BYTES`.
    """
    with torch.no_grad(), watch(answers.model, empty=True, reduce=("received",)) as seen:
        answers.model(samples[0].image[None].to(plan.device))
    size = attention_bytes(seen)
    first = [k for k in range(min(count, len(samples))) if _alike(samples[k], samples[0])]
    first = first[: ROWS_BYTES // max(1, size)]
    if not size or not first:
        return {}
    (batch,) = batches(samples, first, len(first))
    images = batch.images.to(plan.device)
    with torch.no_grad(), watch(answers.model, empty=True) as seen:
        answers.model(images)
    known = placed(
        answers.model, images, seen, plan.layout, proven=plan.proven, channels=plan.channels
    )
    found: dict[str, Rows] = {}
    for drawing in drawings(known):
        record = drawing.records[-1]
        names = [name for name, layer in layers.items() if layer == record.name]
        if drawing.construction.subject != "attention" or record.weights is None or not names:
            continue
        name = drawing.name if drawing.name in names else names[0]
        kept = kept_of(record)
        if kept is not None:
            numbers = tuple(batch.indices[image] for image in kept.images)
            found[name] = Rows(kept.values, numbers, kept.about)
    return found


def attention_bytes(seen: Mapping[str, Any]) -> int:
    """What the weights of one image take in float32, those of all layers together."""
    shapes = [one.shape for one in seen.values() if one.kind == "attention" and one.shape]
    return sum(4 * math.prod(shape) for shape in shapes)  # of windows the first axis counts some


def _alike(one: Sample, other: Sample) -> bool:
    return one.image.shape == other.image.shape and (
        (one.mask is None) == (other.mask is None)
        and (one.mask is None or other.mask is None or one.mask.shape == other.mask.shape)
    )


def summary_of(result: Result) -> dict[str, Any]:
    """An evaluation as a run's summary."""
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
        "chosen": {key: dict(one) for key, one in result.chosen.items()},
        "metrics": result.summary,
        **({} if result.heads.empty else {"heads": records(result.heads)}),
        **({} if result.knockout is None else {"knockout": records(result.knockout.table)}),
        **({} if found is None else {"findings": found.as_dicts(), "diagnosis": found.headline}),
    }
