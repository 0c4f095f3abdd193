"""Places of a record's queries and keys, and scattering of token values onto the image.

Places come from `layout=`, from the caller's arguments (`places=`, `grid=`, `prefix=`), or from the
record itself where the watch proved them, in this order. Without any of these a map raises an
error: the number of tokens does not determine their positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from attnviz.errors import InputError
from attnviz.maps.arguments import number_tensor, sides
from attnviz.maps.geometry import Attention, name_of
from attnviz.token_places import REMEDY, Places, RecordPlaces, Role

Known: TypeAlias = Mapping[str, RecordPlaces] | RecordPlaces | Places | None
"""What `layout=` takes: what `locate` returns, the places of one record, or those of its tokens."""


@dataclass(frozen=True)
class Side:
    """The queries or the keys of a record, one entry per row of the weights' first axis.

    Attributes:
        grid: The sides of the grid over each image; None where no token is a place.
        cell: `(b, tokens)`, the cell of each, −1 for none.
        image: `(b, tokens)`, the image each belongs to.
        images: How many images there are.
        role: `(b, tokens)` as nested lists; empty where roles are not known.
        packed: Whether one row holds tokens of several images.
    """

    grid: tuple[int, ...] | None
    cell: Tensor
    image: Tensor
    images: int
    role: list[list[Role]]
    packed: bool

    @property
    def cells(self) -> int:
        """How many cells a grid has."""
        return math.prod(self.grid or ())

    def of(self, *roles: str) -> Tensor:
        """`(b, tokens)`, which tokens have one of these roles."""
        return torch.tensor([[role in roles for role in row] for row in self.role])


@dataclass(frozen=True)
class Given:
    """The caller's arguments about a record's tokens.

    Attributes:
        layout: Their places, from `locate` or written by hand.
        places: `(tokens, axes)` or `(b, tokens, axes)`, the row and column of each; negative for
            none.
        grid: The sides of the grid.
        prefix: The number of leading tokens, the first of which is a class token.
    """

    layout: Known = None
    places: Tensor | None = None
    grid: Sequence[int] | None = None
    prefix: int | None = None


def side(source: Attention, which: str, b: int, tokens: int, given: Given) -> Side:
    """The places of queries or keys.

    Args:
        source: A record or bare weights.
        which: `"queries"` or `"keys"`.
        b: The size of the weights' first axis.
        tokens: How many tokens there are.
        given: The caller's arguments.

    Raises:
        InputError: They are unknown, or do not fit.
    """
    places = places_of(source, which, tokens, given)
    if not places.known:
        raise InputError(
            f"{name_of(source)}: which of its {tokens} {which} are which places is unknown"
            f"{f' ({places.reason})' if places.reason else ''}; {REMEDY}, or say grid=(h, w) and "
            "prefix= for leading class and register tokens"
        )
    return side_of(source, which, b, tokens, places)


def places_of(source: Attention, which: str, tokens: int, given: Given) -> Places:
    """What is known of the places of queries or keys, by the caller or by the record itself."""
    own: RecordPlaces | None = getattr(source, "places", None)
    proven = None if own is None else own.queries if which == "queries" else own.keys
    if given.layout is not None:
        found = _from_layout(source, which, given.layout)
        return proven if proven is not None and not found.known else found
    if given.places is not None:
        return _from_coordinates(source, tokens, given)
    if given.grid is not None:
        return _of_grid(source, which, tokens, given, proven)
    if proven is not None:
        return proven
    windows = getattr(source, "windows", None)
    if windows is not None:
        return _from_windows(windows, tokens)
    grid = getattr(source, f"{'query' if which == 'queries' else 'key'}_grid", None)
    if grid is None and which == "queries":
        weights = getattr(source, "weights", None)
        square = weights is not None and weights.shape[-1] == weights.shape[-2]
        grid = getattr(source, "key_grid", None) if square else None
    if grid is None:
        return Places()
    return _row_by_row(source, which, tokens, tuple(grid), given.prefix)


def _from_layout(source: Attention, which: str, layout: Known) -> Places:
    if isinstance(layout, Places):
        return layout
    if isinstance(layout, Mapping):
        if isinstance(source, Tensor):
            raise InputError(
                "layout: bare weights have no name to look up; pass layout=layout[name]"
            )
        layout = _entry(layout, source.name)
    if not isinstance(layout, RecordPlaces):
        raise InputError(
            "layout: expected what av.locate returns, or the places of one record, got "
            f"{type(layout).__name__}"
        )
    return layout.queries if which == "queries" else layout.keys


def _entry(layout: Mapping[str, RecordPlaces], name: str) -> RecordPlaces:
    """The entry of a record, also of one that ran in a later forward pass than the first."""
    module, _, number = name.partition("#")
    calls = [one for one in layout if one.partition("#")[0] == module]
    if name not in layout and not calls:
        known = ", ".join(layout) or "nothing"
        raise InputError(f"layout: no places of {name!r} in this layout; it has {known[:200]}")
    if name in layout or not number:
        return layout[name]
    return layout[calls[int(number) % len(calls)]]


def _from_coordinates(source: Attention, tokens: int, given: Given) -> Places:
    """Places from rows and columns, the same for all images or image by image."""
    places = number_tensor(given.places, f"places of {name_of(source)}")
    if given.grid is None or places.dim() not in (2, 3) or places.shape[-1] != len(given.grid):
        raise InputError(
            f"places of {name_of(source)}: expected (tokens, axes) rows and columns together with "
            f"grid=, got {tuple(places.shape)} and grid={given.grid}"
        )
    grid = sides(given.grid, "grid")
    none = (places < 0).any(-1)
    if places.shape[-2] != tokens or bool((places >= torch.tensor(grid)).any()):
        raise InputError(
            f"places of {name_of(source)}: expected {tokens} of them inside the grid "
            f"{_words(grid)}, got {tuple(places.shape)} up to {int(places.max())}"
        )
    cell = torch.zeros(places.shape[:-1], dtype=torch.long)
    for axis, n in enumerate(grid):
        cell = cell * n + places[..., axis].long()
    cell = cell.masked_fill(none, -1)
    image = None
    if cell.dim() == 2:
        image = tuple(torch.arange(len(cell)).repeat_interleave(tokens).tolist())
    flat = tuple(cell.flatten().tolist())
    return Places(grid, flat, tuple("place" if c >= 0 else "other" for c in flat), image,
                  status="proven")  # fmt: skip


def _of_grid(
    source: Attention, which: str, tokens: int, given: Given, proven: Places | None
) -> Places:
    """Tokens row by row on a grid that the caller gives, or in the order that the data prove."""
    grid = sides(given.grid, "grid")
    if (
        proven is None
        or proven.grid is None
        or len(proven.cell) != tokens
        or proven.row_by_row_from(given.prefix or 0)
    ):
        return _row_by_row(source, which, tokens, grid, given.prefix)
    if proven.grid == grid and given.prefix is None:
        return proven
    raise InputError(
        f"{name_of(source)}: its {which} lie on a grid of {_words(proven.grid)} in another order "
        f"than row by row ({proven.reason}); leave grid= and prefix= out"
    )


def _row_by_row(
    source: Attention, which: str, tokens: int, grid: tuple[int, ...], prefix: int | None
) -> Places:
    own = int(getattr(source, "prefix", 0) or 0)
    leading = own if prefix is None else prefix
    if leading + math.prod(grid) != tokens:
        raise InputError(
            f"{name_of(source)}: expected {which} = prefix + {'·'.join('dhw'[-len(grid) :])}, got "
            f"{tokens} = {leading} + {'·'.join(map(str, grid))}; pass the right grid=(h, w) and "
            f"prefix=, or {REMEDY}"
        )
    first: list[Role] = ["class"] if prefix is not None or leading == 1 else ["other"]
    rest: Role = "register" if prefix is not None else "other"
    return Places.row_by_row(grid, [*first, *([rest] * (leading - 1))] if leading else [])


def _from_windows(windows: Any, tokens: int) -> Places:
    """Windows that the watch saw being cut; leading tokens of each are no places."""
    cells = windows.cells
    lead = torch.full((len(cells), tokens - cells.shape[1]), -2, dtype=cells.dtype)
    cell = torch.cat([lead, cells.cpu()], 1).flatten().tolist()
    roles: dict[int, Role] = {-1: "padding", -2: "class" if lead.shape[1] == 1 else "other"}
    place: Role = "place"
    return Places(
        tuple(windows.grid), tuple(max(c, -1) for c in cell),
        tuple(roles.get(c, place) for c in cell), status="proven",
    )  # fmt: skip


def side_of(source: Attention, which: str, b: int, tokens: int, places: Places) -> Side:
    """Places for every row of the weights."""
    count = len(places.cell)
    cell = torch.tensor(places.cell)
    if places.image is not None:
        if count != b * tokens:
            raise _misfit(source, which, b, tokens, count)
        image = torch.tensor(places.image).view(b, tokens)
        roles = [list(places.role[i * tokens : (i + 1) * tokens]) for i in range(b)]
        grids = {grid for grid in places.grids if grid is not None}
        if len(grids) > 1:
            raise InputError(
                f"{name_of(source)}: its images lie on grids of {_several(places)}; draw one at a "
                "time: layout=RecordPlaces(places.queries.of(i), places.keys.of(i))"
            )
        images = places.images or 1
        packed = any(len(set(row.tolist()) - {-1}) > 1 for row in image) or images != b
        return Side(places.grid, cell.view(b, tokens), image, images, roles, packed)
    if tokens == 0 or count % tokens or b % (count // tokens):
        raise _misfit(source, which, b, tokens, count)
    windows = count // tokens
    images = b // windows
    rows = [list(places.role[i * tokens : (i + 1) * tokens]) for i in range(windows)]
    return Side(
        places.grid,
        cell.view(windows, tokens).repeat(images, 1),
        torch.arange(images).repeat_interleave(windows)[:, None].expand(b, tokens),
        images,
        rows * images,
        False,
    )


def _misfit(source: Attention, which: str, b: int, tokens: int, count: int) -> InputError:
    return InputError(
        f"{name_of(source)}: its layout tells of {count} {which}, and it has {b} · {tokens}; "
        "call av.locate with images of the same size and number, or pass the layout of this record"
    )


def laid(values: Float[Tensor, "b heads n"], keys: Side) -> Float[Tensor, "images heads *grid"]:
    """Scatter values per token to their places on each image; zero where there is no token.

    Raises:
        InputError: No token is a place.
    """
    if keys.grid is None or not bool((keys.cell >= 0).any()):
        roles = sorted({role for row in keys.role for role in row})
        raise InputError(
            f"none of its keys is a place of the image (they are {', '.join(roles) or 'unknown'}): "
            "there is no map to draw; for one key over the queries' places use key_column"
        )
    out = values.new_zeros(keys.images * keys.cells, values.shape[1])
    chosen = keys.cell >= 0
    where = (keys.image * keys.cells + keys.cell)[chosen].to(values.device)
    out = out.index_add(0, where, values.transpose(1, 2)[chosen.to(values.device)])
    return out.view(keys.images, *keys.grid, -1).movedim(-1, 1)


def padding(weights: Tensor) -> Tensor:
    """`(b, n)`, tokens that fill up: keys that get exactly nothing from any token that does not.

    Only a mask does that, for all heads and queries at once. The row of a token that fills up is
    masked as a whole, and is then zero, no number or the same for all keys. None of them where
    queries and keys are not the same tokens.
    """
    b, _, q, k = weights.shape
    if q != k:
        return torch.zeros(b, q, dtype=torch.bool, device=weights.device)
    values = weights.detach()
    masked = ((values == values[..., :1]) | values.isnan()).all(-1).all(1)  # (b, q)
    nothing = values == 0
    everyone = nothing.all(1).all(1)
    others = (nothing | masked[:, None, :, None]).all(1).all(1) & masked
    return everyone | (others & ~masked.all(1, keepdim=True))


def _words(grid: Sequence[int]) -> str:
    return " × ".join(map(str, grid))


def _several(places: Places) -> str:
    return ", ".join(_words(grid) if grid else "nothing" for grid in places.grids)
