"""Confidence intervals of a mean score, within the bounds that the score has.

Unbounded scores: mean ± t·SE (`attnviz.comparison.variance`). Scores between 0 and 1: Wilson's
interval (1927) with an effective sample size, which never leaves 0 … 1 and has a width where every
image was hit. Hits of one training: Clopper and Pearson's (1934), with Korn and Graubard's (1998)
effective sample size where images come in groups. Trainings that fall into two kinds: the wider of
that and of the share of the rarer kind (Clopper and Pearson) between the two kinds' means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from attnviz.comparison.groups import LIMITS
from attnviz.comparison.variance import Array, Sample, group_freedom, sampled, spread


@dataclass(frozen=True)
class Kinds:
    """Trainings that fall into two kinds, such as those that learned and those that failed.

    Attributes:
        low: The lower kind's scores, in ascending order.
        high: The higher kind's scores.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        mean: Mean over seeds of each seed's mean over images.
        low: Lower end, NaN where there is none.
        high: Upper end.
        kinds: The two kinds that the trainings fall into, or None where they spread like a bell.
    """

    mean: float
    low: float
    high: float
    kinds: Kinds | None = None


def interval(
    metric: str, scores: Array, *, groups: Array | None = None, confidence: float = 0.95,
    sample: Sample | None = None,
) -> Interval:
    """Mean and interval of one variant on one metric.

    Args:
        metric: Its key; known limits (`LIMITS`) bound the interval.
        scores: (seeds, images), NaN where an image cannot be scored.
        groups: (images,) each image's group as a whole number from 0; each its own if None.
        confidence: The interval's level.
        sample: The scores as reduced already.
    """
    sample = sampled(scores, groups) if sample is None else sample
    mean = sample.mean
    valid = scores[np.isfinite(scores)]
    hits = bool(len(valid)) and bool(np.isin(valid, (0.0, 1.0)).all())
    least, most = LIMITS.get(metric, (-math.inf, math.inf))
    inside = bool(len(valid)) and bool(((valid >= 0) & (valid <= 1)).all())
    if hits or (inside and (least, most) == (0.0, 1.0)):
        low, high = _share(sample, valid, groups is not None, hits, confidence)
    else:
        half = half_width(sample, confidence)
        low, high = max(mean - half, min(mean, least)), min(mean + half, max(mean, most))
    kinds = two_kinds(sample)
    if kinds is not None:
        low, high = _over_kinds(kinds, low, high, confidence)
    return Interval(mean, low, high, kinds)


def half_width(sample: Sample, confidence: float) -> float:
    """Student's t times the standard error; NaN where the variance is not known."""
    from scipy.special import stdtrit

    its = spread(sample)
    if not float(its.freedom) > 0:
        return float("nan")
    return float(stdtrit(its.freedom, 0.5 + confidence / 2) * np.sqrt(its.variance))


def _share(
    sample: Sample, valid: Array, grouped: bool, hits: bool, confidence: float
) -> tuple[float, float]:
    """The interval of a mean between 0 and 1."""
    from scipy.special import ndtri, stdtrit

    its, mean = spread(sample), sample.mean
    freedom, variance = float(its.freedom), float(its.variance)
    if not freedom > 0:
        return float("nan"), float("nan")
    units = group_freedom(sample.share) + 1  # as if all images of a group, and all seeds, agreed
    t = float(stdtrit(freedom, 0.5 + confidence / 2))
    spare = mean * (1 - mean)
    if hits and len(sample.means) == 1:
        z = float(ndtri(0.5 + confidence / 2))
        size = units if variance == 0 else spare / variance * (z / t) ** 2
        size = min(size, len(valid)) if grouped else len(valid)
        return clopper_pearson(mean * size, size, confidence)
    if variance == 0:
        return wilson(mean, t**2 / units) if spare == 0 else (mean, mean)
    return wilson(mean, t**2 * variance / spare)


def wilson(share: float, k: float) -> tuple[float, float]:
    """Wilson's interval of a share, with k = t² / n (n the effective sample size)."""
    middle = (share + k / 2) / (1 + k)
    half = math.sqrt(max(share * (1 - share), 0.0) * k + k**2 / 4) / (1 + k)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def clopper_pearson(hits: float, size: float, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share; neither number need be whole."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if hits <= 0 else float(betaincinv(hits, size - hits + 1, tail))
    high = 1.0 if hits >= size else float(betaincinv(hits + 1, size - hits, 1 - tail))
    return low, high


# Trainings of two kinds

_GAPS = {3: 0.970, 4: 0.88, 5: 0.80, 6: 0.74, 7: 0.69, 8: 0.65, 9: 0.61, 10: 0.58}
_APART = 6.0


def two_kinds(sample: Sample) -> Kinds | None:
    """The two kinds that trainings fall into, or None where they may well spread like a bell.

    They do where the widest gap between neighbouring seeds takes more of the range than it does in
    95 % of normal samples (Dixon's test of 1950 for three, simulated for more), and is wider than
    six standard errors that the choice of images gives to one seed.
    """
    order = np.sort(sample.means)
    count = len(order)
    if count < 3:
        return None
    gaps = np.diff(order)
    widest = int(gaps.argmax())
    noise = math.sqrt(sample.overlap * count)
    if gaps[widest] <= _GAPS.get(min(count, 10), 1) * (order[-1] - order[0]):
        return None
    if gaps[widest] <= _APART * noise:
        return None
    low, high = order[: widest + 1], order[widest + 1 :]
    return Kinds(tuple(low.tolist()), tuple(high.tolist()))


def _over_kinds(kinds: Kinds, low: float, high: float, confidence: float) -> tuple[float, float]:
    """An interval widened to the share of either kind that so few trainings leave open."""
    few, many = len(kinds.low), len(kinds.low) + len(kinds.high)
    least, most = clopper_pearson(few, many, confidence)
    below, above = float(np.mean(kinds.low)), float(np.mean(kinds.high))
    return min(low, above - most * (above - below)), max(high, above - least * (above - below))
