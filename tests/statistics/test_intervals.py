"""Intervals: bounds, hits, groups, trainings of two kinds; coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attnviz.statistics.intervals import (
    clopper_pearson,
    half_width,
    interval,
    wilson,
)
from attnviz.statistics.kinds import two_kinds
from attnviz.statistics.variance import sampled


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class TestT:
    def test_one_seed_is_the_textbook_interval(self) -> None:
        row = rng().normal(size=(1, 40))
        half = 2.0227 * row.std(ddof=1) / math.sqrt(40)  # t of 39 degrees of freedom
        assert half_width(sampled(row), 0.95) == pytest.approx(half, rel=1e-4)

    def test_three_seeds_are_the_textbook_interval(self) -> None:
        scores = np.tile(rng().normal(size=(3, 1)), (1, 40))
        half = 4.3027 * scores[:, 0].std(ddof=1) / math.sqrt(3)
        assert half_width(sampled(scores), 0.95) == pytest.approx(half, rel=1e-4)

    def test_scores_that_do_not_vary_have_an_interval_without_width(self) -> None:
        assert half_width(sampled(np.full((3, 8), 0.7)), 0.95) == pytest.approx(0, abs=1e-12)

    def test_one_number_has_no_interval(self) -> None:
        assert math.isnan(half_width(sampled(np.ones((1, 1))), 0.95))
        assert math.isnan(interval("pointing_game", np.ones((1, 1))).low)

    def test_nothing_scored_has_neither_mean_nor_interval(self) -> None:
        found = interval("pointing_game", np.full((2, 4), np.nan))
        assert all(map(math.isnan, (found.mean, found.low, found.high)))

    def test_groups_widen_it(self) -> None:
        groups = np.repeat(np.arange(8), 10)
        row = rng().normal(size=8)[groups] + 0.1 * rng(1).normal(size=80)
        alone, grouped = (half_width(sampled(row[None], g), 0.95) for g in (None, groups))
        assert grouped > 2 * alone


class TestShares:
    @pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 50), (25, 50), (49, 50), (50, 50)])
    def test_one_training_has_clopper_and_pearson_s(self, hits: int, n: int) -> None:
        """The definition: at either end, as many hits or more (fewer) have probability .025."""
        row = (np.arange(n) < hits) * 1.0
        found = interval("pointing_game", row[None])

        def at_most(k: int, p: float) -> float:
            return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

        if hits:
            assert 1 - at_most(hits - 1, found.low) == pytest.approx(0.025, abs=1e-6)
        else:
            assert found.low == 0
        if hits < n:
            assert at_most(hits, found.high) == pytest.approx(0.025, abs=1e-6)
        else:
            assert found.high == 1

    def test_wilson_s_ends_are_where_the_score_test_turns(self) -> None:
        for end in wilson(0.3, 1.96**2 / 40):
            assert abs(0.3 - end) / math.sqrt(end * (1 - end) / 40) == pytest.approx(1.96)

    def test_clopper_pearson_of_three_in_ten(self) -> None:
        assert clopper_pearson(3, 10, 0.95) == pytest.approx((0.0667, 0.6525), abs=1e-4)

    @pytest.mark.parametrize("seeds", [1, 2, 3, 10])
    def test_all_hits_are_no_certainty(self, seeds: int) -> None:
        found = interval("pointing_game", np.ones((seeds, 50)))
        assert found.high == 1
        assert 0.9 < found.low < 0.95

    def test_all_hits_of_few_groups_say_as_much_as_those_groups(self) -> None:
        found = interval("pointing_game", np.ones((1, 200)), groups=np.arange(200) % 8)
        assert found.low < 0.7

    @pytest.mark.parametrize("seeds", [1, 2, 3, 5])
    def test_stays_within_its_bounds(self, seeds: int) -> None:
        for k in range(50):
            hits = (rng(k).random((seeds, 12)) < 0.9) * 1.0
            for scores in (hits, 1 - 0.2 * rng(k).random((seeds, 12)) ** 4):
                found = interval("pointing_game", scores)
                assert 0 <= found.low <= found.mean <= found.high <= 1

    def test_a_metric_without_known_limits_is_bounded_where_its_scores_are_hits(self) -> None:
        hits = np.array([[1.0] * 9 + [0.0], [1.0] * 10])
        assert interval("my_own", hits).high <= 1
        assert interval("my_own", hits - 0.5).high > 0.5

    def test_scores_far_from_the_bounds_have_student_s(self) -> None:
        scores = 0.5 + 0.02 * rng().normal(size=(3, 40))
        found = interval("energy_pointing_game", scores)
        assert found.high - found.mean == pytest.approx(half_width(sampled(scores), 0.95))


class TestTwoKinds:
    def test_trainings_that_fail_are_seen(self) -> None:
        means = np.array([0.9, 0.91, 0.1, 0.92, 0.89])[:, None]
        scores = means + 0.03 * rng().normal(size=(5, 40))
        found = interval("energy_pointing_game", scores)
        assert found.kinds is not None
        assert (len(found.kinds.low), len(found.kinds.high)) == (1, 4)
        assert found.low < 0.4
        assert found.high > 0.89

    def test_image_noise_is_no_kind(self) -> None:
        hits = np.ones((3, 50))
        hits[0, 0] = 0
        assert two_kinds(sampled(hits)) is None

    def test_two_trainings_are_too_few_to_tell(self) -> None:
        assert two_kinds(sampled(np.array([[0.9] * 9, [0.1] * 9]))) is None

    @pytest.mark.parametrize("seeds", [3, 5, 10])
    def test_a_bell_is_taken_for_two_in_one_of_twenty(self, seeds: int) -> None:
        chance = rng(seeds)
        found = [
            two_kinds(sampled(np.tile(chance.normal(size=(seeds, 1)), (1, 4)))) is not None
            for _ in range(2000)
        ]
        assert 0.03 < np.mean(found) < 0.07


@pytest.mark.parametrize(
    ("seeds", "seed", "image", "groups"),
    [(3, 1.0, 1.0, None), (5, 1.0, 1.0, None), (3, 0.2, 0.5, None), (3, 0.5, 0.5, 8)],
)
def test_95_percent_of_intervals_hold_the_mean(
    seeds: int, seed: float, image: float, groups: int | None
) -> None:
    chance, held, studies = rng(seeds), 0, 800
    clusters = None if groups is None else np.arange(40) % groups
    for _ in range(studies):
        scores = seed * chance.normal(size=(seeds, 1)) + chance.normal(size=(seeds, 40))
        scores += image * chance.normal(size=(1, 40))
        if clusters is not None:
            scores += chance.normal(size=groups)[clusters]
        held += abs(scores.mean()) <= half_width(sampled(scores, clusters), 0.95)
    assert 0.91 <= held / studies <= 0.985


def test_hits_near_one_of_one_training_are_covered() -> None:
    chance, held = rng(), 0
    for _ in range(500):
        found = interval("pointing_game", (chance.random((1, 50)) < 0.99) * 1.0)
        held += found.low <= 0.99 <= found.high
        assert found.high > found.low
    assert held / 500 >= 0.95
