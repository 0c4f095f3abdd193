"""Numbers and names as one writes them in a sentence, a table or LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

WELL_KNOWN = ("max_iou", "pointing_game", "energy_pointing_game", "pixel_auroc")
"""The metrics that a short table shows first, beside the primary one."""


def number(value: float, digits: int = 2) -> str:
    """Two decimals, more where those would hide the number, a dash where there is none."""
    if not np.isfinite(value):
        return "–"
    if digits > 2:
        return f"{value:.{digits}f}"
    if abs(value) >= 0.0095 or value == 0:
        return f"{value:.2f}"
    return f"{value:.3f}" if abs(value) >= 0.0005 else f"{value:.1g}"


def with_sign(value: float, digits: int = 2) -> str:
    """A number that always shows its sign."""
    text = number(abs(value), digits)
    return text if text == "–" else f"{'-' if value < 0 else '+'}{text}"


def fineness(row: Any) -> int:
    """How many decimals an interval is worth: two, and more where it is narrower than those."""
    width = float(row["high"]) - float(row["low"])
    return 2 + (width < 0.01) + (width < 0.001) if width > 0 else 2


def interval(row: Any, *, signed: bool = False) -> str:
    """From low to high, of anything that has both."""
    show, digits = (with_sign if signed else number), fineness(row)
    return f"{show(row['low'], digits)} to {show(row['high'], digits)}"


def span(values: pd.Series) -> str:
    """One number for a level that all variants share, from-to where grids differ."""
    known = values[np.isfinite(values.astype(float))]
    if known.empty:
        return ""
    texts = dict.fromkeys([number(float(known.min())), number(float(known.max()))])
    return "–".join(texts)


def percent(confidence: float) -> str:
    """A share as a percentage."""
    return f"{100 * confidence:g} %"


def begun(sentence: str, variants: Iterable[str]) -> str:
    """A sentence with a capital, unless it begins with a variant's name, which stays as it is."""
    if any(sentence.startswith(name) for name in variants):
        return sentence
    return sentence[:1].upper() + sentence[1:]


def closed(text: str) -> str:
    """A sentence with its full stop."""
    return text if text.endswith(".") else f"{text}."


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts of plain Python values, None for what is no number."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [
        {str(key): value.item() if hasattr(value, "item") else value for key, value in row.items()}
        for row in plain.to_dict("records")
    ]


def aligned(lines: Iterable[Sequence[str]]) -> Iterable[str]:
    """Columns padded to one width: the variant's name to the left, numbers to the right."""
    rows = [list(line) for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        padded = [
            cell.ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(padded).rstrip()


def markdown(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "–": "--",
}


def latex(text: str) -> str:
    """Text with LaTeX's own signs escaped."""
    return "".join(_LATEX.get(sign, sign) for sign in text)
