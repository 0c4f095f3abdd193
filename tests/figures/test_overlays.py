"""A map over its image: what is seen where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attnviz import maps
from attnviz.errors import InputError
from attnviz.figures import outlined, overlay
from attnviz.figures.colour import lookup
from attnviz.figures.overlays import OUTLINE, resized

LINE = tuple(int(OUTLINE[i : i + 2], 16) for i in (1, 3, 5))


def image(h: int = 8, w: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (h, w, 3)).astype(np.uint8)


def is_line(picture: np.ndarray) -> np.ndarray:
    return np.asarray((picture == LINE).all(-1))


def test_where_the_map_is_nothing_the_image_is_seen() -> None:
    np.testing.assert_array_equal(overlay(image(), np.zeros((8, 10)), grey=False), image())


def test_where_the_map_is_highest_its_own_colour_is_seen() -> None:
    heat = np.zeros((8, 10))
    heat[3, 4] = 2.0
    picture = overlay(image(), heat, alpha=1.0, cmap="viridis")
    np.testing.assert_array_equal(picture[3, 4], lookup("viridis")[255])


def test_by_the_formula() -> None:
    heat = np.random.default_rng(1).random((8, 10))
    picture = overlay(image(), heat, alpha=0.7, vmax=2.0, grey=False)
    for y in range(8):
        for x in range(10):
            u = heat[y, x] / 2
            cover = 0.7 * u**0.5
            colour = lookup("inferno")[round(255 * u)].astype(float)
            expected = (1 - cover) * image()[y, x] + cover * colour
            np.testing.assert_allclose(picture[y, x], expected, atol=0.51)


def test_the_image_loses_its_colours_so_that_those_seen_are_the_map_s() -> None:
    picture = overlay(image(), np.zeros((8, 10)))
    assert (picture[..., 0] == picture[..., 1]).all()
    assert (picture[..., 0] == picture[..., 2]).all()
    assert 0 < picture.max() < 0.6 * 255


def test_one_scale_for_all_or_each_its_own() -> None:
    faint, strong = np.full((2, 2), 0.1), np.full((2, 2), 1.0)
    base = np.zeros((2, 2, 3), np.uint8)
    assert (overlay(base, faint) == overlay(base, strong)).all()
    assert (overlay(base, faint, vmax=1.0) != overlay(base, strong, vmax=1.0)).any()


@pytest.mark.parametrize("size", [(24, 20), (6, 5), (3, 4), (9, 2), (1, 1)])
def test_maps_are_resized_as_maps_resized_does(size: tuple[int, int]) -> None:
    heat = np.random.default_rng(0).normal(size=(3, 6, 5)).astype(np.float32)
    ours, theirs = resized(heat, size), maps.resized(torch.from_numpy(heat), size, "bilinear")
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_half_precision_is_resized_in_float32() -> None:
    heat = np.random.default_rng(0).random((4, 4)).astype(np.float16)
    np.testing.assert_array_equal(resized(heat, (9, 9)), resized(heat.astype(np.float32), (9, 9)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stays_where_it_is(bad: float) -> None:
    heat = np.zeros((8, 8))
    heat[0, 0] = bad
    drawn = resized(heat, (16, 16))
    assert np.isnan(drawn[0, 0])
    assert (drawn[4:, 4:] == 0).all()


def test_the_box_is_drawn_around_what_it_holds() -> None:
    picture = overlay(image(), np.zeros((8, 10)), [3, 2, 6, 5], grey=False)
    lines = is_line(picture)
    expected = np.zeros((8, 10), bool)
    expected[1:6, 2:7] = True
    expected[2:5, 3:6] = False
    np.testing.assert_array_equal(lines, expected)
    np.testing.assert_array_equal(picture[2:5, 3:6], image()[2:5, 3:6])


def test_the_box_has_a_dark_casing_against_light_ground() -> None:
    white = np.full((12, 12, 3), 255, np.uint8)
    picture = outlined(white, [4, 4, 7, 7])
    assert (picture[2, 2:9] == 0).all()


def test_many_boxes_and_none() -> None:
    two = outlined(image(), np.array([[1, 1, 3, 3], [6, 4, 8, 6], [0, 0, 0, 0]]))
    assert is_line(two).sum() == 2 * 12
    assert not is_line(outlined(image(), [0, 0, 0, 0])).any()
    np.testing.assert_array_equal(outlined(image(), None), image())


def test_boxes_that_touch_do_not_cover_each_other_s_line() -> None:
    picture = outlined(image(16, 16), np.array([[2, 2, 5, 5], [7, 2, 10, 5]]))
    assert is_line(picture)[1:6, 5].all()
    assert is_line(picture)[1:6, 6].all()


def test_a_box_at_the_edge_is_cut_not_wrapped() -> None:
    lines = is_line(outlined(image(), [7, 5, 10, 8]))
    assert lines.sum() == 4 + 3
    assert not lines[:4].any()


def test_a_mask_s_edge_is_drawn() -> None:
    mask = np.zeros((8, 10), bool)
    mask[2:5, 3:6] = True
    by_mask = overlay(image(), np.zeros((8, 10)), mask=mask)
    by_box = overlay(image(), np.zeros((8, 10)), [3, 2, 6, 5])
    np.testing.assert_array_equal(by_mask, by_box)


def test_enlarging_enlarges_image_and_box_alike() -> None:
    picture = overlay(image(), np.zeros((8, 10)), [3, 2, 6, 5], scale=3, grey=False)
    assert picture.shape == (24, 30, 3)
    np.testing.assert_array_equal(picture[6:15:3, 9:18:3], image()[2:5, 3:6])
    assert is_line(picture)[5, 8:19].all()


def test_nothing_is_mutated() -> None:
    base, heat = image(), np.random.default_rng(0).random((8, 10))
    before = base.copy(), heat.copy()
    overlay(base, heat, [1, 1, 4, 4])
    np.testing.assert_array_equal(base, before[0])
    np.testing.assert_array_equal(heat, before[1])


def test_tensors_are_welcome() -> None:
    heat = torch.rand(4, 5, requires_grad=True)
    picture = overlay(torch.rand(3, 8, 10), heat, torch.tensor([1, 1, 3, 3]))
    assert picture.shape == (8, 10, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones((2, 2, 2)),), {}, r"expected a map \(h, w\), got shape \(2, 2, 2\)"),
        ((np.ones((4, 4)), [1, 2, 3]), {}, r"expected boxes \[x0, y0, x1, y1\), got shape"),
        ((np.ones((4, 4)), None, np.ones((4, 4))), {}, r"expected a mask \(8, 10\), got \(4, 4\)"),
        ((np.ones((4, 4)),), {"alpha": 2.0}, "alpha from 0 to 1, got 2.0"),
        ((np.ones((4, 4)),), {"scale": 0}, "scale of at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        overlay(image(), *arguments, **options)
