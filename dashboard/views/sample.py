"""Sample: one image in every variant, head and method, and the attention of each place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.comparison.from_runs import patched
from attnviz.errors import InputError
from attnviz.figures.packing import MapLayer, Settings, Tile, pack, pack_rows
from attnviz.runs import note_image
from attnviz.runs.datasets import Cut
from attnviz.runs.words import WORDS, words_of_maps
from dashboard import charts, notices, run_cache
from dashboard.address import one_of, plain, whole
from dashboard.chosen_runs import chosen, limited
from dashboard.controls import (
    changes_allowed,
    chooser,
    draw,
    offer,
    stepper,
    value_or_warning,
)
from dashboard.gallery import gallery
from dashboard.head_stats import layers_of
from dashboard.lazy import below
from dashboard.overlap import energy, on_one_grid
from dashboard.picker import picker
from dashboard.query import params, put
from dashboard.row_places import LIMIT, NOTE, PlacedRows, noted, placed_rows, read_rows
from dashboard.selection import (
    ORDERS,
    OUTCOMES,
    Choice,
    in_order,
    neighbours,
    primary_map,
    scores,
    shown_maps,
    spread,
    verdict,
)
from dashboard.slices import at_slice, slice_chooser
from dashboard.word_rows import maps_of_words, to_tokens, words_of

PAGE = {"title": "Sample", "icon": ":material/image_search:", "order": 2}

_SCALES = {"own": "each map its own", "shared": "shared by a row"}
_AT_ONCE = 5  # variants that are drawn at once when their place comes into view
_HEADS = 16  # heads that this page shows; more are on Heads


def main() -> None:
    """The page."""
    st.title("Sample")
    choice = chosen()
    if choice is None:
        return
    choice = limited(choice)
    digest = _of_address([run for runs in choice.groups.values() for run in runs]).dataset
    picked = [(name, _of_address(runs)) for name, runs in choice.groups.items()]
    asked = params().get("run")
    picked.sort(key=lambda one: one[1].id != asked)  # the run that was opened comes first
    tables: dict[str, pd.DataFrame] = {}
    shown = []
    for name, run in picked:
        table = notices.readable(lambda run=run: run_cache.samples(run), run)
        if table is not None and run.dataset == digest:
            tables[run.id] = table
            shown.append((name, run))
    if not shown:
        return
    first = tables[shown[0][1].id]
    marked = np.flatnonzero(patched(first))
    default = int(marked[0]) if len(marked) else 0
    image = value_or_warning(whole(params(), "image", 0, len(first) - 1, default))
    _turn(shown, tables, image)
    at = slice_chooser(choice.listing.root, str(shown[0][1].dataset))
    held = notices.readable(
        lambda: run_cache.pictures(choice.listing.root, str(shown[0][1].dataset), [image], at)
    )
    if held is None:
        return
    box, thing = held.box(), plain(choice.thing)
    where = f"{thing} at {_corners(box)}" if box else f"no {thing}"
    named = first["name"].iloc[image] if "name" in first else ""
    known = f", {plain(named)}" if isinstance(named, str) and named else ""
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    with right:
        scale = chooser("Colour scale", "scale", _SCALES, "own")
    left.caption(
        f"Test image {image}{known}{at_slice(held)}, {where}. Maps are coloured from 0 to "
        f"{'their own maximum' if scale == 'own' else 'the greatest value of their row'}, and "
        "what is negative is left out, as the energy does. A click shows a map large."
    )

    shared = scale == "shared"

    def rest() -> None:
        _rest(choice, shown, tables, image, held)

    _variants(shown[:1], tables, image, held, shared)
    _more(shown[1:], tables, image, held, shared, rest)


def _variants(
    part: list[tuple[str, Any]],
    tables: dict[str, pd.DataFrame],
    image: int,
    held: Cut,
    shared: bool,
) -> None:
    for name, run in part:
        _variant(name, run, tables[run.id], image, held, held.box(), shared)


def _more(
    part: list[tuple[str, Any]],
    tables: dict[str, pd.DataFrame],
    image: int,
    held: Cut,
    shared: bool,
    last: Callable[[], None],
) -> None:
    """A few more variants once their place comes into view, and so on to the end of the page."""
    if not part:
        below(last, "Tags, attention of places, gates", key="rest")
        return
    few, others = part[:_AT_ONCE], part[_AT_ONCE:]

    def rows() -> None:
        _variants(few, tables, image, held, shared)
        _more(others, tables, image, held, shared, last)

    below(rows, f"This image in {len(part)} more variant{'s' if len(part) > 1 else ''}",
          key=f"variants_{len(part)}")  # fmt: skip


def _rest(
    choice: Any,
    shown: list[tuple[str, Any]],
    tables: dict[str, pd.DataFrame],
    image: int,
    held: Cut,
) -> None:
    _note(choice.listing.root, str(shown[0][1].dataset), image)
    _picture(shown, tables, image, held)
    _words(shown, image, held)
    _picker(shown, image, held, held.box())
    if any(run.gate_names for _, run in shown):
        below(lambda: _gates(shown, image), "Channel gates of this image", key="gates")


def _note(folder: str, digest: str, image: int) -> None:
    """Tags and a note on this image, for all runs that were measured on it."""
    notes = notices.readable(lambda: run_cache.notes(folder)) or run_cache.NO_NOTES
    found = notes.images.get(digest, {}).get(image)
    if found and not changes_allowed(folder):
        st.caption(f"Tags: {plain(', '.join(found.tags)) or 'none'}. {plain(found.note)}")
    if not changes_allowed(folder):
        return
    words = f": {', '.join(found.tags)}" if found and found.tags else ""
    with st.expander(f"Tags and note of this image{plain(words)}"), st.form("note", border=False):
        tags = st.text_input(
            "Tags, separated by commas", ", ".join(found.tags) if found else "",
            key=f"image_tags_{image}",
        )  # fmt: skip
        note = st.text_area("Note", found.note if found else "", key=f"image_note_{image}")
        if st.form_submit_button("Keep"):
            done = notices.readable(
                lambda: note_image(folder, digest, image, tags=tags.split(","), note=note)
            )
            if done is not None:
                st.rerun()


def _corners(box: Sequence[int]) -> str:
    """A box in words: its columns and its rows, the last ones included."""
    x0, y0, x1, y1 = box
    return f"columns {x0} to {x1 - 1}, rows {y0} to {y1 - 1}"


def _of_address(runs: Sequence[Any]) -> Any:
    """The run that the address names, where it is one of these; else the first."""
    requested = params().get("run")
    return next((run for run in runs if run.id == requested), runs[0])


def _turn(shown: list[tuple[str, Any]], tables: dict[str, pd.DataFrame], image: int) -> None:
    """Previous and next in the gallery's order, or by number."""
    order = value_or_warning(one_of(params(), "order", list(ORDERS), "number"))
    outcome = value_or_warning(one_of(params(), "outcome", list(OUTCOMES), "all"))
    requested = params().get("run")
    run = next((run for _, run in shown if run.id == requested), shown[0][1])
    table = tables[run.id]
    metric = params().get("metric", "energy_pointing_game")
    size = params().get("size", "")
    choice = Choice(order, outcome, int(size) if size.isdecimal() else None)
    apart = None
    if order == "disagreement":
        apart = spread({
            name: [scores(tables[one.id], str(primary_map(one, tables[one.id])), metric)]
            for name, one in shown
        })  # fmt: skip
    values = scores(table, str(primary_map(run, table)), metric)
    where = in_order(table, values, choice, metric=metric, disagreement=apart)
    before, after = neighbours(where, image)
    if before is None and after is None and image not in where:
        where = np.arange(len(table))
        before, after = neighbours(where, image)
        order = "number"
    place = int(np.flatnonzero(where == image)[0]) + 1
    of = f" of {plain(run.variant)}" if order in ("worst", "best") else ""
    stepper(
        "image",
        before,
        after,
        f"Image **{image}** · {place} of {len(where)}, {ORDERS[order]}{of} · keys ← →",
    )


