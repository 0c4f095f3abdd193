"""IoU at a threshold, and the threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from attnviz.errors import InputError
from attnviz.metrics import (
    calibrate_threshold,
    iou,
    max_box_acc,
    max_box_acc_v2,
    max_iou,
    oracle_iou,
)
from tests.metrics import made, twins


def smooth(count: int, size: int = 24, seed: int = 0) -> Tensor:
    cells = made.noise(count, 1, 6, 6, seed=seed)
    return torch.nn.functional.interpolate(cells, size=size, mode="bilinear")[:, 0]


@pytest.mark.parametrize(("threshold", "expected"), [(0, 1 / 4), (0.5, 1 / 2), (1, 1.0)])
def test_the_threshold_itself_belongs_to_the_marked_places(
    threshold: float, expected: float
) -> None:
    maps = torch.tensor([[[2.0, 1.0, 0.0, 0.0]]])
    masks = torch.tensor([[[True, False, False, False]]])
    assert iou(maps, masks, threshold=threshold).tolist() == [expected]
    assert max_iou(maps, masks, threshold=threshold).tolist() == [expected]


@pytest.mark.parametrize("threshold", [-0.01, 1.01, float("nan")])
def test_a_threshold_outside_the_scaled_range_is_refused(threshold: float) -> None:
    maps, masks = made.noise(1, 2, 2), made.noise(1, 2, 2) > 0
    for metric in (iou, max_iou, max_box_acc, max_box_acc_v2):
        with pytest.raises(InputError, match="threshold: expected a number from 0 to 1"):
            metric(maps, masks, threshold=threshold)


def test_no_threshold_beats_the_oracle() -> None:
    maps, masks = smooth(20), made.boxes(20, 24, 6)
    best = oracle_iou(maps, masks)
    at_each = torch.stack([iou(maps, masks, threshold=t) for t in np.linspace(0, 1, 101).tolist()])
    assert (at_each <= best).all()
    values = maps.double() - maps.double().amin((1, 2), keepdim=True)
    values /= values.amax((1, 2), keepdim=True)
    one = int(torch.randint(0, 20, (1,), generator=torch.Generator().manual_seed(3)))
    reached = [
        iou(maps[one : one + 1], masks[one : one + 1], threshold=t).item()
        for t in values[one].unique().tolist()
    ]
    assert max(reached) == best[one].item()


@given(pair=made.pairs())
@settings(max_examples=150)
def test_the_calibrated_threshold_is_the_exact_best(pair: tuple[Tensor, Tensor]) -> None:
    maps, masks = pair
    fit = [
        i
        for i, (values, mask) in enumerate(zip(maps, masks, strict=True))
        if mask.any() and values.min() != values.max()
    ]
    if not fit:
        with pytest.raises(InputError, match="expected at least one image that can be scored"):
            calibrate_threshold(maps, masks)
        return
    tau = calibrate_threshold(maps, masks)
    reached = float(iou(maps, masks, threshold=tau).nanmean())
    best = twins.best_mean_iou(maps[fit].double().numpy(), masks[fit].numpy())
    assert reached == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("levels", [0, 7, 5000])
def test_calibration_is_exact_with_many_maps_and_with_quantised_ones(
    signed: bool, levels: int
) -> None:
    maps, masks = smooth(40, seed=5) - 0.4 * signed, made.boxes(40, 24, 6, seed=6)
    maps = maps + masks * 0.2
    if levels:
        maps = (maps * levels).round() / levels
    tau = calibrate_threshold(maps, masks)
    wide = maps.double().numpy().reshape(40, -1)
    low, high = wide.min(1, keepdims=True), wide.max(1, keepdims=True)
    scaled, inside = (wide - low) / (high - low), masks.numpy().reshape(40, -1)
    best = 0.0
    for t in np.unique(scaled):
        chosen = scaled >= t
        best = max(best, float(((chosen & inside).sum(1) / (chosen | inside).sum(1)).mean()))
    assert float(iou(maps, masks, threshold=tau).mean()) == pytest.approx(best, abs=1e-12)


def test_the_middle_of_equally_good_thresholds_is_taken() -> None:
    maps = torch.tensor([[[1.0, 0.5, 0.0]]])
    masks = torch.tensor([[[True, False, False]]])
    # anything in (0.5, 1] is as good; within the last bin the middle keeps off both ends
    assert 0.5 < calibrate_threshold(maps, masks) <= 1
    near = torch.tensor([[[1.0, 0.5001, 0.5, 0.0]]], dtype=torch.float64)
    two = torch.tensor([[[True, True, False, False]]])
    assert calibrate_threshold(near, two) == pytest.approx(0.50005)


def test_images_that_cannot_be_scored_do_not_move_the_threshold() -> None:
    maps, masks = smooth(10), made.boxes(10, 24, 6)
    tau = calibrate_threshold(maps, masks)
    maps = torch.cat([maps, torch.ones(1, 24, 24), maps[:1], maps[:1] / 0])
    masks = torch.cat([masks, masks[:1], torch.zeros_like(masks[:1]), masks[:1]])
    assert calibrate_threshold(maps, masks) == tau
    assert calibrate_threshold(maps, masks, "max_iou") == tau


@pytest.mark.parametrize("metric", ["max_box_acc", "max_box_acc_v2"])
def test_the_box_threshold_is_the_best_of_its_grid(metric: str) -> None:
    maps, masks = smooth(12) + made.boxes(12, 24, 6) * 0.5, made.boxes(12, 24, 6)
    score = {"max_box_acc": max_box_acc, "max_box_acc_v2": max_box_acc_v2}[metric]
    tau = calibrate_threshold(maps, masks, metric, grid=25)
    means = [float(score(maps, masks, threshold=step / 25).mean()) for step in range(25)]
    assert float(score(maps, masks, threshold=tau).mean()) == pytest.approx(max(means))


def test_calibration_refuses_what_it_cannot_do() -> None:
    maps, masks = made.noise(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    with pytest.raises(InputError, match="got none: the mask is empty"):
        calibrate_threshold(maps, masks)
    with pytest.raises(InputError, match="unknown thresholded metric 'oracle_iou'"):
        calibrate_threshold(maps, ~masks, "oracle_iou")
    with pytest.raises(InputError, match="grid: expected at least 1 threshold, got 0"):
        calibrate_threshold(maps, ~masks, "max_box_acc", grid=0)
