"""The one threshold for all images that is best on the validation split.

Mean IoU as a function of τ is a staircase with a step at every value of every map. Sorting all of
them at once would need many times the memory of the maps, so the search runs in two passes. The
first counts each map's values in bins; at the edges of the bins the mean IoU is then known
exactly, and within a bin it cannot exceed what the true positives of its lower edge and the false
positives of its upper edge allow. The second pass reads every single value, but only in bins
whose bound reaches the best edge. The result is the exact maximum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from attnviz.errors import InputError, unknown_name
from attnviz.inputs import AnyBoxes, AnyMaps, AnyMasks
from attnviz.metrics.batching import Batch, batches
from attnviz.metrics.options import Options
from attnviz.metrics.overlap import FLAT
from attnviz.metrics.reasons import Reason
from attnviz.metrics.registry import METRICS, check_axes

_BY_VALUE = ("iou", "max_iou")
_BINS = 1024  # a power of two: multiplying by it never rounds, so binning is exact
_ROWS = 256  # maps whose histograms are held at once
_SLACK = 1e-9  # more than sums of a million IoU round by


def calibrate_threshold(
    maps: AnyMaps,
    masks: AnyMasks,
    metric: str = "iou",
    *,
    grid: int = 100,
    boxes: AnyBoxes | None = None,
) -> float:
    """The τ that maximises a metric's mean over these images: to be used on others.

    For the IoU exact over all distinct values of all maps; of the interval of equally good
    thresholds the middle is returned. For the box metrics, whose components change with every
    threshold, and for metrics from outside the package: the best of the `grid` thresholds
    0, 1/grid, 2/grid … (the middle one of equally good ones).

    Images that cannot be scored, such as those with an empty mask, are left out.

    Args:
        maps: Raw maps of the validation split, (b, *places).
        masks: Where the object is, (b, *places).
        metric: A metric that needs a threshold: "iou" (the same as "max_iou"), "max_box_acc",
            "max_box_acc_v2", or one from outside the package.
        grid: The number of thresholds tried for all but IoU.
        boxes: For the box metrics: annotated boxes of each image, as in `max_box_acc`.

    Returns:
        τ in [0, 1], for maps min-max scaled to [0, 1].

    Raises:
        InputError: Wrong shapes, dtypes or devices, an unknown metric, or no image to score.
    """
    return calibrate_all(maps, masks, (metric,), grid=grid, boxes=boxes)[metric]


def calibrate_all(
    maps: AnyMaps,
    masks: AnyMasks,
    metrics: Sequence[str],
    *,
    grid: int = 100,
    boxes: AnyBoxes | None = None,
) -> dict[str, float]:
    """`calibrate_threshold` for several metrics, which share what they can."""
    for metric in metrics:
        if metric not in METRICS or not METRICS[metric].thresholded:
            known = [key for key, one in METRICS.items() if one.thresholded]
            raise unknown_name("thresholded metric", metric, known)
    check_axes(metrics, maps)
    if grid < 1:
        raise InputError(f"grid: expected at least 1 threshold, got {grid}")
    found: dict[str, float] = {}
    by_value = [metric for metric in metrics if metric in _BY_VALUE]
    if by_value:
        found |= dict.fromkeys(by_value, _best_iou_threshold(maps, masks))
    by_grid = [metric for metric in metrics if metric not in _BY_VALUE]
    if by_grid:
        found |= _best_of_grid(maps, masks, by_grid, grid, boxes)
    return found


def _best_of_grid(
    maps: AnyMaps,
    masks: AnyMasks,
    metrics: Sequence[str],
    grid: int,
    boxes: AnyBoxes | None,
) -> dict[str, float]:
    totals = {metric: np.zeros(grid) for metric in metrics}
    for batch in _scorable(maps, masks, boxes):
        for step in range(grid):
            options = Options(threshold=step / grid)
            for metric, total in totals.items():
                scores = METRICS[metric].compute(batch, options)
                way = -1 if METRICS[metric].definition.better == "lower" else 1
                total[step] += way * float(scores.nansum())
    best = {key: np.flatnonzero(total >= total.max() - _SLACK) for key, total in totals.items()}
    return {metric: float(steps[len(steps) // 2]) / grid for metric, steps in best.items()}


def _best_iou_threshold(maps: AnyMaps, masks: AnyMasks) -> float:
    edges, bounds = np.zeros(_BINS + 2), np.zeros(_BINS + 1)
    for batch in _scorable(maps, masks):
        edge, bound = _binned(batch)
        edges += edge
        bounds += bound
    promising = bounds >= edges.max() - _SLACK
    parts = [_events(batch, promising) for batch in _scorable(maps, masks)]
    values, gains = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-values, kind="stable")
    values, gains = values[order], gains[order]
    bins = np.floor(values * _BINS).astype(np.int64)

    # The set at a bin's edge is the set at some value, so the best of the values is the best.
    best, tau = -1.0, 0.0
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(bins)], strict=True):
        inside = values[start:stop]
        total = edges[bins[start] + 1] + np.cumsum(gains[start:stop])
        below = np.append(inside[1:], bins[start] / _BINS)
        last = np.append(inside[:-1] != inside[1:], True)
        at = int(np.where(last, total, -1.0).argmax())
        if total[at] > best:
            best, tau = total[at], _between(below[at], inside[at])
    return float(tau)


def _between(low: float, high: float) -> float:
    middle = (low + high) / 2
    return middle if low < middle <= high else high


def _scorable(maps: AnyMaps, masks: AnyMasks, boxes: AnyBoxes | None = None) -> Iterator[Batch]:
    """Batches of the images that have an IoU at every threshold, at least one."""
    flags = Reason(0)
    found = False
    for batch in batches(maps, masks, boxes=boxes):
        fit = (batch.flags & int(FLAT)) == 0
        for flag in set(batch.flags[~fit].tolist()):
            flags |= Reason(flag) & FLAT
        values, labels = batch.values[fit], batch.labels[fit]
        annotated = tuple(batch.boxes[i] for i in fit.nonzero()[:, 0].tolist() if batch.boxes)
        for part in range(0, len(values), _ROWS):
            found = True
            rows = slice(part, part + _ROWS)
            yield Batch(values[rows], labels[rows], batch.places, annotated[rows])
    if not found:
        why = f": {flags.words}" if flags else ""
        raise InputError(
            f"calibrate_threshold: expected at least one image that can be scored, got none{why}"
        )


def _binned(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The summed IoU at each bin's lower edge, (bins + 1,), and each bin's bound, (bins,)."""
    width = _BINS + 1  # the value 1 has a bin of its own
    rows = torch.arange(len(batch.values), device=batch.values.device)[:, None]
    flat = ((batch.scaled * _BINS).long() + rows * width).view(-1)
    hits = torch.bincount(flat[batch.labels.view(-1)], minlength=len(rows) * width)
    seen = torch.bincount(flat, minlength=len(rows) * width)
    hits, seen = (_from_above(counts.view(-1, width)) for counts in (hits, seen))
    area, false = batch.area[:, None], seen - hits
    edges = (hits.double() / (area + false)).sum(0)
    bounds = (hits[:, :-1].double() / (area + false[:, 1:])).sum(0)
    return edges.cpu().numpy(), bounds.cpu().numpy()


