"""Images of any size to squares of one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnviz.photographs import square


def squares(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], side: int
) -> NDArray[np.uint8]:
    """`(n, side, side, 3)` from images `(h, w, 3)`; those of the right size stay as they are."""
    if isinstance(images, np.ndarray) and images.shape[1:3] == (side, side):
        return np.ascontiguousarray(images)
    return np.stack([square(Image.fromarray(image), side) for image in images])
