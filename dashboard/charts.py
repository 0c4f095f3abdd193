"""The charts, as Altair objects. No Streamlit here: a theme comes in as an `Ink`.

Altair is imported by what draws: it takes a second, and the first page shows no chart before it is
scrolled. Each chart has a companion that describes it as text with its numbers, for screen readers.
Orders are always passed on explicitly: a layered chart sorted by `"-x"` comes out wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from attnviz.definitions import LEVELS, SHOWN_LEVELS, metric_title
from dashboard.palettes import DASHES, Ink

MOST_BANDS = 8
"""Maximum number of lines that are drawn with bands."""

_ROW = 34  # pixels per variant in a dot plot
_AXIS = 56  # pixels for the axis and the words above
_LABEL = 18  # pixels that a dot's label is high
_EDGE = 20  # pixels above and below the dots
_FONT = "'Source Sans', 'Source Sans Pro', sans-serif"


def styled(chart: Any, ink: Ink) -> Any:
    """A chart with the page's type and colours."""
    return (
        chart.configure(background="transparent", font=_FONT)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=ink.text,
            titleColor=ink.text,
            gridColor=ink.grid,
            domainColor=ink.grid,
            tickColor=ink.grid,
            labelFontSize=13,
            titleFontSize=13,
            titleFontWeight="normal",
            labelLimit=320,
        )
        .configure_legend(
            labelColor=ink.text,
            titleColor=ink.text,
            labelFontSize=13,
            titleFontSize=13,
            labelLimit=320,
        )
        .configure_header(labelColor=ink.text, titleColor=ink.text, labelFontSize=13)
    )


def extent(table: pd.DataFrame, by_seed: pd.DataFrame) -> tuple[float, float]:
    """Where the axis of a dot plot begins and ends: zero or below, with room for the numbers."""
    means = [*table["mean"].dropna(), *by_seed["mean"].dropna()]
    low = min([0.0, *table["low"].dropna(), *means])
    high = max([*table["high"].dropna(), *means, *levels_of(table)["value"], low + 0.1])
    return float(low), float(high + 0.1 * (high - low))


def round_ticks(low: float, high: float, count: int = 8) -> list[float]:
    """About that many round numbers from `low` to `high`."""
    rough = (high - low) / count
    size = 10.0 ** np.floor(np.log10(rough))
    step = size * next(one for one in (1, 2, 5, 10) if one * size >= rough)
    first = int(np.ceil(low / step - 1e-9))
    return [float(i * step) for i in range(first, int(np.floor(high / step + 1e-9)) + 1)]


def levels_of(table: pd.DataFrame) -> pd.DataFrame:
    """Chance and the mask redrawn, a line each: the mean over variants, where known."""
    found = [
        {"level": name, "value": float(table[name].mean()), "text": LEVELS[name].title}
        for name in SHOWN_LEVELS
        if name in table and table[name].notna().any()
    ]
    return pd.DataFrame(found, columns=["level", "value", "text"])


def level_colours(ink: Ink) -> dict[str, str]:
    """The colour of each level that has a line."""
    return dict(zip(SHOWN_LEVELS, (ink.chance, ink.redrawn), strict=True))


def dot_plot_in_words(table: pd.DataFrame, metric: str) -> str:
    """The dot plot as text."""
    parts = [
        f"{row.variant} {row.mean:.3f} (95 % CI {row.low:.3f} to {row.high:.3f})"
        if np.isfinite(row.mean)
        else f"{row.variant} cannot be scored"
        for row in table.itertuples()
    ]
    levels = "".join(f"; {r.text} {r.value:.3f}" for r in levels_of(table).itertuples())
    return f"Dot plot of {metric_title(metric)}: " + ", ".join(parts) + levels + "."


