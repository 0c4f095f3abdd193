"""JSON as it is kept in run folders: strict, sealed, and bounded in size and depth.

A document may come from an untrusted source. Numbers that are not finite (`1e999`, `NaN`) read as
null; one that is nested more deeply than 64 levels is refused before any recursive code reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Any, TypeAlias

import numpy as np

from attnviz.errors import InputError, RunError
from attnviz.runs.layout import SCHEMA

Document: TypeAlias = dict[str, Any]

SIZE_LIMIT = 1 << 24
"""Bytes of a header; a reader refuses a larger one before it reads it."""

_DEPTH = 64
_LARGEST = 10**300


class NewerError(RunError):
    """A folder was written under a newer schema than this version's."""


def loaded(content: bytes | str) -> Any:
    """Any JSON value; numbers that are not finite are None.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        found = json.loads(
            content, parse_constant=lambda _: None, parse_float=_finite, parse_int=_bounded
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    _check_depth(found)
    return found


def document(content: bytes, name: str) -> Document:
    """The JSON object in a header file, with its schema known but its fields not yet checked.

    Args:
        content: The file's bytes.
        name: The file's name, for the message.

    Raises:
        NewerError: its schema is newer than this version's.
        RunError: it is no JSON object, or has no schema number.
    """
    if len(content) > SIZE_LIMIT:
        raise RunError(f"{name}: {len(content)} bytes are too many for a header")
    try:
        found = loaded(content)
    except ValueError as error:
        raise RunError(f"{name}: not JSON (truncated or corrupt)") from error
    if not isinstance(found, dict):
        raise RunError(f"{name}: expected an object, got {type(found).__name__}")
    schema = found.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise RunError(f"{name}: 'schema' should be a whole number from 1")
    if schema > SCHEMA:
        raise NewerError(f"written by a newer attnviz ({_short(schema)} > {SCHEMA})")
    return found


def written(content: Mapping[str, Any], indent: int | None = 1) -> bytes:
    """A document as the content of a file: strict JSON, keys in the order given."""
    return (json.dumps(content, indent=indent, allow_nan=False) + "\n").encode()


def sealed(content: Mapping[str, Any]) -> bytes:
    """A document as the content of a header, with a checksum of itself."""
    head = {"schema": content["schema"], "seal": _seal(content)}
    return written(head | {key: value for key, value in content.items() if key != "seal"})


def is_sealed(content: bytes) -> bool:
    """Whether a header is as it was written; one that never had a seal is taken to be."""
    found = loaded(content)
    return "seal" not in found or found["seal"] == _seal(found)


def plain(value: Any, where: str) -> Any:
    """A value as JSON can hold it: numpy and dataclasses unpacked, NaN and infinity as null.

    Args:
        value: The value to store: settings, a summary, an environment.
        where: Its name, for error messages.

    Raises:
        InputError: something in it cannot be kept, such as a tensor or a function, or it is
            nested more deeply than 64 levels.
    """
    return _plain(value, where, _DEPTH - 4)  # a header puts it a few levels down


def _plain(value: Any, where: str, deeper: int) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, PurePath):
        return str(value)
    if deeper == 0:
        raise InputError(f"{where[:80]}…: expected at most {_DEPTH - 4} levels, got more")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(item, f"{where}.{k}", deeper - 1) for k, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [_plain(item, f"{where}[{i}]", deeper - 1) for i, item in enumerate(items)]
    raise InputError(f"{where}: expected numbers, text, lists or dicts, got {type(value).__name__}")


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(_DEPTH):
        level = [item for value in level for item in _items(value)]
        if not level:
            return
    raise ValueError("nested too deeply")


def _items(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _bounded(text: str) -> int | None:
    number = int(text)
    return number if abs(number) <= _LARGEST else None


def _seal(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**12 else "a very large number"
