"""The bootstrap, the sign-flip test and Holm, each against a slow twin or a known answer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnviz.comparison.resampling import (
    degrees_of_freedom,
    half_width,
    holm,
    image_draws,
    mean_of_valid,
    seed_weights,
    sign_flip,
    smallest_p,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def interval(scores: np.ndarray, *, resamples: int, seed: int) -> tuple[float, float]:
    chance = rng(seed)
    centres, draws = image_draws(scores, resamples=resamples, rng=chance)
    weights = seed_weights(len(scores), resamples=resamples, rng=chance)
    width = half_width(scores, ((draws + centres) * weights).sum(1), 0.95)
    return float(scores.mean() - width), float(scores.mean() + width)


class TestImageDraws:
    def test_a_draw_is_the_mean_over_images_drawn_with_replacement(self) -> None:
        scores = rng().random((3, 7))
        scores[1, 2] = np.nan
        centres, draws = image_draws(scores, resamples=50, rng=rng(1))
        picks = rng(1).integers(0, 7, (50, 7))
        for r in range(50):
            for c in range(3):
                drawn = [scores[c, i] for i in picks[r] if np.isfinite(scores[c, i])]
                assert draws[r, c] + centres[c] == pytest.approx(sum(drawn) / len(drawn), abs=1e-6)

    def test_chunks_do_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = rng().random((2, 5))
        _, whole = image_draws(scores, resamples=30, rng=rng(1))
        monkeypatch.setattr("attnviz.comparison.resampling._CHUNK", 7)
        _, pieces = image_draws(scores, resamples=30, rng=rng(1))
        np.testing.assert_allclose(whole, pieces, atol=1e-7)

    def test_all_columns_see_the_same_images(self) -> None:
        row = rng().random(9)
        _, draws = image_draws(np.stack([row, row, 2 * row]), resamples=20, rng=rng(1))
        np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
        np.testing.assert_allclose(draws[:, 2], 2 * draws[:, 0], atol=1e-6)

    def test_their_spread_is_the_standard_error_known_from_theory(self) -> None:
        row = rng().random((1, 40))
        _, draws = image_draws(row, resamples=20_000, rng=rng(1))
        assert draws.std() == pytest.approx(row.std() / np.sqrt(40), rel=0.03)

    def test_a_resample_without_a_valid_image_is_nan_not_zero(self) -> None:
        scores = np.array([[1.0, np.nan]])
        _, draws = image_draws(scores, resamples=200, rng=rng())
        missing = np.isnan(draws[:, 0]).mean()
        assert 0.15 < missing < 0.35  # a quarter of all draws pick the second image twice
        assert np.nanmax(np.abs(draws)) == 0

    def test_a_large_offset_costs_no_precision(self) -> None:
        row = rng().random((1, 30))
        _, plain = image_draws(row, resamples=50, rng=rng(1))
        _, moved = image_draws(row + 1e6, resamples=50, rng=rng(1))
        np.testing.assert_allclose(plain, moved, atol=1e-6)


class TestSeedWeights:
    @pytest.mark.parametrize("seeds", [1, 2, 3, 5, 10])
    def test_rows_sum_to_one(self, seeds: int) -> None:
        weights = seed_weights(seeds, resamples=100, rng=rng())
        assert weights.shape == (100, seeds)
        np.testing.assert_allclose(weights.sum(1), 1)

    @pytest.mark.parametrize("seeds", [2, 3, 5, 10])
    def test_the_variance_of_the_mean_is_not_too_small(self, seeds: int) -> None:
        means = rng(3).normal(size=seeds)
        draws = seed_weights(seeds, resamples=40_000, rng=rng()) @ means
        assert draws.var() == pytest.approx(means.var(ddof=1) / seeds, rel=0.04)


class TestInterval:
    @pytest.mark.parametrize(
        ("seeds", "of_seeds", "of_images", "least"),
        [(1, 0.0, 1.0, 0.92), (3, 1.0, 1.0, 0.91), (5, 1.0, 1.0, 0.92), (5, 0.0, 1.0, 0.92)],
    )
    def test_95_percent_of_the_intervals_hold_the_truth(
        self, seeds: int, of_seeds: float, of_images: float, least: float
    ) -> None:
        """The truth is 0: seeds, images and their interaction are normal with known spread."""
        chance, held, studies = rng(1), 0, 400
        for study in range(studies):
            scores = (
                of_seeds * chance.normal(size=(seeds, 1))
                + of_images * chance.normal(size=(1, 30))
                + 0.5 * chance.normal(size=(seeds, 30))
            )
            low, high = interval(scores, resamples=200, seed=study)
            held += low <= 0 <= high
        assert least <= held / studies <= 0.99

    def test_percentiles_of_five_seeds_would_have_promised_too_much(self) -> None:
        """Why the interval is not made of the draws' percentiles: one seed in ten is missed."""
        chance, held, studies = rng(1), 0, 400
        for study in range(studies):
            scores = chance.normal(size=(5, 1)) + 0.01 * chance.normal(size=(5, 30))
            picks = rng(study).integers(0, 5, (400, 5))
            low, high = np.quantile(scores.mean(1)[picks].mean(1), [0.025, 0.975])
            held += low <= 0 <= high
        assert held / studies < 0.9

    def test_degrees_of_freedom_are_those_of_the_level_that_varies(self) -> None:
        images = np.tile(rng().normal(size=(1, 50)), (4, 1))
        seeds = np.tile(rng().normal(size=(4, 1)), (1, 50))
        assert degrees_of_freedom(images) == pytest.approx(49)
        assert degrees_of_freedom(seeds) == pytest.approx(3)
        assert 3 < degrees_of_freedom(images + 0.3 * seeds) < 49
        assert degrees_of_freedom(np.ones((1, 1))) == 0

    def test_scores_that_do_not_vary_have_an_interval_without_width(self) -> None:
        assert half_width(np.ones((3, 8)), np.ones(100), 0.95) == 0

    def test_one_number_has_no_interval(self) -> None:
        assert np.isnan(half_width(np.ones((1, 1)), np.ones(100), 0.95))


