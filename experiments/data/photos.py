"""Crops of photographs that scikit-image and matplotlib carry inside their packages.

The default data of every experiment: no download, no account. `PHOTOGRAPHS` lists all twenty with
what they show, their split and their licence. A photograph serves one split only, so that no crop
of the test set shows a scene the network was trained on; the two pictures of a stereo pair are one
scene. Eleven are grey (three equal channels): textures, microscopy, a phase image, scanned text.

A crop is a square of `side` pixels up to the photograph's shorter side, anywhere in it, mirrored in
one of two, resized to `side` with an anti-aliasing filter. Scales are drawn evenly in their
logarithm, photographs in turn. Crops of one photograph resemble each other: the scene is the
`group` of a sample, and intervals resample scenes, then images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.data.registry import source

SPLITS = ("test", "train", "val")

REVISION = 2
"""Of the list below; a run on other crops of the same settings is another run."""


@dataclass(frozen=True)
class Photograph:
    """One picture and where it comes from.

    Attributes:
        name: The name by which its package gives it; a stereo pair's has `_left` or `_right`.
        split: `"train"`, `"val"` or `"test"`.
        shows: What is in it.
        licence: As its package or its author states it.
        package: The package that carries it.
    """

    name: str
    split: str
    shows: str
    licence: str
    package: str = "scikit-image"

    @property
    def scene(self) -> str:
        """The name that all pictures of one scene share."""
        return self.name.removesuffix("_left").removesuffix("_right")

    @property
    def about(self) -> str:
        """What it shows, its licence and its package, in one line."""
        return f"{self.shows}; {self.licence}; from {self.package}"


_UNSTATED = "licence not stated"

PHOTOGRAPHS = (
    Photograph("astronaut", "train", "Eileen Collins, NASA", "public domain"),
    Photograph("motorcycle_left", "train", "a garage, Middlebury 2014 stereo pair", _UNSTATED),
    Photograph("hubble_deep_field", "train", "galaxies, NASA", "public domain"),
    Photograph("immunohistochemistry", "train", "stained colon tissue, light microscopy, CMMI",
               "no known restrictions"),
    Photograph("motorcycle_right", "train", "a garage, Middlebury 2014 stereo pair", _UNSTATED),
    Photograph("brick", "train", "a brick wall, grey texture, CC0Textures", "CC0"),
    Photograph("cell", "train", "a cell in saline, grey phase image, Müller et al. 2018", "CC0"),
    Photograph("retina", "val", "a human retina, Häggström 2014", "CC0"),
    Photograph("grass", "val", "grass, grey texture, linolafett", "CC0"),
    Photograph("clock", "val", "a wall clock, grey, blurred by motion, Stefan van der Walt",
               "public domain"),
    Photograph("text", "val", "handwriting on lined paper, grey, Wikipedia", "public domain"),
    Photograph("chelsea", "test", "a cat, Stefan van der Walt", "CC0"),
    Photograph("coffee", "test", "a cup on a table, Rachel Michetti", "CC0"),
    Photograph("rocket", "test", "a rocket before its launch, SpaceX", "public domain"),
    Photograph("grace_hopper", "test", "Grace Hopper, U.S. Navy", "public domain", "matplotlib"),
    Photograph("camera", "test", "a man with a camera, grey, Lav Varshney", "CC0"),
    Photograph("coins", "test", "Greek coins, grey, Brooklyn Museum", "no known restrictions"),
    Photograph("moon", "test", "the surface of the moon, grey", _UNSTATED),
    Photograph("gravel", "test", "gravel, grey texture, CC0Textures", "CC0"),
    Photograph("page", "test", "a printed page, grey, unevenly lit", _UNSTATED),
)  # fmt: skip


def photo_scenes(split: str, count: int) -> list[str]:
    """The scene of each of `photo_crops`, `count` names."""
    names = [one.scene for one in _of(split)]
    return [names[number % len(names)] for number in range(count)]


def about_photographs() -> dict[str, dict[str, str]]:
    """Split → name of a photograph → what it shows, its licence and its package."""
    return {split: {one.name: one.about for one in _of(split)} for split in SPLITS}


def _about() -> dict[str, object]:
    return {"photographs": about_photographs()}


@source("photos", on_disk=False, revision=REVISION, groups=photo_scenes, about=_about)
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


def _of(split: str) -> list[Photograph]:
    return [one for one in PHOTOGRAPHS if one.split == split]


@lru_cache(maxsize=3)  # one of each split: a training asks for each several times
def _crops(split: str, count: int, seed: int, side: int) -> NDArray[np.uint8]:
    photographs = _of(split)
    draw = np.random.default_rng([seed, SPLITS.index(split)])
    crops = np.empty((count, side, side, 3), np.uint8)
    for number, uniform in enumerate(draw.random((count, 4))):
        name = photographs[number % len(photographs)].name
        crops[number] = _crop(_image(name), uniform, side)
    return crops


def _crop(photo: Image.Image, uniform: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    scale, across, down, mirror = uniform
    longest = min(photo.size)
    shortest = min(side, longest)
    span = round(shortest * (longest / shortest) ** scale)
    x = int(across * (photo.width - span + 1))
    y = int(down * (photo.height - span + 1))
    box = (x, y, x + span, y + span)
    crop = photo.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    if mirror < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)


@cache
def _image(name: str) -> Image.Image:
    """A photograph in mode RGB; what a package stores in grey has three equal channels."""
    from skimage import data

    if name == "grace_hopper":
        from matplotlib import get_data_path

        with Image.open(Path(get_data_path(), "sample_data", f"{name}.jpg")) as file:
            return file.convert("RGB")
    if name.startswith("motorcycle"):
        left, right, _ = data.stereo_motorcycle()
        pixels = left if name.endswith("left") else right
    else:
        pixels = getattr(data, name)()
    return Image.fromarray(pixels).convert("RGB")
