"""Confidence intervals of mean scores and of their differences, within the score's bounds.

- Any score: mean ± t·SE, with the variance and degrees of freedom of `attnviz.statistics.variance`,
  cut where the score's range ends.
- Hits (0 or 1): Wilson's interval (1927) with an effective sample size, which never leaves 0 … 1
  and has a width where every image was hit; no more than there are images where they come in
  groups. Of one training that of Clopper and Pearson (1934), with the effective sample size of Korn
  and Graubard (1998) where images come in groups.
- Scores between 0 and 1 whose t interval reaches over a bound: the wider of that and Wilson's.
- Trainings that fall into two kinds: the wider of the above and of Clopper and Pearson's interval
  of the rarer kind's share, between the means of the two kinds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attnviz.definitions import limits_of
from attnviz.statistics.kinds import Kinds, two_kinds
from attnviz.statistics.pairs import Adjusted, Pairs
from attnviz.statistics.variance import Array, Sample, group_freedom, sampled, spread


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
    metric: str,
    scores: Array,
    *,
    groups: Array | None = None,
    confidence: float = 0.95,
    sample: Sample | None = None,
) -> Interval:
    """Mean and interval of one variant on one metric.

    Args:
        metric: Its key; its limits bound the interval.
        scores: (seeds, images), NaN where an image cannot be scored.
        groups: (images,) each image's group as a whole number from 0; each its own if None.
        confidence: The interval's level.
        sample: The scores as reduced already.
    """
    sample = sampled(scores, groups) if sample is None else sample
    if _is_share(metric, scores):
        low, high = _share(sample, scores, confidence)
    else:
        half = half_width(sample, confidence)
        least, most = limits_of(metric)
        low = max(sample.mean - half, min(sample.mean, least))
        high = min(sample.mean + half, max(sample.mean, most))
    kinds = two_kinds(sample)
    if kinds is not None:
        low, high = _over_kinds(kinds, low, high, confidence)
    return Interval(sample.mean, low, high, kinds)


def half_width(sample: Sample, confidence: float) -> float:
    """Student's t times the standard error; NaN where the variance is not known."""
    from scipy.special import stdtrit

    its = spread(sample)
    if not float(its.freedom) > 0:
        return float("nan")
    return float(stdtrit(its.freedom, 0.5 + confidence / 2) * np.sqrt(its.variance))


def gap_intervals(
    metric: str, scores: Sequence[Array], samples: Sequence[Sample], pairs: Pairs, tested: Adjusted
) -> tuple[Array, Array]:
    """Low and high end of every pair's difference: difference ± t·SE, cut at −1 and 1 for shares.

    A difference without any variance, of two variants that hit every image or none, has Newcombe's
    (1998) interval from those of the two.

    Args:
        metric: Its key.
        scores: (seeds, images) for each variant.
        samples: The same, reduced.
        pairs: The pairs.
        tested: Their adjustment.
    """
    from scipy.special import stdtrit

    level = tested.level
    freedom = np.where(pairs.spread.freedom > 0, pairs.spread.freedom, np.nan)
    with np.errstate(invalid="ignore"):  # equal variants: no variance of unknown freedom is NaN
        half = stdtrit(freedom, 1 - level / 2) * np.sqrt(pairs.spread.variance)
    low, high = pairs.difference - half, pairs.difference + half
    low = np.where(tested.alike, np.minimum(low, 0), low)
    high = np.where(tested.alike, np.maximum(high, 0), high)
    bounded = np.array([_is_share(metric, rows) for rows in scores])
    shares = bounded[pairs.one] & bounded[pairs.other]
    certain = np.array([sample.mean in (0.0, 1.0) for sample in samples])
    for k in np.flatnonzero(shares & certain[pairs.one] & certain[pairs.other]):
        one, other = pairs.one[k], pairs.other[k]
        a, b = (_share(samples[i], scores[i], 1 - level) for i in (one, other))
        mine, theirs = samples[one].mean, samples[other].mean
        low[k] -= math.hypot(mine - a[0], b[1] - theirs)
        high[k] += math.hypot(a[1] - mine, theirs - b[0])
    return np.where(shares, np.maximum(low, -1), low), np.where(shares, np.minimum(high, 1), high)


# Shares


def _is_share(metric: str, scores: Array) -> bool:
    """Whether scores are hits, or of a metric between 0 and 1 that they keep to."""
    if limits_of(metric) == (0.0, 1.0):
        return not bool(((scores < 0) | (scores > 1)).any())
    return _are_hits(scores)


def _are_hits(scores: Array) -> bool:
    valid = scores[np.isfinite(scores)]
    return bool(len(valid)) and bool(((valid == 0) | (valid == 1)).all())


def _share(sample: Sample, scores: Array, confidence: float) -> tuple[float, float]:
    """The interval of a mean between 0 and 1."""
    from scipy.special import stdtrit

    its, mean = spread(sample), min(max(sample.mean, 0.0), 1.0)
    freedom, variance, spare = float(its.freedom), float(its.variance), mean * (1 - mean)
    if not freedom > 0:
        return float("nan"), float("nan")
    t = float(stdtrit(freedom, 0.5 + confidence / 2))
    units = group_freedom(sample.share) + 1  # as if the images of a group, and all seeds, agreed
    hits = _are_hits(scores)
    if hits and len(sample.means) == 1:
        size = _effective(units if variance == 0 else spare / variance, t, scores, confidence)
        return clopper_pearson(mean * size, size, confidence)
    if variance == 0:
        return wilson(mean, t**2 / units) if spare == 0 else (mean, mean)
    half = t * math.sqrt(variance)
    low, high = mean - half, mean + half
    if hits or low < 0 or high > 1:
        # Misses that come in few groups show too small a variance where none of these was drawn.
        most = scores.shape[1] if len(sample.share) < scores.shape[1] else math.inf
        bounded = wilson(mean, t**2 * max(variance / spare, 1 / most))
        low, high = bounded if hits else (min(low, bounded[0]), max(high, bounded[1]))
    return max(low, 0.0), min(high, 1.0)


def _effective(size: float, t: float, scores: Array, confidence: float) -> float:
    """Korn and Graubard's effective number of images; of one training without groups, all."""
    from scipy.special import ndtri

    images = int(np.isfinite(scores).sum())
    if round(size) >= images - 1:  # every image its own group
        return float(images)
    return min(size * (float(ndtri(0.5 + confidence / 2)) / t) ** 2, images)


def wilson(share: float, k: float) -> tuple[float, float]:
    """Wilson's interval of a share, with k = t² / n and n the effective sample size."""
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


def _over_kinds(kinds: Kinds, low: float, high: float, confidence: float) -> tuple[float, float]:
    """An interval widened to the shares of the two kinds that so few trainings leave open."""
    least, most = clopper_pearson(len(kinds.low), len(kinds.low + kinds.high), confidence)
    below, above = float(np.mean(kinds.low)), float(np.mean(kinds.high))
    return min(low, above - most * (above - below)), max(high, above - least * (above - below))