class TestSignFlip:
    @pytest.mark.parametrize("seeds", [2, 3, 5, 8])
    def test_is_the_share_of_all_flips_that_reach_as_far(self, seeds: int) -> None:
        differences = rng(seeds).normal(0.3, 1, seeds)
        observed = abs(sum(differences) / seeds)
        reached = [
            abs(sum(s * d for s, d in zip(signs, differences, strict=True)) / seeds)
            >= observed - 1e-12
            for signs in product((1, -1), repeat=seeds)
        ]
        assert sign_flip(differences, rng=rng()) == sum(reached) / 2**seeds

    def test_five_seeds_cannot_reach_05(self) -> None:
        p = sign_flip(np.array([0.3, 0.2, 0.25, 0.31, 0.29]), rng=rng())
        assert p == smallest_p(5) == 0.0625

    def test_no_difference_is_no_evidence(self) -> None:
        assert sign_flip(np.zeros(6), rng=rng()) == 1
        assert sign_flip(np.array([1.0, -1.0, 1.0, -1.0]), rng=rng()) == 1

    def test_one_seed_is_not_tested(self) -> None:
        assert np.isnan(sign_flip(np.array([0.4]), rng=rng()))
        assert np.isnan(sign_flip(np.array([0.4, np.nan]), rng=rng()))

    def test_many_seeds_are_sampled_close_to_the_exact_answer(self) -> None:
        """17 seeds, 5 of them against: P(at most 5 or at least 12 of 17) of a fair coin."""
        differences = np.array([1.0] * 12 + [-1.0] * 5)
        p = sign_flip(differences, rng=rng())
        assert p == pytest.approx(0.1435, abs=0.006)

    def test_a_sampled_p_is_never_zero(self) -> None:
        """The observed flip is one of those that could have been."""
        p = sign_flip(np.arange(1.0, 41.0), rng=rng())
        assert smallest_p(40) == 2**-16 <= p < 1e-3


class TestHolm:
    def test_the_textbook_example(self) -> None:
        p = np.array([0.01, 0.04, 0.03, 0.005])
        np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
    def test_agrees_with_its_slow_twin(self, values: list[float]) -> None:
        p, m = np.array(values), len(values)
        order = sorted(range(m), key=lambda i: values[i])
        expected, worst = [0.0] * m, 0.0
        for place, i in enumerate(order):
            worst = max(worst, (m - place) * values[i])
            expected[i] = min(1.0, worst)
        np.testing.assert_allclose(holm(p), expected)

    def test_what_was_not_tested_does_not_count(self) -> None:
        np.testing.assert_allclose(holm(np.array([np.nan, 0.02, np.nan])), [np.nan, 0.02, np.nan])


def test_mean_of_nothing_is_nan_without_a_warning() -> None:
    means = mean_of_valid(np.array([[1.0, np.nan, 3.0], [np.nan] * 3]))
    np.testing.assert_array_equal(means, [2.0, np.nan])
