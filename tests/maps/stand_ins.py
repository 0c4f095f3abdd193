"""Small records to make maps of, without a model and without a watch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class StandIn:
    """What a map asks of a record, and nothing else."""

    name: str = "block.attn"
    kind: str = "attention"
    weights: Tensor | None = None
    scale: Tensor | None = None
    prefix: int = 0
    query_grid: tuple[int, int] | None = None
    key_grid: tuple[int, int] | None = None
    features: Tensor | None = None
    reduced: dict[str, Any] = field(default_factory=dict)


def attention(
    b=2, heads=3, grid=(3, 5), prefix=0, seed=0, dtype=torch.float32, sharp=2.0
) -> StandIn:
    """A record of random attention on a grid that is not square."""
    n = prefix + grid[0] * grid[1]
    scores = torch.randn(b, heads, n, n, generator=torch.Generator().manual_seed(seed))
    weights = (2 * scores).softmax(-1).to(dtype)
    return StandIn(weights=weights, prefix=prefix, query_grid=grid, key_grid=grid)


def gate(kind="channel", b=2, c=4, grid=(3, 5), seed=0) -> StandIn:
    """A record of a random gate, and the features that it multiplies."""
    draw = torch.Generator().manual_seed(seed)
    shape = (b, c, 1, 1) if kind == "channel" else (b, 1, *grid)
    scale = torch.rand(shape, generator=draw)
    features = torch.randn(b, c, *grid, generator=draw)
    return StandIn(name="block.gate", kind="gate", scale=scale, features=features)
