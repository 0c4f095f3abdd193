"""Overlay of a map on its image."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ImageColor

from attnviz.errors import InputError
from attnviz.figures.colour import coloured, enlarged, numbers, pixels, unit

OUTLINE = "#00e5ff"
"""The box's colour: in none of the colour maps, and far from all of them in lightness or hue."""

_GREY = np.array([0.2126, 0.7152, 0.0722])  # Rec. 709 luma
_DIM = 0.55  # brightness of the image below the map


def overlay(
    image: Any,
    map: Any,
    box: Any = None,
    mask: Any = None,
    *,
    alpha: float = 0.95,
    cmap: str = "inferno",
    vmin: float | None = None,
    vmax: float | None = None,
    scale: int = 1,
    grey: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a map over its image, with the object outlined.

    With the map scaled to u in 0 to 1, a colour covers the image by `alpha·√u`: where the map is 0
    the image shows, where it is highest the colour bar's own colour. The image is first made grey
    and darker, so that every colour is the map's, and a bright region with low map values stays
    dark. Without `vmax` each map is scaled to its own maximum: two overlays then show where, not
    how much, and the caption must state it.

    Args:
        image: What `pixels` takes.
        map: (h', w') raw numbers, on any grid; brought to the image's size bilinearly.
        box: (4,) or (n, 4) boxes `[x0, y0, x1, y1)` in pixels of the image; empty ones are
            not drawn.
        mask: (h, w) bool; its edge is drawn.
        alpha: How much the map covers where it is highest, 0 to 1.
        cmap: One of `COLOUR_MAPS`.
        vmin: Shown as the colour map's first; 0 unless given.
        vmax: Shown as its last; the map's own maximum unless given.
        scale: How many pixels a pixel of the image becomes, on either side.
        grey: Desaturate and darken the image.

    Returns:
        (h·scale, w·scale, 3) uint8.

    Raises:
        InputError: A shape, a range or a colour map's name is wrong.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"overlay: expected alpha from 0 to 1, got {alpha}")
    if scale < 1:
        raise InputError(f"overlay: expected a scale of at least 1, got {scale}")
    base = dimmed(image) if grey else pixels(image).astype(np.float64)
    size = (base.shape[0] * scale, base.shape[1] * scale)
    base = enlarged(base, scale)
    values = numbers(map)
    if values.ndim != 2:
        raise InputError(f"overlay: expected a map (h, w), got shape {values.shape}")
    values = resized(values, size)
    cover = alpha * np.sqrt(unit(values, vmin=vmin, vmax=vmax))[..., None]
    colours = coloured(values, cmap=cmap, vmin=vmin, vmax=vmax)
    mixed = np.round((1 - cover) * base + cover * colours).astype(np.uint8)
    return outlined(mixed, box, mask, scale=scale)


def dimmed(image: Any) -> Float[np.ndarray, "h w 3"]:
    """An image in grey and darker, as the ground of what is drawn over it."""
    return np.repeat(_DIM * (pixels(image).astype(np.float64) @ _GREY)[..., None], 3, axis=-1)


def resized(
    maps: Float[np.ndarray, "*n h w"], size: tuple[int, int]
) -> Float[np.ndarray, "*n H W"]:
    """Maps at another size: `attnviz.maps.resized` in numpy, bilinear.

    Pixel centres are aligned; going smaller it averages. A value that is not finite makes those
    places NaN that would read it. Half precision and integers become float32 or float64.

    Raises:
        InputError: No places.
    """
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise InputError(f"figures: expected a map (h, w), got shape {maps.shape}")
    maps = maps.astype(np.result_type(maps, np.float32), copy=False)
    if maps.shape[-2:] == tuple(size):
        return maps
    rows, columns = (
        _taps(old, new).astype(maps.dtype) for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    finite = np.isfinite(maps)
    if finite.all():
        return np.asarray(rows @ maps @ columns.T)
    values = rows @ np.where(finite, maps, 0) @ columns.T
    spoilt = (rows > 0) @ (~finite).astype(maps.dtype) @ (columns > 0).T
    return np.where(spoilt > 0, np.nan, values)


def _taps(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The share of each old pixel in each new one: a triangle around the new pixel's centre."""
    scale = old / new
    centres = (np.arange(new)[:, None] + 0.5) * scale - 0.5
    weights = np.clip(1 - np.abs(np.arange(old) - centres) / max(scale, 1), 0, None)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def outlined(
    image: Any,
    box: Any = None,
    mask: Any = None,
    *,
    scale: int = 1,
    colour: str = OUTLINE,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw boxes and the outline of a mask just outside their regions.

    Args:
        image: What `pixels` takes, already enlarged by `scale`.
        box: (4,) or (n, 4) boxes `[x0, y0, x1, y1)` in pixels before enlarging, or None.
        mask: (h, w) bool before enlarging, or None.
        scale: By how much the picture has been enlarged.
        colour: Of the line, `#rrggbb`; a dark line around it keeps it visible on a light ground.

    Returns:
        A copy, (h, w, 3) uint8.
    """
    picture = pixels(image).copy()
    inside = np.zeros(picture.shape[:2], dtype=bool)
    width = max(1, scale // 2)
    for region in _regions(box, mask, picture.shape[:2], scale):
        line = _grown(region, width) & ~region
        casing = _grown(region, width + max(1, width // 2)) & ~region & ~line
        picture[casing & ~inside] = 0
        picture[line] = ImageColor.getrgb(colour)
        inside |= line
    return picture


def _regions(box: Any, mask: Any, size: tuple[int, ...], scale: int) -> list[np.ndarray]:
    """Each box, and the mask, as a boolean picture."""
    regions = []
    for x0, y0, x1, y1 in boxes(box) * scale:
        if x1 > x0 and y1 > y0:
            region = np.zeros(size, dtype=bool)
            region[max(y0, 0) : y1, max(x0, 0) : x1] = True
            regions.append(region)
    if mask is not None:
        region = enlarged(numbers(mask) > 0, scale)
        if region.shape != tuple(size):
            raise InputError(f"figures: expected a mask {tuple(size)}, got {region.shape}")
        regions.append(region)
    return regions


def boxes(box: Any) -> np.ndarray:
    """One box, many or None as integers (n, 4)."""
    array = np.empty((0, 4)) if box is None else np.atleast_2d(numbers(box))
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"figures: expected boxes [x0, y0, x1, y1), got shape {array.shape}")
    return array.astype(int)


def _grown(region: np.ndarray, width: int) -> np.ndarray:
    """The region and all within `width` pixels of it, corners included."""
    grown = region
    for _ in range(width):
        padded = np.pad(grown, 1)
        rows = padded[:-2] | padded[1:-1] | padded[2:]
        grown = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    return grown
