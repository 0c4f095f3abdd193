"""Bounding boxes of thresholded maps, scored against the boxes of the mask.

The ends of boxes are exclusive. Neighbours count along diagonals too (8-connectivity), as in the
contours of the paper's own evaluation. A map's box is scored against the annotated box with the
largest IoU. Without annotated boxes each component of the mask has one; objects that touch, if only
at a corner, are then a single component, so annotated boxes should be given where there are any.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from attnviz.definitions import DEFINITIONS
from attnviz.errors import InputError
from attnviz.inputs import AnyBoxes, AnyMaps, AnyMasks
from attnviz.metrics.batching import Batch, score
from attnviz.metrics.options import check_threshold
from attnviz.metrics.overlap import FLAT
from attnviz.metrics.registry import check_axes, metric
from attnviz.metrics.row_kernels import at_least
from attnviz.shapes import Scores

V2 = (0.3, 0.5, 0.7)
"""The overlaps over which MaxBoxAccV2 averages."""

_FEW = 8
"""Places for each end of a run from which runs are quicker than places."""


@metric(
    DEFINITIONS["max_box_acc"],
    batched=lambda batch, options: box_hits_of(batch, threshold=options.tau("max_box_acc")),
    blocked=FLAT,
    planar=True,
)
def max_box_acc(
    maps: AnyMaps,
    masks: AnyMasks,
    *,
    threshold: int | float,
    overlap: float = 0.5,
    boxes: AnyBoxes | None = None,
) -> Scores:
    """Whether the box of the map's largest component fits a box of an object: 1 or 0 per image.

    The map, min-max scaled, is cut at τ; the box of its largest component must reach an IoU of
    `overlap` with an annotated box, or with the box of a component of the mask. The mean over a
    test set is MaxBoxAcc, if τ is the one for all images that was best on the validation split:
    `calibrate_threshold(maps, masks, "max_box_acc")`.

    Source: J. Choe et al., "Evaluating weakly supervised object localization methods right", 2020,
    which takes the maximum over τ on the test set itself.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the object is, (b, h, w).
        threshold: τ in [0, 1].
        overlap: The IoU from which a box counts as found.
        boxes: Annotated boxes of the objects of each image, (k, 4) whole pixels
            `[x0, y0, x1, y1)`; None takes the boxes of the mask's components, for all images or
            as an entry for one.

    Returns:
        Scores, 0 or 1, higher is better; NaN where the map is constant or the mask empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or a number outside [0, 1].
    """
    check_axes(["max_box_acc"], maps)
    check_threshold(threshold)
    if not 0 < overlap <= 1:
        raise InputError(f"overlap: expected an IoU in (0, 1], got {overlap}")
    return score(
        maps,
        masks,
        lambda batch: box_hits_of(batch, threshold=threshold, levels=(overlap,)),
        blocked=FLAT,
        boxes=boxes,
    )


@metric(
    DEFINITIONS["max_box_acc_v2"],
    batched=lambda batch, options: box_hits_of(
        batch, threshold=options.tau("max_box_acc_v2"), levels=V2
    ),
    blocked=FLAT,
    planar=True,
)
def max_box_acc_v2(
    maps: AnyMaps, masks: AnyMasks, *, threshold: int | float, boxes: AnyBoxes | None = None
) -> Scores:
    """`max_box_acc` averaged over the overlaps .3, .5 and .7.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the object is, (b, h, w).
        threshold: τ in [0, 1].
        boxes: As in `max_box_acc`.

    Returns:
        Scores 0, 1/3, 2/3 or 1, higher is better; NaN where the map is constant or the mask empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or τ outside [0, 1].
    """
    check_axes(["max_box_acc_v2"], maps)
    check_threshold(threshold)
    return score(
        maps,
        masks,
        lambda batch: box_hits_of(batch, threshold=threshold, levels=V2),
        blocked=FLAT,
        boxes=boxes,
    )


def box_hits_of(
    batch: Batch, *, threshold: int | float, levels: tuple[float, ...] = (0.5,)
) -> Tensor:
    """The share of the overlaps that the box of each map reaches, (b,) float64."""
    fit = batch.once(("box", threshold), lambda: _box_fit(batch, threshold))
    hits = torch.stack([fit >= level for level in levels]).double()
    return hits.mean(0)


def _box_fit(batch: Batch, threshold: int | float) -> Tensor:
    chosen = at_least(batch.scaled, threshold).view(-1, *batch.places).cpu().numpy()
    goals = batch.once("goal boxes", lambda: _goals(batch)).numpy()
    ours, owner = largest_boxes(chosen), goals[:, 0]
    fit = np.zeros(len(ours))
    np.maximum.at(fit, owner, box_iou(ours[owner], goals[:, 1:]))
    return torch.from_numpy(fit).to(batch.values.device)


def largest_boxes(masks: np.ndarray) -> np.ndarray:
    """The box of each mask's largest component; of equals the first by rows; zeros where none.

    Args:
        masks: (b, h, w), bool.

    Returns:
        Half-open boxes, (b, 4) int64.
    """
    _, height, width = masks.shape
    rows = np.zeros((len(masks), height + 1, width + 2), dtype=np.int8)  # an empty row, two columns
    rows[:, :height, 1:-1] = masks
    flat = rows.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if len(edges) * _FEW < flat.size:
        return _largest_of_runs(edges[::2], edges[1::2], rows.shape)
    return _largest_of_places(masks)


def _largest_of_runs(
    starts: np.ndarray, ends: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """`largest_boxes` from the runs of true places in rows, numbered through all masks.

    Args:
        starts: Where each run begins, in ascending order, (n,).
        ends: Where it ends, exclusive, (n,).
        shape: Of the masks with an empty row below and an empty column on each side.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    count, height, width = shape
    boxes = np.zeros((count, 4), dtype=np.int64)
    runs = len(starts)
    if not runs:
        return boxes
    low = np.searchsorted(ends, starts + width, "left")  # touching runs of the next row, diagonally
    below = np.maximum(np.searchsorted(starts, ends + width, "right") - low, 0)
    until = np.cumsum(below)
    lower = np.arange(until[-1]) - np.repeat(until - below - low, below)
    pairs = (np.ones(len(lower)), lower.astype(np.int32), np.append(0, until).astype(np.int32))
    total, label = connected_components(csr_array(pairs, shape=(runs, runs)), directed=False)
    areas = np.bincount(label, weights=ends - starts, minlength=total)
    first = np.full(total, runs)
    np.minimum.at(first, label, np.arange(runs))
    owner = starts[first] // (height * width)
    best = np.lexsort((first, -areas, owner))
    best = best[np.diff(owner[best], prepend=-1) > 0]
    mine = np.full(total, -1)
    mine[best] = owner[best]
    kept = mine[label] >= 0
    mask, start = mine[label][kept], starts[kept] % (height * width)
    y, x = start // width, start % width - 1
    boxes[owner[best]] = (width, height, 0, 0)
    np.minimum.at(boxes[:, 0], mask, x)
    np.minimum.at(boxes[:, 1], mask, y)
    np.maximum.at(boxes[:, 2], mask, x + (ends - starts)[kept])
    np.maximum.at(boxes[:, 3], mask, y + 1)
    return boxes


