"""Type aliases of images, maps, masks and scores, with their shapes.

The axis words are always `b` (images), `c` (channels), `h w` (places), `heads`, `q` (queries) and
`k` (keys). The types document; only the tests check them at run time (jaxtyping and beartype).
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images: TypeAlias = Float[Tensor, "b c h w"]
"""A batch of images, floating point, in whatever range the model was trained on."""

Maps: TypeAlias = Float[Tensor, "b h w"]
"""One raw map per image: how much each place counts. Nothing is normalised."""

Masks: TypeAlias = Bool[Tensor, "b h w"]
"""Where the object is."""

Boxes: TypeAlias = Int[Tensor, "b 4"]
"""Boxes `[x0, y0, x1, y1)` in pixels, x1 and y1 exclusive; all zero where an image has none."""

Scores: TypeAlias = Float[Tensor, "b"]
"""One number per image, never averaged."""

Weights: TypeAlias = Float[Tensor, "b heads q k"]
"""Attention weights; each row (over `k`) sums to one unless the record states otherwise."""
