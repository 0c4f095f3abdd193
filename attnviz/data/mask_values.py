"""The values of a mask that is given as a file or a PIL image.

Grey images and palettes of greys are read by brightness, so that white is white whatever its index
(quantised PNG and GIF files number their colours in any order). A palette with colours whose index
0 is black is a label map and read by index, as VOC's. Where an image of one colour has an alpha
channel that varies, that is the mask. Other colours have no order and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from attnviz.errors import InputError
from attnviz.image_files import FORMATS

Inside: TypeAlias = int | Sequence[int] | None
"""Which values of a label map are the thing."""


def values_of_file(path: Path, *, chosen: bool) -> np.ndarray:
    """The values of a mask file, upright as its EXIF orientation says.

    Args:
        path: The file.
        chosen: Whether the caller says which values are the thing.

    Raises:
        InputError: It cannot be decoded, or its values are not clear; without the file's name.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode not in ("1", "L", "P") and image.mode[0] not in "IF":
                _check_depth(image)
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise InputError(
                    f"expected a mask of one picture, got {frames} frames or pages; save "
                    "one as the mask"
                )
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"cannot be decoded ({error})") from error
    return values_of_image(upright, chosen=chosen)


def values_of_image(image: Image.Image, *, chosen: bool) -> np.ndarray:
    """The values of a mask `(h, w)` as booleans or whole numbers.

    Args:
        image: In any mode.
        chosen: Whether the caller says which values are the thing. Without that, a palette with
            colours must have black as its index 0.

    Raises:
        InputError: The image is in colour, or its floating point values are no whole numbers.
    """
    if image.mode == "P":
        return _of_palette(image, chosen)
    if image.mode in ("1", "L") or image.mode[0] in "IF":
        return whole(np.asarray(image))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return _with_alpha(np.asarray(image.convert("RGBA")))
    return _brightness(np.asarray(image.convert("RGB")))


def whole(values: np.ndarray) -> np.ndarray:
    """Floating point values that are whole numbers as integers; other types as they are.

    Raises:
        InputError: There are fractions, NaN or infinite values.
    """
    if values.dtype.kind != "f":
        return values
    if not np.isfinite(values).all() or (values != np.floor(values)).any():
        raise InputError(
            "expected a mask of booleans or whole numbers, got floating point values such as "
            f"{[round(float(value), 4) for value in np.unique(values)[:4]]}; choose a threshold"
        )
    return values.astype(np.int64)


def chosen_values(values: Inside, name: str) -> tuple[int, ...] | None:
    """One value or several as a tuple.

    Raises:
        InputError: They are no whole numbers.
    """
    if values is None:
        return None
    several = values if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    found: list[Any] = list(several)
    if not all(isinstance(value, int | np.integer) for value in found):
        raise InputError(f"{name}: expected a whole number or several, got {values!r}")
    return tuple(int(value) for value in found)


def refuse_absent(inside: Sequence[int], masks: Iterable[np.ndarray]) -> None:
    """An `InputError` where no mask holds any of these values, and some hold others than 0.

    Masks are read until one holds one of them.
    """
    met: set[int] = set()
    count = 0
    for count, values in enumerate(masks, 1):  # noqa: B007
        if np.isin(values, inside).any():
            return
        met |= {int(value) for value in np.unique(values)}
    if met - {0}:
        raise InputError(
            f"inside: {', '.join(map(str, inside))} occurs in no mask; the values of the {count} "
            f"masks are {sorted(met)[:8]}"
        )


def _check_depth(image: Image.Image) -> None:
    """Pillow keeps the high byte alone of colours of 16 bits, and small values become 0."""
    tiles = getattr(image, "tile", ())
    if any(re.search(r";16", str(tile[3])) for tile in tiles):
        raise InputError(
            "expected a mask of 8 bits per channel or a grey one of 16, got colours of 16 bits; "
            "save it as a grey image"
        )


def _of_palette(image: Image.Image, chosen: bool) -> np.ndarray:
    numbers = np.asarray(image)
    colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    used = np.unique(numbers)
    if not len(colours):
        return numbers
    if (colours == colours[:, :1]).all():
        if "transparency" in image.info:
            return _with_alpha(np.asarray(image.convert("RGBA")))
        shades = colours[used[used < len(colours)], 0]
        if len(np.unique(shades)) < 2:  # the palette says nothing
            return numbers
        if len(np.unique(shades)) < len(used):
            raise InputError(
                f"a palette that gives several of the values {used.tolist()[:8]} one colour; save "
                "the mask as a grey image of its values"
            )
        bright: np.ndarray = colours[numbers, 0]
        return bright
    swapped = len(used) == 2 and used[0] == 0 and not colours[used[1]].any()
    if colours[0].any() and (swapped or not chosen):
        raise InputError(
            "expected a grey mask, or a palette whose index 0 is black, the background; index 0 "
            f"is {tuple(colours[0].tolist())}; save the mask as a grey image of whole numbers"
            + ("" if swapped else ", or say which indices are the thing, inside=<values>")
        )
    return numbers


def _with_alpha(rgba: np.ndarray) -> np.ndarray:
    colours, alpha = rgba[..., :3], rgba[..., 3]
    if (alpha == alpha.flat[0]).all():
        return _brightness(colours)
    shown, hidden = _distinct(colours[alpha > 0]), _distinct(colours[alpha == 0])
    if len(shown) == 1 and set(hidden) <= {0, *shown}:
        return alpha
    if set(hidden) <= {0}:
        return _brightness(colours)
    raise InputError(
        "a mask whose transparent pixels hide other colours, so that colours and transparency "
        "disagree; save it as a grey image, 0 outside"
    )


def _brightness(colours: np.ndarray) -> np.ndarray:
    if (colours == colours[..., :1]).all():
        return colours[..., 0]
    some = [tuple(n >> shift & 255 for shift in (16, 8, 0)) for n in _distinct(colours)[:4]]
    raise InputError(
        f"expected a grey mask, got the colours {', '.join(map(str, some))}; save it as a grey "
        "image of whole numbers, or as a palette whose index 0 is the background and black"
    )


def _distinct(colours: np.ndarray) -> list[int]:
    """The colours `(…, 3)` that occur, each as one number."""
    r, g, b = np.moveaxis(colours.astype(np.int64), -1, 0)
    found: list[int] = np.unique(r << 16 | g << 8 | b).tolist()
    return found
