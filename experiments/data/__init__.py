"""Where images come from: three sources, each with three splits that share nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attnviz.errors import InputError
from experiments.data.folder import folder_images
from experiments.data.photos import photo_crops
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
