"""Compare: ranking of variants, intervals, and maps of the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.comparison.cohorts import matchable
from attnviz.comparison.from_runs import map_names, patched
from attnviz.definitions import is_lower_better, metric_title, short_title
from attnviz.figures import figure_bytes
from attnviz.figures.packing import MapLayer, Settings, Tile, pack
from attnviz.runs import flat
from attnviz.statistics.variance import mean_of_valid
from dashboard import charts, notices, run_cache, run_table
from dashboard.address import plain, whole
from dashboard.boards import board_of
from dashboard.chosen_runs import MOST, Chosen, chosen, in_time, ranked, tables_of
from dashboard.controls import chooser, draw, go, offer, stepper, typed, value_or_warning
from dashboard.dot_plot import dots
from dashboard.gallery import gallery
from dashboard.lazy import below
from dashboard.overlap import iou_curves, on_one_grid
from dashboard.query import params, put
from dashboard.selection import metric_names, neighbours, primary_map, verdict
from dashboard.slices import slice_chooser
from dashboard.summaries import level
from dashboard.table import table

PAGE = {"title": "Compare", "icon": ":material/leaderboard:", "order": 0}

PRIMARY = "energy_pointing_game"
FIGURES = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf"}
"""Kinds of files in which a figure is offered."""

_CURVE_IMAGES = 200


def main() -> None:
    """The page, from the answer down to the table."""
    title = st.container()  # which names what the chosen runs look for
    choice = chosen()
    if choice is None:
        title.title("Compare")
        return
    title.title(f"Which variant looks at the {plain(choice.thing)}?")
    st.fragment(lambda: _compared(choice))()


def _compared(choice: Chosen) -> None:
    """All that depends on the metric; another one runs this part alone."""
    choice = _few(choice)
    tables = tables_of(choice.runs)
    if not tables:
        return
    above = st.container()  # the answer is above the control that chooses another metric
    metric = _metric(tables)
    choice = _readable(choice, tables)
    job = ranked(choice, metric)
    found = None
    with above:
        found = _answer(job, metric, choice, tables) if job is not None else None
    notices.not_ranked(choice.listing)
    order = found.variants if found is not None else []
    _strip(choice, tables, metric, order)
    if found is not None:
        below(
            lambda: _below(found, metric, choice, tables),
            "Curves, differences and the table",
            key="compare",
        )


def _few(choice: Chosen) -> Chosen:
    """Of many variants those with the best means, after a filter: the others stay listed."""
    groups = choice.groups
    if len(groups) <= MOST:
        return choice
    metric = str(params().get("metric", PRIMARY))
    left, right = st.columns(2)
    with left:
        words = typed("Filter variants", "variants", "name, setting=value …")
    with right:
        settings = {key: f"by {key}" for key in run_cache.settings_that_differ(choice.listing)}
        by = chooser("Summary of all", "by", {"none": "none"} | settings, "none")
    kept = {name: runs for name, runs in groups.items() if all(
        word in f"{name} {matchable(runs[0])}".casefold() for word in words.casefold().split()
    )} if words else groups  # fmt: skip
    if not kept:
        st.info("No variant passes this filter.", icon=":material/filter_alt_off:")
        kept = groups
    best = sorted(kept, key=lambda name: _badness(kept[name], metric))[:MOST]
    st.caption(
        f"{len(best)} of {len(kept)} variants, those with the best mean "
        f"{plain(metric_title(metric))}; {len(groups)} in all. Of the best of many some are best "
        "by luck: intervals and tests below are adjusted for the pairs that are shown alone."
    )
    if by != "none":
        _summary_by(choice, by)
    runs = tuple(run for name in best for run in kept[name])
    return Chosen(choice.listing, runs, choice.cohort)


def _badness(runs: list[Any], metric: str) -> float:
    """The mean over seeds of what the runs' own summaries say; those without a score last."""
    means = [level(run, run.summary.get("map"), metric, "mean") for run in runs]
    known = [mean for mean in means if mean is not None]
    if not known:
        return float("inf")
    return float(np.mean(known)) * (1 if is_lower_better(metric) else -1)


