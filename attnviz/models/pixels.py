"""Between the bytes of a picture and what the reference models take, from −1 to 1."""

from __future__ import annotations

from torch import Tensor


def as_input(pixels: Tensor) -> Tensor:
    """Bytes as float32: 0 is −1, 255 is 1; any shape."""
    return pixels.float() / 127.5 - 1


def as_bytes(images: Tensor) -> Tensor:
    """The nearest bytes, what lies outside [−1, 1] cut; any shape."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()
