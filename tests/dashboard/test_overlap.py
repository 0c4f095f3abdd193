"""What the browser computes, in numpy, against torch and against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnviz.figures import resized
from dashboard.overlap import energy, iou_curves, stretched


@given(st.integers(0, 2**32 - 1))
def test_a_curve_is_the_iou_at_each_threshold(seed):
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(2, 6, 6)).round(1)
    masks = rng.random((2, 6, 6)) < 0.3
    masks[0, 0, 0] = masks[1, 2, 2] = True
    curves = iou_curves(maps, masks, steps=10)
    values = stretched(maps.astype(np.float32))
    for i in range(2):
        if np.ptp(maps[i]) == 0:
            continue
        for k, threshold in enumerate(np.linspace(0, 1, 11, dtype=np.float32)):
            hot = values[i] >= threshold
            expected = (hot & masks[i]).sum() / (hot | masks[i]).sum()
            assert curves[i, k] == pytest.approx(expected)


def test_what_has_no_iou_has_none():
    maps = np.stack([np.ones((4, 4)), np.full((4, 4), np.nan), np.eye(4)])
    masks = np.ones((3, 4, 4), bool)
    masks[2] = False
    assert np.isnan(iou_curves(maps, masks)).all()


def test_energy_is_the_share_of_positive_mass():
    maps = np.zeros((3, 4, 4))
    maps[0, 0, 0], maps[0, 3, 3], maps[0, 1, 1] = 3.0, 1.0, -5.0
    masks = np.zeros((3, 4, 4), bool)
    masks[:2, 0, 0] = True
    found = energy(maps, masks)
    assert found[0] == pytest.approx(0.75)
    assert np.isnan(found[1:]).all()


def test_energy_and_iou_are_attnvizs_own():
    metrics = pytest.importorskip("attnviz.metrics")
    rng = np.random.default_rng(1)
    maps, masks = rng.random((4, 24, 24)).astype(np.float32), np.zeros((4, 96, 96), bool)
    masks[:, 30:46, 12:28] = True
    large = torch.from_numpy(resized(maps, (96, 96)))
    theirs = metrics.localization(
        large, torch.from_numpy(masks), ("energy_pointing_game", "iou"), threshold=0.5
    )
    np.testing.assert_allclose(energy(maps, masks), theirs["energy_pointing_game"], rtol=1e-5)
    np.testing.assert_allclose(iou_curves(maps, masks, 10)[:, 5], theirs["iou"], rtol=1e-5)
