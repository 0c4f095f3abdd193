"""Record attributes that maps read, and resizing from a grid to an image's size.

`attnviz.maps.placement` maps tokens to places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnviz.errors import InputError
from attnviz.shapes import Weights

Grid: TypeAlias = tuple[int, ...]
"""Height and width, in places; of volumes and video depth or time before them."""

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic"]
"""How a map becomes larger. Pixel centres are aligned, as in torch's `align_corners=False`."""


@runtime_checkable
class Watched(Protocol):
    """Protocol of the records that maps read, such as `attnviz.capture.Record`."""

    @property
    def name(self) -> str:
        """The module's dotted name."""

    @property
    def kind(self) -> str:
        """`"attention"` or `"gate"`."""

    @property
    def weights(self) -> Tensor | None:
        """Attention `(b, heads, q, k)`."""

    @property
    def scale(self) -> Tensor | None:
        """A gate: `(b, c, 1, 1)` or `(b, 1, h, w)`."""


Attention: TypeAlias = Watched | Weights
"""An attention record, or its weights alone."""


def name_of(source: Watched | Tensor) -> str:
    """The record's name, quoted, or `weights` for a bare tensor."""
    return "the given tensor" if isinstance(source, Tensor) else repr(source.name)


def weights_of(source: Attention) -> Weights:
    """The attention weights, at least in float32, with their graph.

    Raises:
        InputError: The source is a gate, or it kept no weights.
    """
    if isinstance(source, Tensor):
        weights: Tensor | None = source
    elif not hasattr(source, "kind"):
        raise not_one_record(source)
    elif source.kind != "attention":
        raise InputError(
            f"{source.name!r} is a {source.kind}, and this map is made of attention: "
            "use gate_map or channel_gated"
        )
    else:
        weights = source.weights
    if weights is None:
        raise InputError(
            f"{name_of(source)} holds no weights (attention without rows, or reduced to "
            f"{sorted(reduced_of(source)) or 'nothing'} while watching): "
            "watch it again without reduce=, or with the reduction that this map needs"
        )
    if weights.ndim != 4:
        raise InputError(
            f"{name_of(source)}: expected weights (b, heads, q, k), got {tuple(weights.shape)}"
        )
    return weights if weights.dtype == torch.float64 else weights.float()


def last_attention(source: Attention | Mapping[str, Watched]) -> Attention:
    """A record as it is; of a capture that of the last layer with attention.

    Raises:
        InputError: A capture without attention.
    """
    if not isinstance(source, Mapping):
        return source
    attention = [one for one in source.values() if getattr(one, "kind", None) == "attention"]
    if not attention:
        raise not_one_record(source)
    return attention[-1]


def not_one_record(source: object) -> InputError:
    """An error for a capture, or anything else, where one record was expected."""
    remedy = "; take one of it, such as seen[name]" if isinstance(source, Mapping) else ""
    return InputError(
        f"maps: expected one record or its tensor, got {type(source).__name__}{remedy}"
    )


def reduced_of(source: Watched | Tensor) -> Mapping[str, Any]:
    """What was reduced inside the watch, by name; empty for a bare tensor."""
    return getattr(source, "reduced", None) or {}


def windows_of(source: Watched | Tensor) -> Any:
    """How windows lie on the image, for windowed attention; None for all other."""
    return getattr(source, "windows", None)


def resized(
    maps: Float[Tensor, "b *heads h w"], size: Grid | None, interpolation: Interpolation
) -> Float[Tensor, "b ..."]:
    """Maps at another size, detached and in float32.

    Bilinear and bicubic align pixel centres; going smaller they average (antialias), and nearest
    takes the place whose cell holds the pixel's centre. `size=None` leaves the grid as it is. Of
    volumes and video the last two axes are resized, slice by slice; with a size of three numbers
    all three are, bilinear meaning trilinear.

    Raises:
        InputError: An unknown interpolation, or a size that is not two or three positive numbers.
    """
    maps = maps.detach().float()
    if interpolation not in ("nearest", "bilinear", "bicubic"):
        raise InputError(
            f"interpolation: expected nearest, bilinear or bicubic, got {interpolation!r}"
        )
    if size is None:
        return maps.contiguous()
    if len(size) == 3 and maps.dim() > 3 and min(size) >= 1:
        return _volumes(maps, tuple(int(side) for side in size), interpolation)
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size: expected (h, w) of at least 1, got {tuple(size)}")
    h, w = (int(side) for side in size)
    flat = maps.reshape(maps.shape[0], math.prod(maps.shape[1:-2]), *maps.shape[-2:])
    smaller = h < maps.shape[-2] or w < maps.shape[-1]
    if interpolation == "nearest":
        flat = F.interpolate(flat, (h, w), mode="nearest-exact")
    else:
        flat = F.interpolate(
            flat, (h, w), mode=interpolation, align_corners=False, antialias=smaller
        )
    return flat.reshape(*maps.shape[:-2], h, w)


def _volumes(maps: Tensor, size: Grid, interpolation: Interpolation) -> Tensor:
    """Maps `(…, d, h, w)` at another size on three axes; going smaller they average."""
    if interpolation == "bicubic":
        raise InputError("interpolation: expected nearest or bilinear for three axes, got bicubic")
    flat = maps.reshape(1, math.prod(maps.shape[:-3]), *maps.shape[-3:])
    if interpolation == "nearest":
        flat = F.interpolate(flat, size, mode="nearest-exact")
    else:
        least: Any = tuple(min(one, own) for one, own in zip(size, maps.shape[-3:], strict=True))
        flat = F.adaptive_avg_pool3d(flat, least)  # an area mean, on each axis that shrinks
        flat = F.interpolate(flat, size, mode="trilinear", align_corners=False)
    return flat.reshape(*maps.shape[:-3], *size)
