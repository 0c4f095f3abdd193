"""What stands where something was taken away.

Every method that removes pixels answers another question for another replacement: a white patch on
a black ground vanishes against white and stays visible against black. So the replacement has a
name, and the name stands beside the number.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from attnviz.errors import InputError, unknown_name
from attnviz.shapes import Images

BLANKS = ("black", "blur", "mean", "white", "zero")
"""`black` and `white` are the ends of the value range, `zero` is 0, `mean` each image's own mean
per channel, `blur` the image itself under a Gaussian of σ = max(h, w) / 12 (edges repeated)."""

Blank: TypeAlias = str | int | float | Tensor
"""A name of `BLANKS`, a value for every pixel, or an image or images to take the pixels from."""


def blank_like(
    images: Images, blank: Blank, *, value_range: tuple[int | float, int | float] = (-1.0, 1.0)
) -> Images:
    """The image that shows through where an image is taken away.

    Args:
        images: `(b, c, h, w)`.
        blank: A name of `BLANKS`, a number, or a tensor that broadcasts to the images.
        value_range: What black and white are in the images' own units.

    Returns:
        `(b, c, h, w)`, of the images' type and device; it may share memory with `blank`.

    Raises:
        InputError: An unknown name, a tensor that does not broadcast, or images outside the value
            range where black or white is asked for.
    """
    if isinstance(blank, Tensor):
        return _expanded(blank, images)
    if not isinstance(blank, str):
        return torch.full_like(images, float(blank))
    if blank in ("black", "white"):
        _check_range(images, blank, value_range)
        return torch.full_like(images, value_range[blank == "white"])
    if blank == "zero":
        return torch.zeros_like(images)
    if blank == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    if blank == "blur":
        return _blurred(images, max(images.shape[-2:]) / 12)
    raise unknown_name("baseline", blank, BLANKS)


def _expanded(blank: Tensor, images: Tensor) -> Tensor:
    try:
        return blank.detach().to(images).expand_as(images)
    except RuntimeError as error:
        raise InputError(
            f"baseline: expected a tensor that broadcasts to images {tuple(images.shape)}, "
            f"got {tuple(blank.shape)}"
        ) from error


def _check_range(images: Tensor, blank: str, value_range: tuple[int | float, int | float]) -> None:
    low, high = value_range
    slack = 1e-3 * (high - low)
    if images.numel() and not (low - slack <= images.min() and images.max() <= high + slack):
        raise InputError(
            f"baseline {blank!r}: expected images within {low:g} to {high:g}, "
            f"got {images.min():.3g} to {images.max():.3g}; say what black and white are with "
            "value_range=(black, white), or give the colour as a number or tensor"
        )


def _blurred(images: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images.dtype)
    flat = images.reshape(-1, 1, *images.shape[-2:])
    down = F.pad(flat, (0, 0, radius, radius), mode="replicate")
    flat = F.conv2d(down, kernel.view(1, 1, -1, 1))
    across = F.pad(flat, (radius, radius, 0, 0), mode="replicate")
    return F.conv2d(across, kernel.view(1, 1, 1, -1)).reshape(images.shape)
