"""Mass of a map inside the mask, and how concentrated the mass is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.definitions import DEFINITIONS
from attnviz.inputs import AnyMaps, AnyMasks, no_masks
from attnviz.metrics.batching import VALUES_IN_PASSING, Batch, score
from attnviz.metrics.options import Options, Sign, check_sign
from attnviz.metrics.reasons import UNFIT, UNSCORABLE, Reason
from attnviz.metrics.registry import metric
from attnviz.metrics.row_kernels import overflow_guard, row_sum, stretches
from attnviz.shapes import Scores

_SIGNED: dict[Sign, Callable[[Tensor], Tensor]] = {
    "positive": lambda values: values.clamp(min=0),
    "abs": torch.abs,
    "signed": lambda values: values,
}


def energy_blocked(options: Options) -> Reason:
    """The reasons for which a share of mass has no score."""
    none = Reason.NO_POSITIVE if options.sign == "positive" else Reason.ALL_ZERO
    return UNSCORABLE | none


@metric(
    DEFINITIONS["energy_pointing_game"],
    batched=lambda batch, options: energy_of(batch, sign=options.sign),
    blocked=energy_blocked,
    fair=True,
    peak=True,
)
def energy_pointing_game(maps: AnyMaps, masks: AnyMasks, *, sign: Sign = "positive") -> Scores:
    """The share of the map's mass that lies inside the mask: Σ_G a⁺ / Σ a⁺.

    Also known as relevance mass accuracy. A constant positive map scores |G|/D.

    Sources: H. Wang et al., Score-CAM, 2020; L. Arras et al., CLEVR-XAI, 2022.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).
        sign: "positive" counts values above zero, "abs" all by their size, "signed" as they are;
            the last is not bounded.

    Returns:
        Scores in [0, 1], higher is better; NaN where there is no mass or no mask.

    Raises:
        InputError: Wrong shapes, dtypes, devices or an unknown sign.
    """
    return _score_mass(maps, masks, energy_of, sign)


@metric(
    DEFINITIONS["mass_lift"],
    batched=lambda batch, options: lift_of(batch, sign=options.sign),
    blocked=energy_blocked,
    fair=True,
    bound=lambda batch: batch.pixels / batch.area.double(),
    weight=lambda area, pixels: 1 / area,
    peak=True,
)
def mass_lift(maps: AnyMaps, masks: AnyMasks, *, sign: Sign = "positive") -> Scores:
    """The share of mass inside the mask over the share of places inside: chance is 1.

    The energy pointing game times D/|G|, so masks of different size can be compared.

    Source: M. Kohlbrenner et al., "Towards best practice in explaining neural network decisions
    with LRP", 2020 (μ weighted by size).

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).
        sign: As in `energy_pointing_game`.

    Returns:
        Scores in [0, D/|G|], higher is better; NaN where there is no mass or no mask.

    Raises:
        InputError: Wrong shapes, dtypes, devices or an unknown sign.
    """
    return _score_mass(maps, masks, lift_of, sign)


def energy_of(batch: Batch, *, sign: Sign = "positive") -> Tensor:
    """The energy pointing game of a batch, (b,); NaN by itself where there is none."""
    return batch.once(("energy", sign), lambda: _share_inside(batch, sign))


def _share_inside(batch: Batch, sign: Sign) -> Tensor:
    total, inside, lowest = _masses(batch.values, batch.labels, sign)
    if batch.values.dtype == torch.float64:
        # the sign before the scale: a huge value without mass must not shrink those that have some
        factor = overflow_guard(batch.largest if sign == "signed" else torch.as_tensor(total))
        if bool((factor != 1).any()):
            total, inside, _ = _masses(batch.values * factor[:, None], batch.labels, sign)
    # a finite sum holds neither NaN nor Inf, unless the sign has cut off -Inf
    fit = (abs(total) < math.inf) & (total != 0) & (lowest > -math.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = inside / total
    share[~fit] = math.nan
    # both sums are rounded, in orders of their own: a whole must not be more than all
    return torch.as_tensor(share if sign == "signed" else share.clip(max=1))


def _masses(values: Tensor, labels: Tensor, sign: Sign) -> tuple[Any, ...]:
    """Each map's mass and what lies inside its mask of it, float64, and its minimum, (b,) each.

    The mass inside an empty mask is NaN. Tensors on a GPU, arrays otherwise: on a few numbers the
    overhead of a torch call exceeds its work.
    """
    if values.is_cuda:
        mass = _SIGNED[sign](values)
        inside = row_sum(mass * labels).masked_fill_(~labels.any(1), torch.nan)
        return row_sum(mass), inside, values.amin(1)
    rows, marks = values.numpy(), labels.numpy()
    with np.errstate(invalid="ignore", over="ignore"):  # only of rows that are not scored
        found = [_masses_near(rows[part], marks[part], sign) for part in stretches(values)]
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _masses_near(rows: np.ndarray, marks: np.ndarray, sign: Sign) -> tuple[np.ndarray, ...]:
    """`_masses` of as many maps as a core's cache holds, so that later passes find them there."""
    # the sum first: it is slow enough to hide the loading of the values
    total, lowest = _summed(rows), np.minimum.reduce(rows, axis=1)
    if sign != "signed" and (lowest < 0).any():
        rows = np.abs(rows) if sign == "abs" else np.maximum(rows, 0)
        total = _summed(rows)
    return total, _inside(rows, marks), lowest


