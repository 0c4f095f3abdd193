"""Gallery: one run's maps image by image, worst first, with an adjustable threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.comparison.from_runs import map_names
from attnviz.definitions import metric_title, short_title
from attnviz.figures.packing import PALETTES, MapLayer, Settings, Tile, pack
from dashboard import notices, run_cache
from dashboard.address import one_of, plain, share, whole
from dashboard.chosen_runs import Chosen, chosen, one_run
from dashboard.controls import chooser, go, offer, stepper, value_or_warning
from dashboard.gallery import gallery
from dashboard.pictures import sheet
from dashboard.selection import (
    ORDERS,
    OUTCOMES,
    Choice,
    chosen_threshold,
    in_order,
    metric_names,
    page_of,
    pages,
    patch_sizes,
    primary_map,
    scores,
    spread,
    threshold_of,
    verdict,
)

PAGE = {"title": "Gallery", "icon": ":material/grid_view:", "order": 1}

_LAYERS = 6  # maps that travel to the browser with each page


def main() -> None:
    """The page."""
    st.title("Gallery")
    choice = chosen()
    if choice is None:
        return
    run = one_run(choice)
    if run is None:
        return
    table = notices.readable(lambda: run_cache.samples(run), run)
    if table is None:
        return
    names = _maps_of(run, table)
    if not names:
        st.info(f"`{run.id}` keeps no maps.", icon=":material/image_not_supported:")
        return
    metric, picked = _controls(run, table, names[0])
    values = scores(table, names[0], metric)
    where = in_order(
        table, values, picked, metric=metric, disagreement=_spread(choice, run, metric, picked)
    )
    shown = _turn(where, picked)
    if not len(shown):
        st.info("No image passes these filters.", icon=":material/filter_alt_off:")
        return
    _tiles(choice, run, table, names, metric, shown)


def _maps_of(run: Any, table: pd.DataFrame) -> list[str]:
    """The scored maps whose values were kept, the primary one first."""
    first = primary_map(run, table)
    kept = [name for name in map_names(table) if name in run.map_names]
    return sorted(kept, key=lambda name: name != first)[:_LAYERS]


def _controls(run: Any, table: pd.DataFrame, first: str) -> tuple[str, Choice]:
    one, two, three, four = st.columns(4)
    known = metric_names(table, first)
    default = "energy_pointing_game" if "energy_pointing_game" in known else known[0]
    again = ("page",)
    with one:
        metric = chooser(
            "Metric", "metric", {n: metric_title(n) for n in known}, default, forget=again
        )
    with two:
        order = chooser("Order", "order", ORDERS, "worst", forget=again)
    outcomes = OUTCOMES if "correct" in table else {"all": OUTCOMES["all"]}
    with three:
        outcome = chooser("Images", "outcome", outcomes, "all", forget=again)
    sizes = {"any": "any size"} | {
        str(s): f"{s} px" if s else f"no {run.thing}"
        for s in sorted(set(patch_sizes(table).tolist()))
    }
    with four:
        size = chooser(f"Size of the {plain(run.thing)}", "size", sizes, "any", forget=again)
    shape = "any"
    if "shape" in table and table["shape"].nunique() > 1:
        shapes = {"any": "any shape"} | {str(s): str(s) for s in sorted(table["shape"].unique())}
        shape = chooser("Shape", "shape", shapes, "any", forget=again)
    return metric, Choice(
        order, outcome, None if size == "any" else int(size), None if shape == "any" else shape
    )


def _spread(choice: Chosen, run: Any, metric: str, picked: Choice) -> np.ndarray | None:
    """How far the variants measured on this run's images disagree about each."""
    if picked.order != "disagreement":
        return None
    columns: dict[str, list[np.ndarray]] = {}
    for name, runs in choice.groups.items():
        for other in runs:
            if other.dataset != run.dataset:
                continue
            table = notices.readable(lambda other=other: run_cache.samples(other), other)
            if table is not None:
                mine = primary_map(other, table)
                columns.setdefault(name, []).append(scores(table, str(mine), metric))
    if len(columns) < 2:
        st.info("Only one variant was measured on these images, so none disagrees.")
        return None
    return spread(columns)