def lines(
    data: pd.DataFrame,
    *,
    ink: Ink,
    x: str,
    y: str,
    x_title: str,
    y_title: str,
    order: Sequence[str],
    band: bool = False,
    height: int = 300,
    zero: bool = True,
    whole: bool = False,
) -> Any:
    """Lines by `variant`, distinguished by colour and dash; `low` and `high` make a band.

    Args:
        data: Long table with the columns `variant`, `x` and `y`, and `low`, `high` for bands.
        ink: The theme's colours.
        x: The column along.
        y: The column up.
        x_title: What `x` is, in words.
        y_title: What `y` is, in words.
        order: The variants, in the order of the legend.
        band: Whether `low` and `high` are drawn.
        height: In pixels.
        zero: Whether the y axis begins at zero.
        whole: Whether `x` counts in whole numbers.
    """
    import altair as alt

    n = len(order)
    wide = 60 + 7 * max(map(len, order), default=0)  # pixels that one name takes in the legend
    colour = alt.Color(
        "variant:N",
        sort=list(order),
        title=None,
        scale=alt.Scale(domain=list(order), range=_cycled(ink.series, n)),
        legend=alt.Legend(
            orient="top",
            columns=alt.ExprRef(f"max(1, floor(width / {wide}))"),
            symbolType="stroke",
            symbolSize=500,
            symbolStrokeWidth=3,
            symbolOpacity=1,
        ),
    )
    dash = alt.StrokeDash(
        "variant:N",
        sort=list(order),
        title=None,
        scale=alt.Scale(domain=list(order), range=_dashes(n)),
    )
    ticks = alt.Axis(tickMinStep=1, format="d") if whole else alt.Axis()
    across = alt.X(f"{x}:Q", title=x_title, axis=ticks, scale=alt.Scale(zero=False, nice=False))
    up = alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(zero=zero))
    base = alt.Chart(data).encode(x=across)
    tip = ["variant", alt.Tooltip(f"{x}:Q"), alt.Tooltip(f"{y}:Q", format=".4f")]
    drawn = base.mark_line(strokeWidth=2.5, point=len(data) < 60).encode(
        y=up, color=colour, strokeDash=dash, tooltip=tip
    )
    layers = [drawn]
    if band and n <= MOST_BANDS:
        shade = base.mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q", color=colour)
        layers.insert(0, shade)
    rows = -(-n * wide // 900)  # the legend takes its rows from the height
    chart = alt.layer(*layers).properties(height=height + 22 * rows, width="container")
    return styled(chart, ink)


def _cycled(values: Sequence[Any], n: int) -> list[Any]:
    return [values[i % len(values)] for i in range(n)]


def _dashes(n: int) -> list[list[int]]:
    """A pattern for each of n lines: a repeated colour has another pattern."""
    return [DASHES[(i + i // len(DASHES)) % len(DASHES)] for i in range(n)]


def lines_in_words(data: pd.DataFrame, *, x: str, y: str, y_title: str, name: str) -> str:
    """Where each line begins and ends."""
    parts = []
    for variant, part in data.dropna(subset=[y]).groupby("variant", sort=False):
        part = part.sort_values(x)
        first, last = part.iloc[0], part.iloc[-1]
        parts.append(
            f"{variant} from {first[y]:.3f} at {x} {first[x]:g} to {last[y]:.3f} at {last[x]:g}"
        )
    return f"{name}, {y_title}: " + ("; ".join(parts) or "no values") + "."


def scatter(data: pd.DataFrame, *, ink: Ink, x: str, y: str, x_title: str, y_title: str) -> Any:
    """One labelled dot per variant; a line joins a dot to its label where that had to move."""
    import altair as alt

    height = max(300, 2 * _EDGE + _LABEL * len(data) * 4 // 3)
    data = data.assign(label_at=_apart(data[y].to_numpy(), _LABEL / (height - 2 * _EDGE)))
    across = alt.X(
        f"{x}:Q",
        title=x_title,
        axis=alt.Axis(tickCount=6),
        scale=alt.Scale(zero=False, nice=False, padding=40),
    )
    base = alt.Chart(data).encode(x=across)
    up = alt.Scale(zero=False, nice=False, padding=_EDGE)
    tip = ["variant", *(alt.Tooltip(f"{c}:Q", format=".3f") for c in (x, y))]
    height_of = alt.Y(f"{y}:Q", title=y_title, scale=up)
    joined = base.mark_rule(color=ink.grid).encode(y=height_of, y2="label_at:Q")
    dots = base.mark_point(filled=True, size=110, color=ink.mark, opacity=1).encode(
        y=height_of, tooltip=tip
    )
    left = f"datum.{x} > {float(data[x].mean())!r}"
    words = alt.layer(
        *(
            base.transform_filter(side)
            .mark_text(align=align, dx=dx, fontSize=13, color=ink.text)
            .encode(y=alt.Y("label_at:Q", title=y_title, scale=up), text="variant:N")
            for side, align, dx in ((left, "right", -10), (f"!({left})", "left", 10))
        )
    )
    layers = alt.layer(joined, dots, words).properties(height=height, width="container")
    return styled(layers, ink)


def _apart(values: np.ndarray, gap: float) -> np.ndarray:
    """Heights for labels: those of the dots, pushed up until none covers the next.

    Args:
        values: The heights of the dots.
        gap: How high a label is, as a share of the whole height that dots and labels then take;
            less than one over their number.
    """
    order = np.argsort(values, kind="stable")
    span = float(np.ptp(values)) or 1.0
    for _ in range(64):  # labels above the highest dot make the whole higher
        out = values.astype(float)
        for below, above in pairwise(order):
            out[above] = max(out[above], out[below] + gap * span)
        if np.ptp(out) <= span:
            break
        span = float(np.ptp(out)) * (1 + 1e-9)
    return out


def intervals(
    data: pd.DataFrame,
    *,
    ink: Ink,
    row: str,
    order: Sequence[str],
    title: str,
    tint: str | None = None,
    decimals: int = 3,
) -> Any:
    """Dots with intervals, their numbers beside them, and a line at zero: differences.

    Args:
        data: Columns `row`, `mean`, `low`, `high`, and `tint` where given.
        ink: The theme's colours.
        row: The column that names the rows.
        order: Its values from top to bottom.
        title: What is measured.
        tint: A boolean column; rows where it is False are drawn hollow.
        decimals: Of the numbers.
    """
    import altair as alt

    data = data.assign(
        label=[f"{value:+.{decimals}f}".replace("-", "−") for value in data["mean"]],
        at=data[["mean", "high"]].max(axis=1),
    )
    narrow = "width < 250"  # there the numbers would cover the dots
    room = alt.Scale(nice=False, padding=alt.ExprRef(f"{narrow} ? 8 : 52"))
    y = alt.Y(f"{row}:N", sort=list(order), title=None, axis=alt.Axis(ticks=False, domain=False))
    base = alt.Chart(data).encode(y=y)
    zero = alt.Chart(pd.DataFrame({"at": [0.0]})).mark_rule(strokeDash=[5, 4], color=ink.chance)
    bars = base.mark_rule(strokeWidth=3, color=ink.mark, opacity=0.55).encode(
        x=alt.X("low:Q", title=title, axis=alt.Axis(tickCount=8), scale=room), x2="high:Q"
    )
    seen = alt.ExprRef(f"{narrow} ? 0 : 1")
    words = base.mark_text(align="left", dx=10, fontSize=13, color=ink.text, opacity=seen).encode(
        x=alt.X("at:Q", title=title), text="label:N"
    )
    fill = (
        {}
        if tint is None
        else {"fillOpacity": alt.condition(f"datum.{tint}", alt.value(1), alt.value(0))}
    )
    tip = [row, *(alt.Tooltip(f"{c}:Q", format="+.3f") for c in ("mean", "low", "high"))]
    dots = base.mark_point(size=110, color=ink.mark, fill=ink.mark, strokeWidth=2, opacity=1)
    dots = dots.encode(x=alt.X("mean:Q", title=title), tooltip=tip, **fill)
    layers = alt.layer(zero.encode(x="at:Q"), bars, words, dots)
    return styled(layers.properties(height=_ROW * len(order) + _AXIS, width="container"), ink)


def gate_plot(data: pd.DataFrame, *, ink: Ink) -> Any:
    """One image's channel gates beside the set's median and quartiles, by channel.

    Args:
        data: Columns `channel`, `gate`, `median`, `low`, `high`.
        ink: The theme's colours.
    """
    import altair as alt

    base = alt.Chart(data).encode(
        x=alt.X("channel:O", title="channel", axis=alt.Axis(labelAngle=0))
    )
    top = alt.Scale(domain=[0, max(1.0, float(data[["gate", "high"]].max().max()))])
    range_ = base.mark_bar(width=4, color=ink.text, opacity=0.25).encode(
        y=alt.Y("low:Q", title="gate", scale=top), y2="high:Q"
    )
    median = base.mark_tick(thickness=3, size=12, color=ink.text).encode(y="median:Q")
    tip = ["channel", *(alt.Tooltip(f"{c}:Q", format=".3f") for c in ("gate", "median"))]
    mine = base.mark_point(filled=True, size=70, color=ink.chance, opacity=1)
    mine = mine.encode(y="gate:Q", tooltip=tip)
    return styled(alt.layer(range_, median, mine).properties(height=240, width="container"), ink)
