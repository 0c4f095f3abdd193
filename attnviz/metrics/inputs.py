"""What every metric takes: maps and masks, checked before anything is computed."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnviz.errors import InputError

AnyMaps: TypeAlias = Float[Tensor, "b h w"] | Float[np.ndarray, "b h w"]
"""One raw map per image, as a tensor or an array, float16 to float64."""

AnyMasks: TypeAlias = Bool[Tensor, "b h w"] | Bool[np.ndarray, "b h w"]
"""Where the thing to be found is, as a tensor or an array."""


def checked(maps: Any, masks: Any) -> tuple[Tensor, Tensor]:
    """The same maps and masks as tensors on one device, or an error that says what came.

    Args:
        maps: One raw map per image, (b, h, w), floating point.
        masks: Where the thing to be found is, (b, h, w), bool.

    Returns:
        Both as detached tensors, sharing memory with the caller's wherever that is possible.

    Raises:
        InputError: Wrong type, shape, dtype or device; maps of no places.
    """
    values, labels = as_tensor(maps, "maps"), as_tensor(masks, "masks")
    if not values.is_floating_point():
        raise InputError(
            f"maps: expected floating point, got {values.dtype}; convert with maps.float()"
        )
    if labels.dtype != torch.bool:
        raise InputError(
            f"masks: expected bool, got {labels.dtype}; say which values count, as in masks > 0"
        )
    if values.ndim != 3:
        raise InputError(
            f"maps: expected (b, h, w), got {tuple(values.shape)}; a single map is maps[None]"
        )
    if values.shape != labels.shape:
        raise InputError(
            f"masks: expected the shape of the maps, {tuple(values.shape)}, "
            f"got {tuple(labels.shape)}; {_towards(values, labels)}"
        )
    if values.shape[1] * values.shape[2] == 0:
        raise InputError(f"maps: expected at least one place, got {tuple(values.shape)}")
    if values.device != labels.device:
        raise InputError(
            f"masks: expected them on {values.device} with the maps, got {labels.device}; "
            "move one with .to(device)"
        )
    return values, labels


def _towards(values: Tensor, labels: Tensor) -> str:
    """How masks of another shape than the maps' may be made to fit."""
    if labels.ndim == 4 and labels.shape[1] == 1:
        return "take the channel axis away with masks[:, 0]"
    if labels.ndim == 3 and len(labels) == len(values):
        return "resize the maps to the masks first, with size= or attnviz.maps.resized"
    return "one mask per map"


def as_tensor(array: Any, what: str) -> Tensor:
    """A tensor on the same memory, or a copy where torch cannot share it.

    Args:
        array: A tensor or a numpy array.
        what: What it is, for the message.

    Returns:
        A detached tensor, not to be written to. Devices without float64 are left for the CPU.

    Raises:
        InputError: It is neither, or of a dtype torch does not know.
    """
    if isinstance(array, Tensor):
        tensor = array.detach()
        return tensor.cpu() if tensor.device.type == "mps" else tensor
    if not isinstance(array, np.ndarray):
        raise InputError(f"{what}: expected a tensor or a numpy array, got {type(array).__name__}")
    if array.dtype.kind not in "bfiu" or array.dtype.itemsize > 8:
        raise InputError(f"{what}: expected float16 to float64 or bool, got {array.dtype}")
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def no_masks(maps: AnyMaps) -> Tensor:
    """Empty masks of the shape of the maps, for metrics that need none."""
    device = maps.device if isinstance(maps, Tensor) else None
    return torch.zeros(maps.shape, dtype=torch.bool, device=device)
