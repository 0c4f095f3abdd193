"""Plain text for a terminal: aligned columns, and nothing that a terminal would obey.

Names and reasons come out of files that a stranger may have written; a control character in them
is shown, not sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from attnviz.runs.documents import plain


def printable(value: object) -> str:
    """A value as one line of text, with control characters spelled out."""
    text = str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: object, most: int = 200) -> str:
    """What an error says in its first line, or in its second where the first announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said if len(said) <= most else f"{said[:most]}…"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under a header, each column as wide as its widest cell; numbers to three decimals."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def as_json(value: Any) -> str:
    """A value as strict JSON; times in ISO 8601, numbers that are none as null."""
    return json.dumps(plain(value, "output"), indent=1, allow_nan=False)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.3g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, list | dict | tuple):
        return printable(json.dumps(value, default=str))
    return printable(value)
