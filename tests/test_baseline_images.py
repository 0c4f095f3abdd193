"""What stands where something was removed is what its name says."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from attnviz.baseline_images import black_and_white, blank_like
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


def normalised(b=2):
    """Photographs of 6 × 10 pixels, normalised as for ImageNet."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = torch.rand(b, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    return pixels, (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1), mean, std


@pytest.mark.parametrize(("name", "pixel"), [("black", 0.0), ("white", 1.0)])
def test_every_channel_has_its_own_black_and_white(name, pixel):
    _, images, mean, std = normalised()
    value_range = black_and_white(mean=mean.tolist(), std=std.tolist())
    blank = blank_like(images, name, value_range=value_range)
    back = blank * std.view(3, 1, 1) + mean.view(3, 1, 1)
    torch.testing.assert_close(back, torch.full_like(images, pixel), atol=1e-6, rtol=0)


def test_one_number_speaks_for_all_channels():
    assert black_and_white(mean=0.5, std=0.5) == ((-1.0,), (1.0,))
    assert black_and_white(mean=(0.5, 0.0), std=0.5) == ((-1.0, 0.0), (1.0, 2.0))
    images = torch.rand(1, 3, 4, 5)
    levels = (0, (1.0, 2.0, 3.0))
    assert blank_like(images, "black", value_range=levels).eq(0).all()
    assert blank_like(images, "white", value_range=levels).amax((0, 2, 3)).tolist() == [1, 2, 3]


def test_ranges_that_do_not_fit_are_refused():
    _, images, mean, _std = normalised()
    with pytest.raises(InputError, match=r"as one number or 3 \(one per channel\), got 2"):
        blank_like(images, "black", value_range=((0.0, 0.0), (1.0, 1.0)))
    with pytest.raises(InputError, match=r"images within -1 to 1, got .*black_and_white\(mean=, s"):
        blank_like(images, "black")
    half = ((mean * 0).tolist(), (mean * 0 + 0.5).tolist())
    with pytest.raises(InputError, match=r"within \(0, 0, 0\) to \(0.5, 0.5, 0.5\)"):
        blank_like(images, "white", value_range=half)
    for wrong in ({"mean": 0.5, "std": 0.0}, {"mean": (0.5, 0.5), "std": (0.1, 0.1, 0.1)}):
        with pytest.raises(InputError, match="as many positive standard deviations as means"):
            black_and_white(**wrong)
