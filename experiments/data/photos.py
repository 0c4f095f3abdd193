"""Crops of the colour photographs that scikit-image carries inside its package.

No download, no account: the default data of every experiment. A photograph serves one split only,
so that no crop of the test set shows a place the network was trained on:

- training: astronaut, hubble_deep_field, immunohistochemistry, and the stereo pair motorcycle (left
  and right show one scene and so stay together)
- validation: retina, rocket
- test: chelsea (`cat`), coffee

A crop is a square of 96 pixels up to the photograph's shorter side, anywhere in it, mirrored in one
of two, resized to the wanted side with an anti-aliasing filter. Scales are drawn evenly in their
logarithm, photographs in turn.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": (
        "astronaut",
        "motorcycle_left",
        "hubble_deep_field",
        "immunohistochemistry",
        "motorcycle_right",
    ),
    "val": ("retina", "rocket"),
    "test": ("chelsea", "coffee"),
}


def photo_crops(split: str, count: int, *, seed: int, side: int = 96) -> NDArray[np.uint8]:
    """Deterministic crops of one split's photographs.

    Args:
        split: `"train"`, `"val"` or `"test"`.
        count: How many.
        seed: Which ones. The first `n` crops of a longer list are those of a list of `n`.
        side: Of each crop, in pixels.

    Returns:
        `(count, side, side, 3)`, 0 to 255.
    """
    return _crops(split, count, seed, side).copy()


@lru_cache(maxsize=3)  # one of each split: a training asks for each several times
def _crops(split: str, count: int, seed: int, side: int) -> NDArray[np.uint8]:
    names = PHOTOGRAPHS[split]
    draw = np.random.default_rng([seed, sorted(PHOTOGRAPHS).index(split)])
    crops = np.empty((count, side, side, 3), np.uint8)
    for number, uniform in enumerate(draw.random((count, 4))):
        crops[number] = _crop(_photograph(names[number % len(names)]), uniform, side)
    return crops


def _crop(photo: Image.Image, uniform: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    scale, across, down, mirror = uniform
    longest = min(photo.size)
    span = round(side * (longest / side) ** scale)
    x = int(across * (photo.width - span + 1))
    y = int(down * (photo.height - span + 1))
    box = (x, y, x + span, y + span)
    crop = photo.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    if mirror < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)


@cache
def _photograph(name: str) -> Image.Image:
    from skimage import data

    if name.startswith("motorcycle"):
        left, right, _ = data.stereo_motorcycle()
        pixels = left if name.endswith("left") else right
    else:
        pixels = getattr(data, name)()
    return Image.fromarray(pixels[..., :3])
