"""Images of any size to squares of one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def square(photo: Image.Image, side: int) -> NDArray[np.uint8]:
    """The middle square of a photograph, resized with anti-aliasing to `(side, side, 3)`."""
    span = min(photo.size)
    x, y = (photo.width - span) // 2, (photo.height - span) // 2
    crop = photo.convert("RGB").resize(
        (side, side), Image.Resampling.LANCZOS, box=(x, y, x + span, y + span), reducing_gap=3.0
    )
    return np.asarray(crop)


def squares(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], side: int
) -> NDArray[np.uint8]:
    """`(n, side, side, 3)` from images `(h, w, 3)`; those of the right size stay as they are."""
    if isinstance(images, np.ndarray) and images.shape[1:3] == (side, side):
        return np.ascontiguousarray(images)
    return np.stack([square(Image.fromarray(image), side) for image in images])
