"""The metrics of order, one by one: what is particular to each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnviz.errors import InputError
from attnviz.metrics import (
    iou_at_area,
    pixel_ap,
    pixel_auroc,
    pointing_game,
    relevance_rank_accuracy,
    topk_intersection,
)
from tests.metrics import made, twins


def test_of_several_maxima_the_share_inside_counts() -> None:
    maps, masks = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    maps[0, 0, :3] = 1
    masks[0, 0, 2:] = True
    assert pointing_game(maps, masks).tolist() == [pytest.approx(1 / 3)]


@pytest.mark.parametrize("tolerance", [0, 0.5, 1, 1.5, 2, 2.3, 3, 5, 40])
def test_a_tolerance_is_a_disc_of_that_radius(tolerance: float) -> None:
    masks = torch.zeros(117, 9, 13, dtype=torch.bool)
    masks[:, 3:5, 6] = masks[:, 8, 0] = True
    maps = torch.eye(117).reshape(117, 9, 13)  # each place is the maximum once
    expected = [
        twins.pointing_game(values.numpy(), mask.numpy(), tolerance)
        for values, mask in zip(maps, masks, strict=True)
    ]
    assert pointing_game(maps, masks, tolerance=tolerance).tolist() == expected


@given(
    pair=made.pairs(),
    tolerance=st.floats(0, 8),
)
@settings(max_examples=60)
def test_pointing_with_a_tolerance_equals_its_twin(
    pair: tuple[torch.Tensor, torch.Tensor], tolerance: float
) -> None:
    maps, masks = pair
    masks[:, 0, 0] = True
    expected = [
        twins.pointing_game(values, mask, tolerance)
        for values, mask in zip(maps.double().numpy(), masks.numpy(), strict=True)
    ]
    assert pointing_game(maps, masks, tolerance=tolerance).tolist() == pytest.approx(expected)


@given(pair=made.pairs(), data=st.data())
@settings(max_examples=60)
def test_topk_takes_a_count_or_a_share(
    pair: tuple[torch.Tensor, torch.Tensor], data: st.DataObject
) -> None:
    maps, masks = pair
    masks[:, -1, -1] = True
    k = data.draw(st.integers(1, maps[0].numel()))
    expected = [
        twins.topk_intersection(values, mask, k)
        for values, mask in zip(maps.double().numpy(), masks.numpy(), strict=True)
    ]
    assert topk_intersection(maps, masks, k=k).tolist() == pytest.approx(expected)
    share = topk_intersection(maps, masks, k=k / maps[0].numel())
    assert torch.equal(share, topk_intersection(maps, masks, k=k))


def test_a_share_too_small_for_one_place_takes_one() -> None:
    maps, masks = made.noise(3, 5, 5), made.noise(3, 5, 5, seed=1) > 0.5
    one = topk_intersection(maps, masks, k=1)
    assert torch.equal(topk_intersection(maps, masks, k=1e-6), one)
    assert torch.equal(one, pointing_game(maps, masks))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("k", [1, 5, 0.2])
def test_numpys_numbers_mean_what_pythons_do(k: float) -> None:
    """One place as an `int64` is one place, and not the whole map."""
    maps, masks = made.noise(3, 5, 5), made.noise(3, 5, 5, seed=1) > 0.5
    number = np.int64(k) if isinstance(k, int) else np.float32(k)
    assert torch.equal(
        topk_intersection(maps, masks, k=number), topk_intersection(maps, masks, k=k)
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("k", [0, -1, 0.0, 1.01, True, np.True_, torch.tensor(1)])
def test_k_out_of_range_is_refused(k: float) -> None:
    with pytest.raises(InputError, match=r"k: expected an int from 1, or a float share in"):
        topk_intersection(made.noise(1, 4, 4), made.noise(1, 4, 4) > 0, k=k)


def test_k_beyond_the_map_is_refused() -> None:
    with pytest.raises(InputError, match="k: expected at most the 16 places of a map, got 17"):
        topk_intersection(made.noise(1, 4, 4), made.noise(1, 4, 4) > 0, k=17)


@pytest.mark.parametrize("tolerance", [-0.1, float("inf"), float("nan")])
def test_a_tolerance_out_of_range_is_refused(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance: expected a distance in pixels of at least 0"):
        pointing_game(made.noise(1, 4, 4), made.noise(1, 4, 4) > 0, tolerance=tolerance)


def test_neither_sign_nor_minus_zero_confuses_the_order() -> None:
    maps = torch.tensor([[[-2.0, -1.0, -0.0, 0.0, 1.0, 2.0]]])
    masks = torch.tensor([[[False, False, True, False, False, True]]])
    # ranks from below 0, 1, 2.5, 2.5, 4, 5: the inside ones beat 2 + ½ and 4 of 4
    assert pixel_auroc(maps, masks).tolist() == [6.5 / 8]
    assert relevance_rank_accuracy(maps, masks).tolist() == [0.5]
    assert relevance_rank_accuracy(maps[:, :, :4], masks[:, :, :4]).tolist() == [0.5]


def test_neighbouring_floats_are_told_apart() -> None:
    one = torch.tensor(1.0)
    maps = torch.stack([one, torch.nextafter(one, torch.tensor(2.0))]).view(1, 1, 2)
    masks = torch.tensor([[[False, True]]])
    assert pixel_auroc(maps, masks).tolist() == [1.0]
    wide = torch.tensor([[[1.0, 1.0 + 2.0**-52]]], dtype=torch.float64)
    assert pixel_auroc(wide, masks).tolist() == [1.0]
    assert pixel_auroc(wide.float(), masks).tolist() == [0.5]


def test_rank_accuracy_and_the_iou_at_the_masks_area_are_one_thing() -> None:
    maps, masks = made.noise(1, 30, 30), made.noise(1, 30, 30, seed=1) > 0.8
    area = int(masks.sum())
    top = torch.zeros(900, dtype=torch.bool)
    top[maps.view(-1).topk(area).indices] = True
    both, either = (top & masks.view(-1)).sum(), (top | masks.view(-1)).sum()
    assert iou_at_area(maps, masks).item() == pytest.approx((both / either).item())


@pytest.mark.parametrize("share", [0.001, 0.03, 0.5, 0.97])
def test_large_maps_agree_with_a_plain_sort(share: float) -> None:
    maps, masks = made.noise(2, 96, 96) - 0.5, made.noise(2, 96, 96, seed=1) < share
    for values, mask, roc, ap in zip(
        maps.double(), masks, pixel_auroc(maps, masks), pixel_ap(maps, masks), strict=True
    ):
        order = values.view(-1).argsort(descending=True)
        label = mask.view(-1)[order].double()
        inside, seen = label.sum(), torch.arange(1, label.numel() + 1)
        above = (1 - label).cumsum(0)
        losses = (above * label).sum() / inside / above[-1]
        assert roc.item() == pytest.approx(float(1 - losses))
        precision = label.cumsum(0) / seen
        assert ap.item() == pytest.approx(float((precision * label).sum() / inside))
