"""What distinguishes runs: the settings in which they differ, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnviz.runs.reader import Run

ABSENT = "—"
"""Stands where a run does not have the setting at all."""


def differing(runs: Sequence[Run], part: str = "settings") -> dict[str, tuple[Any, ...]]:
    """The entries in which runs differ, by dotted name, one value per run.

    Args:
        runs: Two or more runs.
        part: Which mapping of a run to look at: "settings", "environment" or "summary".

    Returns:
        `{"patch.size": (16, 8), …}`, in the order in which the names first appear; `ABSENT` stands
        for a name that a run does not have.
    """
    flats = [flat(getattr(run, part)) for run in runs]
    names = dict.fromkeys(name for entries in flats for name in entries)
    values = {name: tuple(entries.get(name, ABSENT) for entries in flats) for name in names}
    return {name: row for name, row in values.items() if any(_other(row[0], v) for v in row)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; an empty one is as good as none."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _other(first: Any, second: Any) -> bool:
    return bool(type(first) is bool) != bool(type(second) is bool) or first != second