def _variant(
    name: str,
    run: Any,
    table: pd.DataFrame,
    image: int,
    held: Cut,
    box: Any,
    shared: bool,
) -> None:
    """A row: the image, the run's map, each head, each other map."""
    row = table.iloc[image]
    described = verdict(row, decimals=3, run=run)
    if "probability" in row and "logit" in row:
        described += f", logit {row['logit']:+.2f}"
    st.header(plain(name))
    st.caption(f"Seed {run.seed}" + (f", classified {plain(described)}" if described else ""))
    tiles = [Tile("image", "image", (), f"Test image {image}", 0, box)]
    maps: list[np.ndarray] = []
    names = shown_maps(run, table)
    layers = layers_of(run, flat=held.depth is None)
    apart = sum(one.count for one in layers if one.stored) <= _HEADS
    for map_name in names:
        value = float(row.get(f"{map_name}/energy_pointing_game", np.nan))
        found = notices.readable(lambda m=map_name: run_cache.maps(run, m, [image], held)[0], run)
        if found is None:
            continue
        maps.append(found)
        tiles.append(_tile(name, map_name, value, image, box))
        for head, values in enumerate(_heads(run, map_name, image, held) if apart else (), 1):
            value = float(energy(values[None], held.masks)[0])
            maps.append(values)
            tiles.append(_tile(name, f"{map_name} · head {head}", value, image, box))
    if not apart:
        st.caption("Heads are on the page Heads, layer by layer.")
    _show(name, tiles, maps, held, image, shared)


