"""Contact sheets and grids of tiles."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from attnviz.errors import InputError
from attnviz.figures.colour import enlarged, lookup, numbers, pixels
from attnviz.figures.files import save_png
from attnviz.figures.overlays import boxes as as_boxes
from attnviz.figures.overlays import outlined, overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALING = "each map from 0 to its own maximum"
"""Caption for maps that are scaled individually."""


def contact_sheet(
    tiles: Sequence[Any],
    captions: Sequence[str] | None = None,
    columns: int = 8,
    *,
    scale: int = 1,
    gap: int = 8,
    size: int = 13,
    ink: str = "#1a1a1a",
    paper: str = "#ffffff",
) -> UInt8[np.ndarray, "h w 3"]:
    """Tiles of one size in rows, each with its caption below.

    Args:
        tiles: What `pixels` takes, all of one size.
        captions: One per tile; lines are separated by a line feed, what is too long is cut.
        columns: How many tiles in a row.
        scale: How many pixels a tile's pixel becomes, on either side.
        gap: Pixels between tiles and around the sheet.
        size: Of the letters, in pixels.
        ink: The letters' colour.
        paper: The sheet's colour.

    Returns:
        (h, w, 3) uint8.

    Raises:
        InputError: No tile, tiles of several sizes, or another number of captions.
    """
    pictures = _tiles(tiles, captions, columns, scale)
    lines = max((caption.count("\n") + 1 for caption in captions), default=0) if captions else 0
    line = math.ceil(1.35 * size)
    h, w = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    cell = (h + lines * line + gap, w + gap)
    sheet = Image.new("RGB", (columns * cell[1] + gap, rows * cell[0] + gap), paper)
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = gap + i % columns * cell[1], gap + i // columns * cell[0]
        sheet.paste(Image.fromarray(picture), (x, y))
        for j, text in enumerate((captions[i] if captions else "").split("\n")):
            pen.text((x, y + h + j * line + 2), _cut(text, w, size), ink, _font(size))
    return np.asarray(sheet)


def _tiles(
    tiles: Sequence[Any], captions: Sequence[str] | None, columns: int, scale: int
) -> list[np.ndarray]:
    if not len(tiles) or columns < 1 or scale < 1:
        raise InputError(
            "contact_sheet: expected at least one tile, column and pixel, "
            f"got {len(tiles)}, {columns} and {scale}"
        )
    if captions is not None and len(captions) != len(tiles):
        raise InputError(
            f"contact_sheet: expected a caption per tile, got {len(captions)} for {len(tiles)}"
        )
    pictures = [pixels(tile) for tile in tiles]
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise InputError(f"contact_sheet: expected tiles of one size, got {sizes}")
    return [enlarged(picture, scale) for picture in pictures]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib brings it: the same letters on every machine."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _cut(text: str, width: int, size: int) -> str:
    """Shorten a text to the width, with an ellipsis."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…" if text else ""


