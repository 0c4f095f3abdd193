"""Places of attention rows: which query and which key of a run's rows is which place of the image.

A run notes beside its rows how the tokens lie: grids with leading tokens, a cell for each token, or
windows. What is not noted is not guessed from the number of tokens: such rows have no places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from attnviz.errors import InputError
from attnviz.runs.datasets import Cut

LIMIT = 24_000_000
"""Bytes of attention that are sent to the browser at once."""

NOTE = (
    "Save the records of a watch as they are (`records=seen.values()`), or note how tokens lie: "
    '`about={"rows/NAME": {"query_grid": [h, w], "key_grid": [h, w], "prefix": 1}}`.'
)
"""What the reader of rows without places can do."""


@dataclass(frozen=True)
class PlacedRows:
    """The attention of one image between places in reading order.

    Attributes:
        rows: `(heads, queries, keys)`, the leading tokens first.
        query_grid: Rows and columns of places of the queries.
        key_grid: The same of the keys.
        prefix: How many tokens that are no places lead, among queries, keys or both.
    """

    rows: np.ndarray
    query_grid: tuple[int, int]
    key_grid: tuple[int, int]
    prefix: int


def read_rows(run: Any, name: str, image: int) -> np.ndarray:
    """The rows of one image, `(parts, heads, queries, keys)`; a part for each of its windows."""
    parts = [i for i, one in enumerate(run.row_images(name)) if one == image]
    return np.asarray(run.rows(name, parts))


def noted(run: Any, name: str) -> dict[str, Any]:
    """What a run notes beside rows; the places of its layouts where the rows name none."""
    about = dict(run.about(f"rows/{name}"))
    layout = run.layouts.get(about.get("layer", name))
    for side, key in (("queries", "query_places"), ("keys", "key_places")):
        if isinstance(layout, Mapping) and key not in about:
            about |= {key: layout[side]} if isinstance(layout.get(side), Mapping) else {}
    return about


def placed_rows(parts: np.ndarray, about: Mapping[str, Any], held: Cut | None = None) -> PlacedRows:
    """The rows of one image between its places.

    Args:
        parts: `(parts, heads, queries, keys)`, see `read_rows`.
        about: What is noted beside them, see `noted`.
        held: The image; of a volume the attention within the slice that is shown.

    Raises:
        InputError: Places are not noted, or what is noted does not fit the rows; it says what.
    """
    windows = about.get("windows")
    if isinstance(windows, Mapping):
        return _joined(parts, windows, about.get("prefix") or 0)
    if len(parts) != 1:
        raise InputError(f"{len(parts)} parts of one image, and how they lie is not noted")
    rows = parts[0]
    queries, keys = (_Side.of(about, name, rows.shape[axis]) for name, axis in _AXES)
    if queries.lead not in (0, keys.lead) and keys.lead:
        queries = queries.without_lead()
    query_grid, query_order = queries.on_slice(held)
    key_grid, key_order = keys.on_slice(held)
    rows = rows[:, query_order][:, :, key_order]
    return PlacedRows(rows, query_grid, key_grid, keys.lead or queries.lead)


_AXES = (("query", 1), ("key", 2))


@dataclass(frozen=True)
class _Side:
    """The order of queries or keys in which places lie row by row, behind the others."""

    grid: tuple[int, ...]
    order: np.ndarray
    lead: int

    @classmethod
    def of(cls, about: Mapping[str, Any], name: str, count: int) -> _Side:
        places = about.get(f"{name}_places")
        if isinstance(places, Mapping):
            return cls._from_cells(places, name, count)
        grid = _grid(about.get(f"{name}_grid"))
        if grid is None:
            raise InputError(f"which of the {count} tokens is which place is not noted")
        lead, prefix = count - prod(grid), about.get("prefix") or 0
        if lead not in (0, prefix):
            raise InputError(
                f"{count} tokens do not fit the grid {_words(grid)} with {prefix} leading tokens"
            )
        return cls(grid, np.arange(count), lead)

    @classmethod
    def _from_cells(cls, places: Mapping[str, Any], name: str, count: int) -> _Side:
        grid, cell = _grid(places.get("grid")), _whole(places.get("cell"), 1)
        if grid is None or cell is None or len(cell) != count:
            raise InputError(f"{name}_places: expected a grid and one cell for each token")
        others, own = np.flatnonzero(cell < 0), np.flatnonzero(cell >= 0)
        own = own[np.argsort(cell[own], kind="stable")]
        if len(own) != prod(grid) or not np.array_equal(cell[own], np.arange(len(own))):
            raise InputError(f"{name}_places: not one token for each place of {_words(grid)}")
        return cls(grid, np.concatenate([others, own]), len(others))

    def without_lead(self) -> _Side:
        return _Side(self.grid, self.order[self.lead :], 0)

    def on_slice(self, held: Cut | None) -> tuple[tuple[int, int], np.ndarray]:
        """The grid of one slice, and the tokens of that slice in order."""
        depth = None if held is None else held.depth
        if (len(self.grid) == 3) != (depth is not None):
            raise InputError(f"the grid {_words(self.grid)} is not one of these images")
        h, w = self.grid[-2:]
        if held is None or held.at is None or depth is None:
            return (h, w), self.order
        first = self.lead + h * w * int(held.layers(self.grid[0])[0])
        return (h, w), np.concatenate([self.order[: self.lead], self.order[first : first + h * w]])


def _joined(parts: np.ndarray, windows: Mapping[str, Any], prefix: Any) -> PlacedRows:
    """Attention within windows as attention of the whole image: none between windows."""
    grid, cells = _grid(windows.get("grid")), _whole(windows.get("cells"), 2)
    count, heads, queries, keys = parts.shape
    if grid is None or len(grid) != 2 or cells is None or queries != keys or count != len(cells):
        raise InputError("windows: what is noted does not fit the rows")
    lead, places = queries - cells.shape[1], prod(grid)
    if lead not in (0, prefix) or cells.max(initial=-1) >= places:
        raise InputError("windows: expected cells of the grid, one for each token")
    if places**2 > LIMIT:
        raise InputError(f"{_words(grid)} places are too many to show the rows of all of them")
    whole = np.zeros((min(heads, max(1, LIMIT // places**2)), places, places), np.float32)
    for part, cell in zip(parts[:, : len(whole), lead:, lead:], cells, strict=True):
        own = np.flatnonzero(cell >= 0)
        whole[:, cell[own][:, None], cell[own]] = part[:, own[:, None], own]
    return PlacedRows(whole, (grid[0], grid[1]), (grid[0], grid[1]), 0)


def _grid(value: Any) -> tuple[int, ...] | None:
    """Two or three sides of a grid; None for anything else."""
    sides = _whole(value, 1)
    if sides is None or len(sides) not in (2, 3) or sides.min() < 1:
        return None
    return tuple(sides.tolist())


def _whole(value: Any, axes: int) -> np.ndarray | None:
    """Whole numbers from a document; None where it holds something else."""
    try:
        found = np.asarray(value)
    except ValueError:  # lists of several lengths
        return None
    return found.astype(np.int64) if found.dtype.kind == "i" and found.ndim == axes else None


def _words(grid: tuple[int, ...]) -> str:
    return " × ".join(map(str, grid))
