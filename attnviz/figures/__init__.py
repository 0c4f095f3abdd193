"""Figures of maps and scores with numpy, Pillow and matplotlib, without torch.

    colour    colour maps, numbers to colours, images to pixels
    overlays  a map over its image, with the box drawn
    points    sampling points of deformable attention over their image
    sheets    contact sheets: tiles, images by variant, heads of one query
    volumes   slices of a volume, frames of a video
    plots     dot plot, training curves
    packing   images, maps and attention as bytes for the components in a browser
    files     atomic writing of images

Input maps are raw. A figure that scales them states so in its caption.
Figures are made with matplotlib's objects, never with pyplot: no global state, no window.
"""

from __future__ import annotations

from attnviz.figures.colour import COLOUR_MAPS, colour_of, coloured, enlarged, pixels
from attnviz.figures.files import figure_bytes, png_bytes, save_png
from attnviz.figures.overlays import outlined, overlay, resized
from attnviz.figures.plots import curves, dot_plot
from attnviz.figures.points import sampling_points
from attnviz.figures.sheets import comparison_picture, contact_sheet, head_rows
from attnviz.figures.volumes import frames, slices

__all__ = [
    "COLOUR_MAPS",
    "colour_of",
    "coloured",
    "comparison_picture",
    "contact_sheet",
    "curves",
    "dot_plot",
    "enlarged",
    "figure_bytes",
    "frames",
    "head_rows",
    "outlined",
    "overlay",
    "pixels",
    "png_bytes",
    "resized",
    "sampling_points",
    "save_png",
    "slices",
]
