"""Pages of tiles: some images of a run with a map, its score and its outlines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.definitions import short_title
from attnviz.figures.packing import PALETTES, MapLayer, Settings, Tile, pack, with_settings
from attnviz.runs.datasets import Cut
from dashboard import notices, run_cache
from dashboard.address import one_of, plain, share, whole
from dashboard.chosen_runs import Chosen
from dashboard.controls import go, offer, stepper, value_or_warning
from dashboard.gallery import changes, gallery
from dashboard.image_filters import Images, carried_filters
from dashboard.query import params
from dashboard.selection import (
    ORDERS,
    chosen_threshold,
    map_in_words,
    page_of,
    pages,
    threshold_of,
    verdict,
)
from dashboard.slices import at_slice, slice_chooser


def image_page(choice: Chosen, images: Images) -> None:
    """One page of the chosen images, with its controls; a tile opens its sample."""
    if not len(images.where):
        st.info("No image passes these filters.", icon=":material/filter_alt_off:")
        return
    st.fragment(lambda: _page(choice, images))()


def _page(choice: Chosen, images: Images) -> None:
    """The page that the address names; another one runs this part alone."""
    shown, page = _turn(images)
    run = images.run
    at = slice_chooser(choice.listing.root, str(run.dataset))
    held = notices.readable(
        lambda: run_cache.pictures(choice.listing.root, str(run.dataset), shown, at), run
    )
    if held is None:
        return
    values = notices.readable(lambda: run_cache.maps(run, images.map, shown, held), run)
    if values is None:
        return
    _caption(images)
    rows = images.table.iloc[shown]
    tiles = [_tile(row, i, held, run) for i, (_, row) in enumerate(rows.iterrows())]
    block = pack(
        held.images,
        tiles,
        [_layer(images, shown, values)],
        held.masks,
        settings=_settings(run, images.map),
        label=f"Images of {run.variant}, {images.metric}",
        title=f"{run.id} · {images.map} · {images.metric} · {ORDERS[images.choice.order]}, "
        f"page {page + 1}",
        remembers=True,
    )
    st.fragment(lambda: _shown(block, images))()
    offer(
        "This page as CSV",
        lambda: rows.to_csv(index=False).encode(),
        f"{run.id}.csv",
        "text/csv",
        key="csv",
    )


def _shown(block: bytes, images: Images) -> None:
    """The tiles; they run by themselves when the reader changes how they are painted."""
    settings = _settings(images.run, images.map)
    opened = gallery(with_settings(block, settings, change=changes("gallery")), key="gallery")
    if opened is not None:
        go("sample", image=opened, run=images.run.id, **carried_filters())


def _turn(images: Images) -> tuple[np.ndarray, int]:
    where, picked = images.where, images.choice
    last = pages(len(where)) - 1
    page = value_or_warning(whole(params(), "page", 1, last + 1, 1)) - 1
    first, end = page * picked.per_page + 1, min((page + 1) * picked.per_page, len(where))
    by = f" by {plain(images.map)}" if picked.order in ("worst", "best") else ""
    words = (
        f"{len(where)} images, {ORDERS[picked.order]}{by} · {first} to {end} · "
        f"page **{page + 1}** of {last + 1}"
    )
    stepper("page", page if page > 0 else None, page + 2 if page < last else None, words)
    return page_of(where, page), page


def _caption(images: Images) -> None:
    run = images.run
    chosen = chosen_threshold(run, images.map)
    chose = f"; validation images chose τ = {chosen:.2f}" if chosen is not None else ""
    st.caption(
        f"{plain(run.variant)}, seed {run.seed}. Map: {plain(map_in_words(run, images.map))}. "
        f"Coloured is what lies at or above the threshold τ, each map scaled to its own range"
        f"{chose}. The outline is the {plain(run.thing)}. A click or Enter opens an image."
    )


def _layer(images: Images, shown: np.ndarray, values: np.ndarray) -> MapLayer:
    words = tuple(
        f"{short_title(images.metric)} {v:.3f}" if np.isfinite(v) else "no score"
        for v in images.values[shown]
    )
    name = images.map
    return MapLayer(name, name, values, threshold_of(images.run, name), words)


def _tile(row: pd.Series, place: int, held: Cut, run: Any) -> Tile:
    number, box = int(row.name), held.box(place)
    described = verdict(row, run=run)
    where = f"{run.thing} at {box}" if box else f"no {run.thing}"
    judged = f"classified {described}, " if described else ""
    alt = f"Image {number}{at_slice(held, place)}, {judged}{where}"
    named = str(row["name"]) if isinstance(row.get("name"), str) else ""
    lines = (described,) if described else ()
    title = f"#{number} {named[-40:]}".rstrip() + at_slice(held, place)
    return Tile(str(number), title, lines, alt, place, box)


def _settings(run: Any, map_name: str) -> Settings:
    """How tiles are painted: from the address, else as the run chose."""
    return Settings(
        threshold=value_or_warning(share(params(), "tau", threshold_of(run, map_name))),
        opacity=value_or_warning(share(params(), "opacity", 0.6)),
        colours=value_or_warning(one_of(params(), "colours", list(PALETTES), "inferno")),
        box=value_or_warning(one_of(params(), "box", ("0", "1"), "1")) == "1",
    )
