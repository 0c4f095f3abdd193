"""Conversion between image bytes and the reference models' input range, −1 to 1."""

from __future__ import annotations

from torch import Tensor


def as_input(pixels: Tensor) -> Tensor:
    """Bytes as float32: 0 is −1, 255 is 1; any shape."""
    return pixels.float() / 127.5 - 1


def as_bytes(images: Tensor) -> Tensor:
    """The nearest bytes, clipped to [−1, 1]; any shape."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()
