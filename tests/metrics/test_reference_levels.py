"""Chance, centre and ceiling of the masks at hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from attnviz.errors import InputError
from attnviz.metrics import METRICS, baselines, calibrate_threshold, localization
from tests.metrics import made

PATCHES = made.boxes(300, 96, 16, seed=4)

# 16 × 16 boxes at random in 96 × 96: constant, noise on 24², a Gaussian in the centre, ideal 24²
KNOWN = {
    "pointing_game": (0.028, None, 0.051, 1.0),
    "energy_pointing_game": (0.028, 0.028, 0.036, 0.847),
    "relevance_rank_accuracy": (0.028, 0.025, 0.046, 0.964),
    "pixel_auroc": (0.5, 0.505, 0.632, 1.0),
    "pixel_ap": (0.028, 0.031, 0.084, 0.995),
}


@pytest.fixture(scope="module")
def levels() -> dict[str, dict[str, float]]:
    return baselines(PATCHES)


def test_the_known_levels_of_square_patches_are_found(levels: dict[str, dict[str, float]]) -> None:
    for key, (chance, _, centre, ceiling) in KNOWN.items():
        assert levels[key]["chance"] == pytest.approx(chance, abs=6e-4)
        assert levels[key]["centre"] == pytest.approx(centre, abs=0.03)
        assert levels[key]["ceiling"] == pytest.approx(ceiling, abs=0.015)
    assert levels["oracle_iou"]["chance"] == pytest.approx(0.036, abs=2e-3)
    assert levels["oracle_iou"]["ceiling"] == pytest.approx(0.959, abs=0.015)


def test_what_is_exact_is_exact(levels: dict[str, dict[str, float]]) -> None:
    share = 16 * 16 / 96**2
    for key in ("pointing_game", "energy_pointing_game", "relevance_rank_accuracy", "pixel_ap"):
        assert levels[key]["chance"] == pytest.approx(share, abs=1e-12)
    assert levels["mass_lift"]["chance"] == pytest.approx(1.0, abs=1e-12)
    assert levels["pixel_auroc"]["chance"] == 0.5
    assert levels["sparseness"]["chance"] == pytest.approx(0.0, abs=1e-12)
    assert levels["complexity"]["chance"] == pytest.approx(math.log(96**2))


def test_by_default_all_but_the_boxes_which_come_with_a_threshold() -> None:
    few = PATCHES[:4]
    assert set(baselines(few)) == set(METRICS) - {"max_box_acc", "max_box_acc_v2"}
    assert set(baselines(few, threshold=0.5, draws=1)) == set(METRICS)
    assert set(baselines(few, metrics=["max_box_acc"], draws=1)) == {"max_box_acc"}


def test_random_maps_score_the_chance_that_is_claimed() -> None:
    # noise pixel by pixel favours no place, so its mean must come to the exact expectation
    maps, masks = made.noise(2000, 12, 12, seed=2), made.boxes(2000, 12, 4, seed=3)
    claimed = baselines(masks, (12, 12), threshold=0.9)
    table = localization(maps, masks, threshold=0.9)
    for key in ("pointing_game", "energy_pointing_game", "mass_lift", "relevance_rank_accuracy"):
        scores = table[key]
        error = 4 * float(scores.std()) / math.sqrt(len(scores))
        assert float(scores.mean()) == pytest.approx(claimed[key]["chance"], abs=error)
    for key in ("iou", "oracle_iou", "iou_at_area"):
        assert float(table[key].mean()) == pytest.approx(claimed[key]["chance"], abs=5e-3)


def test_the_ceiling_is_the_better_of_two_ways_to_draw_the_pooled_mask() -> None:
    masks = PATCHES[:20]
    cells = F.adaptive_avg_pool2d(masks.float()[:, None], (24, 24))
    reached: dict[str, list[float]] = {"energy_pointing_game": [], "max_iou": []}
    for mode in ("nearest", "bilinear"):
        maps = F.interpolate(cells, size=96, mode=mode)[:, 0]
        table = localization(maps, masks, [*reached], threshold=calibrate_threshold(maps, masks))
        for key, scores in table.items():
            reached[key].append(float(scores.mean()))
    found = baselines(masks, metrics=list(reached), threshold=0.3)
    for key, both in reached.items():
        assert found[key]["ceiling"] == max(both)


def test_a_grid_as_fine_as_the_image_has_no_ceiling() -> None:
    levels = baselines(PATCHES[:5], (96, 96), threshold=0.5)
    for key in ("pointing_game", "energy_pointing_game", "max_iou", "max_box_acc", "pixel_ap"):
        assert levels[key]["ceiling"] == pytest.approx(1.0)


def test_a_coarser_grid_has_a_lower_ceiling() -> None:
    ceilings = [
        baselines(PATCHES[:30], (n, n), ["oracle_iou"])["oracle_iou"]["ceiling"]
        for n in (48, 24, 12, 6)
    ]
    assert ceilings == sorted(ceilings, reverse=True)
    assert ceilings[0] > ceilings[-1] + 0.2


def test_empty_masks_do_not_count_and_arrays_are_welcome() -> None:
    masks = torch.cat([PATCHES[:6], torch.zeros(3, 96, 96, dtype=torch.bool)])
    assert baselines(masks) == baselines(PATCHES[:6]) == baselines(PATCHES[:6].numpy())


def test_the_noise_is_seeded() -> None:
    few: Any = {"masks": PATCHES[:6], "metrics": ["oracle_iou"], "draws": 1}
    assert baselines(**few) == baselines(**few, seed=0) != baselines(**few, seed=1)


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_baseline_is_refused() -> None:
    with pytest.raises(InputError, match="expected at least one mask that is not empty"):
        baselines(torch.zeros(2, 4, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="grid: expected rows and columns from 1"):
        baselines(PATCHES[:1], (0, 4))
    with pytest.raises(InputError, match="draws: expected at least 1"):
        baselines(PATCHES[:1], draws=0)
    with pytest.raises(InputError, match="unknown metric 'iuo': did you mean 'iou'"):
        baselines(PATCHES[:1], metrics=["iuo"])
    with pytest.raises(InputError, match="masks: expected bool"):
        baselines(torch.rand(1, 4, 4))