def _largest_of_places(masks: np.ndarray) -> np.ndarray:
    """`largest_boxes` place by place, quicker where runs are short."""
    labelled, owner = components(masks)
    if not len(owner):
        return np.zeros((len(masks), 4), dtype=np.int64)
    areas = np.bincount(labelled.ravel())[1:]
    most = np.zeros(len(masks), dtype=np.int64)
    np.maximum.at(most, owner, areas)
    ties = np.flatnonzero(areas == most[owner])[::-1]
    chosen = np.full(len(masks), -1, dtype=labelled.dtype)
    chosen[owner[ties]] = ties + 1  # the last write, which stays, is the first component
    return _boxes_around(labelled == chosen[:, None, None])


def component_boxes(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of all 8-connected components of some masks.

    Args:
        masks: (b, h, w), bool.

    Returns:
        For each of n components its mask (n,) and its box `[x0, y0, x1, y1)` (n, 4).
    """
    around = _boxes_around(masks)
    sizes = np.prod(around[:, 2:] - around[:, :2], axis=1)
    held = np.count_nonzero(masks, axis=(1, 2))
    whole = held == sizes  # a mask that fills its box needs no search
    owner, found = _searched_boxes(masks[~whole])
    single = np.flatnonzero(whole & (held > 0))
    return (
        np.concatenate([single, np.flatnonzero(~whole)[owner]]),
        np.concatenate([around[single], found]),
    )


def _searched_boxes(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy import ndimage

    labelled, owner = components(masks)
    if not len(owner):
        return owner, np.zeros((0, 4), dtype=np.int64)
    spans = ndimage.find_objects(labelled)
    boxes = [(x.start, y.start, x.stop, y.stop) for _, y, x in spans]
    return owner, np.array(boxes, dtype=np.int64).reshape(-1, 4)


def box_iou(ours: np.ndarray, theirs: np.ndarray, *, inclusive: bool = False) -> np.ndarray:
    """Intersection over union of boxes, pair by pair.

    Args:
        ours: Boxes `[x0, y0, x1, y1)`, (n, 4).
        theirs: As many, (n, 4).
        inclusive: Whether x1 and y1 belong to the box, as wsolevaluation has it.

    Returns:
        IoU, (n,) float64; 0 where both are empty.
    """
    extra = int(inclusive)
    low = np.maximum(ours[:, :2], theirs[:, :2])
    high = np.minimum(ours[:, 2:], theirs[:, 2:])
    both = np.prod(np.clip(high - low + extra, 0, None), axis=1)
    sizes = [np.prod(boxes[:, 2:] - boxes[:, :2] + extra, axis=1) for boxes in (ours, theirs)]
    union = sizes[0] + sizes[1] - both
    return np.asarray(both / np.maximum(union, 1), dtype=np.float64)


def _goals(batch: Batch) -> Tensor:
    """The boxes of all objects, after the number of their image: (n, 5) int64."""
    masks = batch.masks.cpu().numpy()
    given = {i: boxes for i, boxes in enumerate(batch.boxes) if boxes is not None}
    drawn = np.array([i not in given for i in range(len(masks))], dtype=bool)
    owner, goals = component_boxes(masks[drawn])
    owners = [np.flatnonzero(drawn)[owner], *(np.full(len(one), i) for i, one in given.items())]
    owner, goals = np.concatenate(owners), np.concatenate([goals, *given.values()])
    return torch.from_numpy(np.concatenate([owner[:, None], goals], 1).astype(np.int64))


def components(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8-connected components of some masks, numbered by where they begin.

    Args:
        masks: (b, h, w), bool.

    Returns:
        Each place's component from 1, 0 for none, (b, h, w); and the mask of component i + 1 at i.
    """
    from scipy import ndimage

    around = np.zeros((3, 3, 3), dtype=bool)
    around[1] = True  # neighbours within a mask, never across masks
    labelled, _ = ndimage.label(masks, around)
    last = np.maximum.accumulate(labelled.max((1, 2)))  # in the order of the masks
    return labelled, np.repeat(np.arange(len(masks)), np.diff(last, prepend=0))


def _boxes_around(masks: np.ndarray) -> np.ndarray:
    """The boxes `[x0, y0, x1, y1)` around masks, (b, 4); zeros for an empty mask."""
    sides = []
    for axis in (1, 2):  # columns that hold something, then rows
        held: np.ndarray = np.any(masks, axis=axis)
        some: np.ndarray = np.any(held, axis=1)
        sides.append((held.argmax(1), (held.shape[1] - held[:, ::-1].argmax(1)) * some))
    (x0, x1), (y0, y1) = sides
    return np.stack([x0, y0, x1, y1], axis=1).astype(np.int64)
