"""Variance of a mean score over training seeds × groups × images, and its degrees of freedom.

Every seed of every variant is measured on the same images: seeds and groups (photographs,
patients, videos) are crossed, images are nested in groups. The score of seed s on image i of group
g is μ + seed s + group g + (seed × group) + image + (seed × image), all random. The mean over seeds
of each seed's mean over images then varies by three estimable parts:

- `seeds`: variance of the seeds' means over their number, S. Holds the seeds' own effect and the
  interactions.
- `images`: variance of the mean over redrawn groups, by the sum of squares of what each group
  contributes (the cluster-robust variance; Liang and Zeger 1986). Holds groups, images and the
  interactions.
- `overlap`: the interactions, which stand in both.

The variance is seeds + max(images − overlap, 0), and no less than images. Degrees of freedom are
Satterthwaite's (1946): (total)² / (seeds² / (S − 1) + images² / (G − 1)). A difference of two
variants takes the seeds' parts of both and the images' part of the paired difference.

Without groups each image is its own group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray


@dataclass(frozen=True, eq=False)
class Sample:
    """One variant's scores on one metric, reduced to what its mean and variance need.

    Attributes:
        means: (seeds,) mean over the images that the seed could score; seeds without any left out.
        pull: (seeds, groups) what each group adds to the seed's mean: the sum over its images of
            score − mean, over the seed's number of scored images. Rows sum to zero.
        share: (groups,) each group's share of the scored images.
    """

    means: Array
    pull: Array
    share: Array

    @property
    def mean(self) -> float:
        """Mean over seeds of each seed's mean over images; NaN without any."""
        return float(self.means.mean()) if len(self.means) else float("nan")

    @cached_property
    def seeds(self) -> float:
        """Variance that seeds bring to the mean; 0 where there is one seed."""
        count = len(self.means)
        return float(self.means.var(ddof=1)) / count if count > 1 else 0.0

    @cached_property
    def overlap(self) -> float:
        """Variance of the mean by interactions of seeds with groups and images."""
        count = len(self.means)
        if count < 2:
            return 0.0
        apart = self.pull - self.pull.mean(0)
        return float((apart**2).sum() * small_sample(self.share) / (count * (count - 1)))

    @property
    def profile(self) -> Array:
        """(groups,) what each group adds to the mean over seeds."""
        return np.asarray(self.pull.mean(0)) if len(self.means) else np.zeros(len(self.share))


def sampled(scores: Array, groups: Array | None = None) -> Sample:
    """Reduce scores to a sample.

    Args:
        scores: (seeds, images), NaN where an image cannot be scored.
        groups: (images,) whole numbers from 0, each image's group; each its own if None.
    """
    valid = np.isfinite(scores)
    kept = valid.any(axis=1)
    scores, valid = scores[kept], valid[kept]
    count = valid.sum(1, keepdims=True)
    means = np.where(valid, scores, 0.0).sum(1, keepdims=True) / count
    pull = np.where(valid, scores - means, 0.0) / count
    share = (valid / count).mean(0) if len(scores) else np.zeros(scores.shape[1])
    if groups is not None:
        member = np.eye(int(groups.max()) + 1)[groups]
        pull, share = pull @ member, share @ member
    return Sample(means[:, 0], pull, share)


def small_sample(share: Array) -> float:
    """What the sum of squared contributions is multiplied by: G / (G − 1) for G equal groups.

    For unequal ones Σw² / (Σw² − 2Σw³ + (Σw²)²) with w the shares: the expectation under equal
    variance of the groups' means. 0 for fewer than two groups, whose variance is not known.
    """
    square, cube = float((share**2).sum()), float((share**3).sum())
    rest = square - 2 * cube + square**2
    return square / rest if rest > 1e-12 * square > 0 else 0.0


def group_freedom(share: Array) -> float:
    """Degrees of freedom of the groups' variance: G − 1 for equal groups, fewer for unequal."""
    fourth = float((share**4).sum())
    return float((share**2).sum()) ** 2 / fourth - 1 if fourth > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Spread:
    """Variance and degrees of freedom of a mean or of several at once.

    Attributes:
        variance: Of the estimate.
        freedom: Satterthwaite's degrees of freedom; 0 where the variance is not known.
    """

    variance: Array
    freedom: Array


def total(
    seeds: Sequence[tuple[Any, Any]], images: Any, image_freedom: Any, overlap: Any
) -> Spread:
    """The variance of an estimate from its parts; see the module.

    Args:
        seeds: (variance, degrees of freedom) of each variant's seeds, numbers or arrays.
        images: The variance by groups and images.
        image_freedom: Its degrees of freedom.
        overlap: The variance that stands in both.
    """
    of_seeds = np.asarray(sum(part for part, _ in seeds), dtype=np.float64)
    images = np.asarray(images, dtype=np.float64)
    freedom = np.asarray(image_freedom, dtype=np.float64)
    squares = sum((_per_freedom(*part) for part in seeds), _per_freedom(images, freedom))
    whole = of_seeds + np.maximum(images - overlap, 0.0)
    most = freedom
    for _, count in seeds:
        most = np.maximum(most, count)
    fitted = np.where(squares > 0, whole**2 / np.where(squares > 0, squares, 1), most)
    by_images = images > whole
    return Spread(np.where(by_images, images, whole), np.where(by_images, freedom, fitted))


def _per_freedom(part: Any, freedom: Any) -> Array:
    freedom = np.asarray(freedom, dtype=np.float64)
    return np.where(freedom > 0, np.asarray(part) ** 2 / np.where(freedom > 0, freedom, 1), 0.0)


def spread(sample: Sample) -> Spread:
    """Variance and degrees of freedom of one variant's mean."""
    images = small_sample(sample.share) * float((sample.profile**2).sum())
    return total(
        [(sample.seeds, max(len(sample.means) - 1, 0))],
        images,
        group_freedom(sample.share),
        sample.overlap,
    )


def mean_of_valid(columns: Array) -> Array:
    """Mean of each row over its finite entries; NaN, without a warning, where it has none."""
    valid = np.isfinite(columns)
    count = valid.sum(-1)
    summed = np.where(valid, columns, 0.0).sum(-1)
    return np.asarray(np.where(count > 0, summed / np.maximum(count, 1), np.nan))