def head_rows(
    image: Any,
    rows: Any,
    place: tuple[int, int] | None = None,
    box: Any = None,
    *,
    cmap: str = "inferno",
    vmax: float | None = None,
    scale: int = 2,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the image and one query's attention row in every head.

    Args:
        image: What `pixels` takes.
        rows: (heads, h', w'), the attention row of one query in each head.
        place: (y, x) of the query, in pixels of the image; drawn as a small square.
        box: As for `overlay`.
        cmap: One of `COLOUR_MAPS`.
        vmax: Shown as the colour map's last in every head; each head's own maximum unless given.
        scale: How many pixels a pixel of the image becomes.

    Returns:
        One row of tiles, each head's maximum in its caption; (h, w, 3) uint8.
    """
    heads = numbers(rows)
    if heads.ndim != 3:
        raise InputError(f"head_rows: expected rows (heads, h, w), got shape {heads.shape}")
    picture = pixels(image)
    marks = as_boxes(box)
    tiles = [outlined(enlarged(picture, scale), marks, scale=scale)]
    tiles += [overlay(picture, row, marks, cmap=cmap, vmax=vmax, scale=scale) for row in heads]
    if place is not None:
        y, x = place
        dot = [x - 1, y - 1, x + 2, y + 2]
        tiles = [outlined(tile, dot, scale=scale, colour="#ff2fb9") for tile in tiles]
    captions = ["image", *(f"head {i}\nmax {row.max():.3g}" for i, row in enumerate(heads))]
    return contact_sheet(tiles, captions, columns=len(tiles))


def comparison_picture(
    images: Any,
    maps_by_variant: Mapping[str, Any],
    boxes: Any = None,
    scores_by_variant: Mapping[str, Any] | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    score: str = "energy",
    titles: Mapping[str, str] | None = None,
    cmap: str = "inferno",
    alpha: float = 0.95,
    vmax: float | None = None,
    dpi: int = 200,
) -> Figure:
    """The same images in every variant: a row per image, a column per variant.

    Args:
        images: (n, h, w, 3), or a list of what `pixels` takes.
        maps_by_variant: Variant → raw maps (n, h', w'); columns come in this order.
        boxes: (n, 4) boxes `[x0, y0, x1, y1)`, drawn on every tile.
        scores_by_variant: Variant → one score per image (n,), printed below its tile.
        path: Where to write the PNG, if anywhere.
        score: What the score is called.
        titles: Variant → a second line under its name, such as its mean and interval.
        cmap: One of `COLOUR_MAPS`.
        alpha: As for `overlay`.
        vmax: Shown as the colour map's last in every tile; each map's own maximum unless given.
        dpi: Dots per inch of the PNG.

    Returns:
        The figure. Its last line states how the maps were scaled.

    Raises:
        InputError: Numbers of images, maps, boxes and scores differ.
        RunError: The PNG cannot be written.
    """
    from matplotlib.figure import Figure

    pictures = [pixels(image) for image in images]
    maps = {name: numbers(stack) for name, stack in maps_by_variant.items()}
    places = None if boxes is None else as_boxes(boxes)
    scores = {name: numbers(row) for name, row in (scores_by_variant or {}).items()}
    _same_number(len(pictures), {**maps, **{f"{k} scores": v for k, v in scores.items()}}, places)
    rows, columns = len(pictures), len(maps) + 1
    tile, under = 1.15, 0.2 if scores else 0.08
    size = (columns * (tile + 0.08) + 0.2, rows * (tile + under) + 1.0)
    figure = Figure(figsize=size, facecolor="white")
    grid = figure.add_gridspec(rows, columns, wspace=0.07, hspace=under / tile)
    grid.update(**_margins(size, top=0.42, bottom=0.6, side=0.1))
    for i, picture in enumerate(pictures):
        place = None if places is None else places[i]
        bare = outlined(enlarged(picture, 4), place, scale=4)
        _show(figure.add_subplot(grid[i, 0]), bare, "image" if i == 0 else "")
        for j, (name, stack) in enumerate(maps.items(), start=1):
            seen = overlay(picture, stack[i], place, alpha=alpha, cmap=cmap, vmax=vmax, scale=4)
            head = "\n".join([name, (titles or {}).get(name, "")]).strip() if i == 0 else ""
            text = f"{score} {_said(scores[name][i])}" if name in scores else ""
            _show(figure.add_subplot(grid[i, j]), seen, head, text)
    _colour_bar(figure, size, cmap, vmax, boxed=places is not None)
    if path is not None:
        save_png(figure, path, dpi=dpi)
    return figure


def _said(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"


def _same_number(n: int, stacks: Mapping[str, np.ndarray], places: np.ndarray | None) -> None:
    if not n or not stacks:
        raise InputError(
            f"comparison_picture: expected at least one image and variant, got {n} images "
            f"and {len(stacks)} variants"
        )
    for name, stack in [*stacks.items(), *([("boxes", places)] if places is not None else [])]:
        if len(stack) != n:
            raise InputError(f"comparison_picture: expected {n} of {name}, got {len(stack)}")


def _margins(
    size: tuple[float, float], *, top: float, bottom: float, side: float
) -> dict[str, float]:
    """Margins in inches as the fractions that a grid takes."""
    width, height = size
    return {
        "left": side / width,
        "right": 1 - side / width,
        "top": 1 - top / height,
        "bottom": bottom / height,
    }


def _show(axes: Any, picture: np.ndarray, title: str, text: str = "") -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, fontsize=7.5, pad=4)
    axes.set_xlabel(text, fontsize=8, labelpad=2)


def _colour_bar(
    figure: Figure, size: tuple[float, float], cmap: str, vmax: float | None, *, boxed: bool
) -> None:
    """Draw a narrow colour bar at the foot, with labels of its ends."""
    width, height = size
    bar = figure.add_axes((0.1 / width, 0.24 / height, 1.0 / width, 0.1 / height))
    bar.imshow(lookup(cmap)[None], aspect="auto")
    bar.set_yticks([])
    bar.set_xticks([0, 255], ["0", "max" if vmax is None else f"{vmax:.3g}"], fontsize=6.5)
    bar.tick_params(length=0, pad=2)
    how = SCALING if vmax is None else f"all maps from 0 to {vmax:.3g}"
    what = f"raw maps, upsampled bilinearly; {how}" + ("; box: the patch" if boxed else "")
    figure.text(1.3 / width, 0.29 / height, what, fontsize=7, va="center", color="#444444")
