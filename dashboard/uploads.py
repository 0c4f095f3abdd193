"""A stranger's picture, decoded safely: bytes, format and pixels are limited beforehand."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from attnviz.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_BYTES = 8 * 1024 * 1024
MOST_PIXELS = 24_000_000


def decoded(content: bytes, side: int) -> np.ndarray:
    """The middle square of a picture, `(side, side, 3)` uint8.

    Args:
        content: The file.
        side: What the model takes, in pixels.

    Raises:
        InputError: Too large, no picture, or one of another format; the message says which.
    """
    if len(content) > MOST_BYTES:
        raise InputError(
            f"picture: {len(content) / 1e6:.1f} MB; expected at most {MOST_BYTES / 1e6:.1f} MB"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            _small_enough(picture)
            picture.draft("RGB", (side, side))  # a JPEG is decoded no larger than needed
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"picture: expected at most {MOST_PIXELS:,} pixels, got more") from None
    except UnidentifiedImageError:
        raise InputError(f"picture: expected one of {', '.join(FORMATS)}, got another") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InputError(f"picture: cannot be decoded ({error})") from None
    return np.asarray(ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS))


def _small_enough(picture: Image.Image) -> None:
    pixels = picture.width * picture.height
    if pixels > MOST_PIXELS:
        raise InputError(f"picture: expected at most {MOST_PIXELS:,} pixels, got {pixels:,}")
