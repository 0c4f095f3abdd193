"""Metrics of the order of a map's values: no sign, no scale, no threshold.

Values are taken as they are; pass `maps.abs()` for the order of sizes. Ties score what random
tie-breaking would score on average, so a constant map scores chance.
"""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from attnviz.definitions import DEFINITIONS
from attnviz.inputs import AnyMaps, AnyMasks
from attnviz.metrics.batching import VALUES_IN_PASSING, Batch, score
from attnviz.metrics.options import TOP, check_k, check_tolerance, count_of
from attnviz.metrics.reasons import UNSCORABLE, Reason
from attnviz.metrics.registry import metric
from attnviz.metrics.row_kernels import peaks
from attnviz.shapes import Scores


@metric(
    DEFINITIONS["pointing_game"],
    batched=lambda batch, options: pointing_of(batch, tolerance=options.tolerance),
    fair=True,
)
def pointing_game(maps: AnyMaps, masks: AnyMasks, *, tolerance: int | float = 0) -> Scores:
    """Whether the map's maximum lies in the mask; of several maxima, the share that does.

    Source: J. Zhang et al., "Top-down neural attention by excitation backprop", 2018.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).
        tolerance: A maximum this many pixels away from the mask still counts, measured between
            pixel centres. Zhang uses 15 on images of about 500 px; the default is 0.

    Returns:
        Scores in [0, 1], higher is better; NaN where the mask is empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or a negative tolerance.
    """
    check_tolerance(tolerance)
    return score(
        maps,
        masks,
        lambda batch: pointing_of(batch, tolerance=tolerance),
        blocked=Reason.EMPTY_MASK,
        at_once=VALUES_IN_PASSING,
    )


@metric(
    DEFINITIONS["relevance_rank_accuracy"],
    batched=lambda batch, _: rank_of(batch),
    fair=True,
    weight=lambda area, pixels: 1 / area,
)
def relevance_rank_accuracy(maps: AnyMaps, masks: AnyMasks) -> Scores:
    """The share of the mask that the |G| highest places hit: |top-|G| ∩ G| / |G|.

    Source: L. Arras et al., CLEVR-XAI, 2022.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).

    Returns:
        Scores in [0, 1], higher is better; NaN where the mask is empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices.
    """
    return score(maps, masks, rank_of, blocked=UNSCORABLE)


@metric(DEFINITIONS["iou_at_area"], batched=lambda batch, _: iou_at_area_of(batch))
def iou_at_area(maps: AnyMaps, masks: AnyMasks) -> Scores:
    """The IoU when the map may choose as many places as the mask has: r/(2−r).

    r is the relevance rank accuracy, so this orders maps as r does, on the scale of an IoU.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).

    Returns:
        Scores in [0, 1], higher is better; NaN where the mask is empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices.
    """
    return score(maps, masks, iou_at_area_of, blocked=UNSCORABLE)


@metric(
    DEFINITIONS["topk_intersection"],
    batched=lambda batch, options: topk_of(batch, k=options.k),
    fair=True,
    bound=lambda batch: (batch.area / count_of(TOP, batch.pixels)).clamp(max=1).double(),
)
def topk_intersection(maps: AnyMaps, masks: AnyMasks, *, k: int | float = TOP) -> Scores:
    """The share of the k highest places that lie in the mask: |top-k ∩ G| / k.

    Source: J. Theiner et al., "Interpretable semantic photo geolocation", 2021.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).
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


def _pairs_of_places(area: Tensor, pixels: int) -> Tensor:
    """1 over the pairs that AUROC averages; 0 for a full mask, which has none."""
    pairs = area * (pixels - area)
    return torch.where(pairs > 0, 1 / pairs.clamp(min=1), 0.0)


@metric(
    DEFINITIONS["pixel_auroc"],
    batched=lambda batch, _: batch.curves.auroc(),
    blocked=UNSCORABLE | Reason.FULL_MASK,
    sorts=True,
    fair=True,
    weight=_pairs_of_places,
)
def pixel_auroc(maps: AnyMaps, masks: AnyMasks) -> Scores:
    """How often a place inside the mask is higher than one outside, ties counting half.

    Source: T. Fawcett, "An introduction to ROC analysis", 2006.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).

    Returns:
        Scores in [0, 1], higher is better, chance is 0.5; NaN where the mask is empty or full.

    Raises:
        InputError: Wrong shapes, dtypes or devices.
    """
    return score(
        maps, masks, lambda batch: batch.curves.auroc(), blocked=UNSCORABLE | Reason.FULL_MASK
    )


@metric(
    DEFINITIONS["pixel_ap"],
    batched=lambda batch, _: batch.curves.average_precision(),
    sorts=True,
    fair=True,
)
def pixel_ap(maps: AnyMaps, masks: AnyMasks) -> Scores:
    """Average precision of the places of one map: Σ (R_n − R_(n−1)) P_n over distinct values.

    scikit-learn's definition: no interpolation, places of one value enter together.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).

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
        goal = _widened(batch.masks, tolerance).view_as(goal)
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
    places = count_of(k, batch.pixels)
    return batch.hits_among(torch.full_like(batch.area, places)) / places


def _widened(masks: Tensor, radius: int | float) -> Tensor:
    """The places within a radius of the mask, (b, *places) bool: a disc or ball, line by line.

    For each shift along all axes but the last, the mask is widened along the last one by what is
    left of the radius, and moved by the shift.
    """
    *across, length = masks.shape[1:]
    lines = masks.float().view(len(masks), 1, -1, length)
    reached = torch.zeros_like(masks)
    most = [min(int(radius), size - 1) for size in across]
    for shifts in product(*(range(-reach, reach + 1) for reach in most)):
        left = radius * radius - sum(shift * shift for shift in shifts)
        if left >= 0:
            reach = min(math.isqrt(int(left)), length - 1)
            wide = F.max_pool2d(lines, (1, 2 * reach + 1), 1, (0, reach)).view_as(masks) > 0
            sources = (
                slice(max(0, -s), n - max(0, s)) for s, n in zip(shifts, across, strict=True)
            )
            targets = (
                slice(max(0, s), n - max(0, -s)) for s, n in zip(shifts, across, strict=True)
            )
            reached[(slice(None), *targets)] |= wide[(slice(None), *sources)]
    return reached
