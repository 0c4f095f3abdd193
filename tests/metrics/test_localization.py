"""`localization`: every metric against its slow twin, and what holds for all of them."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnviz import metrics as m
from attnviz.errors import InputError
from attnviz.metrics import METRICS, Reason, ScoreTable, localization, reasons
from tests.metrics import made, twins

ALL = tuple(METRICS)
MASKLESS = ("sparseness", "complexity")
RANKED = (
    "pointing_game",
    "relevance_rank_accuracy",
    "topk_intersection",
    "pixel_auroc",
    "pixel_ap",
    "iou_at_area",
    "oracle_iou",
)


def everything(maps: Any, masks: Any, **options: Any) -> ScoreTable:
    return localization(maps, masks, ALL, threshold=twins.THRESHOLDS, k=0.3, **options)


def by_twin(maps: Tensor, masks: Tensor, key: str) -> list[float]:
    scores = []
    for values, mask in zip(maps.double().numpy(), masks.numpy(), strict=True):
        fit = np.isfinite(values).all() and (mask.any() or key in MASKLESS)
        scores.append(twins.BY_KEY[key](values, mask) if fit else math.nan)
    return scores


def test_every_metric_has_a_twin() -> None:
    assert set(twins.BY_KEY) == set(METRICS)


@pytest.mark.parametrize("key", ALL)
@pytest.mark.parametrize("dtype", made.DTYPES)
def test_random_maps_score_as_their_slow_twin_says(key: str, dtype: torch.dtype) -> None:
    maps, masks = made.noise(6, 9, 7).sub(0.3).to(dtype), made.noise(6, 9, 7, seed=1) > 0.7
    scores = everything(maps, masks)[key]
    assert scores.tolist() == pytest.approx(by_twin(maps, masks, key), abs=1e-12)


@given(pair=made.pairs())
@settings(max_examples=100)
def test_ties_signs_and_extremes_score_as_the_slow_twin_says(pair: tuple[Tensor, Tensor]) -> None:
    for key, scores in everything(*pair).items():
        expected = by_twin(*pair, key)
        assert scores.tolist() == pytest.approx(expected, abs=1e-9, nan_ok=True), key


@given(pair=made.pairs(broken=True))
@settings(max_examples=80)
def test_a_score_is_nan_exactly_where_a_reason_says_so(pair: tuple[Tensor, Tensor]) -> None:
    table = everything(*pair)
    for key, scores in table.items():
        assert scores.isnan().tolist() == [why is not None for why in table.why(key)]
        assert table.why(key) == reasons(*pair, metric=key)


@given(pair=made.pairs(broken=True))
@settings(max_examples=60)
def test_a_metric_says_the_same_alone_and_in_company(pair: tuple[Tensor, Tensor]) -> None:
    table = everything(*pair)
    for key, scores in table.items():
        arguments = pair[:1] if key in MASKLESS else pair
        options = {"threshold": table.thresholds[key]} if key in table.thresholds else {}
        options |= {"k": 0.3} if key == "topk_intersection" else {}
        alone = getattr(m, key)(*arguments, **options)
        if key in MASKLESS:  # asked alone they know no mask
            scores, alone = scores[~scores.isnan()], alone[~scores.isnan()]
        assert torch.equal(alone.isnan(), scores.isnan()), key
        assert torch.equal(alone.nan_to_num(-1), scores.nan_to_num(-1)), key


@given(pair=made.pairs(broken=True))
@settings(max_examples=100)
def test_what_cannot_be_scored_is_told_from_the_map_and_the_mask(
    pair: tuple[Tensor, Tensor],
) -> None:
    maps, masks = pair
    for values, mask, why in zip(maps.double(), masks, reasons(maps, masks), strict=True):
        said = why or ""
        assert ("NaN" in said) == bool(values.isnan().any())
        assert ("mask is empty" in said) == (not mask.any())
        assert ("mask is full" in said) == bool(mask.all())
        if values.isfinite().all():
            assert ("constant" in said) == bool(values.min() == values.max())
            assert ("no positive" in said) == bool(values.max() <= 0)
            assert ("zero everywhere" in said) == bool((values == 0).all())


@given(pair=made.pairs())
@settings(max_examples=100)
def test_scores_stay_in_their_range(pair: tuple[Tensor, Tensor]) -> None:
    table = everything(*pair)
    size, area = pair[0][0].numel(), pair[1].flatten(1).sum(1)
    for key, scores in table.items():
        top = {"mass_lift": size / area.double(), "complexity": math.log(size) if size > 1 else 0.0}
        valid = ~scores.isnan()
        limit = torch.as_tensor(top.get(key, 1.0), dtype=torch.float64).expand_as(scores)
        assert (scores >= -1e-12)[valid].all(), key
        assert (scores <= limit + 1e-9)[valid].all(), key


@given(pair=made.pairs(broken=True), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_a_score_depends_on_nothing_else_in_the_batch(
    pair: tuple[Tensor, Tensor], seed: int
) -> None:
    maps, masks = pair
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(seed))
    whole, turned = everything(maps, masks), everything(maps[order], masks[order])
    for i, at in enumerate(order.tolist()):
        alone = everything(maps[at : at + 1], masks[at : at + 1])
        for key in ALL:
            assert_same_bits(turned[key][i : i + 1], whole[key][at : at + 1])
            assert_same_bits(alone[key], whole[key][at : at + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_map_scores_the_same_bits_alone_and_in_company(dtype: torch.dtype) -> None:
    maps, masks = made.noise(8, 224, 224).to(dtype), made.boxes(8, 224, 60)
    maps[3] -= 0.5  # one map with a sign must not change how the others are sorted
    whole = everything(maps, masks)
    for i in range(8):
        alone = everything(maps[i : i + 1], masks[i : i + 1])
        for key in ALL:
            assert_same_bits(alone[key], whole[key][i : i + 1])


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours.view(torch.int64), theirs.contiguous().view(torch.int64)) or (
        ours.isnan().all() and theirs.isnan().all()
    )


@pytest.mark.parametrize("flip", [(1,), (2,), (1, 2)])
def test_turning_map_and_mask_together_changes_nothing(flip: tuple[int, ...]) -> None:
    maps, masks = made.noise(5, 12, 9), made.noise(5, 12, 9, seed=1) > 0.6
    here, there = everything(maps, masks), everything(maps.flip(flip), masks.flip(flip))
    for key in ALL:
        if not key.startswith("max_box"):  # of equal components the first by rows is taken
            assert there[key].tolist() == pytest.approx(here[key].tolist(), abs=1e-12)


@given(pair=made.pairs(dtypes=(torch.float32,)))
@settings(max_examples=60)
def test_ranking_metrics_see_the_order_alone(pair: tuple[Tensor, Tensor]) -> None:
    maps, masks = pair
    _, places = maps.unique(return_inverse=True)
    by_order = (places.float() + 1).log()
    ours, theirs = everything(by_order, masks), everything(maps, masks)
    for key in RANKED:
        torch.testing.assert_close(ours[key], theirs[key], equal_nan=True)


@pytest.mark.parametrize("key", ["energy_pointing_game", "mass_lift", *MASKLESS])
def test_mass_metrics_do_not_see_the_scale(key: str) -> None:
    maps, masks = made.noise(4, 8, 8), made.noise(4, 8, 8, seed=1) > 0.5
    assert torch.equal(everything(maps * 4, masks)[key], everything(maps, masks)[key])


@pytest.mark.parametrize("key", ["iou", "max_iou", "max_box_acc", "max_box_acc_v2"])
def test_thresholded_metrics_do_not_see_scale_nor_offset(key: str) -> None:
    maps, masks = made.noise(4, 8, 8).double(), made.noise(4, 8, 8, seed=1) > 0.5
    assert torch.equal(everything(maps * 3 - 5, masks)[key], everything(maps, masks)[key])


def test_a_constant_map_scores_chance() -> None:
    masks = made.boxes(3)
    share = masks.flatten(1).double().mean(1)
    table = localization(torch.full((3, 96, 96), 0.7), masks)
    for key in (
        "pointing_game",
        "energy_pointing_game",
        "relevance_rank_accuracy",
        "topk_intersection",
        "pixel_ap",
        "oracle_iou",
    ):
        torch.testing.assert_close(table[key], share)
    assert table["pixel_auroc"].tolist() == [0.5] * 3
    torch.testing.assert_close(table["mass_lift"], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(table["iou_at_area"], share / (2 - share))


def test_a_perfect_map_scores_best() -> None:
    masks = made.boxes(3)
    table = localization(masks.float(), masks, ALL, threshold=0.5)
    for key in set(ALL) - {"mass_lift", *MASKLESS}:
        assert table[key].tolist() == [1.0] * 3, key
    assert table["mass_lift"].tolist() == [36.0] * 3


def test_a_disjoint_map_scores_worst() -> None:
    masks = made.boxes(3)
    table = localization((~masks).float(), masks, ALL, threshold=0.5)
    chance = masks.flatten(1).double().mean(1)
    for key in set(ALL) - {"oracle_iou", "pixel_ap", *MASKLESS}:
        assert table[key].tolist() == [0.0] * 3, key
    for key in ("oracle_iou", "pixel_ap"):  # when all has entered, the mask has too
        torch.testing.assert_close(table[key], chance)


def test_a_full_mask_has_no_auroc_and_is_always_hit() -> None:
    table = everything(made.noise(1, 5, 5), torch.ones(1, 5, 5, dtype=torch.bool))
    assert table.why("pixel_auroc") == ["the mask is full"]
    for key in ("pointing_game", "energy_pointing_game", "pixel_ap", "oracle_iou"):
        assert table[key].tolist() == [1.0]


@pytest.mark.parametrize("source", ["tensor", "array", "read-only", "strided", "big-endian"])
def test_arrays_and_tensors_score_alike_and_are_left_as_they_were(source: str) -> None:
    maps, masks = made.noise(5, 10, 8), made.noise(5, 10, 8, seed=1) > 0.6
    expected = everything(maps, masks)
    given_maps: Any = maps.clone()
    given_masks: Any = masks.clone()
    if source != "tensor":
        given_maps, given_masks = given_maps.numpy(), given_masks.numpy()
    if source == "read-only":
        given_maps.setflags(write=False)
    if source == "strided":
        given_maps = np.ascontiguousarray(given_maps[:, :, ::-1])[:, :, ::-1]
    if source == "big-endian":
        given_maps = given_maps.astype(">f4")
    found = everything(given_maps, given_masks)
    for key in ALL:
        assert torch.equal(found[key], expected[key])
    assert np.array_equal(np.asarray(given_maps), maps.numpy())
    assert np.array_equal(np.asarray(given_masks), masks.numpy())


def test_tensors_that_are_views_or_want_gradients_are_welcome() -> None:
    maps = made.noise(5, 8, 10).transpose(1, 2).requires_grad_()
    masks = (made.noise(5, 8, 10, seed=1) > 0.6).transpose(1, 2)
    plain = everything(maps.detach().contiguous(), masks.contiguous())
    for key, scores in everything(maps, masks).items():
        assert torch.equal(scores, plain[key])
        assert not scores.requires_grad
    with torch.inference_mode():
        assert torch.equal(everything(maps, masks)["pixel_ap"], plain["pixel_ap"])


def test_expanded_and_sliced_inputs_score_as_their_copies() -> None:
    maps, masks = made.noise(1, 8, 8).expand(6, 8, 8), made.boxes(12, 8, 3)[::2]
    expected = everything(maps.clone(), masks.clone())
    for found in (everything(maps, masks), everything(maps.numpy(), masks.numpy())):
        for key, scores in found.items():
            assert torch.equal(scores, expected[key])
    flat, one = torch.ones(()).expand(6, 8, 8), masks[:1].expand(6, 8, 8)
    assert everything(flat, one)["pixel_auroc"].tolist() == [0.5] * 6


def test_many_maps_are_scored_in_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = made.noise(20, 6, 6), made.noise(20, 6, 6, seed=1) > 0.5
    whole = everything(maps, masks)
    module = sys.modules["attnviz.metrics.localization"]  # its function has the same name
    monkeypatch.setattr(module, "VALUES_OF_MANY", 100)
    monkeypatch.setattr("attnviz.metrics.row_kernels._NEAR", 36)
    monkeypatch.setattr("attnviz.metrics.row_kernels._NEARER", 72)
    sizes = [len(batch.values) for batch in m.batching.batches(maps, masks, at_once=100)]
    assert sizes == [2] * 10
    for key, scores in everything(maps, masks).items():
        assert torch.equal(scores, whole[key])


def test_no_images_have_no_scores() -> None:
    table = everything(torch.rand(0, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool))
    assert all(scores.shape == (0,) for scores in table.values())
    assert reasons(torch.rand(0, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool)) == []


def test_without_a_threshold_the_metrics_that_need_one_are_left_out() -> None:
    maps, masks = made.noise(2, 4, 4), made.noise(2, 4, 4, seed=1) > 0.5
    assert set(localization(maps, masks)) == {k for k in ALL if not METRICS[k].thresholded}
    assert set(localization(maps, masks, threshold=0.5)) == set(ALL)
    assert "iou" not in localization(maps, masks, threshold={"max_iou": 0.5})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"metrics": ["pixel_aurok"]},
            r"unknown metric 'pixel_aurok': did you mean 'pixel_auroc'",
        ),
        ({"metrics": "iou"}, r"metrics: expected a list of names, got the string 'iou'"),
        ({"metrics": ["iou"]}, r"iou: expected a threshold, got none; find one on the validation"),
        ({"threshold": 1.5}, r"threshold: expected a number from 0 to 1, got 1.5"),
        ({"threshold": {"iuo": 0.5}}, r"unknown thresholded metric 'iuo': did you mean 'iou'"),
        ({"k": 0}, r"k: expected an int from 1, or a float share in \(0, 1\], got 0"),
        ({"k": 1.5}, r"k: expected an int from 1, or a float share in \(0, 1\], got 1.5"),
        ({"k": 17}, r"k: expected at most the 16 places of a map, got 17"),
        ({"tolerance": -1}, r"tolerance: expected a distance in pixels of at least 0, got -1"),
        ({"sign": "both"}, r"unknown sign 'both'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_an_option_out_of_range_is_refused(call: dict[str, Any], message: str) -> None:
    maps, masks = made.noise(2, 4, 4), made.noise(2, 4, 4, seed=1) > 0.5
    with pytest.raises(InputError, match=message):
        localization(maps, masks, **call)


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (
            torch.rand(4, 4),
            torch.ones(4, 4) > 0,
            r"maps: expected \(b, h, w\) or more place axes, got \(4, 4\)",
        ),
        (torch.ones(1, 4, 4).int(), torch.ones(1, 4, 4) > 0, r"maps: expected floating point, got"),
        (
            torch.rand(1, 4, 4),
            torch.ones(1, 4, 4),
            r"masks: expected bool, got torch.float32; choose",
        ),
        (torch.rand(1, 4, 4), torch.ones(1, 4, 5) > 0, r"masks: expected the shape of the maps"),
        (torch.rand(1, 4, 4), torch.ones(1, 1, 4, 4) > 0, r"channel axis away with masks\[:, 0\]"),
        (torch.rand(2, 4, 4), torch.ones(1, 4, 4) > 0, r"got \(1, 4, 4\); one mask per map"),
        (torch.rand(1, 4, 4), torch.ones(1, 8, 8) > 0, r"resize the maps to the masks first, with"),
        (torch.rand(1, 0, 4), torch.ones(1, 0, 4) > 0, r"maps: expected at least one place"),
        ([[1.0]], torch.ones(1, 1, 1) > 0, r"maps: expected a tensor or a numpy array, got list"),
        (
            np.ones((1, 2, 2), complex),
            np.ones((1, 2, 2), bool),
            r"maps: expected float16 to float64",
        ),
        (
            torch.rand(1, 4, 4),
            torch.ones(1, 4, 4, device="meta") > 0,
            r"masks: expected them on cpu with the maps, got meta",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_inputs_are_refused_with_what_came(maps: Any, masks: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        localization(maps, masks)


def test_a_table_prints_means_and_why_images_are_missing() -> None:
    maps, masks = made.noise(4, 8, 8), made.boxes(4, 8, 3)
    masks[0], maps[1, 0, 0] = False, math.nan
    table = localization(maps, masks, ["pointing_game", "max_iou"], threshold=0.25)
    assert table.summary()["max_iou"]["valid"] == 2
    assert table.thresholds == {"max_iou": 0.25}
    lines = repr(table).splitlines()
    assert lines[0].split() == ["metric", "mean", "95", "%", "interval", "scored", "τ"]
    assert lines[3].endswith("2 of 4  0.25")
    assert lines[4:] == ["1 × the mask is empty", "1 × the map holds NaN"]
    with pytest.raises(InputError, match="unknown metric 'iou'"):
        table.why("iou")


def test_a_summary_has_an_interval_that_groups_widen() -> None:
    maps, masks = made.noise(40, 8, 8), made.boxes(40, 8, 3)
    table = localization(maps, masks, ["energy_pointing_game", "pointing_game"])
    plain = table.summary()["energy_pointing_game"]
    assert list(plain) == ["mean", "low", "high", "valid", "n"]
    assert plain["low"] < plain["mean"] < plain["high"]
    scores = table["energy_pointing_game"]
    order = scores.argsort().argsort() // 10  # alike within each of four groups
    grouped = table.summary(group=order)["energy_pointing_game"]
    assert grouped["mean"] == plain["mean"]
    assert grouped["high"] - grouped["low"] > 2 * (plain["high"] - plain["low"])
    assert 0 <= table.summary()["pointing_game"]["low"] < 1
    with pytest.raises(InputError, match="summary: expected a group for each of 40 images, got 3"):
        table.summary(group=["a", "b", "c"])


def test_a_summary_of_one_image_has_no_interval() -> None:
    row = localization(made.noise(1, 8, 8), made.boxes(1, 8, 3)).summary()["energy_pointing_game"]
    assert math.isnan(row["low"])
    assert math.isnan(row["high"])


def test_reasons_add_up() -> None:
    maps, masks = torch.zeros(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.bool)
    masks[1, 0, 0] = True
    first, second = reasons(maps, masks)
    assert first == (
        "the mask is empty; the map is constant; the map has no positive value; "
        "the map is zero everywhere"
    )
    assert second == first.removeprefix("the mask is empty; ")
    assert reasons(maps, masks, "pointing_game") == ["the mask is empty", None]
    assert Reason.NAN.words == "the map holds NaN"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", made.DTYPES)
def test_a_gpu_scores_what_a_cpu_does(dtype: torch.dtype) -> None:
    maps, masks = made.noise(64, 24, 24).sub(0.2).to(dtype), made.boxes(64, 24, 6)
    maps[0, 0, 0], masks[1] = math.nan, False
    here, there = everything(maps, masks), everything(maps.cuda(), masks.cuda())
    for key in ALL:
        assert there[key].is_cuda
        torch.testing.assert_close(
            there[key].cpu(), here[key], rtol=1e-12, atol=1e-12, equal_nan=True
        )
