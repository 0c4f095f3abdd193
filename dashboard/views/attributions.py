"""Attributions: attention maps beside Captum's, by the same metrics, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.comparison.from_runs import grouping_of, map_names, patched
from attnviz.definitions import SHOWN_LEVELS, is_lower_better, metric_title, short_title
from attnviz.figures import resized
from attnviz.figures.packing import MapLayer, Settings, Tile, pack
from attnviz.statistics.clusters import clusters
from attnviz.statistics.intervals import interval
from attnviz.statistics.pairs import FEWEST
from attnviz.statistics.variance import mean_of_valid
from dashboard import charts, notices, run_cache
from dashboard.address import plain
from dashboard.chosen_runs import Chosen, chosen, limited, one_run, tables_of
from dashboard.controls import chooser, draw, go, offer
from dashboard.dot_plot import dots
from dashboard.gallery import gallery
from dashboard.selection import AGREEMENT, agreement_names, metric_names, primary_map, scores
from dashboard.summaries import level

PAGE = {"title": "Attributions", "icon": ":material/layers:", "order": 3}

_WORDS = {"spearman": "Spearman", "ssim": "SSIM", "topk_iou": "top-k IoU"}
_REFERENCE = "layer_gradcam"
_SHOWN = 6


def main() -> None:
    """The page."""
    st.title("Attributions")
    choice = chosen()
    if choice is None:
        return
    choice = limited(choice)
    tables = tables_of(choice.runs)
    if not tables:
        return
    metric = _metric(list(tables.values()))
    measured = _measured(choice, tables, metric)
    if measured:
        _scores(measured, metric, choice.thing)
    else:
        st.info("None of these maps has scores.", icon=":material/image_not_supported:")
    _agreement(choice, tables)
    _odd_ones(choice)


def _metric(tables: Sequence[pd.DataFrame]) -> str:
    known = dict.fromkeys(
        metric for table in tables for name in map_names(table)
        for metric in metric_names(table, name)
    )  # fmt: skip
    default = "energy_pointing_game" if "energy_pointing_game" in known else next(iter(known), "")
    return chooser("Metric", "metric", {name: metric_title(name) for name in known}, default)


@dataclass(frozen=True)
class _Measured:
    """One map of one variant.

    Attributes:
        scores: `(seeds, images)`, NaN where an image cannot be scored.
        kind: Whether the variant is judged by this map.
        group: Each image's group, None where none is named.
        levels: Reference levels of the first seed.
    """

    scores: np.ndarray
    kind: str
    group: tuple[Any, ...] | None
    levels: dict[str, float]


def _measured(choice: Chosen, tables: dict[str, pd.DataFrame], metric: str) -> dict[str, _Measured]:
    """The scores of every map of every variant on the images that have a marked object."""
    found = {}
    for variant, runs in choice.groups.items():
        here = [run for run in runs if run.id in tables]
        if not here:
            continue
        first, table = primary_map(here[0], tables[here[0].id]), tables[here[0].id]
        marked = patched(table)
        for name in map_names(table):
            rows = np.stack([scores(tables[run.id], name, metric) for run in here])[:, marked]
            if np.isfinite(rows).any():
                found[f"{variant} · {name}"] = _Measured(
                    rows,
                    "primary" if name == first else "attribution",
                    grouping_of(table[marked]),
                    _levels(here, name, metric),
                )
    return found


def _levels(runs: Sequence[Any], name: str, metric: str) -> dict[str, float]:
    known = {key: level(runs[0], name, metric, key) for key in SHOWN_LEVELS}
    return {key: np.nan if value is None else value for key, value in known.items()}


def _table(measured: dict[str, _Measured], metric: str) -> pd.DataFrame:
    """One row per map: mean and interval over seeds, groups and images."""
    rows = []
    for name, one in measured.items():
        its = interval(metric, one.scores, groups=clusters(one.group))
        rows.append(
            {
                "variant": name, "kind": one.kind, "mean": its.mean, "low": its.low,
                "high": its.high, "images": int(np.isfinite(one.scores).any(axis=0).sum()),
                "seeds": int(np.isfinite(one.scores).any(axis=1).sum()), **one.levels,
            }
        )  # fmt: skip
    upwards = is_lower_better(metric)
    return pd.DataFrame(rows).sort_values("mean", ascending=upwards, ignore_index=True)


def _by_seed(measured: dict[str, _Measured]) -> pd.DataFrame:
    rows = [
        {"variant": name, "seed": seed, "mean": mean}
        for name, one in measured.items()
        for seed, mean in enumerate(mean_of_valid(one.scores))
    ]
    return pd.DataFrame(rows)


def _scores(measured: dict[str, _Measured], metric: str, thing: str) -> None:
    rows = _table(measured, metric)
    st.header(plain(_sentence(rows, metric)))
    dots(rows, _by_seed(measured), metric, key="dots", opens=False)
    named = next(iter(measured.values())).group
    groups = len(set(named)) if named is not None else 0
    over = f"seeds, {groups} groups and images" if groups else "seeds and images"
    alone = " With one training they speak of these images alone." if rows.seeds.min() < 2 else ""
    st.caption(
        f"Every map of every variant on the same images with a marked {plain(thing)}. Large dots: "
        f"means; bars: 95 % intervals over {over}, each of one map and not of a difference; small "
        f"dots: one training each.{alone} The order of two maps is not tested here; differences "
        "between variants are on Compare. Names end with the map. A variant's own map shows what "
        "its attention or gate computed; an attribution shows what the output depends on, by its "
        "method."
    )
    offer(
        "Table as CSV",
        lambda: rows.to_csv(index=False).encode(),
        f"maps-{metric}.csv",
        "text/csv",
        key="csv",
    )


def _sentence(rows: pd.DataFrame, metric: str) -> str:
    """The highest and the lowest mean, and that they are no ranking."""
    fewest = int(rows["seeds"].min())
    begin = {1: "One training each", 2: "Two trainings each"}.get(fewest, "Means over trainings")
    if fewest != rows["seeds"].max() and fewest < FEWEST:
        begin = "Fewer than three trainings of some"
    ends = rows.iloc[[0, -1]] if len(rows) > 1 else rows
    said = " to ".join(f"{row['mean']:.2f} ({row['variant']})" for _, row in ends.iterrows())
    if len(rows) < 2:
        return f"{begin}: {short_title(metric)} {said}"
    order = "an order which another training may turn round" if fewest < FEWEST else "not tested"
    return f"{begin}: {short_title(metric)} from {said}, {order}"


def _agreement(choice: Chosen, tables: dict[str, pd.DataFrame]) -> None:
    st.header("Do they agree?")
    found = []
    for variant, runs in choice.groups.items():
        for run in runs[:1]:
            table = tables.get(run.id)
            for name in map_names(table) if table is not None else ():
                for kind in agreement_names(table, name):
                    values = table.loc[patched(table), f"{name}/{AGREEMENT}{kind}"].dropna()
                    if len(values):
                        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
                        found.append(
                            {
                                "row": f"{variant} · {name}", "measure": _WORDS.get(kind, kind),
                                "mean": middle, "low": low, "high": high, "images": len(values),
                            }
                        )  # fmt: skip
    if not found:
        st.caption(f"These runs kept no agreement between their maps and {_REFERENCE}.")
        return
    data = pd.DataFrame(found)
    for measure in dict.fromkeys(data["measure"]):
        part = data[data["measure"] == measure]
        words = "; ".join(
            f"{r.row} {r.mean:+.2f} ({r.low:+.2f} to {r.high:+.2f})" for r in part.itertuples()
        )
        st.markdown(f"**{measure}** with {plain(_REFERENCE)}")
        draw(
            charts.intervals, part, alt=f"{measure} with {_REFERENCE}: {words}",
            row="row", order=list(part["row"]), title=f"median {measure}", decimals=2,
        )  # fmt: skip
    st.caption(
        f"Medians and quartiles over images with a marked {plain(choice.thing)}. Two maps can "
        "agree and both be wrong; one that looks "
        "at the object and disagrees with Grad-CAM is no contradiction: they answer different "
        "questions."
    )


def _odd_ones(choice: Chosen) -> None:
    """The images on which attention and attribution disagree most, side by side."""
    st.header("Where they disagree most")
    run = one_run(choice)
    if run is None:
        return
    table = notices.readable(lambda: run_cache.samples(run), run)
    if table is None:
        return
    first = primary_map(run, table)
    column = f"{first}/{AGREEMENT}spearman"
    if column not in table or _REFERENCE not in run.map_names:
        of = f" of {plain(first)}" if first else ""
        st.caption(f"`{run.id}` kept no agreement{of} with {_REFERENCE}.")
        return
    values = table[column].to_numpy(dtype=float)
    where = np.flatnonzero(patched(table) & np.isfinite(values))
    where = where[np.argsort(values[where], kind="stable")][:_SHOWN]
    if not len(where):
        return
    pair = (str(first), _REFERENCE)
    held = notices.readable(
        lambda: run_cache.pictures(choice.listing.root, str(run.dataset), where), run
    )
    if held is None:
        return
    maps = [
        notices.readable(lambda n=name: run_cache.maps(run, n, where, held), run) for name in pair
    ]
    if any(one is None for one in maps):
        return
    size = held.images.shape[1:3]
    tiles, drawn = [], []
    for i, image in enumerate(where):
        for name, found in zip(pair, maps, strict=True):
            energy = scores(table, name, "energy_pointing_game")[image]
            described = (f"Spearman {values[image]:+.2f}", f"energy {energy:.3f}")
            alt = f"{name} on image {image}: {', '.join(described)}"
            tiles.append(Tile(str(image), f"#{image} {name}", described, alt, i, held.box(i)))
            drawn.append(resized(found[i], size))
    block = pack(
        held.images, tiles, [MapLayer("map", "map", np.stack(drawn), from_zero=True)], None,
        settings=Settings(threshold=0.0), label="Images on which the maps disagree",
        controls=False, pairs=True,
    )  # fmt: skip
    opened = gallery(block, key="odd")
    if opened is not None:
        go("sample", image=opened, run=run.id)


main()
