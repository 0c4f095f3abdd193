"""Maps that read one record's weights: columns, rows, and heads taken together.

Throughout, `A` is `(b, heads, q, k)` with rows that sum to one, and `p` is the number of leading
class and register tokens. Queries are counted with them, keys are drawn without them: what a map
shows is attention to places, and its sum falls short of one by what the leading tokens took.
Attention within windows (Swin) is laid back onto the image: each window's own values lie where the
window was cut out, and a row of one place is zero outside that place's window.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnviz.errors import InputError
from attnviz.maps.constructions import construction
from attnviz.maps.geometry import (
    Attention,
    Grid,
    Interpolation,
    as_maps,
    key_grid,
    name_of,
    prefix_of,
    query_grid,
    reduced_of,
    resized,
    weights_of,
    windows_of,
)
from attnviz.shapes import Maps

Heads: TypeAlias = Literal["mean", "each"] | int
"""`"mean"` over heads → `(b, h, w)`; `"each"` → `(b, heads, h, w)`; a number → that head alone."""


@construction(
    title="attention received",
    meaning="mean over queries",
    subject="attention",
    primary=lambda record: not has_class_token(record),
    reduce="received",
    per_head=True,
)
def received(
    record: Attention,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    heads: Heads = "mean",
    grid: Grid | None = None,
    prefix: int | None = None,
) -> Float[Tensor, "b *heads h w"]:
    """How much attention each place gets: the mean of its column.

    `M[k] = mean_q A[q, k]` over all queries, class and register tokens among them. A record that
    was watched with `reduce="received"` is read from its reduced values.

    Args:
        record: An attention record, or weights `(b, heads, q, k)`.
        size: `(h, w)` of the map; None keeps the keys' grid.
        interpolation: How it is resized: `bilinear` (pixel centres aligned), `nearest`, `bicubic`.
        heads: `"mean"`, `"each"`, or one head's number.
        grid: The keys' `(h, w)`, where the record does not know it.
        prefix: The number of leading tokens that are no places, where the record does not know it.

    Returns:
        `(b, h, w)`, or `(b, heads, h, w)` for `heads="each"`; raw float32, 0 to 1.

    Raises:
        InputError: A gate, no weights, an unknown grid, or one that does not fit.
    """
    columns = reduced_of(record).get("received")
    if columns is None or isinstance(record, Tensor):
        columns = weights_of(record).mean(2)
    elif columns.ndim == 2:
        columns = columns[:, None]
    return _drawn(record, columns, size, interpolation, heads, grid, prefix)


def query_row(
    record: Attention,
    place: tuple[int, int] | Int[Tensor, "b 2"],
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    heads: Heads = "mean",
    grid: Grid | None = None,
    prefix: int | None = None,
) -> Float[Tensor, "b *heads h w"]:
    """Where one place looks: its row of the weights, `M[k] = A[place, k]`.

    Args:
        record: An attention record, or weights `(b, heads, q, k)`.
        place: `(y, x)` on the queries' grid for all images, or `(b, 2)` of them, one per image.
        size: `(h, w)` of the map; None keeps the keys' grid.
        interpolation: How it is resized.
        heads: `"mean"`, `"each"`, or one head's number.
        grid: `(h, w)` of queries and keys, where the record does not know it.
        prefix: The number of leading tokens, where the record does not know it.

    Returns:
        `(b, h, w)`, or `(b, heads, h, w)` for `heads="each"`; raw float32, 0 to 1.

    Raises:
        InputError: As `received`, and a place outside the grid.
    """
    h, w = _queries(record, grid, prefix)
    b = _images(record)
    places = torch.as_tensor(place).cpu().expand(b, 2)
    if bool(((places < 0) | (places >= torch.tensor([h, w]))).any()):
        raise InputError(
            f"query_row: expected places (y, x) inside the {h} × {w} grid of queries, "
            f"got {places.tolist()[:4]}; a pixel's place is pixel · grid // image size"
        )
    index = places[:, 0] * w + places[:, 1]
    if windows_of(record) is None:
        rows = weights_of(record)[torch.arange(b), :, prefix_of(record, prefix) + index]
    else:
        chosen = torch.zeros(b, h * w).scatter_(1, index[:, None], 1.0)
        rows = _weighed(record, chosen, prefix)
    return _drawn(record, rows, size, interpolation, heads, grid, prefix)


def rows_inside(
    record: Attention,
    masks: Bool[Tensor, "b H W"],
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    outside: bool = False,
    heads: Heads = "mean",
    grid: Grid | None = None,
    prefix: int | None = None,
) -> Float[Tensor, "b *heads h w"]:
    """Where the places inside a mask look, on average; `outside=True` for all the others.

    `M[k] = Σ_q m_q A[q, k] / Σ_q m_q`, where `m_q` is the share of query `q`'s cell that the mask
    covers (an area mean of the mask over the queries' grid), or one minus it for `outside`.

    Args:
        record: An attention record, or weights `(b, heads, q, k)`.
        masks: `(b, H, W)` boolean, at the image's size or any other of at least the grid's.
        size: `(h, w)` of the map; None keeps the keys' grid.
        interpolation: How it is resized.
        outside: Average the rows of the places outside the mask.
        heads: `"mean"`, `"each"`, or one head's number.
        grid: `(h, w)` of queries and keys, where the record does not know it.
        prefix: The number of leading tokens, where the record does not know it.

    Returns:
        `(b, h, w)`, or `(b, heads, h, w)` for `heads="each"`; raw float32, 0 to 1. NaN for an
        image whose mask leaves no row to average.

    Raises:
        InputError: As `received`, and masks of another number of images.
    """
    if len(masks) != _images(record):
        raise InputError(
            f"rows_inside: expected one mask per image, "
            f"got {len(masks)} masks for {_images(record)} images"
        )
    queries = _queries(record, grid, prefix)
    covered = F.adaptive_avg_pool2d(masks.float()[:, None], queries).flatten(1)
    share = 1 - covered if outside else covered
    # 0/0 is the answer that is wanted: an average over no rows is not a number.
    rows = _weighed(record, share / share.sum(1, keepdim=True), prefix)
    return _drawn(record, rows, size, interpolation, heads, grid, prefix)


@construction(
    title="class token's attention",
    meaning="row of the class token",
    source="Caron et al. 2021",
    subject="attention",
    primary=lambda record: has_class_token(record),
    reduce="class_row",
    per_head=True,
)
def class_row(
    record: Attention,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    heads: Heads = "mean",
    grid: Grid | None = None,
    prefix: int | None = None,
) -> Float[Tensor, "b *heads h w"]:
    """Where the class token looks: `M[k] = A[0, p + k]`, its row over the places.

    The map of DINO (Caron et al. 2021, figure 1) and of most vision transformer notebooks. A record
    that was watched with `reduce="class_row"` is read from its reduced values.

    Args:
        record: An attention record, or weights `(b, heads, q, k)`.
        size: `(h, w)` of the map; None keeps the keys' grid.
        interpolation: How it is resized.
        heads: `"mean"`, `"each"`, or one head's number.
        grid: The keys' `(h, w)`, where the record does not know it.
        prefix: The number of leading tokens, where the record does not know it: 1, with
            distillation 2, and one more for each register.

    Returns:
        `(b, h, w)`, or `(b, heads, h, w)` for `heads="each"`; raw float32, 0 to 1.

    Raises:
        InputError: As `received`, and a record without a class token.
    """
    need_class_token(record, prefix)
    row = reduced_of(record).get("class_row")
    if row is None:
        row = weights_of(record)[:, :, 0]
    return _drawn(record, row, size, interpolation, heads, grid, prefix)


@construction(
    title="attention received, heads averaged",
    meaning="mean over queries of the mean over heads",
    subject="attention",
    reduce="head_mean",
)
def head_mean(
    record: Attention,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    grid: Grid | None = None,
    prefix: int | None = None,
) -> Maps:
    """Attention received once the heads are averaged: `M[k] = mean_q mean_heads A[q, k]`.

    The same numbers as `received`, for a mean does not mind the order; it stands beside `head_max`
    and `head_min`, and reads records that were watched with `reduce="head_mean"`.

    Args:
        record: An attention record, or weights `(b, heads, q, k)`.
        size: `(h, w)` of the map; None keeps the keys' grid.
        interpolation: How it is resized.
        grid: The keys' `(h, w)`, where the record does not know it.
        prefix: The number of leading tokens, where the record does not know it.

    Returns:
        `(b, h, w)`, raw float32, 0 to 1.

    Raises:
        InputError: As `received`.
    """
    mean = reduced_of(record).get("head_mean")
    if mean is None:
        return received(record, size, interpolation, grid=grid, prefix=prefix)
    columns = mean.float().mean(1)[:, None]
    return _drawn(record, columns, size, interpolation, "mean", grid, prefix)


@construction(
    title="attention received from the strongest head",
    meaning="mean over queries of the maximum over heads",
    subject="attention",
)
def head_max(
    record: Attention,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    grid: Grid | None = None,
    prefix: int | None = None,
) -> Maps:
    """Attention received from whichever head gives most: `M[k] = mean_q max_heads A[q, k]`.

    Heads are fused entry by entry, before the queries are averaged. Shows what any head looks at,
    and is no distribution: it sums to up to the number of heads.

    Args:
        record: An attention record, or weights `(b, heads, q, k)`.
        size: `(h, w)` of the map; None keeps the keys' grid.
        interpolation: How it is resized.
        grid: The keys' `(h, w)`, where the record does not know it.
        prefix: The number of leading tokens, where the record does not know it.

    Returns:
        `(b, h, w)`, raw float32, 0 to 1.

    Raises:
        InputError: As `received`.
    """
    columns = weights_of(record).amax(1).mean(1)[:, None]
    return _drawn(record, columns, size, interpolation, "mean", grid, prefix)


@construction(
    title="attention received from all heads",
    meaning="mean over queries of the minimum over heads",
    subject="attention",
)
def head_min(
    record: Attention,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    grid: Grid | None = None,
    prefix: int | None = None,
) -> Maps:
    """Attention received from all heads alike: `M[k] = mean_q min_heads A[q, k]`.

    Args:
        record: An attention record, or weights `(b, heads, q, k)`.
        size: `(h, w)` of the map; None keeps the keys' grid.
        interpolation: How it is resized.
        grid: The keys' `(h, w)`, where the record does not know it.
        prefix: The number of leading tokens, where the record does not know it.

    Returns:
        `(b, h, w)`, raw float32, 0 to 1.

    Raises:
        InputError: As `received`.
    """
    columns = weights_of(record).amin(1).mean(1)[:, None]
    return _drawn(record, columns, size, interpolation, "mean", grid, prefix)


def has_class_token(record: Attention, prefix: int | None = None) -> bool:
    """Whether there is a class token whose row can be read."""
    return prefix_of(record, prefix) > 0


def need_class_token(record: Attention, prefix: int | None) -> None:
    """Raise an InputError where there is no class token to read."""
    if not has_class_token(record, prefix):
        raise InputError(
            f"{name_of(record)} has no class token (prefix is 0): use received or query_row, "
            "or pass prefix= if its first token is one"
        )


def _images(record: Attention) -> int:
    """How many images the weights speak of: their first axis, or fewer where it holds windows."""
    windows = windows_of(record)
    return weights_of(record).shape[0] // (1 if windows is None else int(windows.count))


def _queries(record: Attention, grid: Grid | None, prefix: int | None) -> Grid:
    windows = windows_of(record)
    if windows is not None:
        h, w = windows.grid
        return h, w
    queries = weights_of(record).shape[2]
    return query_grid(record, grid, queries, prefix_of(record, prefix))


def _weighed(
    record: Attention, share: Float[Tensor, "b places"], prefix: int | None
) -> Float[Tensor, "windows heads k"]:
    """`Σ_q share_q A[q, k]`, the places of the queries counted over the whole image."""
    weights, windows = weights_of(record), windows_of(record)
    share = share.to(weights)
    if windows is None:
        return torch.einsum("bq,bhqk->bhk", share, weights[:, :, prefix_of(record, prefix) :])
    cells = windows.cells.to(weights.device)
    inside = share[:, cells.clamp(min=0)] * (cells >= 0)
    places = weights[:, :, weights.shape[2] - cells.shape[1] :]
    return torch.einsum("bq,bhqk->bhk", inside.flatten(0, 1), places)


def _drawn(
    record: Attention,
    columns: Float[Tensor, "windows heads k"],
    size: Grid | None,
    interpolation: Interpolation,
    heads: Heads,
    grid: Grid | None,
    prefix: int | None,
) -> Float[Tensor, "b *heads h w"]:
    """Values per head and key as maps: without leading tokens, windows laid onto their image."""
    if windows_of(record) is not None and not isinstance(record, Tensor):
        on_image: Tensor = record.on_image(columns)  # type: ignore[attr-defined]  # it has windows
        return resized(_fused(on_image, heads, record), size, interpolation)
    p = prefix_of(record, prefix)
    keys = key_grid(record, grid, columns.shape[-1], p)
    return as_maps(_fused(columns[..., p:], heads, record), keys, size, interpolation)


def _fused(columns: Tensor, heads: Heads, record: Attention) -> Tensor:
    if heads == "mean":
        return columns.mean(1)
    if heads == "each":
        return columns
    if not isinstance(heads, int) or not -columns.shape[1] <= heads < columns.shape[1]:
        raise InputError(
            f"heads: expected 'mean', 'each' or a number below {columns.shape[1]} "
            f"for {name_of(record)}, got {heads!r}"
        )
    return columns[:, heads]
