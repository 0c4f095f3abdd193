"""Sampling points of deformable attention over their image."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8

from attnviz.errors import InputError
from attnviz.figures.colour import coloured, enlarged, numbers
from attnviz.figures.overlays import dimmed, outlined

_LARGEST = 0.025  # the radius of the largest disc, as a share of the picture's longer side


def sampling_points(
    image: Any,
    points: Any,
    weights: Any,
    box: Any = None,
    *,
    cmap: str = "inferno",
    vmax: float | None = None,
    scale: int = 1,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the sampling points of one object query over the image, with the box it predicts.

    A disc's area and colour are its point's weight; heavier points are drawn over lighter ones.
    The image is grey and dark below them. Of points outside of the image the part that reaches
    into it is drawn.

    Args:
        image: What `pixels` takes: the model's input, padding included.
        points: `(…, 2)`, x and y as shares of the image's width and height, such as
            `found.points[0, i]` of `attnviz.object_maps`, all heads and levels together.
        weights: `(…)`, one per point.
        box: `(4,)` or `(n, 4)`, left, top, right and bottom in the same shares, such as
            `found.boxes[0, i]`.
        cmap: One of `COLOUR_MAPS`.
        vmax: The weight drawn as the colour map's last, and largest; the greatest if not given.
        scale: How many pixels a pixel of the image becomes, on either side.

    Raises:
        InputError: Points and weights of other shapes, or numbers that are not finite.
    """
    at, each = numbers(points), numbers(weights)
    if at.shape != (*each.shape, 2):
        raise InputError(
            f"sampling_points: expected points (…, 2) and weights (…), got {at.shape} and "
            f"{each.shape}"
        )
    if not (np.isfinite(at).all() and np.isfinite(each).all()):
        raise InputError("sampling_points: expected finite points and weights")
    picture = enlarged(dimmed(image), scale)
    size = np.array(picture.shape[1::-1])
    at, each = at.reshape(-1, 2) * size, each.reshape(-1)
    most = float(each.max(initial=0.0)) if vmax is None else vmax
    radii = _LARGEST * size.max() * np.sqrt(np.clip(each / (most or 1.0), 0, 1)) + 0.5
    colours = coloured(each[None], cmap=cmap, vmin=0.0, vmax=most or 1.0)[0]
    for i in np.argsort(each, kind="stable"):
        _disc(picture, at[i], radii[i] + 1, np.zeros(3))  # a dark rim
        _disc(picture, at[i], radii[i], colours[i])
    shares = None if box is None else np.atleast_2d(numbers(box))
    drawn = np.round(picture).astype(np.uint8)
    if shares is None:
        return drawn
    corners = np.round(shares * np.tile(size / scale, 2)[: shares.shape[-1]])
    return outlined(drawn, corners, scale=scale)


def _disc(picture: np.ndarray, at: np.ndarray, radius: float, colour: np.ndarray) -> None:
    """Draw a disc with smooth edges into a picture."""
    low = np.maximum(np.floor(at - radius - 1), 0).astype(int)
    high = np.minimum(np.ceil(at + radius + 1), picture.shape[1::-1]).astype(int)
    if (high <= low).any():
        return
    x, y = (np.arange(a, b) + 0.5 for a, b in zip(low, high, strict=True))
    apart = np.hypot(x[None] - at[0], y[:, None] - at[1])
    cover = np.clip(radius + 0.5 - apart, 0, 1)[..., None]
    part = picture[low[1] : high[1], low[0] : high[0]]
    part[:] = (1 - cover) * part + cover * colour
