"""Dot plots of scores with intervals, and training curves with the range over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attnviz.definitions import LEVELS, SHOWN_LEVELS
from attnviz.errors import InputError, unknown_name
from attnviz.figures.colour import colour_of, line_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Page:
    """Colours of the page around a figure."""

    ink: str
    faint: str
    grid: str
    paper: str


_LIGHT = _Page(ink="#1a1a1a", faint="#6a6a6a", grid="#e5e5e5", paper="#ffffff")
_DARK = _Page(ink="#eeeeee", faint="#a8a8a8", grid="#3a3d44", paper="#1b1d22")
_STYLES = dict(zip(SHOWN_LEVELS, (":", "--"), strict=True))


def dot_plot(
    rows: Any,
    *,
    seeds: Any = None,
    label: str = "score",
    confidence: float = 0.95,
    order: Sequence[str] | None = None,
    dark: bool = False,
) -> Figure:
    """A dot per variant, its interval, a small dot per seed, chance and the mask redrawn as lines.

    Args:
        rows: A table with the columns variant, mean, low, high and, where known, chance and
            redrawn, in the order to be drawn, first on top.
        seeds: A table with the columns variant and mean, a row per seed, or None.
        label: What the score is called, below the axis.
        confidence: The level of the intervals, named below the axis.
        order: The order of the variants that fixes their colours; that of the rows unless given.
        dark: Draw for a dark page.

    Returns:
        The figure. A level that all variants share is one line; one that depends on a variant's
        grid is a mark beside that variant.

    Raises:
        InputError: There is no row.
    """
    from matplotlib.figure import Figure

    if not len(rows):
        raise InputError("dot_plot: expected at least one row, got none")
    page = _DARK if dark else _LIGHT
    names = [str(name) for name in rows["variant"]]
    palette = {name: colour_of(i) for i, name in enumerate(order or names)}
    size = (6.4, 0.9 + 0.34 * len(names))
    figure = Figure(figsize=size, layout="constrained", facecolor=page.paper)
    axes = figure.add_subplot()
    for place, (_, row) in enumerate(rows.iterrows()):
        colour = palette.get(str(row["variant"]), page.ink)
        axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=1.6, zorder=3)
        axes.plot(row["mean"], place, "o", color=colour, ms=7, zorder=4)
        mine: Sequence[float] = ()
        if seeds is not None:
            mine = seeds[seeds["variant"] == row["variant"]]["mean"].to_list()
            axes.plot(
                mine,
                [place] * len(mine),
                "o",
                ms=3.6,
                mfc=page.paper,
                mec=colour,
                mew=0.9,
                zorder=5,
            )
        _beside(axes, row, place, max((row["high"], *mine), key=_last), page)
    _levels(axes, rows, page)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    each = "; a small dot per seed" if seeds is not None and len(seeds) > len(names) else ""
    axes.set_xlabel(f"{label}, mean and {100 * confidence:g} % interval{each}", fontsize=8)
    _plain(axes, page)
    return figure


def _last(value: float) -> float:
    """Replace non-finite values by −inf, for a maximum."""
    return value if np.isfinite(value) else -np.inf


def _beside(axes: Any, row: Any, place: int, end: float, page: _Page) -> None:
    """Print the mean to the right of its interval and dots."""
    if np.isfinite(row["mean"]):
        right = end if np.isfinite(end) else row["mean"]
        axes.annotate(
            f"{row['mean']:.2f}",
            (right, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=page.ink,
            zorder=6,
        )


def _levels(axes: Any, rows: Any, page: _Page) -> None:
    """Chance and the mask redrawn: one line if all share it, else a mark in each variant's row."""
    for name, style in _STYLES.items():
        if name not in rows:
            continue
        values = np.asarray(rows[name], dtype=np.float64)
        known = values[np.isfinite(values)]
        if not len(known):
            continue
        if np.ptp(known) < 1e-9 and len(known) == len(values):
            axes.axvline(known[0], ls=style, lw=1, color=page.faint, zorder=1)
        else:
            for place, value in enumerate(values):
                axes.plot([value] * 2, [place - 0.3, place + 0.3], ls=style, lw=1, color=page.faint)
        axes.annotate(
            f"{LEVELS[name].title} {_span(known)}",
            (float(np.mean(known)), 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7.5,
            color=page.faint,
        )


def _span(values: np.ndarray) -> str:
    return " to ".join(dict.fromkeys(f"{value:.2g}" for value in (values.min(), values.max())))


def curves(
    runs: Mapping[str, Sequence[Any]],
    columns: Sequence[str] = ("train_loss", "val_loss", "val_accuracy"),
    *,
    x: str = "epoch",
    dark: bool = False,
) -> Figure:
    """Training curves: a panel per column, a line per variant, a band from seed to seed.

    Args:
        runs: Variant → one table per seed, a row per epoch.
        columns: What to draw; a panel is left out where no run has it.
        x: The column that counts epochs.
        dark: Draw for a dark page.

    Returns:
        The figure. A line is the mean over the seeds that reached the epoch; the band reaches
        from the lowest to the highest of them.

    Raises:
        InputError: No run has any of the columns.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    tables = [table for seeds in runs.values() for table in seeds if x in table]
    shown = [name for name in columns if any(name in table for table in tables)]
    if not shown:
        known = sorted({str(name) for table in tables for name in table})
        raise unknown_name("curve", ", ".join(columns), known)
    page = _DARK if dark else _LIGHT
    size = (3.1 * len(shown) + 0.2, 2.6)
    figure = Figure(figsize=size, layout="constrained", facecolor=page.paper)
    for panel, name in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), panel + 1)
        for i, (variant, seeds) in enumerate(runs.items()):
            having = [table for table in seeds if name in table and x in table]
            _curve(axes, having, name, x, label=variant, color=colour_of(i), ls=line_of(i))
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xlabel(x, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes, page)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=6,
        fontsize=8,
        frameon=False,
        labelcolor=page.ink,
    )
    return figure


def _curve(axes: Any, tables: Sequence[Any], name: str, x: str, **style: Any) -> None:
    import pandas as pd

    if not tables:
        return
    rows = pd.concat([table[[x, name]] for table in tables]).groupby(x)[name]
    mean = rows.mean()
    axes.plot(mean.index, mean, lw=1.4, marker="." if len(mean) < 3 else "", **style)
    if len(tables) > 1:
        band = {"color": style["color"], "alpha": 0.18, "lw": 0}
        axes.fill_between(mean.index, rows.min(), rows.max(), **band)


def _plain(axes: Any, page: _Page) -> None:
    """Style axes: faint grid, no frame, text in the page's colour."""
    axes.set_facecolor(page.paper)
    axes.grid(axis="x", color=page.grid, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, length=0, colors=page.ink)
    for text in (axes.title, axes.xaxis.label):
        text.set_color(page.ink)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(page.faint)
