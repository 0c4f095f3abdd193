"""How alike two maps are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor

from attnviz.errors import InputError
from attnviz.metrics import agreement
from tests.metrics import made, twins


@given(pair=made.pairs(), other=made.pairs(), data=st.data())
@settings(max_examples=150)
def test_ties_and_signs_agree_as_the_slow_twins_say(
    pair: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    ours = pair[0]
    pool = other[0].view(-1).tolist()
    picks = data.draw(st.lists(st.sampled_from(pool), min_size=ours.numel(), max_size=ours.numel()))
    theirs = torch.tensor(picks, dtype=torch.float64).view(ours.shape)
    k = data.draw(st.integers(1, ours[0].numel()))
    found = agreement(ours, theirs, k=k)
    for i, (a, b) in enumerate(zip(ours.double().numpy(), theirs.numpy(), strict=True)):
        if a.min() == a.max() or b.min() == b.max():
            assert all(scores[i].isnan() for scores in found.values())
            continue
        assert found["spearman"][i].item() == pytest.approx(twins.spearman(a, b), abs=1e-9)
        assert found["topk_iou"][i].item() == pytest.approx(twins.topk_iou(a, b, k), abs=1e-12)


@pytest.mark.parametrize("dtype", made.DTYPES)
def test_order_is_scipys_and_structure_is_scikit_images(dtype: torch.dtype) -> None:
    ours, theirs = made.noise(4, 24, 20).sub(0.5).to(dtype), made.noise(4, 24, 20, seed=1).to(dtype)
    found = agreement(ours, theirs)
    for i in range(4):
        a, b = ours[i].double().numpy(), theirs[i].double().numpy()
        assert found["spearman"][i].item() == pytest.approx(spearmanr(a.ravel(), b.ravel())[0])
        a, b = ((v - v.min()) / (v.max() - v.min()) for v in (a, b))
        assert found["ssim"][i].item() == pytest.approx(structural_similarity(a, b, data_range=1.0))


def test_a_map_agrees_with_itself_and_disagrees_with_its_opposite() -> None:
    maps = made.noise(3, 16, 16)
    assert all(
        scores.tolist() == pytest.approx([1.0] * 3) for scores in agreement(maps, maps).values()
    )
    against = agreement(maps, -maps)
    assert against["spearman"].tolist() == pytest.approx([-1.0] * 3)
    assert against["topk_iou"].tolist() == [0.0] * 3
    assert (against["ssim"] < 0).all()


def test_agreement_is_symmetric_and_blind_to_units() -> None:
    ours, theirs = made.noise(3, 12, 12), made.noise(3, 12, 12, seed=1)
    found = agreement(ours, theirs)
    for other in (agreement(theirs, ours), agreement(ours * 8 - 4, theirs * 0.25)):
        for name, scores in found.items():
            torch.testing.assert_close(other[name], scores, rtol=1e-6, atol=1e-6)


@given(pair=made.pairs(broken=True))
@settings(max_examples=100)
def test_a_broken_or_constant_map_agrees_with_nothing(pair: tuple[Tensor, Tensor]) -> None:
    maps = pair[0]
    other = torch.arange(maps.numel(), dtype=torch.float64).view(maps.shape)
    assume(maps[0].numel() > 1)
    wide = maps.double()
    bad = [not bool(v.isfinite().all()) or bool(v.min() == v.max()) for v in wide]
    for found in (agreement(maps, other), agreement(other, maps)):
        assert found["spearman"].isnan().tolist() == bad
        assert found["topk_iou"].isnan().tolist() == bad


@pytest.mark.parametrize(("size", "scored"), [(2, False), (3, True), (4, True), (6, True)])
def test_small_maps_get_a_smaller_window_or_none(size: int, scored: bool) -> None:
    found = agreement(made.noise(1, size, 9), made.noise(1, size, 9, seed=1))
    assert found["ssim"].isnan().tolist() == [not scored]
    assert not found["spearman"].isnan().any()


def test_arrays_are_welcome_and_left_alone() -> None:
    ours, theirs = made.noise(2, 8, 8).numpy(), made.noise(2, 8, 8, seed=1).numpy()
    before = ours.copy(), theirs.copy()
    expected = agreement(torch.tensor(ours), torch.tensor(theirs))
    for name, scores in agreement(ours, theirs).items():
        assert torch.equal(scores, expected[name])
    assert np.array_equal(ours, before[0])
    assert np.array_equal(theirs, before[1])


@pytest.mark.usefixtures("unchecked")
def test_different_sizes_devices_and_a_wrong_k_are_refused() -> None:
    maps = made.noise(2, 8, 8)
    with pytest.raises(InputError, match=r"map_b: expected the shape of map_a, \(2, 8, 8\), got"):
        agreement(maps, made.noise(2, 8, 9))
    with pytest.raises(InputError, match=r"map_b: expected it on cpu with map_a, got meta"):
        agreement(maps, maps.to("meta"))
    with pytest.raises(InputError, match="k: expected at most the 64 places"):
        agreement(maps, maps, k=65)
    with pytest.raises(InputError, match=r"expected floating point, got torch\.bool"):
        agreement(maps > 0, maps > 0)


def test_no_maps_have_no_agreement() -> None:
    found = agreement(torch.rand(0, 4, 4), torch.rand(0, 4, 4))
    assert {name: scores.shape for name, scores in found.items()} == {
        "spearman": (0,),
        "ssim": (0,),
        "topk_iou": (0,),
    }
    assert not math.isnan(sum(scores.sum().item() for scores in found.values()))
