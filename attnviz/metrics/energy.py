"""How much of a map's mass lies in the mask, and how concentrated the mass is."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from attnviz.errors import unknown_name
from attnviz.metrics.inputs import (
    UNFIT,
    UNSCORABLE,
    AnyMaps,
    AnyMasks,
    Batch,
    Reason,
    no_masks,
    overflow_guard,
    row_sum,
    score,
    sort_rows,
    sum_inside,
)
from attnviz.shapes import Scores

Sign: TypeAlias = Literal["positive", "abs", "signed"]
"""Which values carry mass: those above zero, all by size, or all as they are."""


def energy_pointing_game(maps: AnyMaps, masks: AnyMasks, *, sign: Sign = "positive") -> Scores:
    """The share of the map's mass that lies inside the mask: Σ_G a⁺ / Σ a⁺.

    Also known as relevance mass accuracy. A constant positive map scores |G|/D.

    Sources: H. Wang et al., Score-CAM, 2020; L. Arras et al., CLEVR-XAI, 2022.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).
        sign: "positive" counts values above zero, "abs" all by their size, "signed" as they are;
            the last is not bounded.

    Returns:
        Scores in [0, 1], higher is better; NaN where there is no mass or no mask.

    Raises:
        InputError: Wrong shapes, dtypes, devices or an unknown sign.
    """
    return score(
        maps, masks, lambda batch: energy_of(batch, sign=sign), blocked=energy_blocked(sign)
    )


def mass_lift(maps: AnyMaps, masks: AnyMasks, *, sign: Sign = "positive") -> Scores:
    """The share of mass inside the mask over the share of places inside: chance is 1.

    The energy pointing game times D/|G|, so masks of different size can be compared.

    Source: M. Kohlbrenner et al., "Towards best practice in explaining neural network decisions
    with LRP", 2020 (μ weighted by size).

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).
        sign: As in `energy_pointing_game`.

    Returns:
        Scores in [0, D/|G|], higher is better; NaN where there is no mass or no mask.

    Raises:
        InputError: Wrong shapes, dtypes, devices or an unknown sign.
    """
    return score(maps, masks, lambda batch: lift_of(batch, sign=sign), blocked=energy_blocked(sign))


def energy_of(batch: Batch, *, sign: Sign = "positive") -> Tensor:
    """The energy pointing game of a batch, (b,)."""
    return batch.once(("energy", sign), lambda: _share_inside(batch, sign))


def _share_inside(batch: Batch, sign: Sign) -> Tensor:
    # the sign first: a huge value that carries no mass must not shrink those that do
    mass = batch.values
    if sign != "signed" and bool((batch.lowest < 0).any()):
        mass = mass.clamp(min=0) if sign == "positive" else mass.abs()
    if mass.dtype == torch.float64:
        largest = batch.highest if sign == "positive" else batch.largest
        mass = mass * overflow_guard(largest)[:, None]
    total = row_sum(mass)
    return (sum_inside(mass, batch) / total).masked_fill(total == 0, torch.nan)


def lift_of(batch: Batch, *, sign: Sign = "positive") -> Tensor:
    """The mass lift of a batch, (b,)."""
    return energy_of(batch, sign=sign) * batch.pixels / batch.area.double()


def energy_blocked(sign: str) -> Reason:
    """The flags under which a share of mass has no score."""
    if sign not in get_args(Sign):
        raise unknown_name("sign", sign, get_args(Sign))
    return UNSCORABLE | (Reason.NO_POSITIVE if sign == "positive" else Reason.ALL_ZERO)


def sparseness(maps: AnyMaps) -> Scores:
    """How unevenly |a| is spread over the places: its Gini index.

    Σ (2i − D − 1) a_(i) / (D Σ a), with a_(i) the sizes in ascending order. A constant scores 0,
    a single lit place (D−1)/D.

    Source: P. Chalasani et al., "Concise explanations of neural networks using adversarial
    training", 2020.

    Args:
        maps: Raw maps, (b, h, w).

    Returns:
        Scores in [0, 1), higher is sparser; NaN where the map is zero everywhere.

    Raises:
        InputError: Wrong shape or dtype.
    """
    return score(maps, no_masks(maps), sparseness_of, blocked=UNFIT | Reason.ALL_ZERO)


def complexity(maps: AnyMaps) -> Scores:
    """The entropy of |a| / Σ|a| in nats: low where few places carry the mass.

    Source: U. Bhatt et al., "Evaluating and aggregating feature-based model explanations", 2020.

    Args:
        maps: Raw maps, (b, h, w).

    Returns:
        Scores in [0, ln D], lower is more concentrated; NaN where the map is zero everywhere.

    Raises:
        InputError: Wrong shape or dtype.
    """
    return score(maps, no_masks(maps), complexity_of, blocked=UNFIT | Reason.ALL_ZERO)


def sparseness_of(batch: Batch) -> Tensor:
    """The Gini index of a batch, (b,)."""
    sizes = _wide_enough(sort_rows(batch.values.abs()))
    pixels = batch.pixels
    rank = torch.arange(1 - pixels, pixels, 2, dtype=torch.float64, device=sizes.device)
    total = row_sum(sizes)
    return row_sum(sizes.mul_(rank)) / (pixels * total)


def complexity_of(batch: Batch) -> Tensor:
    """The entropy of a batch, (b,)."""
    share = batch.wide.abs()
    share /= row_sum(share)[:, None]
    nats = share.clamp(min=torch.finfo(torch.float64).tiny).log_()  # 0 · ln 0 is 0
    return -row_sum(nats.mul_(share))


def _wide_enough(sizes: Tensor) -> Tensor:
    """Sorted sizes as float64, over the largest where a sum of float64 could overflow."""
    return sizes.double() if sizes.dtype == torch.float32 else sizes / sizes[:, -1:]
