"""Heads: layers × heads by what they do, and any two heads of any two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from attnviz.comparison.from_runs import patched
from attnviz.errors import InputError
from attnviz.figures import resized
from attnviz.figures.packing import PALETTES, MapLayer, Settings, Tile, pack, pack_rows
from dashboard import notices, run_cache
from dashboard.address import one_of, plain, quoted, whole
from dashboard.chosen_runs import Chosen, page_of_a_run
from dashboard.controls import chooser, stepper, value_or_warning
from dashboard.gallery import gallery
from dashboard.head_stats import STATISTICS, LayerHeads, layers_of
from dashboard.overlap import energy
from dashboard.palettes import tint
from dashboard.picker import picker
from dashboard.query import params, put
from dashboard.row_places import LIMIT, noted, placed_rows, read_rows
from dashboard.selection import neighbours
from dashboard.table import Cell, Column, Row, table

PAGE = {"title": "Heads", "icon": ":material/grid_on:", "order": 2.5}

_TITLES = {
    "score": "Score", "spread": "Spread of the map", "entropy": "Entropy of the rows",
    "distance": "Mean distance",
}  # fmt: skip
_SCALES = {"own": "each its own", "shared": "shared"}
_SMALL = 96  # side of the pictures in a board of maps


@dataclass(frozen=True)
class _Head:
    """One head of one run."""

    run: Any
    layer: LayerHeads
    number: int

    @property
    def words(self) -> str:
        """The head for the reader."""
        seed = "" if self.run.seed is None else f" s{self.run.seed}"
        return f"{self.run.variant}{seed} · {self.layer.layer} · head {self.number + 1}"

    @property
    def key(self) -> str:
        """The head for the address."""
        return f"{self.layer.map}~{self.number + 1}"


def main() -> None:
    """The page."""
    found = page_of_a_run("Heads")
    if found is None:
        return
    choice, run = found
    layers = _layers(run)
    if not layers:
        st.info(
            f"{quoted(run.id)} kept no maps head by head and no full attention.",
            icon=":material/image_not_supported:",
        )
        return
    by, scale = _controls(layers)
    first = _board(run, layers, by, "head", "a")
    other = _other(choice, run)
    second = None if other is None else _board(other, _layers(other), by, "head2", "b")
    _image(choice, run, [one for one in (first, second) if one is not None], layers, scale)


def _layers(run: Any) -> list[LayerHeads]:
    return layers_of(run, flat=run_cache.depth_of(run) is None)


def _controls(layers: Sequence[LayerHeads]) -> tuple[str, str]:
    kept = {"score", "spread"} if any(one.stored for one in layers) else set()
    kept |= {"entropy", "distance"} if any(one.rows for one in layers) else set()
    words = {key: title for key, title in _TITLES.items() if key in kept}
    one, two, _ = st.columns([1, 1, 2])
    with one:
        by = chooser("Colour by", "by", words, next(iter(words)), help="; ".join(
            f"{_TITLES[key]}: {STATISTICS[key]}" for key in words))  # fmt: skip
    with two:
        scale = chooser("Colour scale of maps", "scale", _SCALES, "own")
    return by, scale


def _board(run: Any, layers: Sequence[LayerHeads], by: str, param: str, key: str) -> _Head | None:
    """Rows are layers, columns heads, coloured by a statistic; the head that is chosen."""
    st.header(f"{plain(run.variant)}, seed {run.seed}")
    found = _statistics(run, layers, by)
    if not found:
        return None
    keys = [f"{layer.map}~{i + 1}" for layer in layers for i in range(layer.count)]
    here = value_or_warning(one_of(params(), param, keys, keys[0]))
    known = np.concatenate(list(found.values()))
    finite = known[np.isfinite(known)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    most = max(layer.count for layer in layers)
    columns = [Column("layer", "layer", sorts=False)]
    columns += [Column(str(i), f"{i + 1}", f"head {i + 1}", True, sorts=False) for i in range(most)]
    rows = [_row(layer, found.get(layer.map), most, (low, high), by, here) for layer in layers]
    event = table(columns, rows, label=f"Heads of {run.id} by {_TITLES[by].lower()}",
                  key=f"heads_{key}", dense=True)  # fmt: skip
    _bar(low, high, by, run, layers)
    if event.opened and event.opened != here:
        put({param: event.opened})
        st.rerun()
    name, _, number = here.rpartition("~")
    layer = next(one for one in layers if one.map == name)
    return _Head(run, layer, int(number) - 1)


def _row(
    layer: LayerHeads,
    values: np.ndarray | None,
    most: int,
    ends: tuple[float, float],
    by: str,
    here: str,
) -> Row:
    decimals = 3 if ends[1] - ends[0] < 0.1 else 2
    cells = [Cell(layer.layer, words=layer.map)]
    for i in range(most):
        if i >= layer.count:
            cells.append(Cell(""))
            continue
        value = float(values[i]) if values is not None else float("nan")
        key = f"{layer.map}~{i + 1}"
        words = f"{layer.layer}, head {i + 1}: {_TITLES[by].lower()} " + (
            f"{value:.3f}" if np.isfinite(value) else "not known"
        )
        paint, ink = tint(value, *ends)
        shown = f"{value:.{decimals}f}" if np.isfinite(value) else "–"
        cells.append(Cell(shown, words=words, key=key, tint=paint, ink=ink, chosen=key == here))
    return Row(layer.map, tuple(cells))


def _statistics(run: Any, layers: Sequence[LayerHeads], by: str) -> dict[str, np.ndarray]:
    """A statistic of every head, layer by layer."""
    place = st.empty()
    found: dict[str, np.ndarray] = {}
    for i, layer in enumerate(layers):
        if len(layers) > 4:
            place.progress(i / len(layers), text=f"Layer {i + 1} of {len(layers)}")
        known = notices.readable(lambda layer=layer: run_cache.head_statistics(run, layer), run)
        if known is not None and by in known:
            found[layer.map] = known[by]
    place.empty()
    return found


def _bar(low: float, high: float, by: str, run: Any, layers: Sequence[LayerHeads]) -> None:
    stops = ", ".join(f"#{colour:06x}" for colour in PALETTES["viridis"])
    st.html(
        f'<div style="display:flex;gap:.5rem;align-items:center;font-size:.875rem">{low:.3f}'
        f'<span style="width:10rem;height:.7rem;background:linear-gradient(to right,{stops})">'
        f"</span>{high:.3f}</div>"
    )
    over = "all images"
    if by in ("entropy", "distance"):
        kept = sorted({len(set(run.row_images(one.rows))) for one in layers if one.rows})
        over = f"the {' to '.join(map(str, kept))} images whose full attention was kept"
    st.caption(f"{_TITLES[by]}: {STATISTICS[by]}. Over {over}.")


def _other(choice: Chosen, run: Any) -> Any | None:
    """Another run to set beside this one; itself for two heads of one run."""
    words = {"none": "none"} | {
        one.id: f"{one.variant} · seed {one.seed} · {one.id}"
        for one in choice.runs[:100]
        if one.dataset == run.dataset and layers_of(one)
    }
    key = chooser("Beside", "beside", words, "none", forget=("head2",))
    return None if key == "none" else choice.listing.find(key)


def _image(
    choice: Chosen, run: Any, heads: list[_Head], layers: Sequence[LayerHeads], scale: str
) -> None:
    """One image under the chosen heads, and under all heads of the run."""
    samples = notices.readable(lambda: run_cache.samples(run), run)
    if samples is None:
        return
    st.header("One image")
    marked = np.flatnonzero(patched(samples))
    kept = sorted({i for one in layers if one.rows for i in run.row_images(one.rows)})
    default = kept[0] if kept else int(marked[0]) if len(marked) else 0
    image = value_or_warning(whole(params(), "image", 0, len(samples) - 1, default))
    where = np.array(kept) if image in kept else np.arange(len(samples))
    before, after = neighbours(where, image)
    with_rows = ", one of those whose full attention was kept" if image in kept else ""
    stepper("image", before, after, f"Image **{image}** of {len(samples)}{with_rows}")
    held = notices.readable(
        lambda: run_cache.pictures(choice.listing.root, str(run.dataset), [image]), run
    )
    if held is None:
        return
    if heads:
        _pair(heads, image, held, scale)
    _maps(run, layers, image, held, scale)


def _pair(heads: list[_Head], image: int, held: Any, scale: str) -> None:
    """The chosen heads: where each place looks; the pointer moves in all of them at once."""
    linked = 0
    for column, head in zip(st.columns(len(heads)), heads, strict=True):
        with column:
            st.markdown(f"**{plain(head.words)}**")
            block = _rows(head, image, held, scale)
            if isinstance(block, bytes):
                picker(block, key=f"pair_{heads.index(head)}")
                linked += 1
            else:
                _map_of(head, image, held, heads.index(head), block)
    if linked > 1:
        st.caption("The pointer, or the arrow keys, move the place in both.")


def _rows(head: _Head, image: int, held: Any, scale: str) -> bytes | str:
    """The attention of a head, packed; in words why there is none to show."""
    name = head.layer.rows
    if name is None or image not in head.run.row_images(name):
        return "full attention of this image was not kept"
    read = notices.readable(
        lambda: (read_rows(head.run, name, image)[:, [head.number]], noted(head.run, name)),
        head.run,
    )
    if read is None:
        return "its full attention cannot be read"
    try:
        placed = placed_rows(*read, held)
    except InputError as error:
        return str(error)
    if placed.rows.size > LIMIT:
        return "its full attention is too much to be sent to the browser"
    return pack_rows(
        held.images[0], placed.rows, box=held.box(), query_grid=placed.query_grid,
        key_grid=placed.key_grid, prefix=placed.prefix, names=[f"head {head.number + 1}"],
        linked="pair", shared=scale == "shared",
    )  # fmt: skip


def _map_of(head: _Head, image: int, held: Any, place: int, why: str) -> None:
    """The head's map of an image whose rows cannot be shown."""
    stored = head.layer.stored
    if stored is None:
        st.caption(f"No map of this head was kept, and no rows are shown: {plain(why)}.")
        return
    values = notices.readable(
        lambda: run_cache.head_maps(head.run, stored, [image], held), head.run
    )
    if values is None:
        return
    one = values[:, head.number]
    share = float(energy(one, held.masks)[0])
    said = f"energy {share:.3f}" if np.isfinite(share) else "no score"
    tile = Tile("one", head.words, (said,), f"{head.words} on image {image}: {said}", 0, held.box())
    gallery(
        pack(
            held.images, [tile], [MapLayer("map", "map", one, from_zero=True)], held.masks,
            settings=Settings(threshold=0.0), label=head.words, controls=False, opens=False,
            arrows=False, tile=16, title=f"{head.run.id} {head.key} image {image}", iou=False,
        ),
        key=f"single_{place}",
    )  # fmt: skip
    st.caption(f"The map of the head; no rows are shown: {plain(why)}.")


