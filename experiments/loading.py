"""Load the images of a training's splits, their photographs and their metadata."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnviz.errors import InputError
from experiments.data.registry import sources
from experiments.settings import Settings


def load_images(settings: Settings, split: str) -> NDArray[np.uint8]:
    """The images of a split before any patch, `(n, side, side, 3)`, 0 to 255.

    Raises:
        InputError: The source is missing, damaged, or has too few images.
    """
    found = sources()[settings.data]
    options: dict[str, Any] = {"seed": settings.data_seed, "side": settings.side}
    if found.on_disk:
        if settings.path is None:
            how = f"; {found.how}" if found.how else ""
            raise InputError(
                f"--data {settings.data}: expected its folder with --path, got none{how}"
            )
        options["path"] = settings.path
    images: NDArray[np.uint8] = found.read(split, getattr(settings, f"{split}_images"), **options)
    return images


def groups(settings: Settings, split: str) -> list[str] | None:
    """The photograph that each image of a split was cropped from.

    Returns:
        One name per image, or None where every image is a photograph of its own (STL-10, a
        folder): images are then the unit that intervals resample.
    """
    found = sources()[settings.data]
    return found.groups and found.groups(split, getattr(settings, f"{split}_images"))


def about(settings: Settings) -> dict[str, Any]:
    """The source of a data set, as metadata: for `photos`, each photograph by its split."""
    found = sources()[settings.data]
    return dict(found.about()) if found.about is not None else {}
