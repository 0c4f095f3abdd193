"""Maps and masks for the tests: plain, smooth and nasty."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NASTY = (0.0, -0.0, 1.0, -1.0, 0.5, 0.25, 1e-3, -7.0, 1e4, 6e-5)
EXTREME = (*NASTY, 3e38, -3e38, 1e-45, 1.7e308, -1.7e308, 5e-324)


def boxes(count: int, size: int = 96, side: int = 16, seed: int = 0) -> Tensor:
    """Square masks at random places, (count, size, size)."""
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    corners = torch.randint(
        0, size - side + 1, (count, 2), generator=torch.Generator().manual_seed(seed)
    )
    for mask, (y, x) in zip(masks, corners.tolist(), strict=True):
        mask[y : y + side, x : x + side] = True
    return masks


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def pairs(
    draw: Any, *, broken: bool = False, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> tuple[Tensor, Tensor]:
    """Maps of few distinct values, so with ties, and masks of any kind, both (b, h, w)."""
    b, h, w = draw(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)))
    dtype = draw(st.sampled_from(dtypes))
    known = EXTREME if dtype == torch.float64 else EXTREME[:-3]
    pool = draw(st.sampled_from([NASTY, known if dtype.itemsize >= 4 else NASTY]))
    pool = (*pool, np.nan, np.inf, -np.inf) if broken else pool
    size = b * h * w
    values = draw(st.lists(st.sampled_from(pool), min_size=size, max_size=size))
    labels = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    maps = torch.tensor(values, dtype=torch.float64).to(dtype)
    return maps.reshape(b, h, w), torch.tensor(labels).reshape(b, h, w)
