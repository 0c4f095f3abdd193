"""The conventions of Quantus 0.6, for numbers to be set beside those of papers that used it.

Where it differs from `attnviz.metrics`, and why the numbers differ:

| | here, as Quantus 0.6 | attnviz.metrics |
| --- | --- | --- |
| pointing game | a hit if any maximum lies inside, so a constant map hits | the share that does |
| pointing game, empty mask | 1 | NaN |
| pointing game, weighted | the weight is lost: a hit stays 1 | not offered |
| rank accuracy, top-k | ties as an unstable argsort leaves them | expected value |
| mass accuracy | sums as they are, negative values too | positive values |
| attribution localisation | 1e-9 in the divisor; more than 1 is NaN | see mass accuracy |
| the same, weighted | times |G| over the values of all *inputs but two* of the batch | mass lift |
| sparseness | 1e-7 added after division by the *batch's* largest value | exact |
| complexity | 1e-12 added inside the logarithm | exact |
| sign | absolute values in three metrics, as they are in the others | set by `sign=` |

`abs` and `normalise` have the defaults of the classes there. `normalise` divides by the largest
absolute value of all maps given, so sparseness depends on what else is there; the weighted
localisation does so in any case.

Source: A. Hedström et al., "Quantus", 2023, version 0.6.0; the conventions, not the code.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

Maps = Float[np.ndarray, "b h w"]
Masks = Bool[np.ndarray, "b h w"]
Scores = Float[np.ndarray, "b"]


def pointing_game(maps: Maps, masks: Masks, *, abs: bool = False, normalise: bool = True) -> Scores:
    """`PointingGame`: 1 if any maximum lies inside the mask, and if the mask is empty.

    Args:
        maps: Attributions, (b, h, w).
        masks: Segmentations, (b, h, w).
        abs: Whether sizes count.
        normalise: Whether to divide by the batch's largest size.

    Returns:
        0 or 1, (b,).
    """
    values, inside = _rows(maps, masks, abs, normalise)
    hit = (inside & (values == values.max(1, keepdims=True))).any(1)
    return np.asarray(hit | ~inside.any(1), dtype=np.float64)


def attribution_localisation(
    maps: Maps,
    masks: Masks,
    *,
    weighted: bool = False,
    channels: int = 3,
    positive: bool = False,
    abs: bool = True,
    normalise: bool = True,
) -> Scores:
    """`AttributionLocalisation`: the sum inside over the sum of all.

    Args:
        maps: Attributions, (b, h, w).
        masks: Segmentations, (b, h, w).
        weighted: Whether to multiply by the size of the mask over the number of values in the
            inputs of the batch without its first two, as there; batches of two or less divide by 0.
        channels: The channels of those inputs.
        positive: Whether negative values are cut to 0.
        abs: Whether sizes count.
        normalise: Whether to divide by the batch's largest size.

    Returns:
        Shares, (b,); NaN for an empty mask or a share above 1.
    """
    values, inside = _rows(maps, masks, abs, normalise)
    values = np.clip(values, 0, None) if positive else values
    share = (values * inside).sum(1) / (values.sum(1) + 1e-9)
    share[~inside.any(1) | (share > 1)] = np.nan
    if weighted:
        with np.errstate(divide="ignore"):
            share *= inside.sum(1) / (max(len(maps) - 2, 0) * channels * maps[0].size)
    return np.asarray(share, dtype=np.float64)


def relevance_mass_accuracy(
    maps: Maps, masks: Masks, *, abs: bool = False, normalise: bool = True
) -> Scores:
    """`RelevanceMassAccuracy`: the sum inside over the sum of all, signs as they are.

    Args:
        maps: Attributions, (b, h, w).
        masks: Segmentations, (b, h, w).
        abs: Whether sizes count.
        normalise: Whether to divide by the batch's largest size.

    Returns:
        Shares, (b,), unbounded with mixed signs; NaN for an empty mask.
    """
    values, inside = _rows(maps, masks, abs, normalise)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (values * inside).sum(1) / values.sum(1)
    return _unless_empty(share, inside)


def relevance_rank_accuracy(
    maps: Maps, masks: Masks, *, abs: bool = False, normalise: bool = True
) -> Scores:
    """`RelevanceRankAccuracy`: how much of the mask the |G| first places of an argsort hit.

    Args:
        maps: Attributions, (b, h, w).
        masks: Segmentations, (b, h, w).
        abs: Whether sizes count.
        normalise: Whether to divide by the batch's largest size.

    Returns:
        Shares, (b,); NaN for an empty mask.
    """
    values, inside = _rows(maps, masks, abs, normalise)
    found = np.take_along_axis(inside, np.argsort(-values, axis=1), 1)
    area = inside.sum(1)
    first = np.arange(values.shape[1]) < area[:, None]
    return _unless_empty((found & first).sum(1) / np.maximum(area, 1), inside)


def top_k_intersection(
    maps: Maps,
    masks: Masks,
    *,
    k: int = 1000,
    concept_influence: bool = False,
    abs: bool = False,
    normalise: bool = True,
) -> Scores:
    """`TopKIntersection`: the share of the k first places of an argsort that lie inside.

    Args:
        maps: Attributions, (b, h, w).
        masks: Segmentations, (b, h, w).
        k: How many places; more than there are means all of them.
        concept_influence: Whether to multiply by D/|G|.
        abs: Whether sizes count.
        normalise: Whether to divide by the batch's largest size.

    Returns:
        Shares, (b,); NaN for an empty mask.
    """
    values, inside = _rows(maps, masks, abs, normalise)
    found = np.take_along_axis(inside, np.argsort(-values, axis=1)[:, :k], 1).mean(1)
    if concept_influence:
        found *= values.shape[1] / np.maximum(inside.sum(1), 1)
    return _unless_empty(found, inside)


def sparseness(maps: Maps, *, abs: bool = True, normalise: bool = True) -> Scores:
    """`Sparseness`: the Gini index of the values plus 1e-7.

    Args:
        maps: Attributions, (b, h, w).
        abs: Whether sizes count.
        normalise: Whether to divide by the batch's largest size.

    Returns:
        Indices, (b,).
    """
    values = np.sort(_prepared(maps, abs, normalise) + 1e-7, axis=1)
    rank = 2 * np.arange(1, values.shape[1] + 1) - values.shape[1] - 1
    return np.asarray((rank * values).sum(1) / (values.shape[1] * values.sum(1)), dtype=np.float64)


def complexity(maps: Maps, *, abs: bool = True, normalise: bool = True) -> Scores:
    """`Complexity`: the entropy of the values, 1e-12 added inside the logarithm.

    Args:
        maps: Attributions, (b, h, w).
        abs: Whether sizes count.
        normalise: Whether to divide by the batch's largest size.

    Returns:
        Nats, (b,).
    """
    values = _prepared(maps, abs, normalise)
    share = values / np.abs(values).sum(1, keepdims=True)
    return np.asarray(-(share * np.log(share + 1e-12)).sum(1), dtype=np.float64)


def _rows(maps: Maps, masks: Masks, abs: bool, normalise: bool) -> tuple[np.ndarray, np.ndarray]:
    return _prepared(maps, abs, normalise), masks.reshape(len(masks), -1)


def _prepared(maps: Maps, abs: bool, normalise: bool) -> np.ndarray:
    rows = maps.reshape(len(maps), -1)
    if normalise and rows.any():
        rows = rows / np.abs(rows).max()
    return np.abs(rows) if abs else rows


def _unless_empty(scores: np.ndarray, inside: np.ndarray) -> Scores:
    return np.where(inside.any(1), scores, np.nan).astype(np.float64)
