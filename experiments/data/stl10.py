"""STL-10 through torchvision's own loader; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnviz.errors import InputError
from attnviz.image_files import square
from experiments.data.registry import source

HOW = (
    "download stl10_binary.tar.gz from the data set's home page, unpack it, and pass the folder "
    "that holds stl10_binary with --path"
)
VALIDATION = 0.2
"""The share of the training split that validates."""


@source("stl10", how=HOW)
def stl10_images(
    split: str, count: int, *, path: str | Path, seed: int, side: int = 96
) -> NDArray[np.uint8]:
    """Images of STL-10 (Coates, Ng and Lee 2011), its own train and test split kept apart.

    Validation images are the last fifth of a seeded order of the training split.

    Args:
        split: `"train"`, `"val"` or `"test"`.
        count: How many.
        path: The folder that holds `stl10_binary`.
        seed: Of the order.
        side: Of each image, in pixels; STL-10's own is 96.

    Returns:
        `(count, side, side, 3)`, 0 to 255.

    Raises:
        InputError: The files are missing, damaged, or too few.
    """
    from torchvision.datasets import STL10

    own = "test" if split == "test" else "train"
    try:
        images = STL10(str(path), split=own).data
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"stl10: expected STL-10 in {path}, got: {error}; {HOW}") from error
    order = np.random.default_rng(seed).permutation(len(images))
    if split != "test":
        cut = round(len(order) * (1 - VALIDATION))
        order = order[:cut] if split == "train" else order[cut:]
    if count > len(order):
        raise InputError(
            f"stl10: expected at most {len(order)} images in its {split} split, got {count}"
        )
    chosen = images[order[:count]].transpose(0, 2, 3, 1)
    if chosen.shape[1:3] == (side, side):
        return np.ascontiguousarray(chosen)
    return np.stack([square(Image.fromarray(image), side) for image in chosen])
