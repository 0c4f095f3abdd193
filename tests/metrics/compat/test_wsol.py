"""wsolevaluation's conventions, on the values of its own tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attnviz.errors import InputError
from attnviz.metrics import max_box_acc
from attnviz.metrics.boxes import box_iou
from attnviz.metrics.compat import wsol
from tests.metrics import made

FIFTHS = np.arange(0, 1, 0.2)


def test_boxes_include_both_ends() -> None:
    ours, theirs = np.array([[1, 2, 5, 6]]), np.array([[3, 1, 4, 5]])
    assert wsol.inclusive_iou(ours, theirs).item() == pytest.approx(8 / 27, abs=1e-12)
    assert box_iou(ours, theirs).item() == pytest.approx(3 / 17)  # half-open, as everywhere else


def test_boxes_of_one_pixel_at_the_origin_overlap() -> None:
    zeros = np.zeros((3, 4), dtype=int), np.zeros((5, 4), dtype=int)
    assert (wsol.inclusive_iou(*zeros) == np.ones((3, 5))).all()


def test_every_box_is_compared_with_every_other() -> None:
    boxes = np.array([[1, 1, 3, 3], [4, 4, 5, 5]])
    assert (wsol.inclusive_iou(boxes, boxes) == np.eye(2)).all()
    with pytest.raises(InputError, match="expected x0 <= x1"):
        wsol.inclusive_iou(np.array([[1, 1, 0, 0]]), boxes)


def test_a_map_of_zeros_draws_no_box() -> None:
    assert wsol.estimated_boxes(np.zeros((3, 3)), FIFTHS).tolist() == [[0] * 4] * 5


def test_a_map_with_one_peak() -> None:
    score_map = np.array(
        [
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.4, 0.4, 0.4, 0.6],
            [0.0, 0.4, 1.0, 0.8, 0.6],
            [0.0, 0.4, 0.4, 0.4, 0.6],
        ]
    )
    assert wsol.estimated_boxes(score_map, FIFTHS).tolist() == [
        [1, 1, 4, 3],
        [1, 1, 4, 3],
        [2, 1, 4, 3],
        [2, 2, 4, 3],
        [2, 2, 3, 3],
    ]


def test_a_map_with_several_peaks() -> None:
    score_map = np.array(
        [
            [0.4, 0.0, 0.2, 0.2, 0.2],
            [0.4, 0.4, 0.0, 0.4, 0.0],
            [0.0, 0.0, 0.0, 0.4, 0.0],
            [1.0, 0.6, 0.8, 0.2, 0.2],
        ]
    )
    assert wsol.estimated_boxes(score_map, FIFTHS).tolist() == [
        [0, 0, 4, 3],
        [0, 0, 2, 2],
        [0, 3, 3, 3],
        [2, 3, 3, 3],
        [0, 3, 1, 3],
    ]


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.1])
def test_maps_must_lie_between_zero_and_one(value: float) -> None:
    broken = np.full((3, 3), value)
    with pytest.raises(InputError, match=r"expected values in \[0, 1\]"):
        wsol.estimated_boxes(broken, FIFTHS)
    with pytest.raises(InputError, match=r"expected values in \[0, 1\]"):
        wsol.pxap(broken[None], np.ones((1, 3, 3), dtype=bool))


def test_a_perfect_square_misses_its_own_box_by_their_count_and_not_by_ours() -> None:
    masks = torch.zeros(1, 96, 96, dtype=torch.bool)
    masks[:, 30:46, 20:36] = True
    goal = np.array([[20, 30, 35, 45]])
    drawn = wsol.estimated_boxes(masks[0].double().numpy(), [0.5])
    assert wsol.inclusive_iou(drawn, goal).item() == pytest.approx(256 / 289)
    assert round(256 / 289, 3) == 0.886
    assert wsol.max_box_acc(masks.float(), [goal], overlaps=[0.9]) == 0.0
    assert max_box_acc(masks.float(), masks, threshold=0.5, overlap=0.9).tolist() == [1.0]


def test_the_threshold_is_the_best_for_the_very_maps() -> None:
    maps = np.zeros((2, 20, 20))
    maps[:, 2:18, 2:18] = 0.4
    maps[:, 5:15, 5:15] = 1.0
    small, large = np.array([[5, 5, 14, 14]]), np.array([[2, 2, 17, 17]])
    assert wsol.max_box_acc(maps, [small, small]) == 100.0
    assert wsol.max_box_acc(maps, [large, large]) == 100.0
    assert wsol.max_box_acc(maps, [small, large], overlaps=[0.8]) == 50.0
    assert wsol.max_box_acc(maps, [small, large], overlaps=[0.3, 0.8]) == 75.0
    both = np.concatenate([small, large])
    assert wsol.max_box_acc(maps, [both, small], overlaps=[0.8]) == 100.0
    with pytest.raises(InputError, match="boxes: expected those of 2 images, got 1"):
        wsol.max_box_acc(maps, [small])


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_map_scores_the_share_inside(value: float) -> None:
    masks = made.noise(1, 50, 50) < 0.3
    share = 100 * masks.double().mean().item()
    assert wsol.pxap(torch.full((1, 50, 50), value), masks) == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("ignored", [0.0, 1.0])
def test_a_perfect_map_scores_a_hundred_whatever_stands_in_the_ignored_region(
    ignored: float,
) -> None:
    masks = made.boxes(3, 40, 12)
    ignore = ~masks & (made.noise(3, 40, 40) < 0.2)
    maps = masks.float().masked_fill(ignore, ignored)
    assert wsol.pxap(maps, masks, ignore=ignore) == 100.0


def test_without_a_single_pixel_inside_there_is_no_precision() -> None:
    with pytest.raises(InputError, match="expected at least one pixel inside"):
        wsol.pxap(made.noise(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool))