def _summary_by(choice: Chosen, key: str) -> None:
    """All runs by the value of a setting: how many, mean and range of accuracy and score."""
    groups = run_table.grouped(choice.runs, lambda run: flat(run.settings).get(key))
    names = list(groups)[: run_table.PER_PAGE]
    rows = run_table.group_rows({name: groups[name] for name in names}, set(), ())
    table(run_table.group_columns(key), rows, label=f"All runs by {key}", key="by")
    st.caption("A setting is not the only one that differs between its groups: no test is made.")


def _readable(choice: Chosen, tables: dict[str, pd.DataFrame]) -> Chosen:
    runs = tuple(run for run in choice.runs if run.id in tables)
    return choice if len(runs) == len(choice.runs) else Chosen(choice.listing, runs, choice.cohort)


def _metric(tables: dict[str, pd.DataFrame]) -> str:
    """The metric, among those that every run's primary map has."""
    shared: list[str] = []
    for scored in tables.values():
        names = dict.fromkeys(
            metric for name in map_names(scored) for metric in metric_names(scored, name)
        )
        shared = [n for n in shared if n in names] if shared else list(names)
    default = PRIMARY if PRIMARY in shared else (shared[0] if shared else PRIMARY)
    return chooser(
        "Metric",
        "metric",
        {n: metric_title(n) for n in shared},
        default,
        help="The energy pointing game is the primary metric, declared before looking. "
        "“About this data” defines all of them.",
    )


def _answer(job: Any, metric: str, choice: Chosen, tables: dict[str, pd.DataFrame]) -> Any | None:
    """The sentence, the dots and the board; None while they are being computed."""
    found = in_time(job)
    if found is None:
        return None
    result, board = found.comparison, found.board
    run_cache.comparisons(choice.groups, [one for one in board["metric"].unique() if one != metric])
    st.header(plain(found.answer))
    rows = result.of(metric)
    seeds = result.by_seed[result.by_seed["metric"] == metric]
    opened = dots(rows, seeds, metric, key="dots")
    st.caption(
        "Large dots: means; bars: 95 % intervals; small dots: one training each. "
        + _maps_in_words(choice, tables)
        + " ".join(plain(note[:1].upper() + note[1:]) + "." for note in result.notes)
    )
    opened = _board(board, metric) or opened
    runs = choice.groups.get(opened or "")
    if runs:
        go("gallery", run=runs[0].id, metric=metric)
    return result


def _maps_in_words(choice: Chosen, tables: dict[str, pd.DataFrame]) -> str:
    """Which map speaks for which variant."""
    judged: dict[str, list[str]] = {}
    for name, runs in choice.groups.items():
        if runs[0].id in tables:
            judged.setdefault(str(primary_map(runs[0], tables[runs[0].id])), []).append(name)
    by = "; ".join(f"{plain(one)} of {plain(', '.join(names))}" for one, names in judged.items())
    return f"Maps: {by}. "


def _board(board: pd.DataFrame, metric: str) -> str | None:
    """Variants by metrics, ranked by one of them; the variant that was opened just now."""
    columns, rows = board_of(board, metric)
    if len(columns) < 3:
        return None
    event = table(
        columns, rows, label="Variants by several metrics", key="board", opens=True,
        on_sort=_rank_by,
    )  # fmt: skip
    hatched = board["below"].any()
    st.caption(
        "Means over seeds and images, with ranks. A column ranks the page by its metric."
        + (" Hatched: a mean no better than chance." if hatched else "")
    )
    return event.opened


def _rank_by(metric: str) -> None:
    put({"metric": metric})


