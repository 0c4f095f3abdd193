"""Inject patches at known positions into images.

The place of a patch follows from `(seed, index)` alone, through a counter-based generator: image 7
gets the same patch in a batch of one and in a batch of a thousand, on any device, in any order.
Drawing from one generator per batch instead ties a patch to its position in the batch, so that
training and test images share their few distinct places and a network can memorise those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attnviz.errors import InputError, unknown_name
from attnviz.shapes import Boxes, Images, Masks

SHAPES = ("square", "disc", "ring", "bar", "line", "cross", "L", "dots", "texture")
"""What a patch can look like inside its `size` × `size` box."""


class Patched(NamedTuple):
    """Images with patches in them, and where those are.

    Attributes:
        images: `(b, c, h, w)`, a new tensor of the input's type and device.
        masks: `(b, h, w)`, True where a patch covers the image; all False where there is none.
        boxes: `(b, 4)`, `[x0, y0, x1, y1)` with exclusive ends, around all patches of an image;
            zeros where there is none.
    """

    images: Images
    masks: Masks
    boxes: Boxes


def inject_patch(
    images: Images,
    *,
    size: int = 16,
    seed: int,
    shape: str = "square",
    fill: float | Sequence[float] = 1.0,
    opacity: float = 1.0,
    count: int = 1,
    fraction: float = 1.0,
    indices: Int[Tensor, "b"] | None = None,
) -> Patched:
    """Lay a patch over each image at a random place that `(seed, index)` reproduces.

    A patched pixel becomes `(1 − opacity) · image + opacity · fill`. Every place where the patch
    fits is equally likely. Several patches of one image never overlap.

    Args:
        images: `(b, c, h, w)`, floating point; the input is left as it is.
        size: Side of the patch in pixels.
        seed: Which set of places; training and test sets take different ones.
        shape: One of `SHAPES`.
        fill: The colour, one value or one per channel, in the images' own units. White is 1.
            A `texture` is a random half of the box's pixels, drawn anew for each image.
        opacity: 1 covers the image, 0 would leave it as it was; in (0, 1].
        count: Patches per image.
        fraction: The probability with which an image gets its patches, decided image by image.
        indices: `(b,)`, each image's number in its data set; 0 … b − 1 if not given. Batches of
            one data set must pass them, or all batches repeat the same places.

    Returns:
        `(images, masks, boxes)`, see `Patched`.

    Raises:
        InputError: A patch that does not fit, a rank, type or range that is wrong.

    Examples:
        >>> import torch
        >>> images, masks, boxes = inject_patch(torch.zeros(2, 3, 96, 96), size=16, seed=0)
        >>> masks.sum((1, 2)).tolist()
        [256, 256]
    """
    _check(images, size, shape, opacity, count, fraction, indices)
    b, c, h, w = images.shape
    if indices is None:
        indices = torch.arange(b, device=images.device)
    keys = _mix(
        _mix(torch.full((), _wrap(seed), dtype=torch.int64, device=images.device)) + indices
    )
    chosen = _below(_draw(keys, 0), 1 << 24) < round(fraction * (1 << 24))
    corners = _places(keys, h - size + 1, w - size + 1, size, count)
    masks = _paint(_stencils(shape, size, keys), corners, h, w) & chosen[:, None, None]
    colour = torch.as_tensor(fill, dtype=images.dtype, device=images.device).expand(c)
    covered = images * (1 - opacity) + opacity * colour[:, None, None]
    return Patched(
        torch.where(masks[:, None], covered, images), masks, _hull(corners, size, chosen)
    )


def _places(keys: Tensor, rows: int, columns: int, size: int, count: int) -> Int[Tensor, "b n 2"]:
    """Upper left corners `(y, x)` of each image's patches, drawn from the free positions."""
    row, column = torch.arange(rows, device=keys.device), torch.arange(columns, device=keys.device)
    free = torch.ones(len(keys), rows, columns, dtype=torch.bool, device=keys.device)
    corners = []
    for patch in range(count):
        free_counts = free.flatten(1).cumsum(1, dtype=torch.int32)
        if not bool((free_counts[:, -1] > 0).all()):
            raise InputError(
                f"inject_patch: found no room for {count} patches of {size} pixels that do not "
                f"overlap in {rows + size - 1} × {columns + size - 1} pixels; "
                "expected fewer or smaller patches"
            )
        chosen = _below(_draw(keys, 1 + patch), free_counts[:, -1]).to(torch.int32)
        place = torch.searchsorted(free_counts, chosen[:, None], right=True)[:, 0]
        corner = torch.stack([place // columns, place % columns], dim=1)
        near_y = (row - corner[:, :1]).abs() < size
        near_x = (column - corner[:, 1:]).abs() < size
        free &= ~(near_y[:, :, None] & near_x[:, None, :])
        corners.append(corner)
    return torch.stack(corners, dim=1)


def _paint(stencils: Tensor, corners: Tensor, h: int, w: int) -> Masks:
    """The union of an image's patches, as a mask."""
    b, count, size = len(corners), corners.shape[1], stencils.shape[-1]
    steps = torch.arange(size, device=corners.device)
    rows = (corners[..., 0, None] + steps)[..., :, None]
    columns = (corners[..., 1, None] + steps)[..., None, :]
    masks = torch.zeros(b, h, w, dtype=torch.bool, device=corners.device)
    image = torch.arange(b, device=corners.device)[:, None, None, None]
    masks[image, rows, columns] = stencils[:, None].expand(b, count, size, size)
    return masks


def _hull(corners: Tensor, size: int, chosen: Tensor) -> Boxes:
    """The box `[x0, y0, x1, y1)` around all patches of an image."""
    low, high = corners.amin(dim=1).flip(1), corners.amax(dim=1).flip(1) + size
    return torch.cat([low, high], dim=1) * chosen[:, None]


def _stencils(shape: str, size: int, keys: Tensor) -> Bool[Tensor, "b size size"]:
    """Which pixels of its box a patch covers, `(b, size, size)`."""
    step = torch.arange(size, device=keys.device)
    if shape in ("dots", "texture"):
        cell = max(1, size // 4) if shape == "dots" else 1
        grid = (size + cell - 1) // cell
        cells = torch.arange(1, grid * grid + 1, device=keys.device).view(grid, grid)
        lit = (_mix(keys[:, None, None] + 7919 * cells) & 1).bool()
        lit = lit[:, step // cell][:, :, step // cell]
        if shape == "dots":  # each lit cell shows a dot of a quarter of its area
            near = step % cell < (cell + 1) // 2
            lit = lit & near[:, None] & near
        lit[:, 0, 0] = lit[:, -1, -1] = (
            True  # a patch reaches its box's corners, and is never empty
        )
        return lit
    y, x = step[:, None], step[None, :]
    middle, thick = (size - 1) / 2, max(1, size // 4)
    radius = (((y - middle) ** 2 + (x - middle) ** 2).to(torch.float32)).sqrt()
    lines = {
        "square": torch.ones(size, size, dtype=torch.bool, device=keys.device),
        "disc": radius <= size / 2,
        "ring": (radius <= size / 2) & (radius > size / 2 - max(1, size // 5)),
        "bar": ((y - middle).abs() <= thick / 2).expand(size, size),
        "line": (y == x).expand(size, size),
        "cross": ((y - middle).abs() <= thick / 2) | ((x - middle).abs() <= thick / 2),
        "L": (x < thick) | (y >= size - thick),
    }
    return lines[shape].expand(len(keys), size, size)


def _mix(x: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), on wrapping int64."""
    x = x + -0x61C8864680B583EB
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _draw(keys: Tensor, counter: int) -> Tensor:
    return _mix(keys + _wrap(counter * 0x2545F4914F6CDD1D))


def _wrap(number: int) -> int:
    """Any integer as the int64 that has its lowest 64 bits."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _below(bits: Tensor, n: int | Tensor) -> Tensor:
    """Integers in [0, n), by multiplication instead of a remainder's bias."""
    return ((bits & 0x7FFFFFFF) * n) >> 31


def _check(
    images: Tensor,
    size: int,
    shape: str,
    opacity: float,
    count: int,
    fraction: float,
    indices: Tensor | None,
) -> None:
    where = "inject_patch"
    if not isinstance(images, Tensor) or images.ndim != 4:
        came = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        remedy = (
            "add a batch axis with images[None]"
            if isinstance(images, Tensor)
            else "an array (b, h, w, c) becomes one by torch.from_numpy(images).permute(0, 3, 1, 2)"
        )
        raise InputError(f"{where}: expected images as a tensor (b, c, h, w), got {came}; {remedy}")
    if not images.is_floating_point():
        raise InputError(
            f"{where}: expected floating point images, got {images.dtype}; "
            "convert with images.float() / 127.5 - 1"
        )
    h, w = images.shape[2:]
    if not 1 <= size <= min(h, w):
        raise InputError(
            f"{where}: expected a size from 1 to {min(h, w)} for images of {h} × {w}, got {size}"
        )
    if shape not in SHAPES:
        raise unknown_name("patch shape", shape, SHAPES)
    if not 0 < opacity <= 1:
        raise InputError(f"{where}: expected an opacity in (0, 1], got {opacity}")
    if count < 1:
        raise InputError(f"{where}: expected a count of 1 or more, got {count}")
    if not 0 <= fraction <= 1:
        raise InputError(f"{where}: expected a fraction from 0 to 1, got {fraction}")
    if indices is not None and indices.shape != images.shape[:1]:
        raise InputError(
            f"{where}: expected one index per image ({len(images)}), got {tuple(indices.shape)}"
        )
