"""Record attributes that maps read, and resizing from a grid to an image's size.

`attnviz.maps.placement` maps tokens to places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnviz.errors import InputError
from attnviz.maps.arguments import sides
from attnviz.shapes import Weights
from attnviz.token_places import Places, RecordPlaces

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
    elif not is_record(source):
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


def is_record(source: object) -> bool:
    """Whether something looks like a record."""
    return all(hasattr(source, name) for name in ("kind", "name", "weights"))


def not_one_record(source: object) -> InputError:
    """An error for a capture, or anything else, where one record was expected."""
    return InputError(
        f"maps: expected one record or its tensor, got {type(source).__name__}{_remedy(source)}"
    )


def listed(source: Any, what: str, *, tensors: bool = True) -> list[Any]:
    """A record, several or a capture as a list.

    Args:
        source: What the caller passed.
        what: The function, for the error.
        tensors: Whether bare weights will do in place of records.

    Raises:
        InputError: Anything else, or something else among them.
    """
    several = isinstance(source, Iterable) and not isinstance(source, (str, Tensor, nn.Module))
    if isinstance(source, Mapping):
        found = list(source.values())
    else:
        found = list(source) if several and not hasattr(source, "dtype") else [source]
    wrong = [
        one for one in found if not is_record(one) and not (tensors and isinstance(one, Tensor))
    ]
    if wrong:
        more = " or their weights (b, heads, q, k)" if tensors else ""
        raise InputError(
            f"{what}: expected a capture of av.watch, or records{more}, got "
            f"{type(wrong[0]).__name__}{_remedy(wrong[0])}"
        )
    return found


def _remedy(source: object) -> str:
    """What helps where something was passed that is no record."""
    if isinstance(source, nn.Module):
        return "; run it within `with av.watch(model) as seen`, and pass seen"
    if isinstance(source, (RecordPlaces, Places)):
        return "; a layout goes into layout="
    if isinstance(source, Tensor):
        return "; weights have no name and no places: pass the records that hold them"
    if isinstance(source, str):
        return "; pass the record of this name, seen[name]"
    if hasattr(source, "__array__"):
        return "; make a tensor of it by torch.from_numpy"
    return "; take one of it, such as seen[name]" if isinstance(source, (Mapping, list)) else ""


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
    if not isinstance(maps, Tensor) or maps.dim() < 3:
        got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError(f"resized: expected maps (b, h, w) as a tensor, got {got}")
    maps = maps.detach().float()
    if interpolation not in ("nearest", "bilinear", "bicubic"):
        raise InputError(
            f"interpolation: expected nearest, bilinear or bicubic, got {interpolation!r}"
        )
    if size is None:
        return maps.contiguous()
    size = sides(size, "size")
    if len(size) == 3 and maps.dim() > 3:
        return _volumes(maps, size, interpolation)
    if len(size) != 2:
        raise InputError(f"size: expected (h, w) for maps {tuple(maps.shape)}, got {size}")
    h, w = size
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