def _heads(run: Any, map_name: str, image: int, held: Cut) -> np.ndarray:
    """The map head by head, `(heads, h, w)`; empty where the run kept no heads of it."""
    apart = f"{map_name}.heads"
    name = apart if apart in run.map_names else map_name
    shape = run.entry(f"maps/{name}").shape
    if shape is None or len(shape) != (4 if held.depth is None else 5):
        return np.empty((0, 1, 1))
    found = notices.readable(lambda: run_cache.head_maps(run, name, [image], held)[0], run)
    return np.empty((0, 1, 1)) if found is None or len(found) < 2 else found


def _tile(name: str, title: str, value: float, image: int, box: Any) -> Tile:
    described = f"energy {value:.3f}" if np.isfinite(value) else "no score"
    return Tile(
        title, title, (described,), f"{name}, {title} on image {image}: {described}", 0, box
    )


def _show(
    name: str,
    tiles: list[Tile],
    maps: list[np.ndarray],
    held: Cut,
    image: int,
    shared: bool,
) -> None:
    values = on_one_grid(maps, held.images.shape[1:3])
    gallery(
        pack(
            held.images,
            tiles,
            [MapLayer("map", "map", values, from_zero=True, shared=shared)],
            np.repeat(held.masks, len(tiles), axis=0),
            settings=Settings(threshold=0.0),
            label=f"Image {image} in {name}",
            title=f"{name}, image {image}",
            iou=False,
            controls=False,
            opens=False,
            arrows=False,
        ),
        key=f"row_{name}",
    )


def _picture(
    shown: list[tuple[str, Any]],
    tables: dict[str, pd.DataFrame],
    image: int,
    held: Cut,
) -> None:
    def make() -> bytes:
        from attnviz.figures import comparison_picture, png_bytes

        maps, values = {}, {}
        for name, run in shown:
            first = str(primary_map(run, tables[run.id]))
            maps[name] = run_cache.maps(run, first, [image], held)
            values[name] = scores(tables[run.id], first, "energy_pointing_game")[[image]]
        return png_bytes(comparison_picture(held.images, maps, held.boxes, values))

    offer("This image as PNG", make, f"image-{image}.png", "image/png", key="png")


def _words(shown: list[tuple[str, Any]], image: int, held: Cut) -> None:
    """The maps of words that the runs kept of this image."""
    kept = [
        (name, run, one)
        for name, run in shown
        for one in run.map_names
        if WORDS in run.about(f"maps/{one}")
    ]
    if kept:
        st.divider()
        st.header("Where does each word look?")
    for name, run, one in kept:
        maps = notices.readable(lambda run=run, one=one: run.maps(one, [image])[0], run)
        if maps is None:
            continue
        words = words_of_maps(run.about(f"maps/{one}"), image, len(maps))
        st.markdown(f"**{plain(name)}** · {plain(one)}")
        if words:
            maps_of_words(maps, words, held, image, f"words_{run.id}_{one}")
        else:
            st.caption("Of this image no words were kept.")


