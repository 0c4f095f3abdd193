"""Plain text for a terminal: aligned columns, control characters spelled out.

Names and reasons may come from untrusted files; control characters in them are escaped.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime


def printable(value: object) -> str:
    """A value as one line of text, with control characters spelled out."""
    text = str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: object, most: int = 200) -> str:
    """The first line of an error, or the first two where the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said if len(said) <= most else f"{said[:most]}…"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Iterable[int] = (),
    rule: bool = False,
    empty: str = "–",
) -> str:
    """Rows under a header, each column as wide as its widest cell; numbers to three decimals.

    Args:
        header: The columns' names.
        rows: As many cells each.
        right: The columns that are aligned to the right, by number.
        rule: Whether a line is drawn under the header.
        empty: What None and empty text are shown as.
    """
    cells = [list(header), *([_cell(value) or empty for value in row] for row in rows)]
    widths = [max(width(row[i]) for row in cells) for i in range(len(header))]
    rights = set(right)
    lines = [
        "  ".join(_padded(row[i], widths[i], i in rights) for i in range(len(header))).rstrip()
        for row in cells
    ]
    if rule:
        lines.insert(1, "─" * max(map(width, lines)))
    return "\n".join(lines)


def width(text: str) -> int:
    """The columns that a text takes in a terminal: two for wide characters, none for combining."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _padded(cell: str, columns: int, right: bool) -> str:
    space = " " * (columns - width(cell))
    return space + cell if right else cell + space


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.3g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, list | dict | tuple):
        return printable(json.dumps(value, default=str))
    return printable(value)
