"""The record of one attention or one gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnviz.capture.sampling_points import SamplingPoints
from attnviz.display import html_of
from attnviz.errors import InputError
from attnviz.token_places import RecordPlaces

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Windows:
    """How windows lie on an image, for attention that stays within them.

    The weights' first axis holds `b · count` windows.

    Attributes:
        count: Windows per image.
        size: Height and width of a window, in tokens.
        grid: Height and width of the whole image, in places.
        cells: `(count, tokens)`, the place `y · w + x` of each token on the image; shift and
            dilation are undone, and −1 stands for padding.
        shift: By how many places the windows are shifted, down and to the right.
    """

    count: int
    size: Grid
    grid: Grid
    cells: Tensor
    shift: Grid = (0, 0)


@dataclass(frozen=True, slots=True)
class Leaf:
    """The tensor in the model's own graph that stands for a record's weights or scale.

    Attributes:
        tensor: What to differentiate by; for a fused kernel its output.
        read: From the gradient of that tensor to the gradient of the weights.
    """

    tensor: Tensor
    read: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """One attention or one gate, in one forward pass.

    Attributes:
        name: The module's dotted name; `name#0`, `name#1` where it was seen several times.
        kind: `"attention"` or `"gate"`.
        weights: Attention `(b, heads, q, k)`, `k` being the axis that meets the values; before
            dropout, and after an edit. None for linear attention and where `reduce=` dropped
            them. For windowed attention `b` holds images × windows, see `windows`.
        scale: A gate `(b, c, 1, 1)` (channel), `(b, 1, h, w)` (spatial), or as it multiplies.
        axis: For attention the axis word that sums to one: `"k"` where all is well, `"q"`,
            `"heads"` or `"b"` where it is another, None where none does. For a gate what it
            ranges over: `"channel"`, `"spatial"`, `"branch"`, `"rows"`, `"columns"`, `"image"`,
            `"element"`.
        heads: How many heads the model has (`weights` may hold the chosen ones only).
        query_grid: Height and width in places of the queries, None where unknown. Tokens need not
            lie row by row (see `places` and `row_grids`).
        key_grid: The same of the keys. Within windows both are the window's.
        prefix: Leading class and register tokens among queries and keys.
        how: `"fused"` (recomputed from q, k), `"qk"` (a softmax over q · k), `"direct"` (a
            softmax of something else), `"pooled"` (multiplied and summed), `"linear"` (no weights
            exist), `"unnormalised"` (q · k without a softmax), `"gate"`.
        exact: Whether the values are the model's own; recomputed ones are not.
        check: For recomputed weights the largest difference of A V from the kernel's output,
            relative to the largest output, on a few rows. None where it cannot be checked, and
            after a stream's first batch.
        source: `"file.py:123"`, the line of the model's source that attends or gates.
        op: The function that made the values: `"softmax"`, `"sigmoid"`, …
        module: The class of the module.
        softmax: Whether a softmax made the values.
        double_softmax: Whether the softmax ran on the result of another one.
        factor: By what the values were multiplied after their function; NaN for a tensor.
        mixed: Whether parameters mixed the heads after the softmax.
        dropout: Whether dropout followed; `weights` are from before it.
        logit_scale: What q · kᵀ was multiplied by before the softmax, None where not found.
        d_k: The width of queries and keys, None where not found.
        query: `(b, heads, q, d)` with `operands=True`, as they met in the product.
        key: `(b, heads, k, d)`, the same.
        value: `(b, heads, k, d)`, the same.
        windows: Where the windows lie, None for attention over the whole image.
        features: With `features=True`, what the gate multiplies, laid out as `scale` is.
        reduced: Results of `reduce=`, by name.
        images: How many images the model was given; None where not found.
        image: Their height and width; None where the model was not given images.
        path: The source file in full.
        origin: The dotted name of the module in which the function itself ran.
        shape: Of the weights or the scale, also where these were dropped.
        edited: Whether `edit=` replaced the values.
        leaf: With `keep_graph=True`, what to differentiate by; see `gradient`.
        note: Remarks.
        places: Which queries and keys are which places, where that is proven or was measured. Of a
            gate, as keys, the places of what it multiplies.
        points: Where the keys of deformable attention were sampled; None for all other.
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
    value: Tensor | None = None
    windows: Windows | None = None
    features: Tensor | None = None
    reduced: Mapping[str, Tensor] = field(default_factory=dict)
    images: int | None = None
    image: Grid | None = None
    path: str = ""
    origin: str = ""
    shape: tuple[int, ...] = ()
    edited: bool = False
    leaf: Leaf | None = None
    note: str = ""
    places: RecordPlaces | None = None
    points: SamplingPoints | None = None

    @property
    def row_sums(self) -> Tensor | None:
        """`(b, heads, q)`, what each row of the weights sums to; None without weights."""
        return None if self.weights is None else self.weights.sum(-1)

    @property
    def row_grids(self) -> tuple[Grid | None, Grid | None]:
        """`query_grid` and `key_grid`, each None where its tokens do not lie row by row.

        They lie so if tokens 0 to `prefix` are no places and the others are cells 0, 1, 2, …
        """
        grids = self.query_grid, self.key_grid
        if self.places is None or self.windows is not None:
            return grids
        sides = self.places.queries, self.places.keys
        lie = (one.row_by_row_from(self.prefix) for one in sides)
        query, key = (grid if plain else None for grid, plain in zip(grids, lie, strict=True))
        return query, key

    def _repr_html_(self) -> str:
        return html_of(self)

    def __repr__(self) -> str:
        what = "×".join(map(str, self.shape)) or "no weights"
        grid = f", grid {self.key_grid[0]}×{self.key_grid[1]}" if self.key_grid else ""
        return f"Record({self.name!r}, {self.kind} {what}, {self.axis}, {self.how}{grid})"

    def gradient(self, outputs: Tensor) -> Tensor:
        """`∂ Σ outputs / ∂ weights` (or `/ ∂ scale`), in the shape of the record.

        For a fused kernel it is `∂/∂O Vᵀ`, exact though the kernel never held the weights.

        Args:
            outputs: What to explain, with its graph; it is summed. Each image's entry depends on
                that image's weights only.

        Raises:
            InputError: The watch did not keep the graph, or the outputs do not depend on this.
        """
        return gradients([self], outputs)[0]

    def on_image(self, values: Tensor) -> Tensor:
        """Values per token of each window, laid onto the image that the windows were cut from.

        Args:
            values: `(b · count, …, tokens)`; leading tokens that are no places are left out.

        Returns:
            `(b, …, h, w)`, shift and padding undone; zero where no window lies.

        Raises:
            InputError: The record has no windows.
        """
        if self.windows is None:
            raise InputError(
                f"on_image: {self.name!r} has no windows; its keys lie on key_grid as they are"
            )
        count, (h, w) = self.windows.count, self.windows.grid
        values = values[..., values.shape[-1] - self.windows.cells.shape[1] :]
        values = values.unflatten(0, (-1, count)).movedim(1, -2).flatten(-2)
        cells = self.windows.cells.flatten().to(values.device)
        kept = cells >= 0
        out = torch.zeros((*values.shape[:-1], h * w), dtype=values.dtype, device=values.device)
        out[..., cells[kept]] = values[..., kept]
        laid: Tensor = out.unflatten(-1, (h, w))
        return laid


