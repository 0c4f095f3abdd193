"""Reference levels of the masks at hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog

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
    for key, (chance, _, centre, redrawn) in KNOWN.items():
        assert levels[key]["chance"] == pytest.approx(chance, abs=6e-4)
        assert levels[key]["centre"] == pytest.approx(centre, abs=0.03)
        assert levels[key]["redrawn"] == pytest.approx(redrawn, abs=0.015)
    assert levels["oracle_iou"]["chance"] == pytest.approx(0.036, abs=2e-3)
    assert levels["oracle_iou"]["redrawn"] == pytest.approx(0.959, abs=0.015)


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


def test_the_mask_redrawn_is_the_better_of_two_ways_to_draw_the_pooled_mask() -> None:
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
        assert found[key]["redrawn"] == max(both)


def test_a_grid_as_fine_as_the_image_redraws_the_mask_exactly() -> None:
    levels = baselines(PATCHES[:5], (96, 96), threshold=0.5)
    for key in ("pointing_game", "energy_pointing_game", "max_iou", "max_box_acc", "pixel_ap"):
        assert levels[key]["redrawn"] == pytest.approx(1.0)


def test_a_coarser_grid_redraws_worse() -> None:
    scores = [
        baselines(PATCHES[:30], (n, n), ["oracle_iou"])["oracle_iou"]["redrawn"]
        for n in (48, 24, 12, 6)
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1] + 0.2


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
    with pytest.raises(InputError, match="grid: expected 2 sizes from 1"):
        baselines(PATCHES[:1], (0, 4))
    with pytest.raises(InputError, match="draws: expected at least 1"):
        baselines(PATCHES[:1], draws=0)
    with pytest.raises(InputError, match="unknown metric 'iuo': did you mean 'iou'"):
        baselines(PATCHES[:1], metrics=["iuo"])
    with pytest.raises(InputError, match="masks: expected bool"):
        baselines(torch.rand(1, 4, 4))
    with pytest.raises(InputError, match="calibration: expected masks of"):
        baselines(PATCHES[:1], metrics=["iou"], calibration=PATCHES[:, :50])


def _upsampled(cells: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(cells[None, None], size=(size, size), mode="bilinear")[:, 0]


def test_a_map_on_the_grid_can_exceed_the_mask_redrawn_but_not_the_bound() -> None:
    masks = torch.zeros(1, 96, 96, dtype=torch.bool)
    masks[:, 42:58, 42:58] = True
    cells = torch.zeros(24, 24)
    cells[12, 12] = 1
    score = float(localization(_upsampled(cells, 96), masks)["energy_pointing_game"])
    level = baselines(masks, metrics=["energy_pointing_game"])["energy_pointing_game"]
    assert score == 1.0 == level["bound"] > level["redrawn"]


def test_a_map_on_the_grid_that_separates_the_mask_reaches_the_bound() -> None:
    """A linear programme finds cells whose bilinear map is higher inside the mask than outside."""
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[:, 10:26, 10:26] = True
    basis = F.interpolate(torch.eye(64).view(64, 1, 8, 8), size=(32, 32), mode="bilinear")
    drawn = basis.view(64, -1).T.double().numpy()  # (pixels, cells)
    sign = np.where(masks.flatten().numpy(), 1.0, -1.0)[:, None]
    found = linprog(  # the widest margin m with sign · (drawn · cells) ≥ m
        np.r_[np.zeros(64), -1.0],
        A_ub=np.hstack([-sign * drawn, np.ones((1024, 1))]),
        b_ub=np.zeros(1024),
        bounds=[(-1, 1)] * 64 + [(None, 1)],
    )
    assert found.x[-1] > 0
    maps = torch.from_numpy(drawn @ found.x[:-1]).view(1, 32, 32)
    keys = ("relevance_rank_accuracy", "pixel_ap", "pixel_auroc", "oracle_iou", "iou_at_area")
    scores, levels = localization(maps, masks, keys), baselines(masks, (8, 8), keys)
    for key in keys:
        assert float(scores[key]) == levels[key]["bound"] == 1.0, key
        assert levels[key]["redrawn"] < 1.0 or key == "pixel_auroc", key


def test_bounds_are_reached_by_an_explicit_map_and_by_no_other(
    levels: dict[str, dict[str, float]],
) -> None:
    """The mask itself as the map reaches every bound that depends on masks."""
    ideal = localization(PATCHES.float(), PATCHES, threshold=0.5)
    for key, found in levels.items():
        if key not in ("sparseness", "complexity"):
            assert float(ideal[key].mean()) == pytest.approx(found["bound"]), key
            others = [value for name, value in found.items() if name != "bound"]
            assert max(others) <= found["bound"] + 1e-9, key
    single = torch.zeros(1, 96, 96)
    single[0, 3, 4] = 1
    lone = localization(single, PATCHES[:1])
    for key in ("sparseness", "complexity"):
        assert float(lone[key]) == pytest.approx(levels[key]["bound"], abs=1e-12)


def test_the_bound_of_lift_and_top_k_is_a_mean_over_masks() -> None:
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[0, 0, :2] = True  # fewer places than k = 4
    masks[1, :10] = True
    found = baselines(masks, (20, 20), ["mass_lift", "topk_intersection"])
    assert found["mass_lift"]["bound"] == pytest.approx((400 / 2 + 400 / 200) / 2)
    assert found["topk_intersection"]["bound"] == pytest.approx((2 / 4 + 1) / 2)


_PROVEN = (
    *("pointing_game", "energy_pointing_game", "mass_lift", "topk_intersection", "pixel_auroc"),
    "relevance_rank_accuracy",
)


def test_no_map_that_ignores_the_image_beats_the_fixed_one_on_the_calibration_masks() -> None:
    """Against 400 random maps, Gaussians and single places, by the metrics it is proven for."""
    masks = made.boxes(40, 16, 5, seed=8)
    found = baselines(masks, (16, 16), _PROVEN, calibration=masks)
    others = torch.rand(400, 16, 16, generator=torch.Generator().manual_seed(0)) ** 4
    others = torch.cat([others, torch.eye(256).view(256, 16, 16), masks.float()])
    for other in others:
        table = localization(other.expand(masks.shape), masks, _PROVEN)
        for key in _PROVEN:
            assert float(table[key].mean()) <= found[key]["fixed"] + 1e-12, key


def test_masks_of_several_sizes_are_weighted_as_the_metric_weighs_them() -> None:
    masks = torch.cat([made.boxes(20, 12, 2, seed=1), made.boxes(20, 12, 7, seed=2)])
    keys = ("energy_pointing_game", "mass_lift", "pixel_auroc", "topk_intersection")
    found = baselines(masks, (12, 12), keys, calibration=masks)
    for other in torch.eye(144).view(144, 12, 12):
        table = localization(other.expand(masks.shape), masks, keys)
        for key in keys:
            assert float(table[key].mean()) <= found[key]["fixed"] + 1e-12, key


def test_the_fixed_map_knows_the_calibration_masks_alone() -> None:
    left, right = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    left[:, :, :4], right[:, :, 4:] = True, True
    found = baselines(left, (8, 8), ["energy_pointing_game", "max_iou"], calibration=right)
    assert found["energy_pointing_game"]["fixed"] == 0.0
    assert found["max_iou"]["fixed"] == 0.0
    assert "fixed" not in baselines(left, (8, 8), ["max_iou"])["max_iou"]
    levels = baselines(left, (8, 8), ["sparseness"], calibration=right)["sparseness"]
    assert "fixed" not in levels, "it uses no mask"
