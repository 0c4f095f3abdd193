"""Records of a watch as arrays of a run.

A record is taken by its attributes, so that this package needs no torch: attention becomes full
rows, a gate becomes gate values, each under the record's own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from attnviz.errors import InputError
from attnviz.runs.tensors import Array


@dataclass(frozen=True)
class Kept:
    """What a run keeps of one record.

    Attributes:
        folder: "rows" or "gates".
        name: The record's name.
        values: `(k, heads, q, keys)`, or `(n, c)`, `(n, h, w)` or `(n, c, h, w)` of a gate.
        images: Of rows, the image to which each belongs; windows of one image share it.
        about: The layer, grids and leading tokens; windows, or the cells of tokens that do not
            lie row by row.
    """

    folder: Literal["rows", "gates"]
    name: str
    values: Array
    images: tuple[int, ...]
    about: Mapping[str, Any]


def kept_of(record: Any) -> Kept | None:
    """The arrays of a record; None where it holds none (reduced or linear attention).

    Args:
        record: With `name`, `kind` ("attention" or "gate"), `weights` or `scale`, grids and
            `prefix`, such as an `attnviz.Record`.

    Raises:
        InputError: it is no record.
    """
    if getattr(record, "kind", None) not in ("attention", "gate"):
        raise InputError(
            f"records: expected records of a watch, got {type(record).__name__}; give the "
            "capture's values, or arrays as maps=, gates= and rows="
        )
    about = {"layer": record.name, "how": record.how, "source": record.source}
    if record.kind == "gate":
        if record.scale is None:
            return None
        scale = as_array(record.scale)
        return Kept("gates", record.name, _gate(scale), (), about | {"axis": record.axis})
    if record.weights is None:
        return None
    weights = as_array(record.weights)
    windows = 1 if record.windows is None else record.windows.count
    queries, keys = record.row_grids
    about |= {
        "query_grid": _grid(queries, weights.shape[2]),
        "key_grid": _grid(keys, weights.shape[3]),
        "prefix": record.prefix,
    }
    if record.windows is None:
        about |= _cells(record, (queries, keys))
    else:
        about["windows"] = {
            "count": windows,
            "size": record.windows.size,
            "grid": record.windows.grid,
            "cells": as_array(record.windows.cells).astype(int),
            "shift": record.windows.shift,
        }
    images = tuple(row // windows for row in range(len(weights)))
    return Kept("rows", record.name, weights, images, about)


def as_array(value: Any) -> Array:
    """A tensor of any device and precision, or an array, as an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        return np.asarray(value.numpy())
    return np.asarray(value)


def _gate(scale: Array) -> Array:
    """A gate without the axes along which it is one number."""
    if scale.ndim == 4 and scale.shape[2:] == (1, 1):
        return scale[:, :, 0, 0]
    if scale.ndim == 4 and scale.shape[1] == 1:
        return scale[:, 0]
    return scale if scale.ndim in (2, 3, 4) else scale.reshape(len(scale), -1)


def _cells(record: Any, grids: tuple[Any, Any]) -> dict[str, Any]:
    """The places of queries and keys that are known and do not lie row by row."""
    if record.places is None:
        return {}
    sides = (record.places.queries, record.places.keys)
    return {
        f"{name}_places": {"grid": list(side.grid), "cell": list(side.cell)}
        for name, side, grid in zip(("query", "key"), sides, grids, strict=True)
        if grid is None and side.grid is not None and side.image is None
    }


def _grid(grid: tuple[int, ...] | None, tokens: int) -> list[int] | None:
    """A grid as a list; one learned query is a grid of one place."""
    if grid is None:
        return [1, 1] if tokens == 1 else None
    return list(grid)
