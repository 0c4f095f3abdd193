"""Numbers to colours, pictures to pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnviz.errors import InputError
from attnviz.figures import COLOUR_MAPS, colour_of, coloured, pixels
from attnviz.figures.colour import line_of, lookup, unit


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colours, by the definition."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


@pytest.mark.parametrize("name", COLOUR_MAPS)
def test_every_colour_map_on_offer_grows_in_lightness(name: str) -> None:
    steps = np.diff(lightness(lookup(name).astype(float)))
    assert steps.min() > -0.3  # eight bits round
    assert steps.sum() > 50
    assert steps.max() < 4 * steps.mean()


def test_the_same_test_fails_a_rainbow() -> None:
    from matplotlib import colormaps

    rainbow = np.round(colormaps["jet"](np.arange(256))[:, :3] * 255)
    assert np.diff(lightness(rainbow)).min() < -0.3


def test_a_rainbow_is_not_on_offer() -> None:
    with pytest.raises(InputError, match=r"unknown colour map 'jet': .*expected one of cividis"):
        coloured(np.ones((2, 2)), cmap="jet")


def test_a_colour_map_cannot_be_changed_by_who_looked_it_up() -> None:
    with pytest.raises(ValueError, match="read-only"):
        lookup("viridis")[0] = 1


def test_scaling_is_from_zero_to_the_map_s_maximum_and_keeps_ratios() -> None:
    np.testing.assert_allclose(unit(np.array([[-1.0, 0.0, 1.0, 4.0]])), [[0, 0, 0.25, 1]])


def test_stated_ends_cut() -> None:
    values = np.array([[0.0, 1.0, 2.0, 3.0]])
    np.testing.assert_allclose(unit(values, vmin=1.0, vmax=2.0), [[0, 0, 1, 1]])


@pytest.mark.parametrize("value", [0.0, -3.0, np.nan])
def test_a_map_of_nothing_is_all_first_colour(value: float) -> None:
    picture = coloured(np.full((2, 3), value), cmap="inferno")
    assert (picture == lookup("inferno")[0]).all()


def test_nan_and_infinity_do_not_spoil_the_rest() -> None:
    np.testing.assert_allclose(unit(np.array([[np.nan, 1.0, 2.0, np.inf]])), [[0, 0.5, 1, 1]])


@pytest.mark.parametrize(
    "image",
    [
        np.full((2, 3, 3), 51, np.uint8),
        np.full((3, 2, 3), 51, np.uint8).transpose(1, 2, 0),
        np.full((2, 3), 0.2),
        np.full((2, 3, 1), 0.2, np.float32),
        torch.full((3, 2, 3), 0.2),
        torch.full((1, 2, 3), 0.2, requires_grad=True),
        Image.new("RGB", (3, 2), (51, 51, 51)),
        Image.new("L", (3, 2), 51),
    ],
    ids=["rgb", "view", "grey", "one channel", "torch", "torch grey", "pillow", "pillow grey"],
)
def test_pictures_of_every_kind(image: Any) -> None:
    picture = pixels(image)
    assert picture.shape == (2, 3, 3)
    assert picture.dtype == np.uint8
    assert (picture == 51).all()


def test_pixels_are_a_copy() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    pixels(image)[:] = 9
    assert image.sum() == 0


@pytest.mark.parametrize("shape", [(2,), (2, 2, 4), (1, 2, 2, 3), (0, 2, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected an image \(h, w, 3\), got shape"):
        pixels(np.zeros(shape, np.uint8))


def test_a_picture_from_minus_one_is_told_how_to_become_one() -> None:
    with pytest.raises(InputError, match=r"from -1 to 1; .* by \(x \+ 1\) / 2"):
        pixels(np.array([[-1.0, 1.0]]))


def test_variants_are_told_apart_by_colour_and_then_by_line() -> None:
    looks = [(colour_of(i), line_of(i)) for i in range(18)]
    assert len(set(looks)) == 18
    assert len({colour for colour, _ in looks[:6]}) == 6
