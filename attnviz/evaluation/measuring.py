"""One batch through the model: outputs, maps, attributions, and the scores of each map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.attribution import attribute
from attnviz.capture import Record, watch
from attnviz.capture.reductions import NAMED
from attnviz.data.samples import Batch, Sample
from attnviz.evaluation.answers import Answers, Task, columns_of
from attnviz.maps import DrawnMaps, maps_of, resized
from attnviz.metrics import baselines, localization
from attnviz.metrics.counted import BOXES, counted_scores
from attnviz.metrics.reference_levels import LEVELS
from attnviz.places import Layout, placed

NOISE_MAPS = 128
"""Maps of noise for chance, up to four for each mask: more masks need fewer for each."""

KEPT_BYTES = 2**28
"""The most that is kept of the layers of one forward pass for rollout."""


@dataclass(frozen=True)
class Plan:
    """What is computed of every batch.

    Attributes:
        task: The kind of task.
        watch: Options of `watch` that keep just what the maps need.
        maps: Keys of constructions, or None for the primary ones.
        names: The maps that are drawn; None draws those of every layer.
        heads: Metrics by which each head of each map is scored; empty draws no heads.
        attributions: Name of the map → arguments of `attribute`.
        metrics: Keys of localisation metrics.
        thresholds: Map → metric → τ, from the calibration split.
        batch: Images per forward.
        device: Where the model is.
        layout: Places that the caller gave, which stand instead of measured ones.
        proven: Whether proven places will do: nothing is measured if all records have them.
        channels: Which axis of the batch's images holds channels.
    """

    task: Task
    watch: Mapping[str, Any]
    maps: tuple[str, ...] | None
    attributions: Mapping[str, Mapping[str, Any]]
    metrics: tuple[str, ...]
    names: tuple[str, ...] | None = None
    heads: tuple[str, ...] = ()
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    batch: int = 32
    device: str = "cpu"
    layout: Layout | None = None
    proven: bool = False
    channels: int = 1


@dataclass(frozen=True, eq=False)
class Measured:
    """What a batch gave.

    Attributes:
        columns: Column → `(b,)`; scores are named `"<map>/<metric>"`, and those of heads
            `"<map>/<metric>"` → `(b, heads)` in `head_scores`.
        maps: Map → `(b, h, w)` on its own grid, on the CPU.
        heads: Map → `(b, heads, h, w)`, the same head by head.
        head_scores: As `columns`.
        gates: Map → the values of its gate, `(b, c)` or `(b, h, w)`.
    """

    columns: dict[str, np.ndarray]
    maps: dict[str, Tensor]
    heads: dict[str, Tensor]
    head_scores: dict[str, np.ndarray]
    gates: dict[str, Tensor]


def measured(answers: Answers, batch: Batch, plan: Plan) -> Measured:
    """Run a batch through the model once, draw its maps and score them.

    Attributions take the forward and backward passes that their method needs beside that.
    """
    batch = batch.to(plan.device)
    outputs, scores, drawn = watched(answers, batch, plan)
    maps = {name: one.cpu() for name, one in drawn.items()}
    chosen = answers.chosen(scores, batch) if plan.attributions else None
    for name, options in plan.attributions.items():
        levels = {"value_range": batch.samples[0].value_range or (-1.0, 1.0), **options}
        maps[name] = attribute(
            answers, batch.images, target=chosen, size="own", **own_layer(answers, levels)
        ).cpu()
    columns = columns_of(outputs, batch, plan.task)
    for name, one in maps.items():
        found = scored(one, batch, plan.metrics, plan.thresholds.get(name))
        columns |= {f"{name}/{key}": column for key, column in found.items()}
    heads = heads_of(drawn) if plan.heads else {}
    by_head = {
        f"{name}/{key}": column
        for name, one in heads.items()
        for key, column in head_scored(one, batch, plan.heads).items()
    }
    return Measured(columns, maps, heads, by_head, gates_of(drawn))


def heads_of(drawn: DrawnMaps) -> dict[str, Tensor]:
    """`(b, heads, h, w)` of every map of a single layer's attention."""
    return {
        name: drawing.draw(heads="each").cpu()
        for name, drawing in drawn.drawings.items()
        if drawing.construction.per_head
    }


