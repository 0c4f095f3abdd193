"""Components, boxes, and whether they fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnviz.errors import InputError
from attnviz.metrics import boxes, calibrate_threshold, localization, max_box_acc, max_box_acc_v2
from attnviz.metrics.boxes import box_iou, component_boxes, components, largest_boxes
from tests.metrics import made, twins


@st.composite
def drawn_masks(draw: st.DrawFn) -> np.ndarray:
    b, h, w = draw(st.tuples(st.integers(0, 3), st.integers(1, 8), st.integers(1, 8)))
    bits = draw(st.lists(st.booleans(), min_size=b * h * w, max_size=b * h * w))
    return np.array(bits, dtype=bool).reshape(b, h, w)


@given(masks=drawn_masks())
@settings(max_examples=200)
def test_the_components_and_their_boxes_are_those_of_a_flood(masks: np.ndarray) -> None:
    labelled, owner = components(masks)
    expected = [(i, group) for i, mask in enumerate(masks) for group in twins.components(mask)]
    assert list(owner) == [i for i, _ in expected]
    for number, (i, group) in enumerate(expected, start=1):
        found = {(int(y), int(x)) for y, x in zip(*np.nonzero(labelled[i] == number), strict=True)}
        assert found == group
    owners, around = component_boxes(masks)
    found_boxes = sorted(zip(owners.tolist(), map(tuple, around.tolist()), strict=True))
    assert found_boxes == sorted((i, twins.box(group)) for i, group in expected)


@given(masks=drawn_masks())
@settings(max_examples=200)
def test_runs_and_places_have_the_same_largest_component(masks: np.ndarray) -> None:
    padded = np.pad(masks, ((0, 0), (0, 1), (1, 1))).astype(np.int8)
    edges = np.flatnonzero(np.diff(padded.ravel())) + 1
    by_runs = boxes._largest_of_runs(edges[::2], edges[1::2], padded.shape)
    np.testing.assert_array_equal(by_runs, boxes._largest_of_places(masks))


@given(masks=drawn_masks())
@settings(max_examples=200)
def test_the_largest_component_is_the_first_of_the_largest(masks: np.ndarray) -> None:
    for mask, found in zip(masks, largest_boxes(masks), strict=True):
        groups = twins.components(mask)
        expected = twins.box(max(groups, key=len)) if groups else (0, 0, 0, 0)
        assert tuple(found.tolist()) == expected


def test_a_perfect_map_fits_its_box_entirely() -> None:
    masks = made.boxes(5)
    assert max_box_acc(masks.float(), masks, threshold=0.5, overlap=1.0).tolist() == [1.0] * 5


def test_boxes_are_half_open() -> None:
    ours, theirs = np.array([[0, 0, 4, 4]]), np.array([[2, 0, 6, 4]])
    assert box_iou(ours, theirs).tolist() == [8 / 24]
    assert box_iou(ours, ours + 4).tolist() == [0.0]
    beside = np.array([[4, 0, 8, 4]])
    assert box_iou(ours, beside).tolist() == [0.0]
    assert box_iou(ours * 0, ours * 0).tolist() == [0.0]


def test_the_boxes_of_a_scattered_mask_count_one_by_one() -> None:
    masks = torch.zeros(1, 12, 12, dtype=torch.bool)
    masks[0, 0:3, 0:3] = masks[0, 8:12, 8:12] = True
    maps = torch.zeros(1, 12, 12)
    maps[0, 0:3, 0:3] = 1.0
    assert max_box_acc(maps, masks, threshold=0.5).tolist() == [1.0]


def test_neighbours_across_a_corner_are_one_component() -> None:
    maps = torch.eye(6)[None]
    masks = torch.ones(1, 6, 6, dtype=torch.bool)
    assert max_box_acc(maps, masks, threshold=0.5).tolist() == [1.0]


@pytest.mark.parametrize(
    ("width", "expected"), [(10, 1.0), (7, 1.0), (6, 2 / 3), (5, 2 / 3), (3, 1 / 3), (2, 0.0)]
)
def test_v2_counts_three_overlaps(width: int, expected: float) -> None:
    masks, maps = torch.zeros(1, 20, 20, dtype=torch.bool), torch.zeros(1, 20, 20)
    masks[0, 5:15, 5:15] = True
    maps[0, 5:15, 5 : 5 + width] = 1.0
    assert max_box_acc_v2(maps, masks, threshold=0.5).tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize("overlap", [0.0, -1.0, 1.1])
def test_an_overlap_out_of_range_is_refused(overlap: float) -> None:
    with pytest.raises(InputError, match="overlap: expected an IoU in"):
        max_box_acc(made.noise(1, 4, 4), made.boxes(1, 4, 2), threshold=0.5, overlap=overlap)


def corner_objects() -> tuple[torch.Tensor, list[np.ndarray]]:
    """Two squares of 4 x 4 pixels that touch at a corner."""
    masks = torch.zeros(1, 12, 12, dtype=torch.bool)
    masks[0, 1:5, 1:5] = masks[0, 5:9, 5:9] = True
    return masks, [np.array([[1, 1, 5, 5], [5, 5, 9, 9]])]


@pytest.mark.parametrize("which", [0, 1])
def test_annotated_boxes_of_objects_that_touch_are_kept_apart(which: int) -> None:
    masks, boxes = corner_objects()
    x0, y0, x1, y1 = boxes[0][which].tolist()
    maps = torch.zeros(1, 12, 12)
    maps[0, y0:y1, x0:x1] = 1
    options = {"threshold": 0.5}
    assert max_box_acc(maps, masks, **options).item() == 0  # one component of 8 x 8 without them
    assert max_box_acc(maps, masks, overlap=1.0, boxes=boxes, **options).item() == 1
    assert max_box_acc_v2(maps, masks, boxes=boxes, **options).item() == 1
    table = localization(maps, masks, ["max_box_acc"], boxes=boxes, **options)
    assert table["max_box_acc"].item() == 1
    both = masks.float()
    assert max_box_acc(both, masks, **options).item() == 1
    assert max_box_acc(both, masks, boxes=boxes, **options).item() == 0


def test_boxes_of_components_and_the_same_boxes_annotated_score_alike() -> None:
    masks, maps = made.boxes(40), made.noise(40, *made.boxes(40).shape[1:])
    maps = maps + masks.float() * torch.linspace(0, 1, 40)[:, None, None]
    boxes: list[np.ndarray | None] = [component_boxes(one[None].numpy())[1] for one in masks]
    expected = max_box_acc_v2(maps, masks, threshold=0.6)
    assert torch.equal(max_box_acc_v2(maps, masks, threshold=0.6, boxes=boxes), expected)
    boxes[::3] = [None] * len(boxes[::3])
    assert torch.equal(max_box_acc_v2(maps, masks, threshold=0.6, boxes=boxes), expected)
    assert len(expected.unique()) > 1


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "one entry per mask, 1, got 0; None stands for"),
        ([np.zeros((1, 4))], r"boxes\[0\]: expected \(k, 4\) whole pixels"),
        ([np.zeros((4,), dtype=int)], r"expected \(k, 4\) whole pixels"),
        ([np.array([[1, 1, 5, 13]])], "inside the mask of 12 x 12 pixels, got"),
        ([np.array([[5, 1, 5, 9]])], "inside the mask of 12 x 12 pixels, got"),
        ([np.zeros((0, 4), dtype=int)], "a box for a mask that is not empty; None takes"),
    ],
)
def test_boxes_that_cannot_be_right_are_refused(boxes: list[np.ndarray], message: str) -> None:
    masks, _ = corner_objects()
    with pytest.raises(InputError, match=message):
        max_box_acc(masks.float(), masks, threshold=0.5, boxes=boxes)


def test_the_threshold_is_calibrated_on_annotated_boxes() -> None:
    """At τ above .5 the map marks one of two objects that touch, below both."""
    masks, boxes = corner_objects()
    maps = masks.float() * 0.5
    maps[0, 1:5, 1:5] = 1
    empty = torch.zeros_like(masks)
    maps, masks = torch.cat([maps, maps]), torch.cat([empty, masks])
    both, apart = (
        calibrate_threshold(maps, masks, "max_box_acc", grid=10, boxes=one)
        for one in (None, [None, *boxes])
    )
    assert both <= 0.5 < apart


def test_boxes_belong_to_pictures() -> None:
    volume = torch.ones(1, 4, 4, 4)
    with pytest.raises(InputError, match=r"expected masks \(b, h, w\) beside boxes, got"):
        localization(volume, volume > 0, ["pointing_game"], boxes=[None])
