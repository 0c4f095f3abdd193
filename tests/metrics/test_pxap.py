"""PxAP: the pixels of all images in one pot."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from sklearn.metrics import average_precision_score
from torch import Tensor

from attnviz.metrics import pxap
from tests.metrics import made, twins


@given(pair=made.pairs())
@settings(max_examples=100)
def test_the_pot_scores_as_its_slow_twin_says(pair: tuple[Tensor, Tensor]) -> None:
    maps, masks = pair
    fit = masks.flatten(1).any(1)
    expected = twins.pxap(maps[fit].double().numpy(), masks[fit].numpy()) if fit.any() else math.nan
    assert pxap(maps, masks) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_it_is_scikit_learns_average_precision_of_the_scaled_pixels() -> None:
    maps, masks = made.noise(9, 20, 20) * torch.arange(1, 10)[:, None, None], made.boxes(9, 20, 5)
    wide = maps.double().flatten(1)
    low, high = wide.amin(1, keepdim=True), wide.amax(1, keepdim=True)
    scaled = ((wide - low) / (high - low)).float()
    expected = average_precision_score(masks.view(-1).numpy(), scaled.view(-1).numpy())
    assert pxap(maps, masks) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_maps_score_the_share_of_places_inside(value: float) -> None:
    masks = made.noise(4, 20, 20) > 0.7
    share = masks.double().mean().item()
    assert pxap(torch.full((4, 20, 20), value), masks) == pytest.approx(share)


def test_images_without_a_patch_or_with_nan_are_left_out() -> None:
    maps, masks = made.noise(4, 8, 8), made.boxes(4, 8, 3)
    expected = pxap(maps[:2], masks[:2])
    masks[2] = False
    maps[3, 0, 0] = math.nan
    assert pxap(maps, masks) == expected
    assert math.isnan(pxap(maps[2:], masks[2:]))


def test_a_perfect_map_scores_one() -> None:
    masks = made.boxes(3)
    assert pxap(masks.float() * 3 - 1, masks) == 1.0
