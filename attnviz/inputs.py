"""Input checks of images, maps and masks, shared by all packages.

Targets are checked in `attnviz.targets`. Every check raises an `InputError` that states what was
expected, what was given, and the nearest remedy.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnviz.errors import InputError
from attnviz.shapes import Images, Maps

AnyMaps: TypeAlias = Float[Tensor, "b *places"] | Float[np.ndarray, "b *places"]
"""One raw map per image or volume, as a tensor or an array, float16 to float64."""

AnyMasks: TypeAlias = Bool[Tensor, "b *places"] | Bool[np.ndarray, "b *places"]
"""Where the object is, as a tensor or an array."""

AnyBoxes: TypeAlias = Sequence[Tensor | np.ndarray | None]
"""Annotated boxes of each image, `(k, 4)` whole pixels `[x0, y0, x1, y1)`; None for an image
without annotation."""


def as_tensor(array: Any, what: str) -> Tensor:
    """A tensor on the same memory, or a copy where torch cannot share it.

    Args:
        array: A tensor or a numpy array.
        what: The argument's name, for the message.

    Returns:
        A detached tensor, not to be written to. Devices without float64 are left for the CPU.

    Raises:
        InputError: It is neither, or of a dtype that torch lacks.
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


def check_images(images: object, *, operation: str = "") -> None:
    """Check that images are one floating point tensor `(b, c, h, w)`.

    Args:
        images: The argument.
        operation: The function that takes them, for the message.

    Raises:
        InputError: They are not.
    """
    if isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point():
        return
    prefix = f"{operation}: " if operation else ""
    if not isinstance(images, Tensor):
        raise InputError(
            f"{prefix}expected images as one tensor (b, c, h, w), got "
            f"{type(images).__name__}; a model of several inputs is wrapped in a module that "
            "holds the others, an array becomes a tensor by torch.from_numpy"
        )
    raise InputError(
        f"{prefix}expected floating point images (b, c, h, w), got {images.dtype} "
        f"{tuple(images.shape)}" + ("; add a batch axis with images[None]" * (images.ndim == 3))
    )


def check_takes_images(model: nn.Module, *, operation: str) -> None:
    """Check that a model can be called with images alone.

    Args:
        model: The model.
        operation: The function that calls it, for the message.

    Raises:
        InputError: Its forward has other required arguments.
    """
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # scripted
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise InputError(
            f"{operation}: expected a model that takes images alone, got "
            f"{type(model).__name__}.forward{signature}, {error}; wrap it in a module that holds "
            "the other inputs"
        ) from None


def maps_of_images(images: Images, maps: AnyMaps) -> Maps:
    """Maps at the images' size as a floating point tensor on the images' device, without a graph.

    Raises:
        InputError: Unless there is one map per image, at the images' size.
    """
    check_images(images)
    maps = as_tensor(maps, "maps")
    if maps.shape != images[:, 0].shape:
        raise InputError(
            f"expected maps {tuple(images[:, 0].shape)} at the images' size, got "
            f"{tuple(maps.shape)}; resize them with size= or attnviz.maps.resized"
        )
    maps = maps.to(images.device)
    return maps if maps.is_floating_point() else maps.double()  # unsigned integers have no minus


def masks_of_images(images: Images, masks: Any, what: str, *, operation: str) -> Tensor:
    """Boolean masks at the images' size as a tensor.

    Args:
        images: `(b, c, h, w)`.
        masks: `(b, h, w)`, tensor or numpy.
        what: The argument's name, for the message.
        operation: The function that takes them, for the message.

    Raises:
        InputError: Another shape or type.
    """
    tensor, wanted = as_tensor(masks, what), tuple(images[:, 0].shape)
    if tuple(tensor.shape) != wanted or tensor.dtype != torch.bool:
        raise InputError(
            f"{operation}: expected {what} as booleans {wanted}, got {tensor.dtype} "
            f"{tuple(tensor.shape)}; compare with a threshold, {what} = {what} > 0.5"
        )
    return tensor


