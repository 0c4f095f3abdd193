"""Differences of settings between runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABSENT = "(none)"
"""Placeholder for a setting that a run does not have."""


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings whose values differ between runs, each listed once.

    A model setting that repeats a run setting, as `model.placement` beside `placement`, is left
    out.

    Args:
        settings: Name of a run or variant → its settings (or environment), nested or not.

    Returns:
        Key, with dots → name → value, in the order in which the keys first appear; `ABSENT` where
        one has no such setting.
    """
    flats = {name: flat(one) for name, one in settings.items()}
    keys = dict.fromkeys(key for one in flats.values() for key in one)
    columns = {key: {name: one.get(key, ABSENT) for name, one in flats.items()} for key in keys}
    return {
        key: column
        for key, column in columns.items()
        if _varies(list(column.values())) and not _repeats(key, columns)
    }


def in_words(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The values of `differing` as text."""
    return {
        key: {name: str(value) for name, value in column.items()} for key, column in columns.items()
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; an empty one is as good as none."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _varies(values: list[Any]) -> bool:
    return any(_other(values[0], value) for value in values[1:])


def _other(first: Any, second: Any) -> bool:
    return bool(type(first) is bool) != bool(type(second) is bool) or first != second


def _repeats(key: str, columns: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a model's own setting equals the plain one wherever it is given."""
    inside, _, name = key.rpartition(".")
    plain = columns.get(name, {})
    return inside == "model" and all(
        value in (plain.get(who, ABSENT), ABSENT) for who, value in columns[key].items()
    )