def _strip(choice: Chosen, tables: dict[str, pd.DataFrame], metric: str, order: list[str]) -> None:
    """The same image in every variant, its box drawn, its score below."""
    st.header("The same image in every variant")
    shown = [(name, runs[0]) for name, runs in choice.groups.items() if runs[0].id in tables]
    digest = str(shown[0][1].dataset)
    shown = [(name, run) for name, run in shown if str(run.dataset) == digest]
    shown.sort(key=lambda one: order.index(one[0]) if one[0] in order else len(order))
    first = tables[shown[0][1].id]
    where = np.flatnonzero(patched(first))
    start = int(where[0]) if len(where) else 0
    image = value_or_warning(whole(params(), "image", 0, len(first) - 1, start))
    at = slice_chooser(choice.listing.root, digest)
    found = notices.readable(lambda: run_cache.pictures(choice.listing.root, digest, [image], at))
    if found is None:
        return
    before, after = neighbours(where, image)
    stepper(
        "image",
        before,
        after if after is not None or before is not None else start,
        f"Image **{image}** of {len(first)} · ← → go through those with a marked "
        f"{plain(choice.thing)}",
    )
    tiles: list[Tile] = []
    maps: list[np.ndarray] = []
    box = found.box()
    tiles.append(
        Tile(
            "",
            "the image",
            (f"{choice.thing} in the box",) if box else (f"no {choice.thing}",),
            f"Test image {image}"
            + (f", the {choice.thing} at {box}" if box else f", no {choice.thing}"),
            0,
            box,
        )
    )
    for name, run in shown:
        table = tables[run.id]
        map_name = primary_map(run, table)
        if map_name not in run.map_names:
            st.caption(f"{plain(name)} keeps no map to show.")
            continue
        values = notices.readable(lambda: run_cache.maps(run, map_name, [image], found)[0], run)  # noqa: B023 - called at once
        if values is None:
            continue
        maps.append(values)
        tiles.append(_tile(name, run, table.iloc[image], map_name, metric, image, box))
    block = pack(
        found.images,
        tiles,
        [MapLayer("map", "map", on_one_grid(maps, found.images.shape[1:3]), from_zero=True)],
        np.repeat(found.masks, len(tiles), axis=0),
        title=f"Image {image} in every variant",
        iou=False,
        settings=Settings(threshold=0.0, opacity=0.55),
        label=f"Image {image} in every variant",
        controls=False,
        arrows=False,
        tile=7,
    )
    opened = gallery(block, key="strip")
    if opened is not None:
        go("sample", image=image)


def _tile(
    name: str, run: Any, row: pd.Series, map_name: str, metric: str, image: int, box: Any
) -> Tile:
    score = float(row.get(f"{map_name}/{metric}", np.nan))
    described = f"{short_title(metric)} {score:.3f}" if np.isfinite(score) else "no score"
    judged = [one for one in (verdict(row, run=run),) if one]
    alt = f"{name}, seed {run.seed}, {map_name} on image {image}: " + ", classified ".join(
        [described, *judged]
    )
    return Tile(run.id, name, (described, *judged), alt, 0, box)


def _below(result: Any, metric: str, choice: Chosen, tables: dict[str, pd.DataFrame]) -> None:
    st.divider()
    left, right = st.columns(2, gap="large")
    with left:
        _curves(choice, tables)
    with right:
        _accuracy(result, metric)
    _differences(result, metric)
    st.header("Table")
    rows = result.of(metric)
    known = rows.dropna(axis="columns", how="all")
    st.dataframe(known, hide_index=True, alt=charts.dot_plot_in_words(rows, metric))
    one, two = st.columns([1, 4])
    with one:
        offer(
            "Table as CSV",
            lambda: rows.to_csv(index=False).encode(),
            f"{metric}.csv",
            "text/csv",
            key="csv",
        )
    with two, st.container(horizontal=True):
        for end, mime in FIGURES.items():
            offer(
                f"Figure as {end.upper()}",
                lambda end=end: figure_bytes(result.figure(metric), end),
                f"{metric}.{end}",
                mime,
                key=end,
            )


