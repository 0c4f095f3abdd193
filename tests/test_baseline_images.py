"""What stands where something was removed is what its name says."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from attnviz.baseline_images import blank_like
from attnviz.errors import InputError


def images(b=2, side=(9, 12)):
    return torch.rand(b, 3, *side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_named_colours_are_the_ends_of_the_value_range():
    x = images()
    assert torch.equal(blank_like(x, "black"), torch.full_like(x, -1.0))
    assert torch.equal(blank_like(x, "white"), torch.full_like(x, 1.0))
    assert torch.equal(blank_like(x, "zero"), torch.zeros_like(x))
    wide = blank_like(2 * x, "white", value_range=(-2.0, 2.5))
    assert torch.equal(wide, torch.full_like(x, 2.5))


def test_images_outside_the_value_range_are_not_blackened_with_a_wrong_black():
    with pytest.raises(InputError, match=r"within -1 to 1, got .* value_range=\(black, white\)"):
        blank_like(2 * images(), "black")


def test_the_mean_is_each_images_own_per_channel():
    x = images()
    blank = blank_like(x, "mean")
    for i in range(2):
        for c in range(3):
            assert_close(blank[i, c], torch.full((9, 12), float(x[i, c].mean())))


def test_blur_is_a_gaussian_of_a_twelfth_of_the_longer_side():
    x = images(b=1)
    sigma, radius = 1.0, 3
    kernel = [2.718281828459045 ** (-0.5 * (s / sigma) ** 2) for s in range(-radius, radius + 1)]
    total = sum(kernel)
    expected = torch.zeros_like(x)
    for c in range(3):
        for y in range(9):
            for z in range(12):
                for dy in range(-radius, radius + 1):
                    for dz in range(-radius, radius + 1):
                        u, v = min(max(y + dy, 0), 8), min(max(z + dz, 0), 11)
                        share = kernel[dy + radius] * kernel[dz + radius] / total**2
                        expected[0, c, y, z] += share * x[0, c, u, v]
    assert_close(blank_like(x, "blur"), expected)


def test_a_number_or_images_stand_for_themselves():
    x = images()
    assert torch.equal(blank_like(x, 0.25), torch.full_like(x, 0.25))
    colour = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    assert torch.equal(blank_like(x, colour), colour.expand_as(x))
    with pytest.raises(InputError, match=r"broadcasts to images \(2, 3, 9, 12\), got \(4, 1, 1\)"):
        blank_like(x, torch.zeros(4, 1, 1))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="unknown baseline 'blurred': did you mean 'blur'"):
        blank_like(images(), "blurred")
