"""What was seen of one attention or one gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnviz.errors import InputError

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Windows:
    """How windows lie on an image, for attention that stays within them.

    The weights' first axis holds `b · count` windows. `cells` says where the tokens of each window
    lie on the `grid`; it already contains padding and shift.

    Attributes:
        count: Windows per image.
        size: Height and width of a window, in places.
        grid: Height and width of the whole image, in places.
        cells: `(count, tokens)`, the place `y · w + x` of each token, −1 where it is padding.
        shift: By how many places the windows are shifted.
    """

    count: int
    size: Grid
    grid: Grid
    cells: Tensor
    shift: Grid = (0, 0)


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """One attention or one gate, seen once.

    Attributes:
        name: The module's dotted name; `name#0`, `name#1` where it was seen several times.
        kind: `"attention"` or `"gate"`.
        weights: Attention `(b, heads, q, k)`, `k` being the axis that meets the values; before
            dropout. None for linear attention, and where `reduce=` dropped them. For windowed
            attention `b` holds images × windows, see `windows`.
        scale: A gate `(b, c, 1, 1)` (channel), `(b, 1, h, w)` (spatial), or as it multiplies.
        axis: For attention the axis word that sums to one: `"k"` where all is well, `"q"`,
            `"heads"` or `"b"` where it is another, None where none does. For a gate what it
            ranges over: `"channel"`, `"spatial"`, `"branch"`, `"rows"`, `"columns"`, `"element"`.
        heads: How many heads the model has (`weights` may hold the chosen ones only).
        query_grid: Height and width in places of the queries, None where unknown.
        key_grid: The same of the keys.
        prefix: Leading class and register tokens among queries and keys.
        how: `"fused"` (recomputed from q, k), `"qk"` (a softmax over q · k), `"direct"` (a
            softmax of something else), `"pooled"` (multiplied and summed), `"linear"` (no weights
            exist), `"unnormalised"` (q · k without a softmax), `"gate"`.
        exact: Whether the values are the model's own; recomputed ones are not.
        check: For recomputed weights the largest difference of A V from the kernel's output,
            relative to the largest output, on a few rows. None where it cannot be checked.
        source: `"file.py:123"` in the model's source.
        op: The function that made the values: `"softmax"`, `"sigmoid"`, …
        module: The class of the module.
        softmax: Whether a softmax made the weights.
        double_softmax: Whether the softmax ran on the result of another one.
        factor: By what the weights were multiplied after the softmax.
        mixed: Whether parameters mixed the heads after the softmax.
        dropout: Whether dropout followed; `weights` are from before it.
        logit_scale: What q · kᵀ was multiplied by before the softmax, None where not found.
        d_k: The width of queries and keys, None where not found.
        row_sums: `(b, heads, q)` sums over `k`, None without weights.
        query: `(b, heads, q, d)` with `operands=True`, None otherwise or where not found.
        key: `(b, heads, k, d)`, the same.
        windows: Where the windows lie, None for attention over the whole image.
        features: What the gate multiplies, where asked for.
        reduced: Results of `reduce=`, by name.
        images: How many images the model was given; None where not found.
        path: The source file in full.
        note: What else there is to say.
    """

    name: str
    kind: str
    weights: Tensor | None = None
    scale: Tensor | None = None
    axis: str | None = None
    heads: int = 1
    query_grid: Grid | None = None
    key_grid: Grid | None = None
    prefix: int = 0
    how: str = ""
    exact: bool = True
    check: float | None = None
    source: str = ""
    op: str = ""
    module: str = ""
    softmax: bool = True
    double_softmax: bool = False
    factor: float = 1.0
    mixed: bool = False
    dropout: bool = False
    logit_scale: float | None = None
    d_k: int | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    windows: Windows | None = None
    features: Tensor | None = None
    reduced: Mapping[str, Tensor] = field(default_factory=dict)
    images: int | None = None
    path: str = ""
    origin: str = ""
    shape: tuple[int, ...] = ()
    note: str = ""

    @property
    def row_sums(self) -> Tensor | None:
        """`(b, heads, q)`, what each row of the weights sums to."""
        return None if self.weights is None else self.weights.sum(-1)

    def __repr__(self) -> str:
        what = tuple(self.shape) or ("reduced" if self.reduced else "no weights")
        grid = f", grid={self.key_grid[0]}×{self.key_grid[1]}" if self.key_grid else ""
        return f"Record({self.name!r}, {self.kind}, {what}, {self.axis}, {self.how}{grid})"

    def on_image(self, values: Tensor) -> Tensor:
        """Values per key, window by window, laid onto the image they came from.

        Args:
            values: `(b · count, …, tokens)`, one value per token of each window.

        Returns:
            `(b, …, h, w)`; the windows lie where they were cut out, shift and padding undone.

        Raises:
            InputError: The record has no windows.
        """
        if self.windows is None:
            raise InputError(f"{self.name!r} is not windowed: its values need no mapping back")
        count, (h, w) = self.windows.count, self.windows.grid
        values = values.unflatten(0, (-1, count)).movedim(1, -2).flatten(-2)
        cells = self.windows.cells.flatten().to(values.device)
        kept = cells >= 0
        out = torch.zeros((*values.shape[:-1], h * w), dtype=values.dtype, device=values.device)
        out[..., cells[kept]] = values[..., kept]
        return out.unflatten(-1, (h, w))
