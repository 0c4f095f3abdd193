"""Server-side pictures, for browsers that cannot run the gallery and for downloads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attnviz import figures
from attnviz.figures.packing import Tile

_SHEET_TILE = 144


def sheet(
    images: np.ndarray,
    tiles: Sequence[Tile],
    maps: np.ndarray | Sequence[np.ndarray | None],
    *,
    colours: str = "inferno",
    opacity: float = 0.6,
    columns: int = 8,
    dark: bool = False,
) -> np.ndarray:
    """Tiles as one contact sheet `(h, w, 3)`: each map over its image, box drawn, words below.

    Args:
        images: `(k, h, w, 3)` uint8.
        tiles: What is shown, in order.
        maps: One `(h, w)` map per tile; a constant one, or None, leaves the image bare.
        colours: The colour map.
        opacity: How much of the map.
        columns: Tiles in a row.
        dark: Light letters on a dark sheet.
    """
    scale = max(1, round(_SHEET_TILE / max(images.shape[1:3])))
    drawn = [
        _drawn(images[tile.image], tile, values, colours, opacity, scale)
        for tile, values in zip(tiles, maps, strict=True)
    ]
    words = ["\n".join((tile.title, *tile.lines)) for tile in tiles]
    ink, paper = ("#eceef2", "#14161a") if dark else ("#1a1d23", "#ffffff")
    return figures.contact_sheet(drawn, words, columns, size=12, ink=ink, paper=paper)


def _drawn(
    image: np.ndarray,
    tile: Tile,
    values: np.ndarray | None,
    colours: str,
    opacity: float,
    scale: int,
) -> np.ndarray:
    flat = values is None or not np.ptp(values) > 0
    if flat:
        return figures.outlined(figures.enlarged(image, scale), tile.box, scale=scale)
    return figures.overlay(image, values, tile.box, alpha=opacity, cmap=colours, scale=scale)
