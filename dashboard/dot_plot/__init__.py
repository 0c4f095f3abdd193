"""The dot plot component: a row per variant, each a button that opens its gallery.

A Vega chart would load and parse a megabyte of script before the answer is painted, and a screen
reader could not walk it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from attnviz.definitions import metric_title
from dashboard import charts
from dashboard.components import component, text
from dashboard.controls import colours
from dashboard.palettes import Ink

_dots = component(__file__, "dots")


def dots(
    table: pd.DataFrame, by_seed: pd.DataFrame, metric: str, *, key: str, opens: bool = True
) -> str | None:
    """Show a dot plot; the variant whose row was opened just now, or None.

    Args:
        table: Rows as of `Comparison.of(metric)`, in the order to be shown.
        by_seed: Rows as of `Comparison.by_seed`; a small dot each.
        metric: The metric's key.
        key: The component's own key on the page.
        opens: Whether a row can be opened.
    """
    words = charts.dot_plot_in_words(table, metric)
    data = described(table, by_seed, metric, colours()) | {"words": words, "opens": opens}
    return text(_dots(data=data, key=key, on_opened_change=lambda: None).opened)


def described(table: pd.DataFrame, by_seed: pd.DataFrame, metric: str, ink: Ink) -> dict[str, Any]:
    """What the browser draws: rows, levels, and an axis with round ticks."""
    low, high = charts.extent(table, by_seed)
    levels = charts.levels_of(table)
    colour = charts.level_colours(ink)
    seeds: dict[str, list[float]] = {}
    for variant, mean in zip(by_seed["variant"], by_seed["mean"], strict=True):
        seeds.setdefault(variant, []).extend([float(mean)] if np.isfinite(mean) else [])
    return {
        "rows": [_row(row, seeds.get(row.variant, [])) for row in table.itertuples()],
        "levels": [
            {"name": one.text, "value": one.value, "colour": colour[one.level]}
            for one in levels.itertuples()
        ],
        "low": low,
        "high": high,
        "ticks": charts.round_ticks(low, high),
        "title": metric_title(metric),
        "ink": {"mark": ink.mark, "grid": ink.grid},
    }


def _row(row: Any, seeds: list[float]) -> dict[str, Any]:
    known = bool(np.isfinite(row.mean))
    interval = f", 95 % interval {row.low:.3f} to {row.high:.3f}" if np.isfinite(row.low) else ""
    label = f"{row.mean:.3f}" if known else "cannot be scored"
    return {
        "name": str(row.variant),
        "mean": _number(row.mean),
        "low": _number(row.low),
        "high": _number(row.high),
        "seeds": seeds,
        "label": label,
        "words": f"{row.variant}: {label}{interval}",
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
