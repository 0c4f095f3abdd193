"""Reductions of attention weights, computed while the model runs.

A thousand images of 4 × 576 × 576 weights are 5 GB, and what each place receives is 9 MB. A
reduction is a function of a record that still has its weights, and returns a tensor, or None where
it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attnviz.capture.record import Record
from attnviz.errors import InputError, unknown_name

Reduction = Callable[[Record], Tensor | None]


def received(record: Record) -> Tensor | None:
    """`(b, heads, k)`: how much attention each key gets, the mean of its column."""
    if record.weights is None:
        return None
    weights = record.weights
    q = weights.shape[-2]
    # a product with ones reads the weights once and is several times faster than a strided sum
    ones = torch.full((1, q), 1 / q, dtype=weights.dtype, device=weights.device)
    return (ones @ weights).squeeze(-2)


def class_row(record: Record) -> Tensor | None:
    """`(b, heads, k)`: the first query's row, which is the class token's where there is one."""
    return None if record.weights is None else record.weights[..., 0, :]


def rows(*queries: int) -> Reduction:
    """`(b, heads, len(queries), k)`: the rows of these queries, leading tokens counted."""

    def reduce(record: Record) -> Tensor | None:
        if record.weights is None:
            return None
        if max(queries) >= record.weights.shape[-2]:
            raise InputError(
                f"reductions.rows: {record.name!r} has {record.weights.shape[-2]} queries, "
                f"got {queries}"
            )
        return record.weights[..., list(queries), :]

    reduce.__name__ = "rows"
    return reduce


def head_mean(record: Record) -> Tensor | None:
    """`(b, q, k)`: the mean over heads."""
    return None if record.weights is None else record.weights.mean(1)


def entropy(record: Record) -> Tensor | None:
    """`(b, heads, q)`: how spread each row is, `−Σ a ln a`, in nats; 0 to `ln k`."""
    return None if record.weights is None else torch.special.entr(record.weights).sum(-1)


def distance(record: Record) -> Tensor | None:
    """`(b, heads, q)`: the mean distance from each place to its keys, in places.

    `Σ_k a_k ‖p_q − p_k‖` over the keys that are places, their weights made to sum to one
    (Dosovitskiy et al. 2021, appendix D.7). None where queries or keys have no known grid.
    """
    if record.weights is None or record.query_grid is None or record.key_grid is None:
        return None
    weights = record.weights[..., record.prefix :, record.prefix :]
    if weights.shape[-2] != record.query_grid[0] * record.query_grid[1]:
        return None
    apart = _distances(record.query_grid, record.key_grid).to(weights)
    total = weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
    return (weights * apart).sum(-1) / total


def _distances(queries: tuple[int, int], keys: tuple[int, int]) -> Tensor:
    """`(q, k)`, in places of the queries' grid, pixel centres aligned."""
    step = (queries[0] / keys[0], queries[1] / keys[1])
    y, x = (torch.arange(n) + 0.5 for n in queries)
    v, u = ((torch.arange(n) + 0.5) * s for n, s in zip(keys, step, strict=True))
    place = torch.cartesian_prod(y, x).view(-1, 2)
    return torch.cdist(place, torch.cartesian_prod(v, u).view(-1, 2))


class Rollout:
    """Attention followed through the layers of one forward pass: `R ← ½(A + I) R`.

    The last record that took part holds the product `(b, n, n)` of all of them, heads averaged
    (Abnar and Zuidema 2020). A layer with other tokens starts anew.
    """

    __name__ = "rollout"

    def __init__(self) -> None:
        self.flow: Tensor | None = None

    def __call__(self, record: Record) -> Tensor | None:
        """Add a layer; None where it has no n × n weights."""
        weights = record.weights
        if weights is None or weights.shape[-1] != weights.shape[-2] or weights.shape[-1] == 1:
            return None
        layer = weights.mean(1)
        layer.diagonal(dim1=-2, dim2=-1).add_(1)
        layer /= layer.sum(-1, keepdim=True)
        if self.flow is not None and self.flow.shape == layer.shape:
            layer = layer @ self.flow
        self.flow = layer
        return layer

    def reset(self) -> None:
        """Start a new forward pass."""
        self.flow = None


NAMED: dict[str, Reduction] = {
    "received": received,
    "class_row": class_row,
    "head_mean": head_mean,
    "entropy": entropy,
    "distance": distance,
}
"""Reductions that have a name; `"rollout"` and `rows(3, 17)` are the others."""

Asked = str | Reduction | Iterable[str | Reduction] | Mapping[str, str | Reduction] | None


def read_reductions(reduce: Any) -> dict[str, Reduction]:
    """What the caller passed as `reduce=`, by name.

    Raises:
        InputError: An unknown name, or neither a name nor a function.
    """
    if reduce is None:
        return {}
    if isinstance(reduce, Mapping):
        return {str(name): _read(value) for name, value in reduce.items()}
    listed: Sequence[Any] = (
        [reduce] if isinstance(reduce, str) or callable(reduce) else list(reduce)
    )
    return {
        value if isinstance(value, str) else getattr(value, "__name__", f"reduction{i}"):
        _read(value) for i, value in enumerate(listed)
    }  # fmt: skip


def _read(value: Any) -> Reduction:
    if value == "rollout":
        return Rollout()
    if isinstance(value, str):
        if value not in NAMED:
            raise unknown_name("reduction", value, [*NAMED, "rollout"])
        return NAMED[value]
    if callable(value):
        reduction: Reduction = value
        return reduction
    raise InputError(f"reduce: expected a name or a function, got {type(value).__name__}")


BY_CHUNKS: dict[Any, str] = {received: "mean", entropy: "rows", class_row: "first"}
"""Reductions that can be computed a few queries at a time, and how their parts are joined."""
