"""Query parameters of the address, and display of untrusted text.

The address (URL) is the state. Each function here takes the query parameters and returns a value
and a warning, which is None or the sentence to show: a bad value is reported, never replaced
silently.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Params = Mapping[str, Any]


def one_of(
    params: Params, name: str, options: Sequence[str], default: str
) -> tuple[str, str | None]:
    """One of some words; the default, with a warning, where the address has another."""
    value = params.get(name)
    if value is None or value in options:
        return (default if value is None else str(value)), None
    shown = ", ".join(map(str, options[:8])) + (", …" if len(options) > 8 else "")
    return default, (
        f"The address asks for {name} = {quoted(value)}, which is not here. "
        f"Known: {shown or 'nothing'}. Shown instead: {default or 'nothing'}."
    )


def whole(params: Params, name: str, low: int, high: int, default: int) -> tuple[int, str | None]:
    """A whole number in `low … high`, both included."""
    value = params.get(name)
    if value is None:
        return default, None
    try:
        number = int(str(value))
    except ValueError:
        number = low - 1
    if low <= number <= high:
        return number, None
    return default, (
        f"The address asks for {name} = {quoted(value)}; expected a whole number from {low} to "
        f"{high}. Shown instead: {default}."
    )


def share(params: Params, name: str, default: float) -> tuple[float, str | None]:
    """A number from 0 to 1."""
    value = params.get(name)
    if value is None:
        return default, None
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    if 0 <= number <= 1:
        return number, None
    return default, (
        f"The address asks for {name} = {quoted(value)}; expected a number from 0 to 1. "
        f"Shown instead: {default:.2f}."
    )


def span(params: Params, name: str) -> tuple[tuple[float, float] | None, str | None]:
    """Two numbers, `low~high`; None where the address has none."""
    value = params.get(name)
    if value is None:
        return None, None
    low, _, high = str(value).partition("~")
    try:
        numbers = float(low), float(high)
    except ValueError:
        numbers = (math.nan, math.nan)
    if numbers[0] <= numbers[1]:
        return numbers, None
    return None, (
        f"The address asks for {name} = {quoted(value)}; expected two numbers such as 0.1~0.4. "
        "Shown instead: all."
    )


def several(params: Params, name: str, known: Iterable[str]) -> tuple[list[str], str | None]:
    """Ids, separated by commas, each once; unknown ones are left out and named."""
    requested = list(dict.fromkeys(part for part in str(params.get(name, "")).split(",") if part))
    there = set(known)
    missing = [part for part in requested if part not in there]
    if not missing:
        return requested, None
    names = ", ".join(quoted(part) for part in missing[:5]) + ("…" if len(missing) > 5 else "")
    return [part for part in requested if part in there], (
        f"The address asks for {name} {names}, which {'is' if len(missing) == 1 else 'are'} not "
        "in this folder."
    )


def quoted(value: Any) -> str:
    """Untrusted text as short inline code that cannot end its own quotation."""
    text = "".join(c if c.isprintable() and c not in "`$" else "·" for c in str(value))
    return f"`{text[:160]}…`" if len(text) > 160 else f"`{text or ' '}`"


def plain(value: Any) -> str:
    """Untrusted text for Markdown, with all markup characters escaped."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$:&" else c for c in str(value))
