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
from attnviz.token_places import RecordPlaces

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


class Rows:
    """`(b, heads, rows, k)`: the rows of some queries; of a fused kernel no others are computed."""

    def __init__(self, *queries: int, name: str = "rows") -> None:
        self.chosen = queries
        self.__name__ = name

    def queries(self, count: int, name: str) -> list[int]:
        """The numbers of the rows to keep, of so many queries of a record of this name."""
        if max(self.chosen) >= count:
            raise InputError(f"reductions.rows: {name!r} has {count} queries, got {self.chosen}")
        return list(self.chosen)

    def __call__(self, record: Record) -> Tensor | None:
        """The rows of a record that has its weights."""
        if record.weights is None:
            return None
        return record.weights[..., self.queries(record.weights.shape[-2], record.name), :]


def rows(*queries: int) -> Reduction:
    """`(b, heads, len(queries), k)`: the rows of these queries, leading tokens counted."""
    return Rows(*queries)


class Steps(Rows):
    """The rows that `seen.steps` joins: of each forward pass that of the last query.

    In a model that generates, it is the row that the next token is predicted from. Memory grows
    with the number of generated tokens times the number of keys. Beside the rows, 64 bits per key
    are kept: the position of the key in the previous pass.

    Args:
        prompt: Further queries of the prompt to keep, by their number in the prompt; or a layout of
            `av.locate`, for all words of the prompt.
    """

    def __init__(self, prompt: Sequence[int] | Mapping[str, RecordPlaces] = ()) -> None:
        super().__init__(name="steps")
        self._words: dict[int, set[int]] = {}
        if isinstance(prompt, Mapping):
            for places in prompt.values():
                role = places.queries.role
                self._words.setdefault(len(role), set()).update(
                    i for i, one in enumerate(role) if one == "word"
                )
        else:
            self.chosen = tuple(prompt)

    def queries(self, count: int, name: str) -> list[int]:
        """The chosen rows of the prompt, in the pass that holds it, and the last row."""
        words = self._words.get(count, self.chosen)
        return sorted({n for n in words if n < count and count > 1} | {count - 1})


class StepQueries:
    """`(rows,)`: the numbers of the queries whose rows `Steps` keeps."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __call__(self, record: Record) -> Tensor | None:
        """Read from the shape alone."""
        if record.kind != "attention" or len(record.shape) != 4:
            return None
        return torch.tensor(self.steps.queries(record.shape[-2], record.name))


def key_codes(record: Record) -> Tensor | None:
    """`(b, k)`: 64 bits that identify each key vector, from the bits of its first head.

    A cache copies keys unchanged, so that equal codes in two passes are the same token.
    """
    if record.key is None:
        return None
    head = record.key[:, 0].detach().contiguous()
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(head.element_size())
    if whole is None:
        return None
    draw = torch.Generator().manual_seed(5)
    factor = torch.randint(2**62, (head.shape[-1],), generator=draw).to(head.device) | 1
    return (head.view(whole).long() * factor).sum(-1)  # whole numbers: exact in any order


class Columns:
    """`(b, heads, q)`: how much each query attends to one key."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.__name__ = f"column {key}"

    def __call__(self, record: Record) -> Tensor | None:
        """The column of a record that has its weights; None where there are fewer keys."""
        if record.weights is None or self.key >= record.weights.shape[-1]:
            return None
        return record.weights[..., self.key]


def columns(*keys: int) -> list[Reduction]:
    """`(b, heads, q)` for each of these keys, named `"column 5"`; for `key_map`."""
    return [Columns(key) for key in keys]


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
    queries, keys = record.row_grids
    if record.weights is None or queries is None or keys is None:
        return None
    weights = record.weights[..., record.prefix :, record.prefix :]
    if weights.shape[-2] != queries[0] * queries[1]:
        return None
    apart = _distances(queries, keys).to(weights)
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
"""Reductions with a name of their own; `"rollout"`, `"steps"` and `rows(3, 17)` are the others."""

Asked = str | Reduction | Iterable[str | Reduction] | Mapping[str, str | Reduction] | None


def read_reductions(reduce: Any) -> dict[str, Reduction]:
    """What the caller passed as `reduce=`, by name.

    Raises:
        InputError: An unknown name, or neither a name nor a function.
    """
    if reduce is None:
        return {}
    if isinstance(reduce, Mapping):
        named = {str(name): _read(value) for name, value in reduce.items()}
    else:
        listed: Sequence[Any] = (
            [reduce] if isinstance(reduce, str) or callable(reduce) else list(reduce)
        )
        named = {
            value if isinstance(value, str) else getattr(value, "__name__", f"reduction{i}"):
            _read(value) for i, value in enumerate(listed)
        }  # fmt: skip
    found: dict[str, Reduction] = {}
    for name, way in named.items():
        if isinstance(way, Steps):
            found |= {"steps": way, "steps.keys": key_codes, "steps.queries": StepQueries(way)}
        else:
            found[name] = way
    return found


def _read(value: Any) -> Reduction:
    if value == "rollout":
        return Rollout()
    if value == "steps":
        return Steps()
    if isinstance(value, str):
        if value not in NAMED:
            raise unknown_name("reduction", value, [*NAMED, "rollout", "steps"])
        return NAMED[value]
    if callable(value):
        reduction: Reduction = value
        return reduction
    raise InputError(f"reduce: expected a name or a function, got {type(value).__name__}")


BY_CHUNKS: dict[Any, str] = {received: "mean", entropy: "rows", class_row: "first"}
"""Reductions that can be computed a few queries at a time, and how their parts are joined."""


def parts(way: Reduction) -> str | None:
    """How parts of a reduction are joined; None where it needs all weights at once.

    `"apart"` is a reduction that reads no weights, or those of a few queries (`Rows`).
    """
    if isinstance(way, (Rows, StepQueries)) or way is key_codes:
        return "apart"
    return "rows" if isinstance(way, Columns) else BY_CHUNKS.get(way)


def reads_keys(ways: Iterable[Reduction]) -> bool:
    """Whether a reduction reads the keys themselves."""
    return key_codes in ways
