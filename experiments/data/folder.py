"""Images from any folder, such as one's own photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnviz.errors import InputError
from attnviz.image_files import SUFFIXES, photograph, square
from experiments.data.registry import source

SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}
"""Which part of the shuffled files each split takes, unless the folder has train, val and test."""


@source("folder")
def folder_images(
    split: str, count: int, *, path: str | Path, seed: int, side: int = 96
) -> NDArray[np.uint8]:
    """The middle squares of the images below a folder; no file serves two splits.

    Sub-folders named train, val and test are taken as the splits if all three are there. Else the
    files are shuffled by the seed and shared out by `SHARES`. Each is read as
    `attnviz.image_files` reads it: upright, 8 bits, transparent places white, the first frame.

    Args:
        split: `"train"`, `"val"` or `"test"`.
        count: How many.
        path: The folder.
        seed: Of the order.
        side: Of each image, in pixels.

    Returns:
        `(count, side, side, 3)`, 0 to 255.

    Raises:
        InputError: No such folder, too few images, or one that cannot be read (it is named).
    """
    files = _files_of(Path(path), split, seed)
    if count > len(files):
        raise InputError(
            f"folder: expected at least {count} images for the {split} split below {path}, got "
            f"{len(files)}; add images or use fewer (--{split}-images)"
        )
    return np.stack([square(photograph(file, name=str(file)), side) for file in files[:count]])


def _files_of(path: Path, split: str, seed: int) -> list[Path]:
    if not path.is_dir():
        raise InputError(f"folder: expected a folder of images, got {path}; pass one with --path")
    own = all((path / name).is_dir() for name in SHARES)
    found = (path / split if own else path).rglob("*")
    files = sorted(file for file in found if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise InputError(
            f"folder: expected images ({', '.join(sorted(SUFFIXES))}) below {path}, got none"
        )
    order = np.random.default_rng(seed).permutation(len(files))
    if not own:
        low, high = (round(share * len(files)) for share in SHARES[split])
        order = order[low:high]
    return [files[number] for number in order]
