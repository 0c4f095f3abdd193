"""Sampling points of deformable attention: the keys of a query that were read off feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class SamplingPoints:
    """Where each key of a deformable attention was sampled.

    Attributes:
        at: `(b, heads, q, k, axes)`, x and y of each key, with volumes z, as shares of the width
            and the height of the model's input, padding included: 0 is its left and upper edge, 1
            the other one. Points may lie outside.
        level: For each of the `k` keys, which feature map it was sampled from.
        sides: The sides of these feature maps, `(h, w)` or `(d, h, w)`.
        filled: `(b, levels, axes)`, the share of each feature map, in the order of `at`, behind
            which an image's values are zero: below one where images were padded and masked.
        mode: How values between cells were read: `"bilinear"`, `"nearest"` or `"bicubic"`.
        padding: What was read outside of a map: `"zeros"`, `"border"` or `"reflection"`.
    """

    at: Tensor
    level: tuple[int, ...]
    sides: tuple[tuple[int, ...], ...]
    filled: Tensor | None = None
    mode: str = "bilinear"
    padding: str = "zeros"

    def moved(self, move: Callable[[Tensor], Tensor]) -> SamplingPoints:
        """The same on another device or in another type."""
        filled = None if self.filled is None else move(self.filled)
        return replace(self, at=move(self.at), filled=filled)

    def of_heads(self, heads: Sequence[int]) -> SamplingPoints:
        """The points of some heads."""
        return replace(self, at=self.at[:, list(heads)])
