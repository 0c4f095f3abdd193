"""Convert in-memory score tables to a `Group`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnviz.comparison.groups import Group, array
from attnviz.errors import InputError
from attnviz.statistics.clusters import GROUP, labelled
from attnviz.statistics.variance import mean_of_valid


def table_group(variant: str, entry: Any, primary: str) -> Group:
    """One variant's scores, given as a dict, a list of dicts, or the primary metric's array.

    Raises:
        InputError: A metric lacks a seed, or the shapes are not those of `compare`.
    """
    if isinstance(entry, Mapping) and entry and all(_is_table(one) for one in entry.values()):
        entry = list(entry.values())  # one table per seed, by the seed's name
    entry = [_dict(one) for one in entry] if is_list(entry) and len(entry) else [_dict(entry)]
    if not all(isinstance(one, Mapping) for one in entry):
        entry = [{primary: entry[0] if len(entry) == 1 else entry}]
    grouping = _grouping(variant, entry)
    values: dict[str, np.ndarray] = {}
    for name in entry[0]:
        if name == GROUP:
            continue
        odd = [i for i, scores in enumerate(entry) if name not in scores]
        if odd:
            raise InputError(
                f"compare: {variant}: expected the same metrics for every seed, "
                f"got no {name!r} for seed {odd[0]}"
            )
        values[name] = _rows([scores[name] for scores in entry], f"{variant}, {name}")
    _same_shape(variant, values)
    correct = values.pop("correct", None)
    accuracy = () if correct is None else tuple(mean_of_valid(correct).tolist())
    if not values:
        raise InputError(f"compare: {variant}: expected scores, got a table without any")
    seeds = tuple(range(len(next(iter(values.values())))))
    return Group(variant, seeds, values, correct, accuracy, grouping=grouping)


def _grouping(variant: str, entry: Sequence[Any]) -> tuple[Any, ...] | None:
    """The groups of the images; all seeds must agree."""
    found = [labelled(one.get(GROUP), f"compare: {variant}") for one in entry]
    if len(set(found)) > 1:
        raise InputError(f"compare: {variant}: expected the same groups for every seed")
    return found[0]


def _dict(table: Any) -> Any:
    """A data frame as a dict of its columns; anything else as it is."""
    if hasattr(table, "columns"):
        return {str(name): table[name].to_numpy() for name in table.columns}
    return table


def _is_table(entry: Any) -> bool:
    return isinstance(entry, Mapping) or hasattr(entry, "columns")


def _rows(seeds: list[Any], what: str) -> np.ndarray:
    """Scores (images,) of each seed, or (seeds, images) at once, as (seeds, images)."""
    if len(seeds) == 1 and is_list(seeds[0]) and len(seeds[0]) and np.ndim(seeds[0][0]) == 1:
        seeds = list(seeds[0])
    rows = [np.atleast_1d(array(row, what)) for row in seeds]
    if len(rows) == 1 and rows[0].ndim == 2:
        rows = list(rows[0])
    shapes = sorted({row.shape for row in rows})
    if len(shapes) != 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise InputError(
            f"compare: {what}: expected one score per image, (images,) for each seed or "
            f"(seeds, images), got {' and '.join(map(str, shapes)) or 'nothing'}"
        )
    return np.stack(rows)


def _same_shape(variant: str, values: Mapping[str, np.ndarray]) -> None:
    """Refuse a table whose metrics were not measured on the same seeds and images."""
    shapes = {name: rows.shape for name, rows in values.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(
            f"compare: {variant}: expected every metric on the same (seeds, images), got {listed}"
        )


def is_list(entry: Any) -> bool:
    """Whether a value is a sequence other than a string."""
    return isinstance(entry, Sequence) and not isinstance(entry, str)
