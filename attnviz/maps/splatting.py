"""Weights of sampling points as maps: what bilinear sampling reads of each place."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from attnviz.capture import SamplingPoints
from attnviz.errors import InputError
from attnviz.maps.geometry import Grid, Interpolation, resized
from attnviz.maps.single_record import Heads

_MODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}


def splatted(
    weights: Tensor,
    at: Tensor,
    points: SamplingPoints,
    heads: Heads,
    interpolation: Interpolation,
    name: str,
) -> Tensor:
    """Maps `(b, n, [heads,] h, w)` of some queries, on the grid of the finest level.

    `M_l[place] = Σ_p a_p ∂ sample(v, p) / ∂ v[place]` for each level `l`, exact since sampling is
    linear in the values `v`; then `M = Σ_l M_l`, each spread over the finest grid.

    Args:
        weights: `(b, heads, n, k)`.
        at: `(b, heads, n, k, axes)`, the points of these queries.
        points: Their levels, and how values were read.
        heads: `"mean"`, `"each"`, or one head's number.
        interpolation: How a level is brought to the finest grid.
        name: The record's, for errors.

    Raises:
        InputError: There is no such head.
    """
    b, count, n, _ = weights.shape
    if heads != "mean" and heads != "each":
        if not isinstance(heads, int) or not -count <= heads < count:
            raise InputError(
                f"heads: expected 'mean', 'each' or a number below {count} for {name}, got "
                f"{heads!r}"
            )
        weights, at = weights[:, [heads]], at[:, [heads]]
    axes = at.shape[-1]
    each = weights.transpose(1, 2).float()  # (b, n, heads, k)
    where = at.transpose(1, 2).float()
    level = torch.tensor(points.level)
    finest = max(points.sides, key=prod)
    total = None
    for number, sides in enumerate(points.sides):
        own = (level == number).nonzero()[:, 0].to(each.device)
        drawn = _read(each[..., own].flatten(0, 2), where[..., own, :].flatten(0, 2), sides, points)
        drawn = drawn.view(b, n, -1, *sides)
        drawn = drawn.mean(2) if heads != "each" else drawn
        share = prod(sides) / prod(finest)
        drawn = drawn if sides == finest else resized(drawn, finest, interpolation) * share
        total = drawn if total is None else total + drawn
    assert total is not None  # there is at least one level
    assert axes == len(finest)
    return total


def _read(weights: Tensor, at: Tensor, sides: Grid, points: SamplingPoints) -> Tensor:
    """`(m, *sides)`: the gradient of weighted samples by the values that they were read from."""
    m, k = weights.shape
    axes = len(sides)
    ones = (1,) * (axes - 1)
    values = weights.new_zeros(1).expand(m, 1, *sides)
    grid = (2 * at - 1).view(m, *ones, k, axes)
    backward: Any = getattr(torch.ops.aten, f"grid_sampler_{axes}d_backward")
    made: Tensor = backward(
        weights.reshape(m, 1, *ones, k).contiguous(), values, grid,
        _MODES[points.mode], _PADDINGS[points.padding], False, [True, False],
    )[0]  # fmt: skip
    return made[:, 0]
