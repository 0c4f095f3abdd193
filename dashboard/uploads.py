"""Safe decoding of uploaded images: limits on bytes, format and pixels."""

from __future__ import annotations

import numpy as np

from attnviz.errors import InputError
from attnviz.image_files import photograph, square

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_BYTES = 8 * 1024 * 1024
MOST_PIXELS = 24_000_000


def decoded(content: bytes, side: int) -> np.ndarray:
    """The middle square of a picture, `(side, side, 3)` uint8.

    Args:
        content: The file.
        side: What the model takes, in pixels.

    Raises:
        InputError: Too large, no picture, or one of another format; the message states the reason.
    """
    if len(content) > MOST_BYTES:
        raise InputError(
            f"picture: {len(content) / 1e6:.1f} MB; expected at most {MOST_BYTES / 1e6:.1f} MB"
        )
    shown = photograph(content, name="picture", formats=FORMATS, most_pixels=MOST_PIXELS)
    return square(shown, side)
