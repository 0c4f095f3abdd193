"""A meter sees what one call would, in pieces and from several processes."""

from __future__ import annotations

import math
import multiprocessing
import pickle

import pytest
import torch
from torch import Tensor

from attnviz.errors import InputError
from attnviz.metrics import METRICS, LocalizationMeter, localization, pxap
from tests.metrics import made

MAPS, MASKS = made.noise(24, 10, 10), made.boxes(24, 10, 4)
MAPS[3, 0, 0], MASKS[7], MAPS[11] = math.nan, False, 0.5
WHOLE = localization(MAPS, MASKS, threshold=0.5)


def fed(*parts: slice, indexed: bool = False) -> LocalizationMeter:
    meter = LocalizationMeter(threshold=0.5, pixels=True)
    for part in parts:
        meter.update(MAPS[part], MASKS[part], range(24)[part] if indexed else None)
    return meter


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor] = WHOLE) -> None:
    assert set(found) == set(expected)
    for key, scores in found.items():
        assert torch.equal(scores.nan_to_num(-1), expected[key].nan_to_num(-1))


def test_pieces_add_up_to_the_whole() -> None:
    meter = fed(slice(0, 5), slice(5, 6), slice(6, 24))
    assert len(meter) == 24
    assert_same(meter.compute())
    assert meter.compute().why("iou") == WHOLE.why("iou")
    assert repr(meter.compute()) == repr(WHOLE)
    assert meter.pxap() == pxap(MAPS, MASKS)
    assert meter.pxap() == pxap(MAPS, MASKS)  # asking does not use the pixels up


def test_meters_merge_in_order() -> None:
    first, second = fed(slice(0, 9)), fed(slice(9, 24))
    assert first.merge(second) is first
    assert_same(first.compute())
    assert first.pxap() == pxap(MAPS, MASKS)
    assert len(second) == 15


def test_an_index_puts_images_in_order_and_counts_each_once() -> None:
    even, odd = fed(slice(0, 24, 2), indexed=True), fed(slice(1, 24, 2), indexed=True)
    odd.update(MAPS[:1], MASKS[:1], [0])  # a sampler fills up its last batch
    assert_same(odd.merge(even).compute())


def test_an_empty_meter_takes_in_another_with_its_index() -> None:
    meter = LocalizationMeter(threshold=0.5, pixels=True)
    assert_same(meter.merge(fed(slice(0, 24), indexed=True)).compute())


def work(part: slice) -> bytes:
    torch.set_num_threads(1)
    return pickle.dumps(fed(part, indexed=True))


def test_workers_send_their_meters_home() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        sent = pool.map(work, [slice(12, 24), slice(0, 12)])
    meter = pickle.loads(sent[0]).merge(pickle.loads(sent[1]))
    assert_same(meter.compute())
    assert meter.pxap() == pxap(MAPS, MASKS)


def test_a_meter_keeps_nothing_of_the_maps_it_was_not_told_to() -> None:
    meter = LocalizationMeter()
    meter.update(MAPS, MASKS)
    per_image = len(pickle.dumps(meter)) / 24
    assert per_image < 400
    with pytest.raises(InputError, match="make it with pixels=True"):
        meter.pxap()


def test_a_new_meter_has_seen_nothing() -> None:
    meter = LocalizationMeter(pixels=True)
    assert len(meter) == 0
    assert all(scores.shape == (0,) for scores in meter.compute().values())
    assert math.isnan(meter.pxap())


@pytest.mark.parametrize(
    "other",
    [
        LocalizationMeter(["pointing_game"]),
        LocalizationMeter(threshold=0.4, pixels=True),
        LocalizationMeter(threshold=0.5, pixels=True, k=0.5),
        LocalizationMeter(threshold=0.5),
    ],
)
def test_meters_of_different_things_do_not_merge(other: LocalizationMeter) -> None:
    with pytest.raises(InputError, match="merge: expected a meter of the same metrics and options"):
        fed(slice(0, 2)).merge(other)


@pytest.mark.usefixtures("unchecked")
def test_an_index_comes_always_or_never_and_fits() -> None:
    with pytest.raises(InputError, match="index: expected it with every update or with none"):
        fed(slice(0, 2)).update(MAPS[:1], MASKS[:1], [3])
    with pytest.raises(InputError, match="index: expected it with every update or with none"):
        fed(slice(0, 2), indexed=True).update(MAPS[:1], MASKS[:1])
    with pytest.raises(InputError, match="merge: expected both meters to have an index or neither"):
        fed(slice(0, 2)).merge(fed(slice(2, 4), indexed=True))
    for index in ([1], [1.0, 2.0]):
        with pytest.raises(InputError, match="index: expected 2 integers"):
            LocalizationMeter().update(MAPS[:2], MASKS[:2], index)  # type: ignore[arg-type]


def test_a_refused_update_leaves_no_trace() -> None:
    meter = fed(slice(0, 4))
    with pytest.raises(InputError):
        meter.update(MAPS[:2], MASKS[:2], [0, 1])
    assert len(meter) == 4
    assert meter.pxap() == pxap(MAPS[:4], MASKS[:4])


def test_options_are_checked_at_once() -> None:
    with pytest.raises(InputError, match="iou: expected a threshold, got none"):
        LocalizationMeter(["iou"])
    assert LocalizationMeter().metrics == tuple(k for k in METRICS if not METRICS[k].thresholded)
