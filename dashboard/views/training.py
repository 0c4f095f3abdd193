"""Training: curves and maps by epoch, updated live while a run is running."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.comparison.cohorts import Cohort, cohorts, question, variants
from attnviz.comparison.groups import thing_of
from attnviz.definitions import metric_title
from attnviz.figures.packing import MapLayer, Settings, Tile, pack
from dashboard import charts, notices, run_cache
from dashboard.address import plain, quoted, several
from dashboard.chosen_runs import bar, listed, one_group
from dashboard.controls import chooser, draw, many, root, value_or_warning
from dashboard.epochs import epoch_maps, found_at, seed_bands
from dashboard.gallery import gallery
from dashboard.overlap import energy
from dashboard.query import params
from dashboard.summaries import level

PAGE = {"title": "Training", "icon": ":material/show_chart:", "order": 5}

_PANELS = {
    "Loss": ("val_loss", "train_loss"),
    "Accuracy": ("val_accuracy", "train_accuracy"),
    "Localisation": ("val_energy_pointing_game", "val_pointing_game", "val_max_iou"),
}
_EVERY = 2.0  # seconds between two looks at a run in progress, unless a look takes longer
_TOOK = "training_took"  # under which the session keeps how long the last one did


def main() -> None:
    """The page; a part of it repeats itself while a run is running."""
    st.title("Training")
    listing = listed()
    if listing is None:
        return
    requested = value_or_warning(several(params(), "runs", [run.id for run in listing.runs]))
    groups = cohorts(listing.runs)
    group = None if requested or not groups else one_group(groups)
    bar(listing, _shown(listing, requested, group), picked="runs" in params())
    running = _running(listing)
    every = max(_EVERY, 2 * st.session_state.get(_TOOK, 0.0))
    body = st.fragment(_body, run_every=every if running else None)
    body(requested, group, running, every)


def _body(requested: list[str], group: Cohort | None, running: set[str], every: float) -> None:
    started = time.monotonic()
    listing = run_cache.listing(root())
    if _running(listing) != running:
        st.rerun()  # a run ended, or began: the groups are others, and maybe nothing is live
    _show(listing, _shown(listing, requested, group))
    first = _TOOK not in st.session_state  # which read the files that later ones find read
    st.session_state[_TOOK] = took = time.monotonic() - started
    if running and took > every and not first:
        st.rerun()  # looks that follow each other at once would leave the page no rest


def _running(listing: run_cache.Listing) -> set[str]:
    return {run.id for run in listing.of("running")}


def _show(listing: run_cache.Listing, runs: list[Any]) -> None:
    _progress(runs)
    tables: dict[str, list[pd.DataFrame]] = {}
    for label, members in _chosen(_labelled(runs)).items():
        for run in members:
            table = notices.readable(lambda run=run: run_cache.curves(run), run)
            if table is not None and "epoch" in table:
                tables.setdefault(label, []).append(table)
    if tables:
        _panels(tables, runs)
    else:
        st.info("None of these runs has curves.", icon=":material/show_chart:")
    _maps(listing, runs)


def _labelled(runs: list[Any]) -> dict[str, list[Any]]:
    """Runs by variant, the unfinished apart with their state."""
    labelled = variants(run for run in runs if run.state == "complete")
    for run in runs:
        if run.state != "complete":
            label = f"{run.variant} ({notices.state_in_words(run.state)})"
            labelled.setdefault(label, []).append(run)
    return labelled


def _chosen(labelled: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The variants to draw: all, or where that is a crowd those that the reader picks."""
    if len(labelled) <= charts.MOST_BANDS:
        return labelled
    names = {members[0].id: label for label, members in labelled.items()}
    picked = many("Draw only", "only", names)
    return {names[key]: labelled[names[key]] for key in picked} or labelled


def _shown(listing: run_cache.Listing, requested: list[str], group: Cohort | None) -> list[Any]:
    """The runs of the address; else one group, what goes on now, and what it left unfinished."""
    if requested:
        return [run for run in listing.runs if run.id in requested]
    shown = [] if group is None else list(group.runs)
    shown += [
        run
        for run in listing.of("running", "stale", "stopped")
        if group is None or run.state == "running" or question(run) == group.question
    ]
    one = params().get("run")
    named = listing.find(one) if one else None
    if named is not None and named not in shown:
        shown.append(named)
    return shown


def _progress(runs: list[Any]) -> None:
    for run in runs:
        if run.state != "running":
            continue
        epoch, epochs = run.progress.get("epoch"), run.progress.get("epochs")
        words = f"{run.variant}, seed {run.seed} (`{run.id}`)"
        if isinstance(epoch, int) and isinstance(epochs, int) and epochs > 0:
            st.progress(min(epoch / epochs, 1.0), text=f"{words}: epoch {epoch} of {epochs}")
        else:
            st.markdown(f"{words}: training")
    for run in runs:
        if run.state in ("stale", "stopped"):
            st.caption(
                f"`{run.id}`: {notices.state_in_words(run.state)}, {plain(run.reason)}. "
                "Its curves so far are below; it is not ranked."
            )


