"""The axes that a gate ranges over, and one layout for all memory formats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from attnviz.capture.lineage import Labels
from attnviz.capture.record import Grid
from attnviz.capture.sampled_rows import SampledRows, sampled_rows


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How a gate's axes are to be read.

    Attributes:
        axis: `"channel"`, `"spatial"`, `"rows"`, `"columns"`, `"branch"`, `"image"`, `"element"`.
        shape: What the gate multiplies: its sizes, 1 along which the gate is repeated.
        order: These axes in the order (b, c, places …).
        grid: Height and width into which a single axis of tokens unfolds, None if it does not.
    """

    axis: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    grid: Grid | None = None

    def present(self, gate: Tensor) -> Tensor:
        """The gate as `(b, c, 1, 1)`, `(b, 1, h, w)`, or with all its axes."""
        gate = gate.reshape(*(1,) * (len(self.shape) - gate.dim()), *gate.shape)
        for i, size in enumerate(self.shape):
            if size == 1 and gate.shape[i] > 1:
                gate = gate.narrow(i, 0, 1)
        return self.arrange(gate)

    def gather(self, gradient: Tensor) -> Tensor:
        """The gradient of an expanded gate, summed over what was expanded, as presented."""
        lead = len(self.shape) - gradient.dim()
        gradient = gradient.reshape(*(1,) * lead, *gradient.shape)
        for i, size in enumerate(self.shape):
            if size == 1 and gradient.shape[i] > 1:
                gradient = gradient.sum(i, keepdim=True)
        return self.arrange(gradient)

    def arrange(self, x: Tensor) -> Tensor:
        """Axes in the order (b, c, places …), four at least."""
        x = x.permute(self.order)
        if self.grid is not None:
            x = x.unflatten(-1, self.grid) if x.shape[-1] > 1 else x.unsqueeze(-1)
        while x.dim() < 4:
            x = x.unsqueeze(-1)
        return x

    def restore(self, scale: Tensor, like: Tensor) -> Tensor:
        """A scale as presented, in the gate's own shape."""
        x = scale.reshape([self.shape[i] for i in self.order])
        x = x.permute([self.order.index(i) for i in range(len(self.order))])
        return x.reshape(x.shape[len(self.shape) - like.dim() :]).expand_as(like)


def arrange(gate: Tensor, other: Tensor, repeated: list[int], labels: Labels) -> Arrangement:
    """Read a gate against what it multiplies.

    Features are `(b, c, places …)`, or `(b, places …, c)` where their places were followed there,
    or where the gate ranges over the last axis alone.

    Args:
        gate: The gate.
        other: The features.
        repeated: The axes of the features along which the gate is repeated.
        labels: Where the features lie, as far as that was followed.
    """
    shape = spanned(gate, other, repeated)
    varies = {i for i in range(1, other.dim()) if shape[i] > 1}
    dims = other.dim()
    if dims == 3:
        return _tokens(shape, varies, labels)
    last = _channels_last(varies, tuple(other.shape), labels)
    order = (0, dims - 1, *range(1, dims - 1)) if last else tuple(range(dims))
    return Arrangement(_axis({order.index(i) for i in varies}, dims), shape, order)


def spanned(gate: Tensor, other: Tensor, repeated: list[int]) -> tuple[int, ...]:
    """The sizes of what a gate multiplies, 1 along which the gate is repeated."""
    lead = other.dim() - gate.dim()
    return tuple(
        1 if i in repeated or i < lead else gate.shape[i - lead] for i in range(other.dim())
    )


def _axis(varies: set[int], dims: int) -> str:
    if not varies:
        return "image"
    if varies == {1}:
        return "channel"
    if dims == 5 and 1 in varies and varies <= {1, 2}:
        return "branch"
    if 1 in varies and len(varies) == dims - 1:
        return "element"
    if 1 not in varies and len(varies) == dims - 2:
        return "spatial"
    return "rows" if dims - 1 not in varies else "columns"


