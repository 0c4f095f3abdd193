"""Variance of a mean over seeds, groups and images, against slow twins and known cases."""

from __future__ import annotations

import numpy as np
import pytest

from attnviz.statistics.variance import (
    group_freedom,
    mean_of_valid,
    sampled,
    small_sample,
    spread,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def slow_parts(scores: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Seeds, images and overlap of complete scores, by loops over their definitions."""
    seeds, images = scores.shape
    names = sorted(set(groups.tolist()))
    means = [float(np.mean(row)) for row in scores]
    whole = sum(means) / seeds
    of_seeds = sum((m - whole) ** 2 for m in means) / (seeds - 1) / seeds
    pull = [
        [sum(scores[s, i] - means[s] for i in range(images) if groups[i] == g) / images
         for g in names]
        for s in range(seeds)
    ]  # fmt: skip
    share = [float(np.mean(groups == g)) for g in names]
    square = sum(w**2 for w in share)
    factor = square / (square - 2 * sum(w**3 for w in share) + square**2)
    average = [sum(row[g] for row in pull) / seeds for g in range(len(names))]
    of_images = factor * sum(a**2 for a in average)
    apart = sum((row[g] - average[g]) ** 2 for row in pull for g in range(len(names)))
    return of_seeds, of_images, factor * apart / (seeds * (seeds - 1))


@pytest.mark.parametrize(
    "groups", [np.arange(12), np.arange(12) % 4, np.array([0] * 7 + [1, 2] * 2 + [3])]
)
def test_agrees_with_its_slow_twin(groups: np.ndarray) -> None:
    scores = rng().normal(size=(4, 12)) + rng(1).normal(size=(4, 1))
    of_seeds, of_images, overlap = slow_parts(scores, groups)
    sample = sampled(scores, groups)
    assert sample.mean == pytest.approx(scores.mean())
    assert sample.seeds == pytest.approx(of_seeds)
    assert sample.overlap == pytest.approx(overlap)
    found = spread(sample)
    whole = of_seeds + max(of_images - overlap, 0)
    assert float(found.variance) == pytest.approx(max(whole, of_images))
    if whole >= of_images:
        fitted = whole**2 / (of_seeds**2 / 3 + of_images**2 / group_freedom(sample.share))
        assert float(found.freedom) == pytest.approx(fitted)


def test_one_seed_has_the_variance_of_a_plain_mean() -> None:
    row = rng().normal(size=(1, 30))
    found = spread(sampled(row))
    assert float(found.variance) == pytest.approx(row.var(ddof=1) / 30)
    assert float(found.freedom) == pytest.approx(29)


def test_seeds_without_images_of_their_own_have_the_variance_of_their_means() -> None:
    scores = np.tile(rng().normal(size=(5, 1)), (1, 20))
    found = spread(sampled(scores))
    assert float(found.variance) == pytest.approx(scores[:, 0].var(ddof=1) / 5)
    assert float(found.freedom) == pytest.approx(4)


def test_equal_groups_are_as_many_independent_images() -> None:
    """Ten images that repeat one score per group say no more than one image per group."""
    few = rng().normal(size=(1, 6))
    many = spread(sampled(np.repeat(few, 10, axis=1), np.repeat(np.arange(6), 10)))
    assert float(many.variance) == pytest.approx(few.var(ddof=1) / 6)
    assert float(many.freedom) == pytest.approx(5)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_equal_groups_have_the_textbook_correction_and_freedom(count: int) -> None:
    share = np.full(count, 1 / count)
    assert small_sample(share) == pytest.approx(count / (count - 1))
    assert group_freedom(share) == pytest.approx(count - 1)


def test_unequal_groups_have_fewer_degrees_of_freedom() -> None:
    assert 0 < group_freedom(np.array([0.7, 0.1, 0.1, 0.1])) < 1


def test_one_group_has_no_variance_that_is_known() -> None:
    assert small_sample(np.array([1.0])) == 0
    assert group_freedom(np.array([1.0])) == pytest.approx(0)


def test_the_variance_is_that_of_the_mean_over_many_studies() -> None:
    chance, groups = rng(3), np.arange(60) % 10
    means, variances = [], []
    for _ in range(1500):
        scores = 0.3 * chance.normal(size=(4, 1)) + 0.5 * chance.normal(size=(4, 60))
        scores += 0.4 * chance.normal(size=10)[groups] + 0.3 * chance.normal(size=60)
        sample = sampled(scores, groups)
        means.append(sample.mean)
        variances.append(float(spread(sample).variance))
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.12)


def test_missing_scores_leave_a_seed_its_own_mean() -> None:
    scores = np.array([[1.0, np.nan, 3.0], [np.nan] * 3, [0.0, 2.0, np.nan]])
    sample = sampled(scores)
    np.testing.assert_allclose(sample.means, [2.0, 1.0])
    np.testing.assert_allclose(sample.pull.sum(1), 0, atol=1e-12)


def test_mean_of_nothing_is_nan_without_a_warning() -> None:
    means = mean_of_valid(np.array([[1.0, np.nan, 3.0], [np.nan] * 3]))
    np.testing.assert_array_equal(means, [2.0, np.nan])
