"""`KEY=VALUE` on the command line: a value that is JSON is what it says, any other is text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attnviz.errors import InputError


def pairs(flag: str, words: Sequence[str]) -> dict[str, Any]:
    """What several `KEY=VALUE` after one flag say.

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
