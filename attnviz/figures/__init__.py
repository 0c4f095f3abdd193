"""Pictures of maps and of what was measured on them; numpy, Pillow and matplotlib, no torch.

    colour    the colour maps on offer, numbers to colours, pictures to pixels
    overlays  a map over its image, with the box drawn
    sheets    many tiles on one sheet; the same images in every variant; the heads of one place
    plots     dot plot, training curves
    files     a picture written whole or not at all

Maps reach these functions raw. Whatever scales them for the eye says so in its caption.
Figures are made with matplotlib's objects, never with pyplot: no global state, no window.
"""

from __future__ import annotations

from attnviz.figures.colour import COLOUR_MAPS, colour_of, coloured, enlarged, pixels
from attnviz.figures.files import png_bytes, save_png
from attnviz.figures.overlays import outlined, overlay
from attnviz.figures.plots import curves, dot_plot
from attnviz.figures.sheets import comparison_picture, contact_sheet, head_rows

__all__ = [
    "COLOUR_MAPS",
    "colour_of",
    "coloured",
    "comparison_picture",
    "contact_sheet",
    "curves",
    "dot_plot",
    "enlarged",
    "head_rows",
    "outlined",
    "overlay",
    "pixels",
    "png_bytes",
    "save_png",
]