def changed(record: Record, **changes: Any) -> Record:
    """A copy with other values; ten times faster than `dataclasses.replace`, in a hot place."""
    copy = object.__new__(Record)
    copy.__dict__.update(record.__dict__, **changes)
    return copy


def gradients(records: Iterable[Record], outputs: Tensor) -> tuple[Tensor, ...]:
    """`∂ Σ outputs / ∂ weights` of several records, by one backward pass.

    Args:
        records: Records of a watch with `keep_graph=True`.
        outputs: What to explain, with its graph; it is summed.

    Returns:
        One tensor per record, in the shape of its weights or its scale.

    Raises:
        InputError: A record without a graph, or on which the outputs do not depend.
    """
    listed = list(records)
    leaves: list[Leaf] = []
    for record in listed:
        if record.leaf is None or not record.leaf.tensor.requires_grad:
            raise InputError(
                f"gradient: {record.name!r} has no graph; run the model with gradients enabled "
                "inside watch(model, keep_graph=True)"
            )
        leaves.append(record.leaf)
    if not outputs.requires_grad:
        raise InputError("gradient: expected outputs with their graph, got a tensor without one")
    slopes = torch.autograd.grad(
        outputs.sum(), [leaf.tensor for leaf in leaves], retain_graph=True, allow_unused=True
    )
    for record, slope in zip(listed, slopes, strict=True):
        if slope is None:
            raise InputError(
                f"gradient: the outputs do not depend on {record.name!r}; "
                "were they computed within the same watch?"
            )
    return tuple(leaf.read(slope) for leaf, slope in zip(leaves, slopes, strict=True))
