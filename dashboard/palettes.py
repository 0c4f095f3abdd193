"""Colours of charts: safe for colour vision deficiency, with sufficient contrast in both themes.

The colours of variants are those of Okabe and Ito (2008), darkened or lightened until text and thin
lines reach a contrast of 3 : 1 on the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from attnviz.figures.packing import PALETTES


@dataclass(frozen=True)
class Ink:
    """The colours that charts are drawn with.

    Attributes:
        text: Axis titles and labels.
        grid: Grid lines and axes.
        mark: Dots and intervals of what is measured, and primary buttons.
        on_mark: Text on `mark`.
        chance: The line of a map without information.
        redrawn: The line of the mask, redrawn on the map's grid.
        series: One colour per variant, in order.
    """

    text: str
    grid: str
    mark: str
    on_mark: str
    chance: str
    redrawn: str
    series: tuple[str, ...]


LIGHT = Ink(
    text="#1a1d23",
    grid="#d5d9e0",
    mark="#1f5fbf",
    on_mark="#ffffff",
    chance="#a8480a",
    redrawn="#0b6b4f",
    series=("#0072b2", "#c25400", "#00805e", "#a8447f", "#8a6d00", "#2f7ea8", "#4d4d4d", "#7a3db8"),
)
DARK = Ink(
    text="#eceef2",
    grid="#3a404a",
    mark="#7fb2ff",
    on_mark="#14161a",
    chance="#ffab70",
    redrawn="#6fd6b0",
    series=("#56b4e9", "#ff9a56", "#3ddbb0", "#e594c4", "#f0e442", "#9ad0f0", "#c9ccd2", "#c39bff"),
)

DASHES = ([], [6, 3], [2, 2], [8, 3, 2, 3], [10, 4], [4, 2, 1, 2], [1, 3], [12, 2, 2, 2])
"""Line patterns, so that lines do not differ by colour alone."""


def ink(theme: str | None) -> Ink:
    """The colours for Streamlit's `"light"` or `"dark"`; light where the theme is unknown."""
    return DARK if theme == "dark" else LIGHT


def tint(value: float, low: float, high: float) -> tuple[str, str]:
    """A cell's background on viridis from low to high, and black or white to write on it.

    Nothing, twice, for a value that is not finite.
    """
    if not math.isfinite(value):
        return "", ""
    anchors = PALETTES["viridis"]
    share = (value - low) / (high - low) if high > low else 0.5
    place = min(max(share, 0.0), 1.0) * (len(anchors) - 1)
    colour = anchors[round(place)]
    parts = [(colour >> shift & 255) / 255 for shift in (16, 8, 0)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return f"#{colour:06x}", "#000000" if light > 0.179 else "#ffffff"
