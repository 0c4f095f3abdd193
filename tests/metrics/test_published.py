"""Values that others publish for their own implementations, where the definitions are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnviz.metrics import (
    energy_pointing_game,
    pixel_ap,
    pixel_auroc,
    pxap,
    relevance_rank_accuracy,
    sparseness,
    topk_intersection,
)
from tests.metrics import made


def area(size: int, rows: slice, columns: slice) -> Tensor:
    filled = torch.zeros(1, size, size)
    filled[:, rows, columns] = 1
    return filled


def test_quantus_auroc() -> None:
    maps, masks = area(224, slice(112, 224), slice(112, 224)), area(224, slice(112), slice(112))
    assert pixel_auroc(maps, masks > 0).item() == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize(("k", "expected"), [(10_000, 1.0), (40_000, 0.25)])
def test_quantus_topk(k: int, expected: float) -> None:
    masks = area(224, slice(50, 150), slice(50, 150)) > 0
    maps = torch.where(masks, 1.0, made.noise(1, 224, 224) * 0.1)
    assert topk_intersection(maps, masks, k=k).item() == pytest.approx(expected)


def test_quantus_topk_and_mass_of_a_half_hit() -> None:
    masks = area(224, slice(50), slice(50, 100)) > 0
    maps = area(224, slice(100), slice(75, 100))
    assert topk_intersection(maps, masks, k=2500).item() == 0.5
    assert energy_pointing_game(maps, masks).item() == 0.5


def test_quantus_rank_accuracy() -> None:
    masks = area(224, slice(50, 100), slice(50, 100)) > 0
    maps = area(224, slice(100), slice(75, 100))
    assert relevance_rank_accuracy(maps, masks).item() == 0.5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.85])
def test_wsolevaluation_constant_map(share: float) -> None:
    masks = made.noise(1, 40, 40) < share
    prevalence = masks.double().mean().item()
    for value in (0.0, 0.5, 1.0):
        maps = torch.full((1, 40, 40), value)
        assert pixel_ap(maps, masks).item() == pytest.approx(prevalence)
        assert pxap(maps, masks) == pytest.approx(prevalence)


def test_torchmetrics_three_values() -> None:
    maps, masks = torch.tensor([[[0.2, 0.3, 0.5]]]), torch.tensor([[[True, False, True]]])
    assert relevance_rank_accuracy(maps, masks).item() == 0.5
    assert pixel_auroc(maps, masks).item() == 0.5
    assert pixel_ap(maps, masks).item() == pytest.approx(0.8333, abs=5e-5)


@pytest.mark.parametrize("size", [2, 7, 32])
def test_xplique_gini(size: int) -> None:
    places = size * size
    assert sparseness(torch.ones(1, size, size)).item() == pytest.approx(0, abs=1e-12)
    one_hot = torch.eye(places)[:1].view(1, size, size)
    assert sparseness(one_hot).item() == pytest.approx((places - 1) / places)
