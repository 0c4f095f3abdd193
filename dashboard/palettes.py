"""Colours safe for colour vision deficiency, with sufficient contrast in both themes.

The colour maps are perceptually uniform and safe for colour-blind people; each is its matplotlib
namesake at 17 anchors, so that the browser can interpolate it without a table of its own. The
colours of variants are those of Okabe and Ito (2008), darkened or lightened until text and thin
lines reach a contrast of 3 : 1 on the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_ANCHORS = {
    "inferno": "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 "
    "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4",
    "viridis": "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
    "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725",
    "magma": "000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779 "
    "d0416f e75263 f56b5c fc8961 fea772 fec488 fde2a3 fcfdbf",
    "cividis": "00224e 002e6a 1a386f 32436d 434e6c 535a6d 61656f 6f7073 7d7c78 "
    "8c8878 9b9476 aba072 bcae6c cdbb63 dec958 f0d846 fee838",
    "gray": "000000 101010 202020 303030 404040 505050 606060 707070 808080 "
    "909090 a0a0a0 b0b0b0 c0c0c0 d0d0d0 e0e0e0 f0f0f0 ffffff",
}
COLOUR_MAPS = {name: [int(c, 16) for c in text.split()] for name, text in _ANCHORS.items()}
"""Name → anchors from low to high, each a packed 0xRRGGBB."""


@dataclass(frozen=True)
class Ink:
    """The colours that charts are drawn with.

    Attributes:
        text: Axis titles and labels.
        grid: Grid lines and axes.
        mark: Dots and intervals of what is measured.
        chance: The line of a map without information.
        redrawn: The line of the mask, redrawn on the map's grid.
        series: One colour per variant, in order.
    """

    text: str
    grid: str
    mark: str
    chance: str
    redrawn: str
    series: tuple[str, ...]


LIGHT = Ink(
    text="#1a1d23",
    grid="#d5d9e0",
    mark="#1f5fbf",
    chance="#a8480a",
    redrawn="#0b6b4f",
    series=("#0072b2", "#c25400", "#00805e", "#a8447f", "#8a6d00", "#2f7ea8", "#4d4d4d", "#7a3db8"),
)
DARK = Ink(
    text="#eceef2",
    grid="#3a404a",
    mark="#7fb2ff",
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
    anchors = COLOUR_MAPS["viridis"]
    share = (value - low) / (high - low) if high > low else 0.5
    place = min(max(share, 0.0), 1.0) * (len(anchors) - 1)
    colour = anchors[round(place)]
    parts = [(colour >> shift & 255) / 255 for shift in (16, 8, 0)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return f"#{colour:06x}", "#000000" if light > 0.179 else "#ffffff"
