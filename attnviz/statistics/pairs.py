"""All pairs of variants on one metric: differences, p, and the adjustment for all pairs.

Images and groups are the same for all variants, so a difference is paired over them. Seeds of two
variants are two independent sets of trainings (Welch's variance) unless the scores of equal seeds
rise and fall together over all variants, as those of several maps of one network do: that is
decided once per metric by an F test of seeds in the table seeds × variants (`SHARED`), not pair by
pair, where choosing the smaller variance would be a test too many.

p is Student's t with the variance and degrees of freedom of `attnviz.statistics.variance`. The
adjustment for all pairs draws whole studies without any difference from the fitted variances and
takes the smallest p of each (single-step min-p; Westfall and Young 1993): an adjusted p is the
share of such studies whose smallest p is no greater. The interval of each pair is widened to the
matching level, so that it leaves out 0 exactly where the adjusted p is below 1 − confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnviz.statistics.kinds import rank_sum, two_kinds
from attnviz.statistics.variance import (
    Array,
    Sample,
    Spread,
    group_freedom,
    sampled,
    small_sample,
    total,
)

SHARED = 0.0125
"""Level of the test that seeds are paired by: a quarter of the usual .05."""

FEWEST = 3
"""Seeds of each variant below which no difference is tested and none is clear."""

_PAIRING = 4 / 3  # p is taken times this: the other three quarters are left for the differences
_PRIOR = 4.0  # degrees of freedom; see `_moderated`
_CHUNK = 300_000  # values of simulated studies held at once


@dataclass(frozen=True, eq=False)
class _Null:
    """Fitted variances that null studies are drawn from.

    Attributes:
        seeds: (variants, variants) covariance of the means over seeds; diagonal if not paired.
        images: (variants, variants) covariance of the means over images.
        overlap: (variants,) what stands in both.
        counts: (variants,) seeds.
        image_freedom: Degrees of freedom of `images`.
    """

    seeds: Array
    images: Array
    overlap: Array
    counts: Array
    image_freedom: float


@dataclass(frozen=True, eq=False)
class Pairs:
    """Every pair i < j of variants on one metric; arrays have one entry per pair.

    Attributes:
        one: Index of the first variant.
        other: Index of the second.
        difference: Mean of the first less that of the second, on the images that both can score.
        spread: Its variance and degrees of freedom.
        images: Images that both can score in some seed.
        seeds: The smaller number of seeds of the two.
        p: Two-sided, unadjusted; NaN where the variance is not known.
        rank_p: p by ranks over seeds (`attnviz.statistics.kinds`); NaN where no variant's
            trainings fall into two kinds.
        paired: Whether seeds are paired.
        null: Variances that studies without a difference are drawn from.
    """

    one: Array
    other: Array
    difference: Array
    spread: Spread
    images: Array
    seeds: Array
    p: Array
    rank_p: Array
    paired: bool
    null: _Null


def all_pairs(
    scores: Sequence[Array],
    labels: Sequence[Sequence[Any]],
    groups: Array | None = None,
    samples: Sequence[Sample] | None = None,
) -> Pairs:
    """Difference, variance and p of every pair of variants.

    Args:
        scores: (seeds, images) for each variant, NaN where an image cannot be scored.
        labels: The seeds' names for each variant.
        groups: (images,) each image's group as a whole number from 0; each its own if None.
        samples: The scores as reduced already, to save the time.
    """
    samples = [sampled(rows, groups) for rows in scores] if samples is None else samples
    held = np.stack([np.isfinite(rows).any(axis=0) for rows in scores])
    one, other = np.triu_indices(len(scores), 1)
    paired = _share_seeds(samples, labels)
    null = _fitted(samples, paired)
    difference, spread = _differences(np.array([s.mean for s in samples]), null, one, other, paired)
    for k in np.flatnonzero((held[one] != held[other]).any(axis=1)):
        both = held[one[k]] & held[other[k]]
        rows = [np.where(both, scores[i], np.nan) for i in (one[k], other[k])]
        difference[k], spread.variance[k], spread.freedom[k] = _one_pair(rows, groups, paired)
    seeds = np.minimum(null.counts[one], null.counts[other])
    p = two_sided(difference, spread)
    images = (held[one] & held[other]).sum(1)
    ranks = _rank_p(samples, one, other)
    return Pairs(one, other, difference, spread, images, seeds, p, ranks, paired, null)


def _rank_p(samples: Sequence[Sample], one: Array, other: Array) -> Array:
    if not any(two_kinds(sample) for sample in samples):
        return np.full(len(one), np.nan)
    return np.array(
        [rank_sum(samples[i].means, samples[j].means) for i, j in zip(one, other, strict=True)]
    )


def _one_pair(
    rows: Sequence[Array], groups: Array | None, paired: bool
) -> tuple[float, float, float]:
    """Difference, variance and degrees of freedom of two variants on their common images."""
    kept = [sampled(one, groups) for one in rows]
    paired = paired and len(kept[0].means) == len(kept[1].means)
    means = np.array([sample.mean for sample in kept])
    gap, its = _differences(means, _fitted(kept, paired), np.array([0]), np.array([1]), paired)
    return float(gap[0]), float(its.variance[0]), float(its.freedom[0])


def two_sided(difference: Any, spread: Spread) -> Array:
    """Two-sided p of Student's t; 1 for no difference, NaN where the variance is not known."""
    from scipy.special import stdtr

    size = np.abs(np.asarray(difference, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(size > 0, size / np.sqrt(spread.variance), 0.0)
    p = 2 * stdtr(np.where(spread.freedom > 0, spread.freedom, np.nan), -t)
    return np.asarray(p)


def _share_seeds(samples: Sequence[Sample], labels: Sequence[Sequence[Any]]) -> bool:
    """Whether seeds of the same name score alike over all variants, by a two-sided F test."""
    from scipy.special import fdtr

    count = len(labels[0])
    alike = all(list(one) == list(labels[0]) for one in labels)
    if len(samples) < 2 or count < FEWEST or not alike:
        return False
    if any(len(sample.means) != count for sample in samples):
        return False
    table = np.stack([sample.means for sample in samples])
    table = table - table.mean(1, keepdims=True)
    common = table.mean(0)
    between = len(table) * float((common**2).sum()) / (count - 1)
    freedom = (len(table) - 1) * (count - 1)
    within = float(((table - common) ** 2).sum()) / freedom
    if between == 0 and within == 0:
        return False
    ratio = between / within if within > 0 else float("inf")
    below = float(fdtr(count - 1, freedom, ratio)) if np.isfinite(ratio) else 1.0
    return min(below, 1 - below) < SHARED / 2


def _fitted(samples: Sequence[Sample], paired: bool) -> _Null:
    scored = [sample.share for sample in samples if len(sample.means)]
    share = np.mean(scored, axis=0) if scored else samples[0].share
    profiles = np.stack([sample.profile for sample in samples])
    counts = np.array([len(sample.means) for sample in samples])
    if paired:
        seeds = np.atleast_2d(np.cov(np.stack([s.means for s in samples]))) / counts[0]
    else:
        seeds = np.diag([sample.seeds for sample in samples])
    return _Null(
        seeds,
        small_sample(share) * profiles @ profiles.T,
        np.array([sample.overlap for sample in samples]),
        counts,
        group_freedom(share),
    )


def _differences(
    means: Array, null: _Null, one: Array, other: Array, paired: bool
) -> tuple[Array, Spread]:
    """Differences of means and their spread, from the fitted parts."""
    own = np.diag(null.images)
    images = np.maximum(own[one] + own[other] - 2 * null.images[one, other], 0.0)
    of_seeds, freedom = np.diag(null.seeds), np.maximum(null.counts - 1, 0)
    if paired:
        joint = of_seeds[one] + of_seeds[other] - 2 * null.seeds[one, other]
        parts = [(np.maximum(joint, 0.0), freedom[one])]
    else:
        parts = [(of_seeds[k], freedom[k]) for k in (one, other)]
    overlap = null.overlap[one] + null.overlap[other]
    return means[one] - means[other], total(parts, images, null.image_freedom, overlap)


@dataclass(frozen=True, eq=False)
class Adjusted:
    """What the adjustment for all pairs gives.

    Attributes:
        p: (pairs,) adjusted p; NaN where p is.
        level: The unadjusted p up to which the adjusted one is within the level: the pairs'
            intervals are of confidence 1 − level.
        alike: (pairs,) whether the test by ranks, which trainings of two kinds call for, does not
            separate the two: their interval reaches to 0.
    """

    p: Array
    level: float
    alike: Array


def adjusted(
    pairs: Pairs, *, level: float, tests: int = 1, resamples: int = 10_000, seed: int = 0
) -> Adjusted:
    """Adjust the p of all pairs for their number.

    p is taken times 4/3, since a quarter of the level goes to the test that pairs seeds or does
    not (`SHARED`), and times the number of metrics that share the level.

    Args:
        pairs: Of one metric.
        level: 1 − confidence.
        tests: How many metrics share the level.
        resamples: Studies drawn without a difference. Where they are too few to reach the level,
            p is taken times the number of pairs (Bonferroni), as that by ranks is.
        seed: Of these studies.
    """
    factor = tests * _PAIRING
    count, reach = int(np.isfinite(pairs.p).sum()), level / factor
    by_ranks = np.nan_to_num(factor * max(count, 1) * pairs.rank_p)
    rank = int(reach * (resamples + 1) + 1e-9)
    if count < 2 or rank < 1:
        found, limit = max(count, 1) * pairs.p, reach / max(count, 1)
    else:
        drawn = smallest_p(pairs, resamples=resamples, rng=np.random.default_rng(seed))
        share = (1 + np.searchsorted(drawn, pairs.p, side="right")) / (resamples + 1)
        found = np.where(np.isfinite(pairs.p), np.maximum(share, pairs.p), np.nan)
        limit = min(reach, float(drawn[rank - 1]))
    # Rounded, so that a p at the level itself is within it.
    p = np.round(np.minimum(np.maximum(factor * found, by_ranks), 1.0), 12)
    return Adjusted(p, limit, by_ranks > level)


def smallest_p(pairs: Pairs, *, resamples: int, rng: np.random.Generator) -> Array:
    """The smallest p over all tested pairs, of studies without a difference: (resamples,), sorted.

    Args:
        pairs: Of one metric.
        resamples: How many studies are drawn.
        rng: Random generator.
    """
    tested = np.flatnonzero(np.isfinite(pairs.p))
    size = max(1, _CHUNK // max(len(tested), 1))
    found = [
        _drawn(pairs, tested, min(size, resamples - start), rng)
        for start in range(0, resamples, size)
    ]
    return np.sort(np.concatenate(found))


def _drawn(pairs: Pairs, tested: Array, size: int, rng: np.random.Generator) -> Array:
    """The smallest p of `size` studies drawn from the fitted variances."""
    null, one, other = pairs.null, pairs.one[tested], pairs.other[tested]
    freedom = np.maximum(null.counts - 1, 1)
    own = _own_images(null)
    images = _wishart(own, null.image_freedom, size, rng)
    seen = _apart(images, one, other)
    means = rng.normal(size=(size, len(own))) * np.sqrt(np.maximum(own - null.overlap, 0.0))
    if pairs.paired:
        count = int(freedom[0])
        rows = _normal(null.seeds, size * (count + 1), rng).reshape(size, count + 1, -1)
        means += rows[:, 0]
        seeds = [(((rows[:, 1:, one] - rows[:, 1:, other]) ** 2).mean(1), freedom[one])]
    else:
        variance = _moderated(np.diag(null.seeds), freedom)
        means += rng.normal(size=means.shape) * np.sqrt(variance)
        drawn = variance * rng.chisquare(freedom, (size, len(freedom))) / freedom
        seeds = [(drawn[:, one], freedom[one]), (drawn[:, other], freedom[other])]
    overlap = null.overlap[one] + null.overlap[other]
    spread = total(seeds, seen, null.image_freedom, overlap)
    gaps = means[:, one] - means[:, other]
    k = (np.arange(size), _surest(gaps, spread))
    return two_sided(gaps[k], Spread(spread.variance[k], spread.freedom[k]))


def _surest(gaps: Array, spread: Spread) -> Array:
    """Which pair has the smallest p in each study, by Wallace's (1959) normal score of t.

    To turn every t into a p would take five times as long.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        square = np.where(gaps == 0, 0.0, gaps**2 / spread.variance)
    freedom = np.maximum(spread.freedom, 1e-9)
    shrink = (8 * freedom + 1) / (8 * freedom + 3)
    return np.asarray((shrink**2 * freedom * np.log1p(square / freedom)).argmax(1))


def _moderated(variance: Array, freedom: Array) -> Array:
    """Variances drawn towards their mean, as if that were known with `_PRIOR` degrees of freedom.

    Of three seeds a variance is known to a factor of several; studies drawn from the estimates as
    they are would be more unlike each other than the trainings were.
    """
    mean = float((variance * freedom).sum() / freedom.sum())
    return np.asarray((_PRIOR * mean + freedom * variance) / (_PRIOR + freedom))


def _own_images(null: _Null) -> Array:
    """(variants,) image variances that, taken as independent, give the pairs' own variances best.

    What variants share on an image cancels in a difference. Where there are few groups their
    covariance has a low rank, and studies drawn from it would have too few independent pairs.
    """
    count = len(null.images)
    if count < 3:
        return np.full(count, 0.5 * max(float(_apart(null.images[None], 0, 1)[0]), 0.0))
    i, j = np.indices(null.images.shape)
    apart = _apart(null.images[None], i, j)[0]
    rows = apart.sum(1)
    return np.asarray(np.maximum((rows - rows.sum() / (2 * (count - 1))) / (count - 2), 0.0))


def _apart(covariance: Array, one: Any, other: Any) -> Array:
    """Variance of each difference under a stack of covariance matrices."""
    own = np.diagonal(covariance, axis1=1, axis2=2)
    return np.asarray(np.maximum(own[:, one] + own[:, other] - 2 * covariance[:, one, other], 0.0))


def _wishart(variance: Array, freedom: float, size: int, rng: np.random.Generator) -> Array:
    """Sample covariances (size, k, k) of k independent normal columns, by Bartlett (1933)."""
    k = len(variance)
    if freedom <= 0:
        return np.zeros((size, k, k))
    if freedom < k:
        rows = rng.normal(size=(size, max(round(freedom), 1), k)) * np.sqrt(variance)
        return np.asarray(rows.transpose(0, 2, 1) @ rows / rows.shape[1])
    lower = np.tril(rng.normal(size=(size, k, k)), -1)
    lower[:, range(k), range(k)] = np.sqrt(rng.chisquare(freedom - np.arange(k), (size, k)))
    lower *= np.sqrt(variance)[:, None]
    return np.asarray(lower @ lower.transpose(0, 2, 1) / freedom)


def _normal(covariance: Array, size: int, rng: np.random.Generator) -> Array:
    """Normal draws (size, k) of a covariance matrix that need not be of full rank."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(
        rng.normal(size=(size, len(values))) * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    )