def gates_of(drawn: DrawnMaps) -> dict[str, Tensor]:
    """The values of each gate that has a map: `(b, c)` of channels, `(b, h, w)` of places."""
    found = {}
    for name, drawing in drawn.drawings.items():
        scale = getattr(drawing.records[-1], "scale", None)
        if scale is None or scale.ndim != 4:
            continue
        if scale.shape[2:] == (1, 1):
            found[name] = scale[:, :, 0, 0].float().cpu()
        elif scale.shape[1] == 1:
            found[name] = scale[:, 0].float().cpu()
    return found


def head_scored(heads: Tensor, batch: Batch, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores of each head, `(b, heads)` by metric."""
    by_head = [scored(heads[:, head], batch, metrics, None) for head in range(heads.shape[1])]
    return {key: np.stack([one[key] for one in by_head], 1) for key in by_head[0]}


@dataclass(frozen=True)
class Only:
    """A reduction of `watch` in the layers that need it, and nothing in the others.

    Attributes:
        name: Of the reduction.
        layers: Dotted names of layers.
    """

    name: str
    layers: frozenset[str]

    def __call__(self, record: Record) -> Tensor | None:
        """The reduction of a record, None for one of another layer."""
        return NAMED[self.name](record) if record.name in self.layers else None


def rolled_out(
    options: Mapping[str, Any], records: Mapping[str, Record], batch: int
) -> dict[str, Any]:
    """Options of `watch` for rollout: the mean of the heads of every layer, where memory allows.

    The one row that is read is then multiplied from the last layer to the first. The product of
    all layers, `reduce="rollout"`, takes more time and the memory of one layer.

    Args:
        options: As `watch_options` gives them.
        records: Of one image.
        batch: Images in a forward pass.
    """
    names = tuple(options.get("reduce", ()))
    shapes = [record.shape for record in records.values() if record.kind == "attention"]
    square = {shape[-1] for shape in shapes} == {shape[-2] for shape in shapes}
    if "rollout" not in names or not square or len({shape[-1] for shape in shapes}) != 1:
        return dict(options)
    if 4 * batch * sum(b * n * n for b, _, _, n in shapes) > KEPT_BYTES:
        return dict(options)
    kept = dict.fromkeys("head_mean" if name == "rollout" else name for name in names)
    return {**options, "reduce": tuple(kept)}


def reduced_where_drawn(
    options: Mapping[str, Any], layers: Mapping[str, set[str]]
) -> dict[str, Any]:
    """Options of `watch` that reduce only in layers with a map, where others need whole weights.

    Where none does the reductions are left alone: a fused kernel's weights are then not made whole.

    Args:
        options: As `watch_options` gives them.
        layers: Reduction → layers with a map that reads it.
    """
    names = options.get("reduce", ())
    if not {"rollout", "head_mean"} & set(names):
        return dict(options)
    ways = {
        name: Only(name, frozenset(layers.get(name, ()))) if name in NAMED else name
        for name in names
    }
    return {**options, "reduce": ways}


def watched(answers: Answers, batch: Batch, plan: Plan) -> tuple[Any, Tensor, DrawnMaps]:
    """Outputs, scores and attention maps of one forward pass."""
    needs_graph = bool(plan.watch.get("keep_graph"))
    with (
        torch.set_grad_enabled(needs_graph),
        watch(answers.model, empty=True, **plan.watch) as seen,
    ):
        outputs = answers.model(batch.images)
    scores = answers.scores(outputs)
    explained: dict[str, Any] = {}
    if needs_graph:
        explained = {"outputs": scores, "target": answers.chosen(scores, batch)}
    records = placed(
        answers.model, batch.images, seen, plan.layout, proven=plan.proven, channels=plan.channels
    )
    return outputs, scores.detach(), maps_of(records, plan.maps, only=plan.names, **explained)


def own_layer(answers: Answers, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an attribution, a layer's name being the model's own."""
    layer = options.get("layer")
    if not isinstance(layer, str):
        return dict(options)
    try:
        module: nn.Module = answers.model.get_submodule(layer)
    except AttributeError:
        return dict(options)  # `attribute` names what is wrong
    return {**options, "layer": module}


def scored(
    maps: Tensor, batch: Batch, metrics: Sequence[str], threshold: Mapping[str, float] | None
) -> dict[str, np.ndarray]:
    """The localisation scores of maps at the size of their masks.

    Maps are made larger bilinearly. Metrics that need a threshold are left out without one. Ignored
    pixels are taken out of map and mask before anything is counted.
    """
    keys = usable(metrics, threshold)
    large = resized(maps, tuple(batch.masks.shape[1:]), "bilinear")
    if batch.ignore is None:
        flat = batch.masks.ndim == 3  # boxes are of images
        boxes = [sample.boxes for sample in batch.samples] if flat else None
        scores = localization(
            large, batch.masks, keys, threshold=dict(threshold or {}), boxes=boxes
        )
        return {key: one.numpy() for key, one in scores.items()}
    counted = counted_scores(large, batch.masks, batch.ignore, keys, threshold)
    return {key: one.numpy() for key, one in counted.items()}


def usable(metrics: Sequence[str], threshold: Mapping[str, float] | None) -> list[str]:
    """The metrics that can be computed with these thresholds."""
    from attnviz.metrics import METRICS

    return [key for key in metrics if not METRICS[key].thresholded or key in (threshold or {})]


def reference_levels(
    by_size: Sequence[Tensor],
    grid: Sequence[int],
    metrics: Sequence[str],
    threshold: Mapping[str, float] | None,
    calibration: Tensor | None = None,
    levels: Sequence[str] = LEVELS,
    ignored: Sequence[Tensor | None] = (),
) -> dict[str, dict[str, float]]:
    """Metric → level → its mean over masks of several sizes, for a map on this grid.

    Of metrics of boxes it is the mean over the images without ignored pixels.

    Args:
        by_size: Masks `(b, *places)` of each size; empty ones do not count.
        grid: The map's sides: height and width, of volumes depth before them.
        metrics: Keys of metrics.
        threshold: By metric.
        calibration: Masks of the calibration split, where all are of one size.
        levels: Which levels.
        ignored: Of each size the pixels that do not count, `(b, *places)`, or None.
    """
    parts = _filled(by_size, ignored or [None] * len(by_size))
    count = sum(len(masks) for masks, _ in parts)
    draws = min(4, max(1, NOISE_MAPS // max(1, count)))
    total: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for masks, ignore in parts:
        keys = [key for key in metrics if ignore is None or key not in BOXES]
        found = {} if not keys else baselines(
            masks, grid, keys, threshold=threshold, calibration=calibration, levels=levels,
            draws=draws, ignore=ignore,
        )  # fmt: skip
        for key, means in found.items():
            sums = total.setdefault(key, {})
            counts[key] = counts.get(key, 0) + len(masks)
            for level, value in means.items():
                sums[level] = sums.get(level, 0.0) + value * len(masks)
    return {k: {level: v / counts[k] for level, v in sums.items()} for k, sums in total.items()}


def _filled(
    by_size: Sequence[Tensor], ignored: Sequence[Tensor | None]
) -> list[tuple[Tensor, Tensor | None]]:
    """Masks that are not empty, those of whole images and those with ignored pixels apart."""
    found: list[tuple[Tensor, Tensor | None]] = []
    for masks, ignore in zip(by_size, ignored, strict=True):
        if ignore is None:
            found.append((masks, None))
            continue
        partly = ignore.flatten(1).any(1)
        found += [(masks[~partly], None), (masks[partly] & ~ignore[partly], ignore[partly])]
    kept = [(masks, ignore, masks.flatten(1).any(1)) for masks, ignore in found]
    return [
        (masks[filled], None if ignore is None else ignore[filled])
        for masks, ignore, filled in kept
        if bool(filled.any())
    ]


def sample_columns(samples: Sequence[Sample]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """What is known of the images beside the model: numbers, and columns of text."""
    boxes = np.zeros((len(samples), 4), dtype=np.int64)
    for row, sample in enumerate(samples):
        if sample.boxes is not None and len(sample.boxes):
            boxes[row] = [*sample.boxes[:, :2].amin(0), *sample.boxes[:, 2:].amax(0)]
        elif sample.mask is not None and bool(sample.mask.any()):
            flat = sample.mask.flatten(0, -3).any(0) if sample.mask.ndim > 2 else sample.mask
            y, x = flat.nonzero().unbind(1)
            boxes[row] = [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]
    numbers = {key: boxes[:, n] for n, key in enumerate(("x0", "y0", "x1", "y1"))}
    text = {"name": [s.name for s in samples], "group": [s.group or "" for s in samples]}
    for key in {key for sample in samples for key in sample.extra}:
        text[key] = [str(sample.extra.get(key, "")) for sample in samples]
    return numbers, text
