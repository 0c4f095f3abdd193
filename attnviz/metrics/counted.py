"""Scores and thresholds where some pixels of an image count neither as inside nor as outside.

A score is of the pixels that count, taken out of map and mask: another number of pixels for each
image. Metrics of boxes have no score where pixels are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attnviz.errors import InputError
from attnviz.inputs import AnyBoxes
from attnviz.metrics.localization import compute_scores
from attnviz.metrics.options import Options
from attnviz.metrics.registry import METRICS
from attnviz.metrics.thresholds import calibrate_all

BOXES = ("max_box_acc", "max_box_acc_v2")
"""Metrics of boxes."""


def counted_scores(
    maps: Tensor,
    masks: Tensor,
    ignore: Tensor,
    metrics: Sequence[str],
    threshold: Mapping[str, float] | None,
) -> dict[str, Tensor]:
    """Scores of the pixels that count, `(b,)` by metric; NaN as of `attnviz.localization`.

    Args:
        maps: `(b, *places)`.
        masks: `(b, *places)`.
        ignore: `(b, *places)`, True where a pixel does not count.
        metrics: Keys of metrics.
        threshold: By metric.
    """
    options = Options(threshold=dict(threshold or {}))
    found: dict[str, list[Tensor]] = {key: [] for key in metrics}
    for one, mask, without in zip(maps, masks, ignore, strict=True):
        kept, keys = ~without, list(metrics)
        if bool(without.any()):
            one, mask, keys = one[kept][None], mask[kept][None], [k for k in keys if k not in BOXES]
        scores = compute_scores(one[None], mask[None], keys, options)
        for key, column in found.items():
            column.append(scores[key] if key in scores else torch.tensor([torch.nan]).double())
    return {key: torch.cat(column) for key, column in found.items()}


def counted_thresholds(
    maps: Tensor,
    masks: Tensor,
    ignore: Tensor,
    metrics: Sequence[str],
    *,
    grid: int = 100,
    boxes: AnyBoxes | None = None,
) -> dict[str, float]:
    """`attnviz.calibrate_threshold` for several metrics, of the pixels that count.

    A pixel that does not count is given the least value of those that do, and lies in no mask:
    above that value it changes no IoU. At τ = 0, where it would, the IoU is computed without it.
    Metrics of boxes take the images without such pixels, and have no τ where there are none.

    Args:
        maps: `(b, *places)`.
        masks: `(b, *places)`.
        ignore: `(b, *places)`, True where a pixel does not count.
        metrics: Keys of metrics that need a threshold.
        grid: As of `attnviz.calibrate_threshold`.
        boxes: As of `attnviz.calibrate_threshold`.

    Raises:
        InputError: As of `attnviz.calibrate_threshold`.
    """
    whole = ~ignore.flatten(1).any(1)
    if bool(whole.all()):
        return calibrate_all(maps, masks, metrics, grid=grid, boxes=boxes)
    found: dict[str, float] = {}
    of_pixels = [key for key in metrics if key not in BOXES]
    if of_pixels:
        goals = masks & ~ignore
        least = maps.masked_fill(ignore, torch.inf).flatten(1).amin(1)
        least = least.view(-1, *[1] * (maps.ndim - 1))
        found = calibrate_all(torch.where(ignore, least, maps), goals, of_pixels, grid=grid)
        for key, tau in found.items():
            at, of_all = (_mean(maps, goals, ignore, key, one) for one in (tau, 0.0))
            lower = METRICS[key].definition.better == "lower"
            found[key] = 0.0 if (of_all < at if lower else of_all > at) else tau
    of_boxes = [key for key in metrics if key in BOXES]
    if of_boxes and bool(whole.any()):
        chosen = whole.nonzero()[:, 0].tolist()
        own = None if boxes is None else [boxes[image] for image in chosen]
        found |= calibrate_all(maps[whole], masks[whole], of_boxes, grid=grid, boxes=own)
    return found


def _mean(maps: Tensor, masks: Tensor, ignore: Tensor, key: str, tau: float) -> float:
    return float(counted_scores(maps, masks, ignore, [key], {key: tau})[key].nanmean())


def refuse_boxes(metrics: Sequence[str]) -> None:
    """Refuse metrics of boxes where pixels are ignored.

    Raises:
        InputError: There is one.
    """
    wrong = [key for key in metrics if key in BOXES]
    if wrong:
        raise InputError(
            f"ignore: {', '.join(wrong)} is of whole images; leave out the metric, or the images "
            "with ignored pixels"
        )
