"""Images as data URLs inside the page, without requests."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from attnviz.figures import enlarged, outlined, overlay, png_bytes
from attnviz.report.amounts import Amount
from attnviz.report.markup import Html, tag
from attnviz.runs.datasets import Cut

_SIDE = 192  # pixels that a tile has at least, twice what it takes on the page
_INCH = 100  # of a figure, in pixels of the page; its letters then are of the size of a caption's


def tile(cut: Cut, map: np.ndarray | None, alt: str, below: Any, amount: Amount) -> Html:
    """One image, bare or with a map over it, the box drawn, and words below."""
    image, box = cut.images[0], cut.boxes[0]
    scale = max(1, round(_SIDE / max(image.shape[:2])))
    if map is None:
        picture = outlined(enlarged(image, scale), box, scale=scale)
    else:
        picture = overlay(image, map, box, scale=scale)
    caption = tag("figcaption", below) if below else None
    return tag("figure", _image(_webp(picture, amount), "webp", alt), caption, class_="tile")


def plot(draw: Callable[[bool], Any], alt: str, below: Any) -> Html:
    """A figure, drawn once for a light and once for a dark page."""
    light, dark = (png_bytes(draw(at_night), dpi=2 * _INCH) for at_night in (False, True))
    width = Image.open(io.BytesIO(light)).width // 2
    source = tag("source", srcset=_uri(dark, "png"), media="(prefers-color-scheme: dark)")
    picture = tag("picture", source, _image(light, "png", alt, width=width))
    return tag("figure", picture, tag("figcaption", below), class_="plot")


def _image(content: bytes, kind: str, alt: str, width: int | None = None) -> Html:
    size = Image.open(io.BytesIO(content)).size
    shown = (width or size[0], round(size[1] * (width or size[0]) / size[0]))
    return tag("img", src=_uri(content, kind), alt=alt, width=shown[0], height=shown[1])


def _webp(picture: np.ndarray, amount: Amount) -> bytes:
    """A tile's picture, no larger than the page needs."""
    buffer = io.BytesIO()
    shown = Image.fromarray(picture)
    shown.thumbnail((amount.side, amount.side))
    shown.save(buffer, format="webp", quality=amount.quality, method=4)
    return buffer.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