def _maps(run: Any, layers: Sequence[LayerHeads], image: int, held: Any, scale: str) -> None:
    """The map of every head of this image: a row per layer."""
    kept = [layer for layer in layers if layer.stored]
    if not kept:
        return
    st.header("Every head of this image")
    picture, shrink = _small(held.images)
    box = held.box()
    small = None if box is None else tuple(int(v / shrink) for v in box)
    tiles, maps = [], []
    most = max(layer.count for layer in kept)
    for layer in kept:
        values = notices.readable(
            lambda layer=layer: run_cache.head_maps(run, str(layer.stored), [image], held)[0], run
        )
        if values is None:
            return
        shares = energy(values, np.repeat(held.masks, len(values), axis=0))
        for i, value in enumerate(values):
            said = f"energy {shares[i]:.3f}" if np.isfinite(shares[i]) else "no score"
            tiles.append(
                Tile(
                    f"{layer.map}~{i + 1}", f"{layer.layer} · {i + 1}", (said,),
                    f"{layer.layer}, head {i + 1}, image {image}: {said}", 0, small,
                )
            )  # fmt: skip
            maps.append(value)
    grid = max(one.shape for one in maps)
    stacked = np.stack([one if one.shape == grid else resized(one, grid) for one in maps])
    opened = gallery(
        pack(
            picture, tiles,
            [MapLayer("map", "map", stacked, from_zero=True, shared=scale == "shared")], None,
            settings=Settings(threshold=0.0), label=f"Every head of {run.id}, image {image}",
            controls=False, columns=most, tile=4.5, title=f"{run.id} heads image {image}",
        ),
        key="every",
    )  # fmt: skip
    st.caption("A tile opens its head above. One row per layer, one column per head.")
    if opened:
        put({"head": opened})
        st.rerun()


def _small(images: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture at a size at which hundreds of maps are painted at once, and by how much less."""
    from PIL import Image

    h, w = images.shape[1:3]
    shrink = max(1.0, max(h, w) / _SMALL)
    if shrink == 1:
        return images, 1.0
    size = (max(1, round(w / shrink)), max(1, round(h / shrink)))
    return np.asarray(Image.fromarray(images[0]).resize(size))[None], shrink


main()
