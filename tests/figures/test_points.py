"""Sampling points over their image."""

from __future__ import annotations

import numpy as np
import pytest

from attnviz.errors import InputError
from attnviz.figures import sampling_points
from attnviz.figures.colour import lookup


def test_points_lie_where_their_shares_say_and_heavier_ones_are_larger() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    points = np.array([[[0.25, 0.5]], [[0.75, 0.5]], [[1.7, 0.5]]])
    picture = sampling_points(image, points, np.array([[0.9], [0.1], [0.9]]), scale=5)
    assert picture.shape == (200, 400, 3)
    assert np.array_equal(picture[100, 100], lookup("inferno")[255])
    there = picture.any(-1)
    left, right = there[:, :200].sum(), there[:, 200:].sum()
    assert left > 3 * right > 0
    rows, columns = np.nonzero(there[:, 200:])
    assert abs(rows.mean() - 99.5) < 1
    assert abs(columns.mean() - 99.5) < 1


def test_the_box_is_drawn_in_the_same_shares() -> None:
    image = np.full((20, 40, 3), 90, np.uint8)
    picture = sampling_points(image, np.zeros((0, 2)), np.zeros(0), [0.25, 0.25, 0.75, 0.75])
    assert tuple(picture[4, 20]) == (0, 0xE5, 0xFF)
    assert len({tuple(one) for one in picture[6:14, 12:28].reshape(-1, 3)}) == 1


def test_what_does_not_fit_is_refused() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match=r"expected points \(…, 2\) and weights \(…\), got"):
        sampling_points(image, np.zeros((3, 2)), np.zeros(2))
    with pytest.raises(InputError, match="expected finite points and weights"):
        sampling_points(image, np.full((1, 2), np.nan), np.zeros(1))
