"""All pairs: paired images, seeds paired or not, p, and the adjustment for all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from attnviz.statistics.intervals import gap_intervals
from attnviz.statistics.kinds import rank_sum
from attnviz.statistics.pairs import Pairs, adjusted, all_pairs, smallest_p
from attnviz.statistics.variance import sampled


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def equal(variants: int, seeds: int, seed: int, images: int = 30) -> list[np.ndarray]:
    chance = rng(seed)
    image = chance.normal(size=(1, images))
    return [
        image + 0.5 * chance.normal(size=(seeds, 1)) + chance.normal(size=(seeds, images))
        for _ in range(variants)
    ]


def pairs(scores: list[np.ndarray], groups: np.ndarray | None = None) -> Pairs:
    return all_pairs(scores, [range(len(rows)) for rows in scores], groups)


def test_a_difference_has_both_variants_seeds_and_the_images_of_the_difference() -> None:
    a, b = equal(2, 4, 0)
    found = pairs([a, b])
    gap = a.mean(0) - b.mean(0)
    of_images = gap.var(ddof=1) / 30
    seeds = [rows.mean(1).var(ddof=1) / 4 for rows in (a, b)]
    noise = sum(sampled(rows).overlap for rows in (a, b))
    whole = sum(seeds) + max(of_images - noise, 0)
    assert not found.paired
    assert float(found.difference[0]) == pytest.approx(a.mean() - b.mean())
    assert float(found.spread.variance[0]) == pytest.approx(max(whole, of_images))


def test_seeds_that_score_alike_are_paired() -> None:
    """Two maps of the same five networks: the networks differ, the maps' difference does not."""
    networks = rng().normal(size=(5, 1))
    a = networks + 0.01 * rng(1).normal(size=(5, 30))
    b = networks - 0.1 + 0.01 * rng(2).normal(size=(5, 30))
    found = pairs([a, b])
    assert found.paired
    assert found.p[0] < 1e-4


def test_seeds_of_other_names_are_never_paired() -> None:
    networks = rng().normal(size=(5, 1))
    rows = [networks + 0.01 * rng(k).normal(size=(5, 30)) for k in (1, 2)]
    assert not all_pairs(rows, [range(5), range(5, 10)]).paired


def test_unrelated_seeds_are_paired_in_one_study_of_eighty() -> None:
    found = [pairs(equal(4, 5, k)).paired for k in range(600)]
    assert np.mean(found) < 0.03


def test_images_that_one_lacks_are_left_out_of_the_pair() -> None:
    a, b, c = equal(3, 3, 0)
    b[:, :6] = np.nan
    found = pairs([a, b, c])
    assert found.images.tolist() == [24, 30, 24]
    assert found.difference[0] == pytest.approx(a[:, 6:].mean() - b[:, 6:].mean())
    assert found.difference[1] == pytest.approx(a.mean() - c.mean())


def test_pairs_with_missing_images_agree_with_complete_ones() -> None:
    a, b = equal(2, 3, 0)
    lacking = b.copy()
    lacking[:, :6] = np.nan
    found, short = pairs([a, lacking]), pairs([a[:, 6:], b[:, 6:]])
    for one, other in ((found.difference, short.difference), (found.p, short.p)):
        np.testing.assert_allclose(one, other)


def test_one_of_two_that_cannot_be_scored_has_no_p() -> None:
    a, b = equal(2, 3, 0)
    assert np.isnan(pairs([a, np.full_like(b, np.nan)]).p[0])


def test_one_p_of_twenty_is_small_among_equals() -> None:
    p = [float(pairs(equal(2, 5, k)).p[0]) for k in range(800)]
    assert 0.03 < np.mean(np.array(p) <= 0.05) < 0.07


@pytest.mark.parametrize(("seeds", "groups"), [(3, None), (10, None), (5, 8)])
def test_some_adjusted_p_is_small_in_one_study_of_twenty_at_most(
    seeds: int, groups: int | None
) -> None:
    clusters = None if groups is None else np.arange(30) % groups
    some = 0
    for k in range(250):
        scores = equal(6, seeds, k)
        if clusters is not None:
            scores = [
                rows + rng([k, i]).normal(size=groups)[clusters] for i, rows in enumerate(scores)
            ]
        found = adjusted(pairs(scores, clusters), level=0.05, resamples=199, seed=k)
        some += found.p.min() <= 0.05
    assert some / 250 <= 0.08


