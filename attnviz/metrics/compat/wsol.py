"""The conventions of wsolevaluation, for numbers to be set beside published ones.

Where it differs from `attnviz.metrics`, and why the numbers differ:

| | here, as wsolevaluation | attnviz.metrics |
| --- | --- | --- |
| ends of boxes | inside the box for the IoU, one past it in the estimate | exclusive |
| a perfect 16 × 16 map | IoU 256/289 = .886 | 1 |
| values | cut to 8 bits before the threshold | as they are |
| threshold | τ times the maximum, rounded down, strictly above | a′ ≥ τ |
| which component | largest polygon through its outer centres: a line has none | most places |
| which τ | the best on the test set itself | the best on the validation split |
| PxAP | values in bins of .001, times 100 | every distinct value |
| maps | must lie in [0, 1] | any; scaled where a metric's definition does |

Source: J. Choe et al., "Evaluating weakly supervised object localization methods right", 2020, and
its code at github.com/clovaai/wsolevaluation, version 1 (`MaxBoxAcc`) and 2 (three overlaps).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnviz.errors import InputError
from attnviz.inputs import AnyMaps, AnyMasks, as_tensor, maps_with_masks, no_masks
from attnviz.metrics.boxes import box_iou, components


def inclusive_iou(
    ours: Int[np.ndarray, "n 4"], theirs: Int[np.ndarray, "m 4"]
) -> Float[np.ndarray, "n m"]:
    """IoU of every box with every other, both ends belonging to the box.

    Args:
        ours: Boxes `[x0, y0, x1, y1]`, (n, 4).
        theirs: Boxes, (m, 4).

    Returns:
        IoU, (n, m) float64.

    Raises:
        InputError: A box whose ends stand the wrong way round.
    """
    for boxes in (ours, theirs):
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise InputError("boxes: expected x0 <= x1 and y0 <= y1 in all of them")
    pairs = np.broadcast_to(ours[:, None], (len(ours), len(theirs), 4)).reshape(-1, 4)
    return box_iou(pairs, np.tile(theirs, (len(ours), 1)), inclusive=True).reshape(len(ours), -1)


def estimated_boxes(
    score_map: Float[np.ndarray, "h w"], thresholds: Sequence[float] | Float[np.ndarray, "t"]
) -> Int[np.ndarray, "t 4"]:
    """The box that each threshold draws around the largest contour of a map.

    Args:
        score_map: A map with values in [0, 1], (h, w).
        thresholds: Shares of the map's maximum.

    Returns:
        Boxes, (t, 4) int64, `[x0, y0, x1, y1]` with the ends one past the contour but inside the
        map; zeros where nothing lies above the threshold.

    Raises:
        InputError: Values outside [0, 1], or NaN.
    """
    if not (np.isfinite(score_map).all() and score_map.min() >= 0 and score_map.max() <= 1):
        raise InputError("score_map: expected values in [0, 1]; scale the map first")
    grey = (score_map * 255).astype(np.uint8)
    limits = [int(threshold * int(grey.max())) for threshold in thresholds]
    drawn = {limit: _largest_contour_box(grey > limit) for limit in set(limits)}
    return np.array([drawn[limit] for limit in limits], dtype=np.int64).reshape(-1, 4)


def max_box_acc(
    maps: AnyMaps,
    boxes: Sequence[Int[np.ndarray, "_ 4"]],
    *,
    interval: float = 0.001,
    overlaps: Sequence[float] = (0.5,),
) -> float:
    """The percentage of maps whose box fits, at the threshold that is best for these very maps.

    Args:
        maps: Maps with values in [0, 1], (b, h, w).
        boxes: The boxes of each image, ends inclusive; fitting one of them suffices.
        interval: The step between thresholds.
        overlaps: The IoU to be reached; over several (V2: .3, .5, .7) the best percentages of
            each are averaged.

    Returns:
        A percentage, 0 to 100.

    Raises:
        InputError: Values outside [0, 1], a wrong number of boxes or a wrong shape.
    """
    values = maps_with_masks(maps, no_masks(maps))[0].double().cpu().numpy()
    if len(boxes) != len(values) or not len(values):
        raise InputError(f"boxes: expected those of {len(values)} images, got {len(boxes)}")
    thresholds = np.arange(0, 1, interval)
    fit = np.stack(
        [
            inclusive_iou(estimated_boxes(score_map, thresholds), goals).max(1)
            for score_map, goals in zip(values, boxes, strict=True)
        ]
    )
    return float(np.mean([(fit >= overlap).mean(0).max() * 100 for overlap in overlaps]))


def pxap(
    maps: AnyMaps,
    masks: AnyMasks,
    *,
    ignore: Bool[Tensor, "b h w"] | Bool[np.ndarray, "b h w"] | None = None,
    interval: float = 0.001,
) -> float:
    """The average precision of all pixels, from a histogram, times 100.

    Args:
        maps: Maps with values in [0, 1], (b, h, w).
        masks: Where the thing to be found is, (b, h, w).
        ignore: Pixels that do not count, (b, h, w).
        interval: The width of a bin.

    Returns:
        A percentage, 0 to 100. The step from nothing to the highest bin, which no threshold
        below 1 can part, is left out there as it is here.

    Raises:
        InputError: Values outside [0, 1], wrong shapes, or no pixel inside a mask.
    """
    values, labels = (tensor.cpu().numpy() for tensor in maps_with_masks(maps, masks))
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise InputError("maps: expected values in [0, 1]; scale the maps first")
    counted = np.ones_like(labels) if ignore is None else ~as_tensor(ignore, "ignore").cpu().numpy()
    edges = np.append(np.arange(0, 1, interval), [1.0, 2.0, 3.0])
    inside, outside = (
        np.histogram(values[counted & where], bins=edges)[0][::-1].cumsum()
        for where in (labels, ~labels)
    )
    if not inside[-1]:
        raise InputError("masks: expected at least one pixel inside, got none")
    seen = inside + outside
    precision = inside / np.maximum(seen, 1)
    return float(np.sum((precision[1:] * np.diff(inside / inside[-1]))[seen[1:] > 0]) * 100)


def _largest_contour_box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """The box of the component whose outer contour has the largest area; of equals the last."""
    labelled, owner = components(mask[None])
    best, box = -1.0, (0, 0, 0, 0)
    for i in range(len(owner)):
        one = labelled[0] == i + 1
        area = _contour_area(one)
        if area >= best:
            y, x = np.nonzero(one)
            ends = (
                min(int(x.max()) + 1, mask.shape[1] - 1),
                min(int(y.max()) + 1, mask.shape[0] - 1),
            )
            best, box = area, (int(x.min()), int(y.min()), *ends)
    return box


def _contour_area(component: Bool[np.ndarray, "h w"]) -> float:
    """The area of the polygon through the centres of a component's outer pixels.

    Summed over all squares of four neighbouring centres: one that is all inside counts 1, one with
    three inside a half, for the contour cuts its corner.
    """
    from scipy import ndimage

    fill = ndimage.binary_fill_holes
    filled = np.asarray(fill(component), dtype=np.int64)
    corners = filled[1:, 1:] + filled[1:, :-1] + filled[:-1, 1:] + filled[:-1, :-1]
    return float((corners == 4).sum() + 0.5 * (corners == 3).sum())
