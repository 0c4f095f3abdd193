"""Quantus' conventions: its published values, and the faults that are reproduced on purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from attnviz import metrics as ours
from attnviz.metrics.compat import quantus as theirs
from tests.metrics import made

HALF = np.zeros((1, 224, 224), dtype=np.float32)
HALF[:, :100, 75:100] = 1.0
NO_MASK = np.zeros((1, 6, 6), dtype=bool)


def square(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((1, 224, 224), dtype=bool)
    mask[:, rows, columns] = True
    return mask


def test_published_values() -> None:
    mask = square(slice(50), slice(50, 100))
    assert theirs.top_k_intersection(HALF, mask, k=2500).tolist() == [0.5]
    assert theirs.relevance_mass_accuracy(HALF, mask).tolist() == [0.5]
    assert theirs.attribution_localisation(HALF, mask).tolist() == [pytest.approx(0.5)]
    ranked = theirs.relevance_rank_accuracy(HALF, square(slice(50, 100), slice(50, 100)))
    assert ranked.tolist() == [0.5]
    lit = square(slice(50, 150), slice(50, 150))
    maps = np.where(lit, 1.0, made.noise(1, 224, 224).numpy() * 0.1)
    assert theirs.top_k_intersection(maps, lit, k=10_000).tolist() == [1.0]
    assert theirs.top_k_intersection(maps, lit, k=40_000).tolist() == [0.25]


def test_where_nothing_is_special_both_conventions_agree() -> None:
    maps, masks = made.noise(8, 20, 20).double(), made.boxes(8, 20, 6)
    arrays = maps.numpy(), masks.numpy()
    pairs = [
        (theirs.pointing_game(*arrays), ours.pointing_game(maps, masks)),
        (theirs.relevance_mass_accuracy(*arrays), ours.energy_pointing_game(maps, masks)),
        (theirs.attribution_localisation(*arrays), ours.energy_pointing_game(maps, masks)),
        (theirs.relevance_rank_accuracy(*arrays), ours.relevance_rank_accuracy(maps, masks)),
        (theirs.top_k_intersection(*arrays, k=50), ours.topk_intersection(maps, masks, k=50)),
        (theirs.sparseness(arrays[0]), ours.sparseness(maps)),
        (theirs.complexity(arrays[0]), ours.complexity(maps)),
    ]
    for peer, mine in pairs:
        np.testing.assert_allclose(peer, mine.numpy(), atol=1e-6)


def test_a_constant_map_hits_there_and_scores_chance_here() -> None:
    maps, masks = torch.ones(1, 20, 20), made.boxes(1, 20, 4)
    assert theirs.pointing_game(maps.numpy(), masks.numpy()).tolist() == [1.0]
    assert ours.pointing_game(maps, masks).item() == pytest.approx(16 / 400)


def test_an_empty_mask_hits_there_and_has_no_score_here() -> None:
    maps = made.noise(1, 6, 6)
    assert theirs.pointing_game(maps.numpy(), NO_MASK).tolist() == [1.0]
    assert ours.pointing_game(maps, torch.tensor(NO_MASK)).isnan().all()
    for metric in (
        theirs.attribution_localisation,
        theirs.relevance_mass_accuracy,
        theirs.relevance_rank_accuracy,
        theirs.top_k_intersection,
    ):
        assert np.isnan(metric(maps.numpy(), NO_MASK)).all()


def test_the_weighted_localisation_depends_on_the_batch_there() -> None:
    maps, masks = made.noise(6, 10, 10).numpy(), made.boxes(6, 10, 4).numpy()
    whole = theirs.attribution_localisation(maps, masks, weighted=True)
    plain = theirs.attribution_localisation(maps, masks)
    np.testing.assert_allclose(whole, plain * 16 / (4 * 3 * 100))
    fewer = theirs.attribution_localisation(maps[:4], masks[:4], weighted=True)
    np.testing.assert_allclose(fewer, whole[:4] * 2)
    assert np.isinf(theirs.attribution_localisation(maps[:2], masks[:2], weighted=True)).all()


def test_signs_are_kept_or_dropped_as_the_classes_there_do() -> None:
    maps = np.array([[[3.0, -1.0, 1.0]]])
    masks = np.array([[[True, False, False]]])
    assert theirs.relevance_mass_accuracy(maps, masks).tolist() == [1.0]
    assert theirs.relevance_mass_accuracy(maps, masks, abs=True).tolist() == [pytest.approx(0.6)]
    assert theirs.attribution_localisation(maps, masks).tolist() == [pytest.approx(0.6)]
    clipped = theirs.attribution_localisation(maps, masks, positive=True, abs=False)
    assert clipped.tolist() == [pytest.approx(0.75)]
    over = theirs.attribution_localisation(maps * [1, 3, 1], masks, abs=False)
    assert np.isnan(over).all()


def test_concept_influence_is_the_lift_of_the_top_places() -> None:
    maps, masks = made.noise(4, 20, 20).numpy(), made.boxes(4, 20, 6).numpy()
    plain = theirs.top_k_intersection(maps, masks, k=30)
    lifted = theirs.top_k_intersection(maps, masks, k=30, concept_influence=True)
    np.testing.assert_allclose(lifted, plain * 400 / 36)


def test_a_constant_scores_their_small_numbers_away() -> None:
    maps = np.ones((1, 8, 8))
    assert theirs.sparseness(maps).tolist() == [pytest.approx(0, abs=1e-9)]
    assert theirs.complexity(maps).tolist() == [pytest.approx(math.log(64))]
    assert theirs.sparseness(np.zeros((1, 8, 8))).tolist() == [pytest.approx(0, abs=1e-9)]


def test_nothing_is_written_to() -> None:
    maps, masks = made.noise(3, 8, 8).numpy() - 0.5, made.boxes(3, 8, 3).numpy()
    before = maps.copy(), masks.copy()
    for metric in (theirs.pointing_game, theirs.attribution_localisation):
        metric(maps, masks)
    theirs.sparseness(maps)
    theirs.complexity(maps)
    assert np.array_equal(maps, before[0])
    assert np.array_equal(masks, before[1])
