"""A vision transformer small enough to train on a CPU in a minute."""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from attnviz.errors import InputError
from attnviz.layers import Attend

GRID = 12
"""Places in a row of a 96 × 96 image, which the learned positions are made for."""


class VisionTransformer(nn.Module):
    """A convolutional stem, a class token, pre-norm blocks, one logit (Dosovitskiy et al. 2021).

    The stem's three strided convolutions (Xiao et al. 2021) overlap, so that a thousand images are
    enough to train it from nothing; an eighth of the image's side is a row of tokens. Positions are
    learned, and resized bilinearly for images of another size.

    Args:
        width: Of a token.
        depth: How many blocks.
        heads: Of each block; they divide the width.
        expansion: How many times wider a block's hidden layer is than a token.
    """

    def __init__(
        self, *, width: int = 64, depth: int = 3, heads: int = 4, expansion: int = 2
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads or width % 4:
            raise InputError(
                "VisionTransformer: expected a width that heads and 4 divide, "
                f"got {width} and {heads} heads"
            )
        if depth < 1:
            raise InputError(f"VisionTransformer: expected 1 block or more, got {depth}")
        self.features = _stem(width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, width, GRID, GRID))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, expansion) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """The logit that there is a patch, one per image."""
        features = self.features(images)
        places = (features + self._positions(features)).flatten(2).mT
        tokens = self.blocks(torch.cat([self.class_token.expand(len(places), -1, -1), places], 1))
        logits: Tensor = self.head(self.norm(tokens[:, 0]))[:, 0]
        return logits

    def _positions(self, features: Tensor) -> Tensor:
        grid = features.shape[2:]
        if grid == (GRID, GRID):
            return self.positions
        return F.interpolate(self.positions, grid, mode="bilinear", align_corners=False)


class Block(nn.Module):
    """Attention between tokens, then a layer within each; a norm before both, residuals around.

    Args:
        width: Of a token.
        heads: How many.
        expansion: How many times wider the hidden layer is.
    """

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attend = Attend()
        self.project = nn.Linear(width, width)
        self.within = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, expansion * width),
            nn.GELU(),
            nn.Linear(expansion * width, width),
        )

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Apply self-attention, then the MLP."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.norm_attention(tokens)).chunk(3, dim=2)
        )
        tokens = tokens + self.project(self.attend(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = tokens + self.within(tokens)
        return out


def _stem(width: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for number, wide in enumerate((width // 4, width // 2, width), 1):
        layers[f"conv{number}"] = nn.Conv2d(channels, wide, 3, stride=2, padding=1)
        layers[f"norm{number}"] = nn.BatchNorm2d(wide)
        layers[f"act{number}"] = nn.ReLU()
        channels = wide
    return nn.Sequential(layers)
