"""The way from a grid to an image's size is the one that is stated."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from attnviz import maps
from attnviz.errors import InputError


def bilinear_twin(one: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear interpolation with pixel centres aligned and edges repeated, pixel by pixel."""
    h, w = one.shape
    out = torch.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v = min(max((y + 0.5) * h / size[0] - 0.5, 0), h - 1)
            u = min(max((x + 0.5) * w / size[1] - 0.5, 0), w - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            dy, dx = v - y0, u - x0
            out[y, x] = (1 - dy) * ((1 - dx) * one[y0, x0] + dx * one[y0, x1]) + dy * (
                (1 - dx) * one[y1, x0] + dx * one[y1, x1]
            )
    return out


@pytest.mark.parametrize("size", [(9, 20), (7, 11), (3, 5)])
def test_bilinear_aligns_pixel_centres(size):
    values = torch.rand(2, 3, 5)
    expected = torch.stack([bilinear_twin(one, size) for one in values])
    assert_close(maps.resized(values, size, "bilinear"), expected)


def test_nearest_repeats_cells():
    values = torch.rand(2, 3, 5)
    expected = values.repeat_interleave(4, 1).repeat_interleave(2, 2)
    assert torch.equal(maps.resized(values, (12, 10), "nearest"), expected)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_constant_map_stays_constant(interpolation):
    drawn = maps.resized(torch.full((1, 4, 3, 5), 0.25), (11, 7), interpolation)
    assert_close(drawn, torch.full((1, 4, 11, 7), 0.25))


def test_going_smaller_averages_instead_of_skipping_places():
    stripes = torch.tensor([[[0.0, 1.0] * 8] * 16])
    smaller = maps.resized(stripes, (4, 4), "bilinear")
    assert_close(smaller, torch.full((1, 4, 4), 0.5), atol=0.05, rtol=0)


def test_a_wrong_interpolation_or_size_is_named(unchecked):
    values = torch.rand(2, 3, 5)
    with pytest.raises(InputError, match="expected nearest, bilinear or bicubic, got 'area'"):
        maps.resized(values, (6, 6), "area")
    with pytest.raises(InputError, match=r"of at least 1, .* got \(0, 6\)"):
        maps.resized(values, (0, 6), "nearest")
