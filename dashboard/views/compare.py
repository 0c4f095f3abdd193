"""Compare: ranking of variants, intervals, and maps of the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.comparison.from_runs import map_names, patched
from attnviz.comparison.text import begun
from attnviz.definitions import metric_title, short_title
from attnviz.figures import png_bytes
from attnviz.figures.packing import MapLayer, Settings, Tile, pack
from attnviz.statistics.variance import mean_of_valid
from dashboard import charts, notices, run_cache
from dashboard.address import plain, whole
from dashboard.chosen_runs import Chosen, chosen, ranked
from dashboard.controls import chooser, draw, go, offer, stepper, value_or_warning
from dashboard.dot_plot import dots
from dashboard.gallery import gallery
from dashboard.lazy import below
from dashboard.overlap import iou_curves
from dashboard.selection import metric_names, neighbours, primary_map, verdict

PAGE = {"title": "Compare", "icon": ":material/leaderboard:", "order": 0}

PRIMARY = "energy_pointing_game"
_CURVE_IMAGES = 200


def main() -> None:
    """The page, from the answer down to the table."""
    title = st.container()  # which names what the chosen runs look for
    choice = chosen()
    if choice is None:
        title.title("Compare")
        return
    title.title(f"Which variant looks at the {plain(choice.thing)}?")
    tables = _tables(choice)
    if not tables:
        return
    answer = st.container()  # the answer is above the control that chooses another metric
    metric = _metric(tables)
    result = ranked(_readable(choice, tables), metric)
    if result is not None:
        with answer:
            _answer(result, metric, choice, tables)
    notices.not_ranked(choice.listing)
    _strip(choice, tables, metric, result.variants if result is not None else [])
    if result is not None:
        below(
            lambda: _below(result, metric, choice, tables),
            "Curves, differences and the table",
            key="compare",
        )


def _tables(choice: Chosen) -> dict[str, pd.DataFrame]:
    """The sample tables of all runs that can be read; a fault in one leaves the others."""
    tables = {}
    for run in choice.runs:
        table = notices.readable(lambda run=run: run_cache.samples(run), run)
        if table is not None:
            tables[run.id] = table
    return tables


def _readable(choice: Chosen, tables: dict[str, pd.DataFrame]) -> Chosen:
    runs = tuple(run for run in choice.runs if run.id in tables)
    return Chosen(choice.listing, runs, choice.cohort)


def _metric(tables: dict[str, pd.DataFrame]) -> str:
    """The metric, among those that every run's primary map has."""
    shared: list[str] = []
    for table in tables.values():
        names = dict.fromkeys(
            metric for name in map_names(table) for metric in metric_names(table, name)
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


def _answer(result: Any, metric: str, choice: Chosen, tables: dict[str, pd.DataFrame]) -> None:
    st.header(plain(begun(result.sentence, result.variants)))
    rows = result.of(metric)
    seeds = result.by_seed[result.by_seed["metric"] == metric]
    opened = dots(rows, seeds, metric, key="dots")
    judged: dict[str, list[str]] = {}
    for name, runs in choice.groups.items():
        if runs[0].id in tables:
            judged.setdefault(str(primary_map(runs[0], tables[runs[0].id])), []).append(name)
    grouped = f" of {result.groups} groups" if result.groups else ""
    by = "; ".join(f"{plain(one)} of {plain(', '.join(names))}" for one, names in judged.items())
    st.caption(
        f"Large dots: means; bars: 95 % intervals; small dots: one training each. "
        f"{result.images} images{grouped} with a marked {plain(choice.thing)}. Maps: {by}. "
        + " ".join(plain(note[:1].upper() + note[1:]) + "." for note in result.notes)
    )
    runs = choice.groups.get(opened or "")
    if runs:
        go("gallery", run=runs[0].id, metric=metric)


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
    image = value_or_warning(whole(st.query_params, "image", 0, len(first) - 1, start))
    found = notices.readable(lambda: run_cache.pictures(choice.listing.root, digest, [image]))
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
    tiles, maps, h, w = [], [np.zeros((1, 1))], *found.images.shape[1:3]
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
        values = notices.readable(lambda: run_cache.maps(run, map_name, [image])[0], run)  # noqa: B023 - called at once
        if values is None:
            continue
        maps.append(values)
        tiles.append(_tile(name, run, table.iloc[image], map_name, metric, image, box))
    block = pack(
        found.images,
        tiles,
        [MapLayer("map", "map", _same_size(maps, h, w), from_zero=True)],
        None,
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
    judged = [one for one in (verdict(row),) if one]
    alt = f"{name}, seed {run.seed}, {map_name} on image {image}: " + ", classified ".join(
        [described, *judged]
    )
    return Tile(run.id, name, (described, *judged), alt, 0, box)


def _same_size(maps: list[np.ndarray], h: int, w: int) -> np.ndarray:
    from attnviz.figures import resized

    return np.stack([resized(one, (h, w)) for one in maps])


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
    one, two, _ = st.columns([1, 1, 3])
    with one:
        offer(
            "Table as CSV",
            lambda: rows.to_csv(index=False).encode(),
            f"{metric}.csv",
            "text/csv",
            key="csv",
        )
    with two:
        offer(
            "Figure as PNG",
            lambda: png_bytes(result.figure(metric)),
            f"{metric}.png",
            "image/png",
            key="png",
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
    maps = run_cache.maps(_run, str(primary_map(_run, table)), where)
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
