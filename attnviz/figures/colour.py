"""Convert numbers to colours and images of any kind to pixels.

Only colour maps that grow evenly in lightness and survive colour blindness and a grey printer are
available. A rainbow colour map shows edges where the map has none.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from attnviz.errors import InputError, unknown_name

COLOUR_MAPS = ("inferno", "viridis", "cividis", "magma", "plasma", "gray")
"""The available colour maps, all perceptually uniform."""

# Okabe and Ito (2008), distinguishable with every kind of colour vision; black and yellow left out,
# since neither shows on both a dark and a light page.
_VARIANT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def colour_of(position: int) -> str:
    """The colour of the variant at this position, as `#rrggbb`; repeats after six."""
    return _VARIANT_COLOURS[position % len(_VARIANT_COLOURS)]


def line_of(position: int) -> str:
    """The line style of the variant at this position: solid for the first six, dashed, dotted."""
    return ("-", "--", ":")[position // len(_VARIANT_COLOURS) % 3]


@cache
def lookup(name: str) -> UInt8[np.ndarray, "256 3"]:
    """The 256 colours of a colour map, darkest first.

    Raises:
        InputError: It is not one of `COLOUR_MAPS`.
    """
    from matplotlib import colormaps

    if name not in COLOUR_MAPS:
        raise unknown_name("colour map", name, COLOUR_MAPS)
    table = np.round(colormaps[name](np.arange(256))[:, :3] * 255).astype(np.uint8)
    table.flags.writeable = False  # the cached array is shared
    return table


def coloured(
    map: Any,
    *,
    cmap: str = "inferno",
    vmin: float | None = None,
    vmax: float | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """A map as colours: from `vmin`, the first colour, to `vmax`, the last.

    Args:
        map: (h, w) numbers; NaN gets the first colour.
        cmap: One of `COLOUR_MAPS`.
        vmin: Shown as the first colour, as is all below; 0 unless given, so that a map's negative
            part is not shown.
        vmax: Shown as the last colour; the map's own maximum unless given.

    Returns:
        (h, w, 3) uint8. A map without anything above `vmin` is all first colour.
    """
    return np.asarray(lookup(cmap)[np.round(255 * unit(map, vmin=vmin, vmax=vmax)).astype(int)])


def unit(
    map: Any, *, vmin: float | None = None, vmax: float | None = None
) -> Float[np.ndarray, "h w"]:
    """A map scaled for display: `vmin` (0) to 0, `vmax` (its maximum) to 1, cut beyond."""
    values = numbers(map)
    if values.ndim != 2:
        raise InputError(f"figures: expected a map (h, w), got shape {values.shape}")
    finite = values[np.isfinite(values)]
    low = 0.0 if vmin is None else float(vmin)
    high = float(finite.max(initial=low)) if vmax is None else float(vmax)
    if not high > low:
        return np.zeros(values.shape)
    return np.asarray(np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0.0, 1.0))


def numbers(values: Any) -> np.ndarray:
    """Any array, a torch tensor on any device included, as float64."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    """A picture or mask `(h, w, …)` whose pixels become squares of `scale` pixels."""
    return np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)


def pixels(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as uint8 RGB.

    Args:
        image: (h, w), (h, w, 1), (h, w, 3) or, channels first, (1, h, w), (3, h, w); uint8, or
            numbers from 0 to 1; numpy, torch or Pillow. Where both readings fit, an array's
            channels are last and a tensor's first.

    Raises:
        InputError: Another shape, or numbers outside 0 to 1.
    """
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    tensor = hasattr(image, "detach")
    array = np.asarray(image.detach().cpu().numpy() if tensor else image)
    last = array.ndim == 3 and array.shape[-1] in (1, 3) and not tensor
    if array.ndim == 3 and array.shape[0] in (1, 3) and not last:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise InputError(f"figures: expected an image (h, w, 3), got shape {array.shape}")
    if array.dtype != np.uint8:
        array = _bytes(array)
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)))


def _bytes(array: np.ndarray) -> np.ndarray:
    low, high = float(np.min(array)), float(np.max(array))
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise InputError(
            f"figures: expected an image in uint8 or from 0 to 1, got {array.dtype} from "
            f"{low:.3g} to {high:.3g}; a picture from -1 to 1 becomes one by (x + 1) / 2"
        )
    return np.asarray(np.round(np.clip(array, 0, 1) * 255), dtype=np.uint8)