def _turn(where: np.ndarray, picked: Choice) -> np.ndarray:
    last = pages(len(where)) - 1
    page = value_or_warning(whole(st.query_params, "page", 1, last + 1, 1)) - 1
    first, end = page * picked.per_page + 1, min((page + 1) * picked.per_page, len(where))
    words = (
        f"{len(where)} images, {ORDERS[picked.order]} · {first} to {end} · "
        f"page **{page + 1}** of {last + 1}"
    )
    stepper("page", page if page > 0 else None, page + 2 if page < last else None, words)
    return page_of(where, page)


def _tiles(
    choice: Chosen, run: Any, table: pd.DataFrame, names: list[str], metric: str, shown: np.ndarray
) -> None:
    held = notices.readable(
        lambda: run_cache.pictures(choice.listing.root, str(run.dataset), shown), run
    )
    if held is None:
        return
    layers = []
    for name in names:
        values = notices.readable(lambda name=name: run_cache.maps(run, name, shown), run)
        if values is not None:
            layers.append(_layer(run, table, name, metric, shown, values))
    if not layers:
        return
    rows = table.iloc[shown]
    tiles = [_tile(row, i, held.box(i), run.thing) for i, (_, row) in enumerate(rows.iterrows())]
    settings = _settings(layers)
    by = layers[settings.map]
    chose = ""
    if chosen_threshold(run, by.name) is not None:
        chose = f"; validation images chose τ = {by.threshold:.2f} for {plain(by.name)}"
    st.caption(
        f"{plain(run.variant)}, seed {run.seed}. Coloured is what lies at or above the threshold "
        f"τ of the map, each scaled to its own range{chose}"
        f". The box is the {plain(run.thing)}. A click or Enter opens it."
    )
    block = pack(
        held.images,
        tiles,
        layers,
        held.masks,
        settings=settings,
        label=f"Images of {run.variant}, {metric}",
    )
    opened = gallery(block, key="gallery")
    if opened is not None:
        go("sample", image=opened, run=run.id, **_order())
    _downloads(run, rows, held, tiles, by, settings)


def _order() -> dict[str, str]:
    """What the sample page needs to go on in this order."""
    names = ("order", "outcome", "size", "shape")
    return {name: st.query_params[name] for name in names if name in st.query_params} | (
        {} if "order" in st.query_params else {"order": "worst"}
    )


def _layer(
    run: Any, table: pd.DataFrame, name: str, metric: str, shown: np.ndarray, values: np.ndarray
) -> MapLayer:
    column = scores(table, name, metric)[shown]
    words = tuple(
        f"{short_title(metric)} {v:.3f}" if np.isfinite(v) else "no score" for v in column
    )
    return MapLayer(name, name, values, threshold_of(run, name), words)


def _tile(row: pd.Series, place: int, box: tuple[int, ...] | None, thing: str) -> Tile:
    number = int(row.name)
    described = verdict(row)
    where = f"{thing} at {box}" if box else f"no {thing}"
    alt = f"Image {number}, {f'classified {described}, ' if described else ''}{where}"
    return Tile(str(number), f"#{number}", (described,) if described else (), alt, place, box)


def _settings(layers: list[MapLayer]) -> Settings:
    """Where the browser's controls stand: from the address, else as the run chose."""
    names = [layer.name for layer in layers]
    at = names.index(value_or_warning(one_of(st.query_params, "map", names, names[0])))
    return Settings(
        map=at,
        threshold=value_or_warning(share(st.query_params, "tau", layers[at].threshold)),
        opacity=value_or_warning(share(st.query_params, "opacity", 0.6)),
        colours=value_or_warning(one_of(st.query_params, "colours", list(PALETTES), "inferno")),
        box=value_or_warning(one_of(st.query_params, "box", ("0", "1"), "1")) == "1",
    )


def _downloads(
    run: Any,
    rows: pd.DataFrame,
    held: run_cache.Pictures,
    tiles: list[Tile],
    by: MapLayer,
    settings: Settings,
) -> None:
    from attnviz.figures import png_bytes

    one, two, _ = st.columns([1, 1, 3])
    with one:
        offer(
            "This page as PNG",
            lambda: png_bytes(
                sheet(
                    held.images,
                    tiles,
                    by.values,
                    colours=settings.colours,
                    opacity=settings.opacity,
                )
            ),
            f"{run.id}.png",
            "image/png",
            key="png",
        )
    with two:
        offer(
            "This page as CSV",
            lambda: rows.to_csv(index=False).encode(),
            f"{run.id}.csv",
            "text/csv",
            key="csv",
        )


main()
