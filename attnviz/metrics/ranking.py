"""What depends on the order of a map's values alone: no sign, no scale, no threshold.

Each takes the values as they are. Whoever wants the order of sizes passes `maps.abs()`. Ties
score what random tie-breaking would score on average, so a constant map scores chance.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor

from attnviz.errors import InputError
from attnviz.inputs import AnyMaps, AnyMasks
from attnviz.metrics.batching import VALUES_IN_PASSING, Batch, score
from attnviz.metrics.reasons import UNSCORABLE, Reason
from attnviz.metrics.row_kernels import peaks
from attnviz.shapes import Scores

TOP = 0.01
"""The share of places that `topk_intersection` looks at unless told otherwise."""


def pointing_game(maps: AnyMaps, masks: AnyMasks, *, tolerance: int | float = 0) -> Scores:
    """Whether the map's maximum lies in the mask; of several maxima, the share that does.

    Source: J. Zhang et al., "Top-down neural attention by excitation backprop", 2018.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).
        tolerance: A maximum this many pixels away from the mask still counts, measured between
            pixel centres. Zhang uses 15 on images of about 500 px; the default is 0.

    Returns:
        Scores in [0, 1], higher is better; NaN where the mask is empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or a negative tolerance.
    """
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance: expected a distance in pixels of at least 0, got {tolerance}")
    return score(
        maps,
        masks,
        lambda batch: pointing_of(batch, tolerance=tolerance),
        blocked=Reason.EMPTY_MASK,
        at_once=VALUES_IN_PASSING,
    )


def relevance_rank_accuracy(maps: AnyMaps, masks: AnyMasks) -> Scores:
    """The share of the mask that the |G| highest places hit: |top-|G| ∩ G| / |G|.

    Source: L. Arras et al., CLEVR-XAI, 2022.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).

    Returns:
        Scores in [0, 1], higher is better; NaN where the mask is empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices.
    """
    return score(maps, masks, rank_of, blocked=UNSCORABLE)


def iou_at_area(maps: AnyMaps, masks: AnyMasks) -> Scores:
    """The IoU when the map may choose as many places as the mask has: r/(2−r).

    r is the relevance rank accuracy, so this orders maps as r does, on the scale of an IoU.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).

    Returns:
        Scores in [0, 1], higher is better; NaN where the mask is empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices.
    """
    return score(maps, masks, iou_at_area_of, blocked=UNSCORABLE)


def topk_intersection(maps: AnyMaps, masks: AnyMasks, *, k: int | float = TOP) -> Scores:
    """The share of the k highest places that lie in the mask: |top-k ∩ G| / k.

    Source: J. Theiner et al., "Interpretable semantic photo geolocation", 2021.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).
        k: An `int` is a number of places, 1 to D; a `float` in (0, 1] a share of them, rounded,
            at least one place.

    Returns:
        Scores in [0, 1], higher is better; NaN where the mask is empty. Where |G| < k, the best
        that can be reached is |G|/k.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or k out of range.
    """
    check_k(k)
    return score(maps, masks, lambda batch: topk_of(batch, k=k), blocked=UNSCORABLE)


def pixel_auroc(maps: AnyMaps, masks: AnyMasks) -> Scores:
    """How often a place inside the mask is higher than one outside, ties counting half.

    Source: T. Fawcett, "An introduction to ROC analysis", 2006.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).

    Returns:
        Scores in [0, 1], higher is better, chance is 0.5; NaN where the mask is empty or full.

    Raises:
        InputError: Wrong shapes, dtypes or devices.
    """
    return score(
        maps, masks, lambda batch: batch.curves.auroc(), blocked=UNSCORABLE | Reason.FULL_MASK
    )


def pixel_ap(maps: AnyMaps, masks: AnyMasks) -> Scores:
    """Average precision of the places of one map: Σ (R_n − R_(n−1)) P_n over distinct values.

    scikit-learn's definition: no interpolation, places of one value enter together.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).

    Returns:
        Scores in [0, 1], higher is better, a constant map scores |G|/D; NaN where the mask is
        empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices.
    """
    return score(maps, masks, lambda batch: batch.curves.average_precision(), blocked=UNSCORABLE)


def pointing_of(batch: Batch, *, tolerance: int | float = 0) -> Tensor:
    """The pointing game of a batch, (b,); NaN by itself unless a mask is empty."""
    goal = batch.labels
    if tolerance >= 1:
        goal = _widened(goal.view(-1, batch.height, batch.width), tolerance).view_as(goal)
    places, lowest, highest = peaks(batch.values)
    owner, hit = places // batch.pixels, goal.view(-1)[places]
    found, all_ = (torch.bincount(rows, minlength=len(goal)) for rows in (owner[hit], owner))
    unfit = lowest.isinf() | highest.isinf()
    return (found.double() / all_.double()).masked_fill_(unfit, torch.nan)


def rank_of(batch: Batch) -> Tensor:
    """The relevance rank accuracy of a batch, (b,)."""
    return batch.hits_among(batch.area) / batch.area.double()


def iou_at_area_of(batch: Batch) -> Tensor:
    """The IoU at the mask's own area of a batch, (b,)."""
    hits = rank_of(batch)
    return hits / (2 - hits)


def topk_of(batch: Batch, *, k: int | float = TOP) -> Tensor:
    """The top-k intersection of a batch, (b,)."""
    places = how_many(k, batch.pixels)
    return batch.hits_among(torch.full_like(batch.area, places)) / places


def check_k(k: int | float) -> None:
    """Raise an `InputError` unless k is a count from 1 or a share in (0, 1]."""
    number = isinstance(k, Real) and not isinstance(k, bool)  # numpy's numbers are welcome
    if not number or not (k >= 1 if isinstance(k, Integral) else 0 < k <= 1):
        raise InputError(f"k: expected an int from 1, or a float share in (0, 1], got {k!r}")


def how_many(k: int | float, pixels: int) -> int:
    """The number of places that k stands for in maps of this many, or an `InputError`."""
    if isinstance(k, Integral):
        if k > pixels:
            raise InputError(f"k: expected at most the {pixels} places of a map, got {k}")
        return int(k)
    return max(1, round(float(k) * pixels))


def _widened(masks: Tensor, radius: int | float) -> Tensor:
    """The places within a radius of the mask, (b, h, w) bool: a disc, row by row."""
    padded = masks.float()[:, None]
    height = masks.shape[1]
    reached = torch.zeros_like(masks)
    for shift in range(-min(int(radius), height - 1), min(int(radius), height - 1) + 1):
        reach = min(math.isqrt(int(radius * radius - shift * shift)), masks.shape[2] - 1)
        rows = F.max_pool2d(padded, (1, 2 * reach + 1), 1, (0, reach))[:, 0] > 0
        source = rows[:, max(0, -shift) : height - max(0, shift)]
        reached[:, max(0, shift) : height - max(0, -shift)] |= source
    return reached