def _channels_last(varies: set[int], shape: tuple[int, ...], labels: Labels) -> bool:
    last = len(shape) - 1
    if varies == {last}:
        placed = any(one.along(last) and not one.space.raw for one in labels)
        return shape[1] != 1 and not placed
    if varies == {1}:
        return False
    return any(one.along(1) and not one.along(last) for one in labels)


def _tokens(shape: tuple[int, ...], varies: set[int], labels: Labels) -> Arrangement:
    """`(b, tokens, c)`, or `(b, c, tokens)` where places lie there, or only channels vary."""
    told = next((2 if one.along(2) else 1 for one in labels if one.along(1) ^ one.along(2)), None)
    tokens = told or (2 if varies == {1} else 1)
    order = (0, 1, 2) if tokens == 2 else (0, 2, 1)
    axis = "channel" if varies == {3 - tokens} else "spatial" if varies == {tokens} else "element"
    return Arrangement(axis if varies else "image", shape, order, _unfolded(labels, tokens))


def _unfolded(labels: Labels, axis: int) -> Grid | None:
    """The grid that a single axis of tokens holds, row by row; None where it does not."""
    for one in labels:
        grid, numbers = one.space.grid, one.numbers.ravel()
        if one.along(axis) and len(grid) == 2 and prod(grid) == numbers.size:
            return (grid[0], grid[1]) if (numbers == range(numbers.size)).all() else None
    return None


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a softmax over places is to be read when it multiplies and a sum follows.

    Attributes:
        shape: What it multiplies: its sizes, 1 along which the weights are repeated.
        keys: The axes that sum to one.
        rest: The others, images first.
        sampled: Of deformable attention, whose queries have keys of their own; None where each
            image, or head, is pooled as a whole.
    """

    shape: tuple[int, ...]
    keys: tuple[int, ...]
    rest: tuple[int, ...]
    sampled: SampledRows | None = None

    def of_queries(self, labels: Labels, batch: int, images: int | None) -> Pooling:
        """The same for values at sampling points; see `sampled_rows`."""
        order = (*self.rest, *self.keys)
        rows = sampled_rows(labels, self.shape, order, len(self.keys), batch, images)
        return replace(self, sampled=rows)

    def present(self, weights: Tensor) -> Tensor:
        """`(b, heads, 1, k)`, or `(b, heads, q, k)` where queries have keys of their own."""
        x = weights.reshape(*(1,) * (len(self.shape) - weights.dim()), *weights.shape)
        for i, size in enumerate(self.shape):
            if size == 1 and x.shape[i] > 1:
                x = x.narrow(i, 0, 1)
        x = x.permute(*self.rest, *self.keys)
        x = x.flatten(len(self.rest))
        if self.sampled is not None:
            return self.sampled.present(x.flatten(0, -2))
        return x.reshape(x.shape[0], -1, 1, x.shape[-1])

    def restore(self, weights: Tensor, like: Tensor) -> Tensor:
        """Weights as presented in their own shape."""
        order = (*self.rest, *self.keys)
        weights = weights if self.sampled is None else self.sampled.restore(weights)
        x = weights.reshape([self.shape[i] for i in order])
        x = x.permute([order.index(i) for i in range(len(order))])
        return x.reshape(x.shape[len(self.shape) - like.dim() :]).expand_as(like)


def pooling(
    weights: Tensor, other: Tensor, repeated: list[int], axis: int | None, size: int
) -> Pooling | None:
    """Read softmax weights against what they multiply; None where their axis is not among these."""
    shape, lead = spanned(weights, other, repeated), other.dim() - weights.dim()
    if axis is not None:
        keys: tuple[int, ...] = (axis + lead,)
    else:
        keys = _run(shape, size)
    if not keys:
        return None
    return Pooling(shape, keys, tuple(i for i in range(other.dim()) if i not in keys))


def _run(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Neighbouring axes, two or more, that hold an axis of this size between them."""
    for first in range(1, len(shape)):
        n = 1
        for last in range(first, len(shape)):
            n *= shape[last]
            if n == size and last > first and size > 1:
                return tuple(range(first, last + 1))
    return ()
