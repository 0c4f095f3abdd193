"""Where images come from: three sources, each with three splits that share nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnviz.errors import InputError
from experiments.data.folder import folder_images
from experiments.data.photos import about_photographs, photo_crops, photo_scenes
from experiments.data.stl10 import HOW, stl10_images
from experiments.settings import Settings


def load_images(settings: Settings, split: str) -> NDArray[np.uint8]:
    """The images of a split before any patch, `(n, side, side, 3)`, 0 to 255.

    Raises:
        InputError: The source is missing, damaged, or has too few images.
    """
    count = getattr(settings, f"{split}_images")
    if settings.data == "photos":
        return photo_crops(split, count, seed=settings.data_seed, side=settings.side)
    if settings.path is None:
        how = f"; {HOW}" if settings.data == "stl10" else ""
        raise InputError(f"--data {settings.data}: expected its folder with --path, got none{how}")
    read = {"stl10": stl10_images, "folder": folder_images}[settings.data]
    return read(split, count, path=settings.path, seed=settings.data_seed, side=settings.side)


def groups(settings: Settings, split: str) -> list[str] | None:
    """The photograph that each image of a split was cropped from.

    Returns:
        One name per image, or None where every image is a photograph of its own (STL-10, a
        folder): images are then the unit that intervals resample.
    """
    if settings.data != "photos":
        return None
    return photo_scenes(split, getattr(settings, f"{split}_images"))


def about(settings: Settings) -> dict[str, Any]:
    """What a data set's metadata tell of its source: for `photos`, each photograph by its split."""
    return {"photographs": about_photographs()} if settings.data == "photos" else {}
