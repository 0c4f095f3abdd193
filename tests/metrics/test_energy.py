"""The metrics of mass: signs, and what has no mass."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnviz.errors import InputError
from attnviz.metrics import complexity, energy_pointing_game, mass_lift, sparseness
from tests.metrics import made, twins


@given(pair=made.pairs(), sign=st.sampled_from(["positive", "abs", "signed"]))
@settings(max_examples=150)
def test_each_sign_counts_what_it_says(pair: tuple[torch.Tensor, torch.Tensor], sign: str) -> None:
    maps, masks = pair
    masks[:, 0, 0] = True
    scores = energy_pointing_game(maps, masks, sign=sign)  # type: ignore[arg-type]
    for score, values, mask in zip(scores, maps.double().numpy(), masks.numpy(), strict=True):
        total = abs(math.fsum(values.ravel() / 16)) if sign == "signed" else 1.0
        if total > 1e-3 * abs(values / 16).max() or sign != "signed":  # else all digits cancel
            expected = twins.energy_pointing_game(values, mask, sign)
            assert score.item() == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


def test_a_huge_negative_value_does_not_hide_a_tiny_positive_one() -> None:
    maps = torch.tensor([[[-1.7e308, 5e-324, 5e-324, 0.0]]], dtype=torch.float64)
    masks = torch.tensor([[[True, True, False, False]]])
    assert energy_pointing_game(maps, masks).tolist() == [0.5]


@pytest.mark.parametrize("sign", ["positive", "abs", "signed"])
@pytest.mark.parametrize("width", [1, 3, 8, 12, 96])
def test_masks_of_any_shape_are_summed_to_the_last_place(width: int, sign: str) -> None:
    maps, masks = made.noise(40, 6, width) - 0.4, made.noise(40, 6, width, seed=1) > 0.6
    masks[0], masks[-1], masks[5], masks[6, :, :] = False, False, False, True
    masks[7], masks[7, -1, -1] = False, True
    scores = energy_pointing_game(maps, masks, sign=sign)  # type: ignore[arg-type]
    assert scores.isnan().tolist() == [i in (0, 5, 39) for i in range(40)]
    for score, values, mask in zip(scores, maps.double().numpy(), masks.numpy(), strict=True):
        if mask.any():
            expected = twins.energy_pointing_game(values, mask, sign)
            assert score.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sign", ["positive", "abs", "signed"])
@pytest.mark.parametrize("dtype", made.DTYPES)
def test_a_broken_map_has_no_share_and_sways_no_other(
    dtype: torch.dtype, sign: str, fault: float
) -> None:
    maps, masks = made.noise(3, 4, 4).sub(0.3).to(dtype), made.boxes(3, 4, 2)
    whole = energy_pointing_game(maps, masks, sign=sign)  # type: ignore[arg-type]
    maps[1, 0, 0] = fault
    broken = energy_pointing_game(maps, masks, sign=sign)  # type: ignore[arg-type]
    assert broken.isnan().tolist() == [False, True, False]
    assert torch.equal(broken[[0, 2]], whole[[0, 2]])


def test_a_map_near_the_end_of_float64_sways_no_other() -> None:
    maps = torch.tensor([[[2.0**-500, 2.0**-520]], [[1.7e308, 1.7e308]]], dtype=torch.float64)
    masks = torch.tensor([[[False, True]]] * 2)
    alone = energy_pointing_game(maps[:1], masks[:1])
    assert energy_pointing_game(maps, masks).tolist() == [*alone.tolist(), 0.5]
    signed = torch.tensor([[[1.7e308, 1.7e308, -1.7e308, -1.6e308]]], dtype=torch.float64)
    inside = torch.tensor([[[True, True, False, False]]])
    share = energy_pointing_game(signed, inside, sign="signed")
    assert share.item() == pytest.approx(3.4 / 0.1, rel=1e-9)


def test_negative_values_carry_no_mass_unless_asked() -> None:
    maps = torch.tensor([[[3.0, -3.0, 1.0]]])
    masks = torch.tensor([[[True, True, False]]])
    assert energy_pointing_game(maps, masks).tolist() == [0.75]
    assert energy_pointing_game(maps, masks, sign="abs").tolist() == [6 / 7]
    assert energy_pointing_game(maps, masks, sign="signed").tolist() == [0.0]
    assert mass_lift(maps, masks).tolist() == [0.75 * 3 / 2]


@pytest.mark.parametrize("sign", ["positive", "abs"])
def test_a_whole_is_not_more_than_all(sign: str) -> None:
    maps = made.noise(200, 24, 24).mul(60).exp()  # too wide for exact sums
    everywhere = torch.ones(200, 24, 24, dtype=torch.bool)
    scores = energy_pointing_game(maps, everywhere, sign=sign)  # type: ignore[arg-type]
    assert scores.max() == 1
    assert scores.min() > 1 - 1e-14


@pytest.mark.parametrize("sign", ["positive", "abs", "signed"])
def test_no_mass_has_no_share(sign: str) -> None:
    maps, masks = torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    assert energy_pointing_game(maps, masks, sign=sign).isnan().all()  # type: ignore[arg-type]


def test_signed_mass_that_cancels_has_no_share() -> None:
    maps, masks = torch.tensor([[[1.0, -1.0]]]), torch.tensor([[[True, False]]])
    assert energy_pointing_game(maps, masks, sign="signed").isnan().all()


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_sign_is_refused() -> None:
    with pytest.raises(InputError, match="unknown sign 'absolute': did you mean 'abs'"):
        energy_pointing_game(made.noise(1, 2, 2), made.noise(1, 2, 2) > 0, sign="absolute")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 17, 96])
def test_a_constant_is_least_sparse_and_a_single_light_most(size: int) -> None:
    places = size * size
    constant, single = torch.full((1, size, size), -0.3), torch.zeros(1, size, size)
    single[0, 0, -1] = 5.0
    assert sparseness(constant).item() == pytest.approx(0, abs=1e-12)
    assert sparseness(single).item() == pytest.approx((places - 1) / places)
    assert complexity(constant).item() == pytest.approx(math.log(places))
    assert complexity(single).item() == pytest.approx(0, abs=1e-12)


def test_neither_needs_a_mask_nor_sees_a_sign() -> None:
    maps = made.noise(3, 6, 6) - 0.5
    for metric, twin in ((sparseness, twins.sparseness), (complexity, twins.complexity)):
        assert torch.equal(metric(maps), metric(-maps))
        assert metric(maps.numpy()).tolist() == pytest.approx([twin(v) for v in maps.numpy()])


def test_values_near_the_ends_of_float64_do_not_overflow() -> None:
    maps = torch.full((1, 8, 8), 1.7e308, dtype=torch.float64)
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, :2] = True
    assert energy_pointing_game(maps, masks).item() == pytest.approx(0.25)
    assert complexity(maps).item() == pytest.approx(math.log(64))
    tiny = torch.full((1, 8, 8), 5e-324, dtype=torch.float64)
    assert energy_pointing_game(tiny, masks).tolist() == [0.25]
    assert sparseness(tiny).item() == pytest.approx(0, abs=1e-12)
