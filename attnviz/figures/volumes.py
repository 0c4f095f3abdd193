"""Maps with three axes of places: slices of a volume and frames of a video, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from attnviz.errors import InputError
from attnviz.figures.colour import numbers, pixels
from attnviz.figures.overlays import overlay
from attnviz.figures.sheets import contact_sheet


def slices(
    volume: Any,
    maps: Any,
    *,
    axis: int = 0,
    every: int = 1,
    columns: int = 8,
    vmax: float | None = None,
    cmap: str = "inferno",
    scale: int = 1,
) -> UInt8[np.ndarray, "h w 3"]:
    """A contact sheet of a volume's slices, the map over each of them.

    Args:
        volume: `(d, h, w)`, grey values; drawn from its least to its greatest value.
        maps: `(d', h', w')`, one map on any grid over the same volume. A slice shows the layer of
            the map that holds its centre.
        axis: Which axis is cut: 0 (depth), 1 or 2.
        every: The step from one drawn slice to the next.
        columns: How many in a row.
        vmax: Shown as the colour map's last; the greatest value of the whole map if not given, so
            that slices can be compared.
        cmap: One of `COLOUR_MAPS`.
        scale: How many pixels a pixel becomes.

    Raises:
        InputError: A volume or a map that has not three axes.
    """
    body, map_ = _three(volume, "volume"), _three(maps, "map")
    body, map_ = np.moveaxis(body, axis, 0), np.moveaxis(map_, axis, 0)
    low, high = float(body.min()), float(body.max())
    grey = (body - low) / (high - low or 1.0)
    chosen = range(0, len(body), every)
    tiles = [
        _drawn(grey[i], map_[_layer(i, len(body), len(map_))], vmax, float(map_.max()), cmap)
        for i in chosen
    ]
    names = [f"{'zyx'[axis]} {i}" for i in chosen]
    return contact_sheet(tiles, names, columns, scale=scale)


def frames(
    video: Any,
    maps: Any,
    *,
    times: Sequence[str] | None = None,
    vmax: float | None = None,
    cmap: str = "inferno",
    scale: int = 1,
) -> UInt8[np.ndarray, "h w 3"]:
    """A strip of a video's frames, the map over each of them.

    Args:
        video: `(t, h, w, 3)` frames, or `(t, 3, h, w)`.
        maps: `(t', h', w')`, one map. A frame shows the time step of the map that holds it.
        times: A caption per frame; their numbers if not given.
        vmax: As for `slices`.
        cmap: One of `COLOUR_MAPS`.
        scale: How many pixels a pixel becomes.

    Raises:
        InputError: A map that has not three axes.
    """
    map_, pictures = _three(maps, "map"), [pixels(frame) for frame in video]
    tiles = [
        _drawn(one, map_[_layer(i, len(pictures), len(map_))], vmax, float(map_.max()), cmap)
        for i, one in enumerate(pictures)
    ]
    names = list(times) if times is not None else [f"t {i}" for i in range(len(tiles))]
    return contact_sheet(tiles, names, len(tiles), scale=scale)


def _three(values: Any, what: str) -> np.ndarray:
    array = numbers(values)
    if array.ndim != 3:
        raise InputError(f"expected a {what} with three axes, got shape {array.shape}")
    return array


def _layer(i: int, count: int, layers: int) -> int:
    """The layer of a grid that holds the centre of a slice."""
    return min(layers - 1, int((i + 0.5) * layers / count))


def _drawn(
    picture: np.ndarray, values: np.ndarray, vmax: float | None, most: float, cmap: str
) -> np.ndarray:
    return overlay(picture, values, cmap=cmap, vmax=most if vmax is None else vmax)