def _summed(rows: np.ndarray) -> np.ndarray:
    """The sum of each row in float64, (b,); of float32 in less time than `add.reduce` takes."""
    return np.asarray(np.einsum("ij->i", rows, dtype=np.float64))


def _inside(rows: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The sum inside each mask, (b,) float64; NaN where the mask is empty.

    Masks are mostly empty, so places are tested eight at a time where D is divisible by eight.
    """
    run = 8 if rows.shape[1] % 8 == 0 else 1
    marked = marks.ravel().view(f"u{run}")
    some = np.flatnonzero(marked != 0)
    bounds = np.searchsorted(some, np.arange(len(rows) + 1) * (rows.shape[1] // run)) * run
    held = np.zeros(run * len(some) + 1, dtype=rows.dtype)  # one more: a start after the last map
    np.multiply(
        rows.reshape(-1, run).take(some, axis=0).ravel(), marked[some].view(bool), out=held[:-1]
    )
    inside = np.add.reduceat(held, bounds, dtype=np.float64)[:-1]
    inside[bounds[1:] == bounds[:-1]] = np.nan
    return inside


def lift_of(batch: Batch, *, sign: Sign = "positive") -> Tensor:
    """The mass lift of a batch, (b,)."""
    return energy_of(batch, sign=sign) * batch.pixels / batch.area.double()


def _score_mass(maps: AnyMaps, masks: AnyMasks, of: Callable[..., Tensor], sign: Sign) -> Scores:
    check_sign(sign)
    return score(
        maps,
        masks,
        lambda batch: of(batch, sign=sign),
        blocked=Reason(0),
        at_once=VALUES_IN_PASSING,
    )


_MASSLESS = UNFIT | Reason.ALL_ZERO


@metric(
    DEFINITIONS["sparseness"],
    batched=lambda batch, _: sparseness_of(batch),
    blocked=_MASSLESS,
    fair=True,
    bound=lambda batch: torch.full_like(batch.area, batch.pixels - 1).double() / batch.pixels,
)
def sparseness(maps: AnyMaps) -> Scores:
    """Gini index of |a| over the places: 0 where all are equal.

    Σ (2i − D − 1) a_(i) / (D Σ a), with a_(i) the sizes in ascending order. A constant scores 0,
    a single lit place (D−1)/D.

    Source: P. Chalasani et al., "Concise explanations of neural networks using adversarial
    training", 2020.

    Args:
        maps: Raw maps, (b, *places).

    Returns:
        Scores in [0, 1), higher is sparser; NaN where the map is zero everywhere.

    Raises:
        InputError: Wrong shape or dtype.
    """
    return score(maps, no_masks(maps), sparseness_of, blocked=_MASSLESS)


@metric(
    DEFINITIONS["complexity"],
    batched=lambda batch, _: complexity_of(batch),
    blocked=_MASSLESS,
    fair=True,
)
def complexity(maps: AnyMaps) -> Scores:
    """The entropy of |a| / Σ|a| in nats: low where few places carry the mass.

    Source: U. Bhatt et al., "Evaluating and aggregating feature-based model explanations", 2020.

    Args:
        maps: Raw maps, (b, *places).

    Returns:
        Scores in [0, ln D], lower is more concentrated; NaN where the map is zero everywhere.

    Raises:
        InputError: Wrong shape or dtype.
    """
    return score(maps, no_masks(maps), complexity_of, blocked=_MASSLESS)


def sparseness_of(batch: Batch) -> Tensor:
    """The Gini index of a batch, (b,)."""
    values, pixels = batch.values, batch.pixels
    rank = torch.arange(1 - pixels, pixels, 2, dtype=torch.float64, device=values.device)

    def gini(part: slice) -> Tensor:
        sizes = _wide_enough(batch.ascending_sizes(part))
        total = row_sum(sizes)
        return row_sum(sizes.mul_(rank)) / (pixels * total)

    return torch.cat([gini(part) for part in stretches(values, copied=True)])


def complexity_of(batch: Batch) -> Tensor:
    """The entropy of a batch, (b,)."""
    return torch.cat([_entropy(batch.wide[part]) for part in stretches(batch.values, copied=True)])


def _entropy(values: Tensor) -> Tensor:
    share = values.abs()
    share /= row_sum(share)[:, None]
    nats = share.clamp(min=torch.finfo(torch.float64).tiny).log_()  # 0 · ln 0 is 0
    return -row_sum(nats.mul_(share))


def _wide_enough(sizes: Tensor) -> Tensor:
    """Sorted sizes as float64, over the largest where a sum of float64 could overflow."""
    return sizes.double() if sizes.dtype == torch.float32 else sizes / sizes[:, -1:]
