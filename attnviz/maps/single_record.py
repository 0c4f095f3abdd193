"""Maps of one record's weights: columns, rows and fused heads.

Throughout, `A` is `(b, heads, q, k)` with rows that sum to one. All queries are counted except
padding, and keys are drawn that are places: what a map shows is attention to places, so its sum
is below one by the attention to class tokens, registers and words.

Attention within windows (Swin) is laid back onto the image: each window's values are placed where
the window was cut out, and a row of one place is zero outside that place's window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnviz.errors import InputError
from attnviz.maps.arguments import number_tensor
from attnviz.maps.constructions import construction
from attnviz.maps.geometry import (
    Attention,
    Grid,
    Interpolation,
    Watched,
    last_attention,
    name_of,
    reduced_of,
    resized,
    weights_of,
)
from attnviz.maps.placement import Given, Known, Side, laid, padding, side
from attnviz.token_places import Places

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
    record: Attention | Mapping[str, Watched],
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    heads: Heads = "mean",
    grid: Grid | None = None,
    prefix: int | None = None,
    layout: Known = None,
    places: Tensor | None = None,
) -> Float[Tensor, "images *heads h w"]:
    """How much attention each place gets: the mean of its column.

    `M[k] = mean_q A[q, k]` over all queries but padding, class and register tokens among them. A
    record that was watched with `reduce="received"` is read from its reduced values.

    Args:
        record: An attention record, weights `(b, heads, q, k)`, or a capture, of which the last
            attention is taken.
        size: `(h, w)` of the map; None keeps the keys' grid.
        interpolation: How it is resized: `bilinear` (pixel centres aligned), `nearest`, `bicubic`.
        heads: `"mean"`, `"each"`, or one head's number.
        grid: The keys' `(h, w)`, where the record lacks it.
        prefix: The number of leading tokens that are no places, where the record lacks it.
        layout: Which token is which place, from `av.locate`.
        places: Rows and columns of the tokens on `grid`, `(tokens, 2)`, where these lie anywhere.

    Returns:
        `(b, h, w)`, or `(b, heads, h, w)` for `heads="each"`; raw float32, 0 to 1.

    Raises:
        InputError: A gate, no weights, an unknown grid, or one that does not fit.
    """
    record = last_attention(record)
    given = Given(layout, places, grid, prefix)
    columns = reduced_of(record).get("received")
    if columns is not None and not isinstance(record, Tensor):
        if columns.ndim == 2:
            columns = columns[:, None]
        return _drawn(record, columns, size, interpolation, heads, given)
    return _averaged(record, weights_of(record), size, interpolation, heads, given)


def query_row(
    record: Attention,
    place: tuple[int, ...] | Int[Tensor, "images axes"],
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    heads: Heads = "mean",
    grid: Grid | None = None,
    prefix: int | None = None,
    layout: Known = None,
    places: Tensor | None = None,
) -> Float[Tensor, "images *heads h w"]:
    """Attention of one place: its row of the weights, `M[k] = A[place, k]`.

    Arguments that are not listed are those of `received`.

    Args:
        place: `(y, x)` on the queries' grid for all images, or `(b, 2)` of them, one per image;
            `(z, y, x)` of volumes and video.
        grid: `(h, w)` of queries and keys, where the record lacks it.

    Returns:
        `(b, h, w)`, or `(b, heads, h, w)` for `heads="each"`; raw float32, 0 to 1.

    Raises:
        InputError: As `received`, and a place outside the grid.
    """
    given = Given(layout, places, grid, prefix)
    queries = _queries(record, given)
    if queries.grid is None:
        raise no_query_places(record, "query_row")
    sides = queries.grid
    chosen = number_tensor(place, "query_row: place")
    if not chosen.dim():
        raise InputError(f"query_row: expected a place (y, x), got {place}")
    if chosen.shape[-1] != len(sides):
        raise InputError(f"query_row: expected a place with {len(sides)} coordinates, got {place}")
    chosen = chosen.expand(queries.images, len(sides))
    if bool(((chosen < 0) | (chosen >= torch.tensor(sides))).any()):
        raise InputError(
            f"query_row: expected places (y, x) inside the {' × '.join(map(str, sides))} grid of "
            f"queries, got {chosen.tolist()[:4]}; a pixel's place is pixel · grid // image size"
        )
    index = torch.zeros(len(chosen), dtype=torch.long)
    for axis, side_ in enumerate(sides):
        index = index * side_ + chosen[:, axis]
    share = torch.zeros(queries.images, queries.cells).scatter_(1, index[:, None], 1.0)
    return _weighed(record, queries, share, size, interpolation, heads, given)


def rows_inside(
    record: Attention,
    masks: Bool[Tensor, "b *sides"],
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    outside: bool = False,
    heads: Heads = "mean",
    grid: Grid | None = None,
    prefix: int | None = None,
    layout: Known = None,
    places: Tensor | None = None,
) -> Float[Tensor, "images *heads h w"]:
    """Mean attention of the places inside a mask, or outside it with `outside=True`.

    `M[k] = Σ_q m_q A[q, k] / Σ_q m_q`, where `m_q` is the share of query `q`'s cell that the mask
    covers (an area mean of the mask over the queries' grid), or one minus it for `outside`.

    Arguments that are not listed are those of `received`.

    Args:
        masks: `(b, H, W)` boolean, at the image's size or any other of at least the grid's;
            `(b, D, H, W)` of volumes and video.
        outside: Average the rows of the places outside the mask.
        grid: `(h, w)` of queries and keys, where the record lacks it.

    Returns:
        `(b, h, w)`, or `(b, heads, h, w)` for `heads="each"`; raw float32, 0 to 1. NaN for an
        image whose mask leaves no row to average.

    Raises:
        InputError: As `received`, and masks of another number of images.
    """
    if not isinstance(masks, Tensor) or not masks.dim():
        raise InputError(
            f"rows_inside: expected masks (b, H, W) as a tensor, got {type(masks).__name__}"
        )
    given = Given(layout, places, grid, prefix)
    queries = _queries(record, given)
    if len(masks) != queries.images:
        raise InputError(
            f"rows_inside: expected one mask per image, "
            f"got {len(masks)} masks for {queries.images} images"
        )
    if queries.grid is None or len(queries.grid) not in (2, 3):
        raise no_query_places(record, "rows_inside")
    if masks.dim() != 1 + len(queries.grid):
        raise InputError(
            f"rows_inside: expected masks with {len(queries.grid)} axes of places, as the grid "
            f"{queries.grid} of the queries, got {tuple(masks.shape)}"
        )
    pool: Any = F.adaptive_avg_pool2d if len(queries.grid) == 2 else F.adaptive_avg_pool3d
    covered = pool(masks.float()[:, None], queries.grid).flatten(1)
    share = 1 - covered if outside else covered
    # 0/0 is intended: an average over no rows is NaN.
    share = share / share.sum(1, keepdim=True)
    return _weighed(record, queries, share, size, interpolation, heads, given)


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
    record: Attention | Mapping[str, Watched],
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    heads: Heads = "mean",
    grid: Grid | None = None,
    prefix: int | None = None,
    layout: Known = None,
    places: Tensor | None = None,
) -> Float[Tensor, "images *heads h w"]:
    """Attention of the class token: `M[k] = A[class, k]`, its row over the places.

    The map of DINO (Caron et al. 2021, figure 1) and of most vision transformer notebooks. A record
    that was watched with `reduce="class_row"` is read from its reduced values.

    Arguments that are not listed are those of `received`.

    Args:
        record: A record, or a capture, of which the last attention is taken.
        prefix: The number of leading tokens, where the record lacks it: 1, with
            distillation 2, and one more for each register.

    Returns:
        `(b, h, w)`, or `(b, heads, h, w)` for `heads="each"`; raw float32, 0 to 1.

    Raises:
        InputError: As `received`, and a record without a class token.
    """
    record = last_attention(record)
    given = Given(layout, places, grid, prefix)
    kept = reduced_of(record).get("class_row")
    if kept is not None and not isinstance(record, Tensor):
        b, queries = _kept_queries(record, kept)
        first = class_index(record, given, b, queries)
        if first is not None and bool((first != 0).any()):
            raise InputError(
                f"class_row: {name_of(record)} was reduced to the row of its first token, and its "
                "class token is another one; watch with reduce=reductions.rows(number)"
            )
        return _drawn(record, kept, size, interpolation, heads, given)
    weights = weights_of(record)
    index = class_index(record, given, weights.shape[0], weights.shape[2])
    row = weights[torch.arange(len(index)), :, index]
    return _drawn(record, row, size, interpolation, heads, given)


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
    layout: Known = None,
    places: Tensor | None = None,
) -> Float[Tensor, "images *heads h w"]:
    """Attention received once the heads are averaged: `M[k] = mean_q mean_heads A[q, k]`.

    The same numbers as `received`, since means commute. It completes `head_max` and `head_min`, and
    reads records that were watched with `reduce="head_mean"`.

    The arguments are those of `received`.

    Returns:
        `(b, h, w)`, raw float32, 0 to 1.

    Raises:
        InputError: As `received`.
    """
    mean = reduced_of(record).get("head_mean")
    if mean is None:
        return received(record, size, interpolation, grid=grid, prefix=prefix, layout=layout,
                        places=places)  # fmt: skip
    given = Given(layout, places, grid, prefix)
    return _averaged(record, mean.float()[:, None], size, interpolation, "mean", given)


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
    layout: Known = None,
    places: Tensor | None = None,
) -> Float[Tensor, "images *heads h w"]:
    """Attention received, maximum over heads: `M[k] = mean_q max_heads A[q, k]`.

    Heads are fused entry by entry, before the queries are averaged. The map is no distribution:
    its sum can reach the number of heads.

    The arguments are those of `received`.

    Returns:
        `(b, h, w)`, raw float32, 0 to 1.

    Raises:
        InputError: As `received`.
    """
    given, weights = Given(layout, places, grid, prefix), weights_of(record)
    fused = weights.amax(1, keepdim=True)
    return _averaged(record, fused, size, interpolation, "mean", given, padding(weights))


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
    layout: Known = None,
    places: Tensor | None = None,
) -> Float[Tensor, "images *heads h w"]:
    """Attention received, minimum over heads: `M[k] = mean_q min_heads A[q, k]`.

    The arguments are those of `received`.

    Returns:
        `(b, h, w)`, raw float32, 0 to 1.

    Raises:
        InputError: As `received`.
    """
    given, weights = Given(layout, places, grid, prefix), weights_of(record)
    fused = weights.amin(1, keepdim=True)
    return _averaged(record, fused, size, interpolation, "mean", given, padding(weights))


def key_column(
    record: Attention,
    key: int | Int[Tensor, "b"],
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    heads: Heads = "mean",
    grid: Grid | None = None,
    prefix: int | None = None,
    layout: Known = None,
    places: Tensor | None = None,
) -> Float[Tensor, "images *heads h w"]:
    """How much each place of the queries attends to one key: `M[q] = A[q, key]`.

    For attention from an image to words, such as a diffusion model's: where a word acts.

    Arguments that are not listed are those of `received`.

    Args:
        key: The key's number among all keys, or one per image.
        size: `(h, w)` of the map; None keeps the queries' grid.
        grid: The queries' `(h, w)`, where the record lacks it.
        prefix: The number of leading tokens among the queries, where the record lacks it.
        places: Rows and columns of the queries on `grid`, `(tokens, 2)`.

    Returns:
        `(b, h, w)`, or `(b, heads, h, w)` for `heads="each"`; raw float32, 0 to 1.

    Raises:
        InputError: As `received`, queries that are no places, a key that does not exist.
    """
    weights = weights_of(record)
    b, _, _, k = weights.shape
    chosen = number_tensor(key, "key_column: key").expand(b)
    if bool(((chosen < 0) | (chosen >= k)).any()):
        raise InputError(f"key_column: expected a key from 0 to {k - 1}, got {chosen.tolist()[:4]}")
    queries = _queries(record, Given(layout, places, grid, prefix))
    if queries.grid is None:
        raise no_query_places(record, "key_column")
    columns = weights[torch.arange(b), :, :, chosen]
    return resized(_fused(laid(columns, queries), heads, record), size, interpolation)


def has_class_token(record: Attention, given: Given = Given()) -> bool:  # noqa: B008 - frozen
    """Whether one of the queries is known to be a class token."""
    b, queries = _shape(record)
    try:
        return class_index(record, given, b, queries) is not None
    except InputError:
        return False


def class_index(record: Attention, given: Given, b: int, queries: int) -> Tensor:
    """`(b,)`, the number of each row's first class token.

    Raises:
        InputError: Places are unknown, or there is no class token.
    """
    found = side(record, "queries", b, queries, _without_grid(record, given, queries))
    is_class = found.of("class")
    if not bool(is_class.any(1).all()):
        roles = sorted({role for row in found.role for role in row} - {"place"})
        unknown = roles == ["other"]
        raise InputError(
            f"{name_of(record)} has no class token"
            + (" that is known" if unknown else "")
            + (f" (beside places there are: {', '.join(roles)})" if roles else "")
            + ": use received or query_row, call av.locate(model, images) and pass layout=, or "
            "pass prefix= if its first token is one"
        )
    return is_class.long().argmax(1)


def _without_grid(record: Attention, given: Given, queries: int) -> Given:
    """For a single query there is no grid: it is the class token if a prefix is given."""
    lead = given.prefix if given.prefix is not None else int(getattr(record, "prefix", 0) or 0)
    own = getattr(record, "places", None)
    if given.layout is None and own is None and queries == 1 and lead:
        return Given(layout=Places(None, (-1,), ("class",), status="proven"))
    return given


def no_query_places(record: Attention, what: str) -> InputError:
    """An error for queries that are no places of an image."""
    return InputError(
        f"{what}: the queries of {name_of(record)} are no places of a grid with rows and columns; "
        "use received, or key_column where keys are words"
    )


def _shape(record: Attention) -> tuple[int, int]:
    """The size of the first axis and the number of queries."""
    weights = record if isinstance(record, Tensor) else record.weights
    shape = tuple(getattr(record, "shape", ()) or ()) if weights is None else tuple(weights.shape)
    if len(shape) == 4:
        return shape[0], shape[2]
    kept = reduced_of(record)
    return _kept_queries(record, next(iter(kept.values()))) if kept else (1, 1)


def _kept_queries(record: Attention, kept: Tensor) -> tuple[int, int]:
    """The first axis, and the queries where the record has them; else as many as there are keys."""
    shape = tuple(getattr(record, "shape", ()) or ())
    return (shape[0], shape[2]) if len(shape) == 4 else (kept.shape[0], kept.shape[-1])


def _queries(record: Attention, given: Given) -> Side:
    weights = weights_of(record)
    return side(record, "queries", weights.shape[0], weights.shape[2], given)


def _averaged(
    record: Attention,
    weights: Float[Tensor, "b fused q k"],
    size: Grid | None,
    interpolation: Interpolation,
    heads: Heads,
    given: Given,
    filled: Tensor | None = None,
) -> Tensor:
    """The mean over queries that count: padding does not, nor images that are kept apart."""
    filled = padding(weights) if filled is None else filled
    counted = ~filled
    b, _, q, k = weights.shape
    keys = side(record, "keys", b, k, given)
    if not keys.packed or q != k:
        return _drawn(record, _mean(weights, counted), size, interpolation, heads, given)
    maps = []
    for image in range(keys.images):
        own = (keys.image == image).to(weights.device)
        apart = _apart(weights, own, (keys.image >= 0).to(weights.device))
        columns = _mean(weights, counted & ~apart)
        only = replace(keys, cell=keys.cell.masked_fill(keys.image != image, -1))
        maps.append(laid(columns, only)[image])
    return resized(_fused(torch.stack(maps), heads, record), size, interpolation)


def _mean(weights: Tensor, counted: Tensor) -> Tensor:
    if bool(counted.all()):
        return weights.mean(2)
    share = counted.to(weights) / counted.sum(1, keepdim=True).clamp_min(1)
    rows = weights.masked_fill(~counted[:, None, :, None], 0.0)
    return torch.einsum("bq,bhqk->bhk", share, rows)


def _apart(weights: Tensor, own: Tensor, placed: Tensor) -> Tensor:
    """`(b, q)`, places of other images between which and this one no attention passes at all."""
    total = weights.detach().sum(1)
    gives = (total * own[:, None].to(total)).sum(2) > 0
    takes = (total * own[:, :, None].to(total)).sum(1) > 0
    return placed & ~own & ~gives & ~takes


def _weighed(
    record: Attention,
    queries: Side,
    share: Float[Tensor, "images cells"],
    size: Grid | None,
    interpolation: Interpolation,
    heads: Heads,
    given: Given,
) -> Tensor:
    """`Σ_q share_q A[q, k]`, the places of the queries counted over the whole image."""
    weights = weights_of(record)
    keys = side(record, "keys", weights.shape[0], weights.shape[3], given)
    placed = queries.cell >= 0
    each = share[queries.image.clamp(min=0), queries.cell.clamp(min=0)]
    each = each.where(placed, 0.0).to(weights)
    if not keys.packed:
        rows = _sum(weights, each)
        return resized(_fused(laid(rows, keys), heads, record), size, interpolation)
    maps = []
    for image in range(keys.images):
        rows = _sum(weights, each * (queries.image == image).to(each))
        only = replace(keys, cell=keys.cell.masked_fill(keys.image != image, -1))
        maps.append(laid(rows, only)[image])
    return resized(_fused(torch.stack(maps), heads, record), size, interpolation)


def _sum(weights: Tensor, each: Tensor) -> Tensor:
    """`Σ_q each_q A[q, k]`, rows of no share left out even where they are not numbers."""
    rows = weights.masked_fill((each == 0)[:, None, :, None], 0.0)
    return torch.einsum("bq,bhqk->bhk", each, rows)


def _drawn(
    record: Attention,
    columns: Float[Tensor, "b fused k"],
    size: Grid | None,
    interpolation: Interpolation,
    heads: Heads,
    given: Given,
) -> Tensor:
    """Values per head and key as maps."""
    keys = side(record, "keys", columns.shape[0], columns.shape[-1], given)
    return resized(_fused(laid(columns, keys), heads, record), size, interpolation)


def _fused(columns: Tensor, heads: Heads, record: Attention) -> Tensor:
    return fused_heads(columns, heads, name_of(record))


def fused_heads(columns: Tensor, heads: Heads, name: str) -> Tensor:
    """Values per head `(b, heads, …)` as their mean, each, or those of one head.

    Raises:
        InputError: There is no such head.
    """
    if heads == "mean":
        return columns.mean(1)
    if heads == "each":
        return columns
    whole = isinstance(heads, int) and not isinstance(heads, bool)
    if not whole or not -columns.shape[1] <= heads < columns.shape[1]:
        raise InputError(
            f"heads: expected 'mean', 'each' or a number below {columns.shape[1]} "
            f"for {name}, got {heads!r}"
        )
    return columns[:, heads]