def _from_above(counts: Tensor) -> Tensor:
    """How many lie in a bin or above it, with an empty bin at the end, (b, bins + 1)."""
    summed = counts.flip(1).cumsum(1).flip(1)
    return torch.cat([summed, torch.zeros_like(summed[:, :1])], 1)


def _events(batch: Batch, promising: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values in promising bins, (n,), and by how much the map's IoU changes at each, (n,)."""
    # The scaled values have the order of the raw ones, whose labels the curves hold sorted.
    values = batch.scaled_ascending().flip(1)
    hits = (batch.curves.keys & 1).cumsum(1)
    seen = torch.arange(1, batch.pixels + 1, device=values.device)
    iou = hits.double() / (batch.area[:, None] + seen - hits)
    last = torch.ones_like(values, dtype=torch.bool)
    last[:, :-1] = values[:, 1:] != values[:, :-1]
    row = torch.nonzero(last)[:, 0]
    reached = iou[last]
    gains = reached.diff(prepend=reached.new_zeros(1))
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = row[1:] != row[:-1]
    gains = torch.where(first, reached, gains)
    kept = values[last].cpu().numpy()
    wanted = promising[np.floor(kept * _BINS).astype(np.int64)]
    return kept[wanted], gains.cpu().numpy()[wanted]