@pytest.mark.parametrize("resamples", [10, 200, 2000])
@pytest.mark.parametrize("variants", [2, 3, 6])
def test_interval_and_adjusted_p_say_the_same(variants: int, resamples: int) -> None:
    told = set()
    for k in range(30):
        scores = equal(variants, 4, k)
        scores[0] += k / 10
        found = pairs(scores)
        tested = adjusted(found, level=0.05, resamples=resamples)
        samples = [sampled(rows) for rows in scores]
        low, high = gap_intervals("score", scores, samples, found, tested)
        outside = (low > 0) | (high < 0)
        np.testing.assert_array_equal(outside, tested.p <= 0.05)
        told |= set(outside.tolist())
    assert told == {True, False}


def test_an_adjusted_p_is_no_smaller_than_its_own() -> None:
    found = pairs(equal(6, 3, 1))
    assert (adjusted(found, level=0.05, resamples=500).p >= found.p).all()


def test_more_metrics_take_their_share_of_the_level() -> None:
    found = pairs(equal(3, 5, 2))
    alone, shared = (adjusted(found, level=0.05, tests=n, resamples=2000) for n in (1, 4))
    np.testing.assert_allclose(shared.p, np.minimum(4 * alone.p, 1))
    assert shared.level < alone.level


def test_the_smallest_p_of_three_pairs_is_as_by_a_slow_twin() -> None:
    """Studies without a difference, each drawn and compared by the library itself."""
    found = pairs(equal(3, 8, 3))
    drawn = smallest_p(found, resamples=4000, rng=rng())
    slow = [float(pairs(equal(3, 8, 1000 + k)).p.min()) for k in range(1200)]
    for share in (0.05, 0.25, 0.5):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(slow, share), rel=0.35)


def test_the_same_seed_gives_the_same_numbers() -> None:
    found = pairs(equal(4, 3, 0))
    one, same, other = (adjusted(found, level=0.05, resamples=300, seed=s).p for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_two_variants_that_hit_everything_are_not_known_to_be_equal() -> None:
    scores = [np.ones((3, 40)), np.ones((3, 40))]
    found = pairs(scores)
    tested = adjusted(found, level=0.05)
    low, high = gap_intervals("pointing_game", scores, [sampled(s) for s in scores], found, tested)
    assert low[0] < -0.05 < 0.05 < high[0]
    assert found.p[0] == 1


def test_all_against_none_is_a_difference() -> None:
    scores = [np.ones((3, 40)), np.zeros((3, 40))]
    found = pairs(scores)
    tested = adjusted(found, level=0.05)
    low, high = gap_intervals("pointing_game", scores, [sampled(s) for s in scores], found, tested)
    assert (low[0] > 0.8, high[0]) == (True, 1.0)
    assert found.p[0] == 0


class TestTwoKinds:
    def failing(self, lows: list[int], seeds: int) -> list[np.ndarray]:
        """Variants of which so many trainings failed."""
        means = [np.array([0.1] * low + [0.9] * (seeds - low)) for low in lows]
        return [
            mean[:, None]
            + 0.01 * rng(i).normal(size=(seeds, 1))
            + 0.02 * rng(9).normal(size=(1, 30))
            for i, mean in enumerate(means)
        ]

    def test_where_trainings_fail_three_are_not_clear_of_three(
        self,
    ) -> None:
        alone = pairs(self.failing([0, 3], 3))
        assert adjusted(alone, level=0.05).p[0] < 0.05
        scores = self.failing([0, 3, 1], 3)
        found = pairs(scores)
        tested = adjusted(found, level=0.05)
        assert (tested.p > 0.05).all()
        low, high = gap_intervals("score", scores, [sampled(s) for s in scores], found, tested)
        assert ((low <= 0) & (high >= 0)).all()

    def test_ten_that_failed_are(self) -> None:
        found = pairs(self.failing([0, 10, 3], 10))
        assert adjusted(found, level=0.05).p[0] < 0.05

    @pytest.mark.parametrize(
        ("one", "other", "p"), [(3, 3, 0.1), (5, 5, 2 / 252), (10, 10, 2 / 184756)]
    )
    def test_ranks_that_do_not_mix_have_the_smallest_p(
        self, one: int, other: int, p: float
    ) -> None:
        assert rank_sum(np.arange(one) + 100.0, np.arange(other) * 1.0) == pytest.approx(p)

    def test_ranks_agree_with_scipy_s(self) -> None:
        from scipy.stats import mannwhitneyu

        for k in range(20):
            a, b = rng(k).normal(size=4), 0.5 + rng(100 + k).normal(size=6)
            assert rank_sum(a, b) == pytest.approx(mannwhitneyu(a, b, method="exact").pvalue)

    def test_equal_scores_are_no_difference(self) -> None:
        assert rank_sum(np.ones(4), np.ones(4)) == 1