def _curves(choice: Chosen, tables: dict[str, pd.DataFrame]) -> None:
    st.header("IoU against the threshold")
    parts = []
    for name, runs in choice.groups.items():
        curves = [
            curve
            for run in runs
            if run.id in tables
            and (
                curve := notices.readable(
                    lambda run=run: _curve(run_cache.stamp(run), run, choice.listing.root), run
                )
            )
            is not None
        ]
        if curves:
            means = np.stack(curves)
            parts.append(
                pd.DataFrame(
                    {
                        "variant": name,
                        "threshold": np.linspace(0, 1, means.shape[1]),
                        "iou": means.mean(0),
                        "low": means.min(0),
                        "high": means.max(0),
                    }
                )
            )
    if not parts:
        return
    data = pd.concat(parts, ignore_index=True)
    words = charts.lines_in_words(
        data, x="threshold", y="iou", y_title="mean IoU", name="IoU against the threshold"
    )
    draw(
        charts.lines, data, alt=words, x="threshold", y="iou", x_title="threshold τ",
        y_title="mean IoU", order=list(choice.groups), band=True,
    )  # fmt: skip
    peaks = data.loc[data.groupby("variant", sort=False)["iou"].idxmax()]
    best = "; ".join(
        f"{plain(r.variant)} {r.iou:.3f} at τ = {r.threshold:.2f}" for r in peaks.itertuples()
    )
    bands = ", bands over seeds" if len(parts) <= charts.MOST_BANDS else ""
    st.caption(
        f"On the first {_CURVE_IMAGES} images with a marked {plain(choice.thing)}{bands}. Best "
        f"here (an oracle threshold, chosen on these images): {best}."
    )


@st.cache_data(max_entries=128, show_spinner=False)
def _curve(key: tuple[Any, ...], _run: Any, root: str) -> np.ndarray:
    """A run's mean IoU at each threshold."""
    table = run_cache.samples(_run)
    where = np.flatnonzero(patched(table))[:_CURVE_IMAGES]
    held = run_cache.pictures(root, str(_run.dataset), where)
    maps = run_cache.maps(_run, str(primary_map(_run, table)), where, held)
    return mean_of_valid(iou_curves(maps, held.masks).T)


def _accuracy(result: Any, metric: str) -> None:
    st.header("Accuracy against localisation")
    rows = result.of(metric)[["variant", "accuracy", "mean"]].dropna()
    if rows.empty:
        st.caption("No run says how accurate it is.")
        return
    words = "; ".join(f"{r.variant} {r.accuracy:.3f} and {r.mean:.3f}" for r in rows.itertuples())
    if len(rows) > 1:  # a single dot shows nothing, and its axes have no length
        draw(
            charts.scatter, rows, alt=f"Accuracy and {metric_title(metric)}: {words}",
            x="accuracy", y="mean", x_title="accuracy", y_title=metric_title(metric),
        )  # fmt: skip
    st.caption(f"Accuracy and {metric_title(metric)}: {plain(words)}.")


def _differences(result: Any, metric: str) -> None:
    pairs = result.differences[result.differences["metric"] == metric]
    if pairs.empty:
        return
    st.header("Differences")
    data = pairs.assign(
        pair=[f"{r.variant} − {r.other}" for r in pairs.itertuples()], mean=pairs["difference"]
    )
    clear = "; ".join(
        f"{r.pair} {r.mean:+.3f} ({r.low:+.3f} to {r.high:+.3f})" for r in data.itertuples()
    )
    draw(
        charts.intervals, data, alt=f"Differences in {metric_title(metric)}: {clear}",
        row="pair", order=list(data["pair"]), tint="clear",
        title=f"difference in {metric_title(metric)}",
    )  # fmt: skip
    unclear = int((~data["clear"]).sum())
    st.caption(
        f"On the same images, 95 % intervals over all pairs together; {unclear} of {len(data)} "
        "pairs (hollow) are not clear: their interval holds zero, or a variant has fewer than "
        "three seeds."
    )


main()
