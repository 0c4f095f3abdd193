"""`KEY=VALUE` options: values are parsed as JSON where possible, else kept as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attnviz.errors import InputError


def pairs(flag: str, words: Sequence[str]) -> dict[str, Any]:
    """Parse the `KEY=VALUE` arguments of one option.

    Raises:
        InputError: One of them has no `=`.
    """
    found = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"{flag}: expected KEY=VALUE, got {word!r}")
        found[key] = value(text)
    return found


def value(text: str) -> Any:
    """A number, list or truth value where the text is one, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
