"""Attributions: attention maps beside Captum's, by the same metrics, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.comparison.from_runs import map_names, patched
from attnviz.definitions import SHOWN_LEVELS, metric_title, short_title
from attnviz.statistics.variance import mean_of_valid
from dashboard import charts, notices, run_cache
from dashboard.address import plain
from dashboard.chosen_runs import Chosen, chosen, one_run
from dashboard.controls import chooser, draw, go, offer
from dashboard.dot_plot import dots
from dashboard.gallery import gallery
from dashboard.overlap import enlarged
from dashboard.packing import MapLayer, Settings, Tile, pack
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
    tables = {
        run.id: table
        for run in choice.runs
        if (table := notices.readable(lambda run=run: run_cache.samples(run), run)) is not None
    }
    if not tables:
        return
    metric = _metric(list(tables.values()))
    rows = _rows(choice, tables, metric)
    if rows.empty:
        st.info("None of these maps has scores.", icon=":material/image_not_supported:")
    else:
        _scores(rows, metric)
    _agreement(choice, tables)
    _odd_ones(choice)


def _metric(tables: Sequence[pd.DataFrame]) -> str:
    known = dict.fromkeys(
        metric for table in tables for name in map_names(table)
        for metric in metric_names(table, name)
    )  # fmt: skip
    default = "energy_pointing_game" if "energy_pointing_game" in known else next(iter(known), "")
    return chooser("Metric", "metric", {name: metric_title(name) for name in known}, default)


def _rows(choice: Chosen, tables: dict[str, pd.DataFrame], metric: str) -> pd.DataFrame:
    """One row per variant and map: mean over seeds and images, interval over images."""
    found = []
    for variant, runs in choice.groups.items():
        here = [run for run in runs if run.id in tables]
        if not here:
            continue
        first = primary_map(here[0], tables[here[0].id])
        for name in map_names(tables[here[0].id]):
            columns = np.stack([scores(tables[run.id], name, metric) for run in here])
            images, means = mean_of_valid(columns.T), mean_of_valid(columns)
            images, means = images[np.isfinite(images)], means[np.isfinite(means)]
            if not len(images):
                continue
            half = 1.96 * images.std(ddof=1) / np.sqrt(len(images)) if len(images) > 1 else np.nan
            found.append(
                {
                    "variant": f"{variant} · {name}",
                    "kind": "primary" if name == first else "attribution",
                    "mean": float(np.mean(means)),
                    "low": float(np.mean(means) - half),
                    "high": float(np.mean(means) + half),
                    "images": len(images),
                    "seeds": len(means),
                    **_levels(here, name, metric),
                }
            )
    table = pd.DataFrame(found)
    return table if table.empty else table.sort_values("mean", ascending=False, ignore_index=True)


def _levels(runs: Sequence[Any], name: str, metric: str) -> dict[str, float]:
    known = {key: level(runs[0], name, metric, key) for key in SHOWN_LEVELS}
    return {key: np.nan if value is None else value for key, value in known.items()}


def _scores(rows: pd.DataFrame, metric: str) -> None:
    best = rows.iloc[0]
    st.header(f"{plain(best['variant'])} scores highest: {short_title(metric)} {best['mean']:.3f}")
    empty = pd.DataFrame({"variant": [], "seed": [], "mean": []})
    dots(rows, empty, metric, key="dots", opens=False)
    st.caption(
        "Every map of every variant on the same images. Bars: ± 1.96 standard errors over images, "
        "seeds averaged; they compare maps with chance, not variants with each other (that is on "
        "Compare). Names end with the map: received, gate map and channel gated are the model's "
        "own attention, the others are Captum's attributions."
    )
    offer(
        "Table as CSV",
        lambda: rows.to_csv(index=False).encode(),
        f"maps-{metric}.csv",
        "text/csv",
        key="csv",
    )


def _agreement(choice: Chosen, tables: dict[str, pd.DataFrame]) -> None:
    st.header("Do they agree?")
    found = []
    for variant, runs in choice.groups.items():
        for run in runs[:1]:
            table = tables.get(run.id)
            for name in map_names(table) if table is not None else ():
                for kind in agreement_names(table, name):
                    values = table[f"{name}/{AGREEMENT}{kind}"].dropna()
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
        "Medians and quartiles over images. Two maps can agree and both be wrong; one that looks "
        "at the patch and disagrees with Grad-CAM is no contradiction: they answer different "
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
    maps = [notices.readable(lambda n=name: run_cache.maps(run, n, where), run) for name in pair]
    if held is None or any(one is None for one in maps):
        return
    size = held.images.shape[1:3]
    tiles, drawn = [], []
    for i, image in enumerate(where):
        for name, found in zip(pair, maps, strict=True):
            energy = scores(table, name, "energy_pointing_game")[image]
            said = (f"Spearman {values[image]:+.2f}", f"energy {energy:.3f}")
            alt = f"{name} on image {image}: {', '.join(said)}"
            tiles.append(Tile(str(image), f"#{image} {name}", said, alt, i, held.box(i)))
            drawn.append(enlarged(found[i][None], *size)[0])
    block = pack(
        held.images, tiles, [MapLayer("map", "map", np.stack(drawn), from_zero=True)], None,
        settings=Settings(threshold=0.0), label="Images on which the maps disagree",
        controls=False, pairs=True,
    )  # fmt: skip
    opened = gallery(block, key="odd")
    if opened is not None:
        go("sample", image=opened, run=run.id)


main()