def _panels(tables: dict[str, list[pd.DataFrame]], runs: list[Any]) -> None:
    """Loss, accuracy and localisation by epoch: mean over seeds, band from least to greatest."""
    order = list(tables)
    for name, wanted in _PANELS.items():
        known = [c for c in wanted if any(c in t for group in tables.values() for t in group)]
        if not known:
            continue
        st.header(name)
        words = {c: metric_title(c.replace("val_", "validation ")) for c in known}
        column = chooser("Curve", f"curve_{name.lower()}", words, known[0])
        data = seed_bands(tables, column)
        if data.empty:
            continue
        described = charts.lines_in_words(
            data, x="epoch", y="mean", y_title=words[column], name=name
        )
        draw(
            charts.lines, data, alt=described, x="epoch", y="mean", x_title="epoch",
            y_title=words[column], order=order, band=True, zero=name != "Loss", whole=True,
        )  # fmt: skip
        st.caption(plain(_last(data, words[column])))
        if name == "Localisation":
            _resting_on(tables)
            accuracy = seed_bands(tables, "val_accuracy")
            _found(data, accuracy, order, _chance(runs), thing_of(runs), _guess(runs))


def _resting_on(tables: dict[str, list[pd.DataFrame]]) -> None:
    """On how many images the points of monitored trainings rest."""
    counts = [
        table["monitor_images"].dropna()
        for group in tables.values()
        for table in group
        if "monitor_images" in table
    ]
    known = pd.concat(counts) if counts else pd.Series(dtype=float)
    if len(known):
        low, high = int(known.min()), int(known.max())
        images = f"{low} to {high}" if low < high else f"{low}"
        st.caption(f"A point of a monitored training rests on {images} calibration images.")


def _chance(runs: list[Any]) -> float | None:
    """The chance level, from the first complete run."""
    for run in runs:
        chance = level(run, run.summary.get("map"), "energy_pointing_game", "chance")
        if chance is not None:
            return chance
    return None


def _last(data: pd.DataFrame, words: str) -> str:
    last = data.groupby("variant", sort=False).tail(1)
    return f"Last {words}: " + ", ".join(f"{r.variant} {r.mean:.3f}" for r in last.itertuples())


def _guess(runs: list[Any]) -> float:
    """The accuracy of answering with the most frequent class of the test images."""
    for run in runs:
        if run.state == "complete":
            table = notices.readable(lambda run=run: run_cache.samples(run), run)
            if table is not None and "label" in table and len(table):
                return float(table["label"].value_counts(normalize=True).max())
    return 0.5


def _found(
    data: pd.DataFrame,
    accuracy: pd.DataFrame,
    order: list[str],
    chance: float | None,
    thing: str,
    guess: float,
) -> None:
    """From which epoch on does the map lie on the object, of a network that answers?"""
    right = accuracy.set_index(["variant", "epoch"])["mean"]
    told = []
    for variant in order:
        part = data[data["variant"] == variant].sort_values("epoch")
        epochs = part["epoch"].to_numpy()
        known = np.array([right.get((variant, epoch), np.nan) for epoch in epochs], dtype=float)
        if not np.isfinite(known).any():
            told.append(f"{plain(variant)} unknown, without a curve of its accuracy")
            continue
        epoch = found_at(epochs, part["mean"].to_numpy(), known, chance, guess)
        told.append(f"{plain(variant)} {'never' if epoch is None else f'from epoch {epoch:g} on'}")
    st.markdown(
        f"**When does the map find the {plain(thing)}?** {'; '.join(told)}. From that epoch on its "
        "score, a mean over seeds, stays above half of its last value, which is at least twice "
        f"chance, and the network no longer guesses: its accuracy is above {(1 + guess) / 2:.2f}, "
        f"halfway from {guess:.2f}, the share of the most frequent class, to 1."
    )


def _maps(listing: run_cache.Listing, runs: list[Any]) -> None:
    """The maps of a few pinned images, epoch by epoch under a slider."""
    kept = {run.id: run for run in runs if epoch_maps(run)}
    if not kept:
        return
    st.header("The map, epoch by epoch")
    words = {run.id: f"{run.variant} · seed {run.seed} · {run.id}" for run in kept.values()}
    first = next((run.id for run in kept.values() if run.state == "running"), next(iter(kept)))
    run = kept[chooser("Run", "run", words, first)] if len(kept) > 1 else kept[first]
    series = epoch_maps(run)
    images = series[-1].images
    held = notices.readable(lambda: run_cache.pictures(listing.root, str(run.dataset), images), run)
    if held is None:
        return
    layers = []
    for one in series:
        values = notices.readable(lambda one=one: run_cache.all_maps(run, one.name, held), run)
        if values is not None and len(values) == len(images):
            shares = energy(values, held.masks)
            described = tuple(f"energy {v:.3f}" if np.isfinite(v) else "no score" for v in shares)
            layers.append(MapLayer(str(one.epoch), f"epoch {one.epoch}", values, 0.5, described))
    if not layers:
        return
    tiles = [
        Tile(str(i), f"#{i}", (), f"Image {i}", place, held.box(place))
        for place, i in enumerate(images)
    ]
    gallery(
        pack(
            held.images, tiles, layers, held.masks, label=f"Maps of {run.id} by epoch",
            settings=Settings(map=len(layers) - 1), opens=False, steps="Epoch",
            tile=9,
        ),
        key="epochs",
    )  # fmt: skip
    st.caption(
        f"{quoted(run.id)}: pinned images under the model of each epoch, {len(layers)} epochs. "
        "Each map is scaled to its own range."
    )


main()