def _picker(shown: list[tuple[str, Any]], image: int, held: Cut, box: Any) -> None:
    st.divider()
    st.header("Where does a place look?")
    kept = {
        f"{run.id}/{layer}": (name, run, layer) for name, run in shown for layer in run.row_names
    }
    if not kept:
        st.caption("None of these runs kept its full attention.")
        return
    words = {key: f"{name} · {layer}" for key, (name, _, layer) in kept.items()}
    key = chooser("Attention of", "rows", words, next(iter(kept)))
    name, run, layer = kept[key]
    images = notices.readable(lambda: run.row_images(layer), run)
    if images is None:
        return
    if image not in images:
        st.caption(
            f"Full attention is kept for a few images only; for {plain(name)}: "
            f"{', '.join(str(one) for one in list(dict.fromkeys(images))[:24])}."
        )
        st.button(f"Show image {images[0]}", on_click=lambda: put({"image": str(images[0])}))
        return
    read = notices.readable(lambda: (read_rows(run, layer, image), noted(run, layer)), run)
    if read is None:
        return
    parts, about = read
    if len(parts) == 1 and words_of(parts[0], about, held, image):
        return
    try:
        placed = placed_rows(parts, about, held)
    except InputError as error:
        _without_places(parts, str(error))
        return
    block = notices.readable(lambda: _packed(placed, held, box), run)
    if block is None:
        return
    picker(block, key="picker")
    if held.at is not None:
        st.caption("Attention within this slice: of its places to its places.")


def _packed(placed: PlacedRows, held: Cut, box: Any) -> bytes:
    """The attention of one image; fewer heads where all of them would be too much."""
    _, queries, keys = placed.rows.shape
    fit = max(1, LIMIT // (queries * keys))
    return pack_rows(
        held.images[0], placed.rows[:fit], box=box, query_grid=placed.query_grid,
        key_grid=placed.key_grid, prefix=placed.prefix,
    )  # fmt: skip


def _without_places(parts: np.ndarray, reason: str) -> None:
    """Attention of which no token is known to be a place: by the tokens' numbers."""
    st.info(f"These rows have no places: {plain(reason)}. {NOTE}", icon=":material/grid_off:")
    if len(parts) == 1:
        to_tokens(parts[0])


def _gates(shown: list[tuple[str, Any]], image: int) -> None:
    """Each channel gate of this image beside the median and quartiles of the whole set."""
    gated = [(name, run, gate) for name, run in shown for gate in run.gate_names]
    drawn = 0
    for name, run, gate in gated:
        found = notices.readable(lambda run=run, gate=gate: _gate_table(run, gate, image), run)
        if found is None or found.empty:
            continue
        if not drawn:
            st.divider()
            st.header("Channel gates of this image, beside the set's")
        drawn += 1
        far = found.loc[(found["gate"] - found["median"]).abs().idxmax()]
        words = (
            f"{name}, {gate}: {len(found)} channels; farthest from its median is channel "
            f"{int(far['channel'])} with {far['gate']:.3f} against {far['median']:.3f}"
        )
        st.markdown(f"**{plain(name)}** · {plain(gate)}")
        draw(charts.gate_plot, found, alt=words)
        st.caption(
            plain(words) + ". Dots: this image; ticks and bars: median and quartiles of all images."
        )


def _gate_table(run: Any, gate: str, image: int) -> pd.DataFrame:
    table = _gate_quartiles(run_cache.stamp(run, f"gates/{gate}"), run, gate)
    if table.empty:
        return table
    return table.assign(gate=run.gates(gate, [image])[0])


@st.cache_data(max_entries=32, show_spinner=False)
def _gate_quartiles(key: tuple[Any, ...], _run: Any, gate: str) -> pd.DataFrame:
    shape = _run.entry(f"gates/{gate}").shape
    if shape is not None and len(shape) != 2:  # a spatial gate is among the maps
        return pd.DataFrame()
    values = _run.gates(gate)
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    return pd.DataFrame(
        {"channel": np.arange(values.shape[1]), "low": low, "median": median, "high": high}
    )


main()
