"""Baseline images for deletion, occlusion and integrated gradients.

The baseline is part of the question: a white patch on a black ground vanishes against white and
stays visible against black. So a baseline has a name, and the name stands beside the score.
"""

from __future__ import annotations

from collections.abc import Sequence
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


Level: TypeAlias = int | float | Sequence[int | float]
"""A value for all channels, or one per channel."""

ValueRange: TypeAlias = tuple[Level, Level]
"""Black and white in the images' own units."""


def black_and_white(*, mean: Level, std: Level) -> ValueRange:
    """Black and white of images that were normalised as `(pixel − mean) / std`, pixel in 0 … 1.

    Args:
        mean: The normalisation's mean, one number or one per channel.
        std: Its standard deviation, alike.

    Returns:
        `(black, white)` per channel, for every `value_range=`.

    Raises:
        InputError: A standard deviation that is not positive, or means and deviations that are
            not as many.

    Examples:
        >>> black_and_white(mean=(0.5, 0.25), std=0.5)
        ((-1.0, -0.5), (1.0, 1.5))
    """
    means, stds = _channels(mean), _channels(std)
    if min(stds) <= 0 or (len(means) != len(stds) and 1 not in (len(means), len(stds))):
        raise InputError(
            "black_and_white: expected as many positive standard deviations as means, got "
            f"mean={mean} and std={std}"
        )
    count = max(len(means), len(stds))
    pairs = list(zip(means * (count // len(means)), stds * (count // len(stds)), strict=True))
    return tuple((0 - m) / s for m, s in pairs), tuple((1 - m) / s for m, s in pairs)


def _channels(level: Level) -> list[float]:
    return [float(level)] if isinstance(level, int | float) else [float(one) for one in level]


def blank_like(images: Images, blank: Blank, *, value_range: ValueRange = (-1.0, 1.0)) -> Images:
    """The baseline image of each image.

    Args:
        images: `(b, c, h, w)`.
        blank: A name of `BLANKS`, a number, or a tensor that broadcasts to the images.
        value_range: Black and white in the images' own units, each one number or one per channel;
            `black_and_white(mean=, std=)` gives those of normalised images.

    Returns:
        `(b, c, h, w)`, of the images' type and device; it may share memory with `blank`.

    Raises:
        InputError: An unknown name, a tensor that does not broadcast, or, for black and white, a
            value range of another number of channels, or images outside of it.
    """
    if isinstance(blank, Tensor):
        return _expanded(blank, images)
    if not isinstance(blank, str):
        return torch.full_like(images, float(blank))
    if blank in ("black", "white"):
        black, white = (_per_channel(level, images) for level in value_range)
        _check_range(images, blank, black, white)
        return (white if blank == "white" else black).expand_as(images)
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


def _per_channel(level: Level, images: Tensor) -> Tensor:
    """`(1, c, 1, 1)` or `(1, 1, 1, 1)`, of the images' type and device."""
    values = torch.tensor(_channels(level), dtype=images.dtype, device=images.device)
    if len(values) not in (1, images.shape[1]):
        raise InputError(
            f"value_range: expected black and white as one number or {images.shape[1]} (one per "
            f"channel), got {len(values)}"
        )
    return values.view(1, -1, 1, 1)


def _check_range(images: Tensor, blank: str, black: Tensor, white: Tensor) -> None:
    low, high = torch.minimum(black, white), torch.maximum(black, white)
    slack = 1e-3 * (high - low)
    if bool(((images < low - slack) | (images > high + slack)).any()):
        raise InputError(
            f"baseline {blank!r}: expected images within {_text(low)} to {_text(high)}, "
            f"got {images.min():.3g} to {images.max():.3g}; give black and white with "
            "value_range=(black, white), for normalised images "
            "value_range=black_and_white(mean=, std=), or give the colour as a number or tensor"
        )


def _text(level: Tensor) -> str:
    numbers = [f"{one:.3g}" for one in level.flatten().tolist()]
    return numbers[0] if len(numbers) == 1 else f"({', '.join(numbers)})"


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
