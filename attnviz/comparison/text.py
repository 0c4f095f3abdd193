"""Format numbers and names for sentences, tables and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

WELL_KNOWN = ("max_iou", "pointing_game", "energy_pointing_game", "pixel_auroc")
"""The metrics that a short table shows first, beside the primary one."""


def number(value: float, digits: int = 2) -> str:
    """Two decimals, more for small numbers, a dash for NaN."""
    if not np.isfinite(value):
        return "–"
    if digits > 2:
        return f"{value:.{digits}f}"
    if abs(value) >= 0.0095 or value == 0:
        return f"{value:.2f}"
    return f"{value:.3f}" if abs(value) >= 0.0005 else f"{value:.1g}"


def with_sign(value: float, digits: int = 2) -> str:
    """Format a number with its sign."""
    text = number(abs(value), digits)
    return text if text == "–" else f"{'-' if value < 0 else '+'}{text}"


def fineness(row: Any) -> int:
    """Decimals for an interval: two, more where it is narrower than that."""
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
    """Capitalise a sentence, unless it begins with a variant's name."""
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
    """Escape LaTeX special characters."""
    return "".join(_LATEX.get(sign, sign) for sign in text)