def maps_with_masks(maps: Any, masks: Any) -> tuple[Tensor, Tensor]:
    """Maps and masks of one shape as tensors on one device.

    Args:
        maps: One raw map per image, `(b, *places)` with two place axes or more, floating point.
        masks: Where the object is, `(b, *places)`, bool.

    Returns:
        Both as detached tensors, sharing memory with the caller's wherever that is possible.

    Raises:
        InputError: Wrong type, shape, dtype or device; maps without a pixel.
    """
    values, labels = as_tensor(maps, "maps"), as_tensor(masks, "masks")
    if not values.is_floating_point():
        raise InputError(
            f"maps: expected floating point, got {values.dtype}; convert with maps.float()"
        )
    if labels.dtype != torch.bool:
        raise InputError(
            f"masks: expected bool, got {labels.dtype}; choose values, as in masks > 0"
        )
    if values.ndim < 3:  # (h, w) may be one map without a batch axis: an error
        raise InputError(
            f"maps: expected (b, h, w) or more place axes, got {tuple(values.shape)}; a single map "
            "is maps[None], places without a grid are maps[:, None]"
        )
    if values.shape != labels.shape:
        raise InputError(
            f"masks: expected the shape of the maps, {tuple(values.shape)}, "
            f"got {tuple(labels.shape)}; {_remedy(values, labels)}"
        )
    if 0 in values.shape[1:]:
        raise InputError(f"maps: expected at least one place, got {tuple(values.shape)}")
    if values.device != labels.device:
        raise InputError(
            f"masks: expected them on {values.device} with the maps, got {labels.device}; "
            "move one with .to(device)"
        )
    return values, labels


def boxes_of_masks(masks: Tensor, boxes: AnyBoxes) -> tuple[np.ndarray | None, ...]:
    """Annotated boxes as arrays, one entry per mask.

    Args:
        masks: `(b, h, w)`.
        boxes: Of each image `(k, 4)` boxes `[x0, y0, x1, y1)` in the masks' pixels, or None.

    Raises:
        InputError: Another number of entries, another shape, a box outside the image, or no box
            for a mask that is not empty.
    """
    if masks.ndim != 3:
        raise InputError(f"boxes: expected masks (b, h, w) beside boxes, got {tuple(masks.shape)}")
    if len(boxes) != len(masks):
        raise InputError(
            f"boxes: expected one entry per mask, {len(masks)}, got {len(boxes)}; None stands for "
            "an image without annotated boxes"
        )
    return tuple(
        None if one is None else _checked_boxes(mask, one, i)
        for i, (mask, one) in enumerate(zip(masks, boxes, strict=True))
    )


def _checked_boxes(mask: Tensor, boxes: Tensor | np.ndarray, i: int) -> np.ndarray:
    array = as_tensor(boxes, f"boxes[{i}]").cpu().numpy()
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind not in "iu":
        raise InputError(
            f"boxes[{i}]: expected (k, 4) whole pixels [x0, y0, x1, y1), got {array.dtype} "
            f"{array.shape}"
        )
    (h, w), whole = mask.shape, array.astype(np.int64)
    low, high = whole[:, :2], whole[:, 2:]
    wrong = (low < 0).any(1) | (high > (w, h)).any(1) | (high <= low).any(1)
    if wrong.any():
        raise InputError(
            f"boxes[{i}]: expected boxes [x0, y0, x1, y1) inside the mask of {h} x {w} pixels, got "
            f"{whole[wrong][0].tolist()}"
        )
    if not len(whole) and bool(mask.any()):
        raise InputError(
            f"boxes[{i}]: expected a box for a mask that is not empty; None takes the boxes of its "
            "components"
        )
    return whole


def _remedy(values: Tensor, labels: Tensor) -> str:
    """How masks of another shape than the maps' may be made to fit."""
    if labels.ndim == values.ndim + 1 and labels.shape[1] == 1:
        return "take the channel axis away with masks[:, 0]"
    if labels.ndim == values.ndim and len(labels) == len(values):
        return "resize the maps to the masks first, with size= or attnviz.maps.resized"
    return "one mask per map"


def no_masks(maps: AnyMaps) -> Tensor:
    """Empty masks of the shape of the maps, for metrics that need none."""
    device = maps.device if isinstance(maps, Tensor) else None
    return torch.zeros(maps.shape, dtype=torch.bool, device=device)
