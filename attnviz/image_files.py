"""Safe decoding of untrusted image files: size-limited, upright, RGB.

Regardless of the file's header, no more than `most_pixels` pixels are decoded, and only formats
that Pillow decodes in its own process are tried (an EPS by the name of `a.png` would start a
PostScript interpreter). The result matches an image viewer: rotated by EXIF, transparency on white,
first frame of an animation, 16 bits rounded down to 8.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from attnviz.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
MOST_PIXELS = 80_000_000
"""Above the size of camera photographs, below Pillow's own warning threshold."""


def photograph(
    source: Path | bytes,
    *,
    name: str,
    formats: Sequence[str] = FORMATS,
    most_pixels: int = MOST_PIXELS,
) -> Image.Image:
    """Decode an image as a viewer would show it.

    Args:
        source: A file, or its content.
        name: Its name in error messages.
        formats: Pillow's names of the formats that are taken.
        most_pixels: Larger pictures are refused before they are decoded.

    Returns:
        An upright image in mode RGB.

    Raises:
        InputError: Too large, of another format, damaged, or with values that are no colours; the
            message begins with the name and states the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings; invalid files are refused below
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=list(formats)) as image:
                _small_enough(image, name, most_pixels)
                return coloured(ImageOps.exif_transpose(image), name)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{name}: expected at most {most_pixels:,} pixels, got more") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: expected one of {', '.join(formats)}, got another") from None
    except Exception as error:  # each decoder fails in its own way on a damaged file
        raise InputError(f"{name}: cannot be decoded ({error})") from error


def upright_size(path: Path) -> tuple[tuple[int, int], int]:
    """Width and height as a viewer shows them, and the EXIF orientation, 1 where there is none.

    Only the file's head is read.

    Raises:
        InputError: It cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            turn = int(image.getexif().get(0x0112, 1))
            w, h = image.size
            return ((h, w) if turn in (5, 6, 7, 8) else (w, h)), turn if turn in range(2, 9) else 1
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path.name}: cannot be decoded ({error})") from error


def square(photo: Image.Image, side: int) -> NDArray[np.uint8]:
    """The middle square of a photograph, resized with anti-aliasing to `(side, side, 3)`."""
    return fitted(photo, side, side)


def fitted(photo: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """The middle of a photograph that has these proportions, resized to `(height, width, 3)`.

    Args:
        photo: Any picture.
        height: Of the result, in pixels.
        width: Of the result, in pixels.

    Returns:
        Bytes; resized with anti-aliasing, nothing is stretched.
    """
    scale = min(photo.width / width, photo.height / height)
    w, h = width * scale, height * scale
    x, y = (photo.width - w) // 2, (photo.height - h) // 2
    part = photo.convert("RGB").resize(
        (width, height), Image.Resampling.LANCZOS, box=(x, y, x + w, y + h), reducing_gap=3.0
    )
    return np.asarray(part)


def _small_enough(image: Image.Image, name: str, most_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > most_pixels:
        raise InputError(f"{name}: expected at most {most_pixels:,} pixels, got {pixels:,}")


def coloured(image: Image.Image, name: str) -> Image.Image:
    """An image in mode RGB: 16 bits rounded down to 8, transparency on white.

    Raises:
        InputError: Its values are no colours.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image, name)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """The high bytes of a 16-bit picture; a plain `convert` would clip everything to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise InputError(
            f"{name}: expected 8 or 16 bits per channel, got values of 32; convert it first"
        )
    return (values >> 8).astype(np.uint8)
