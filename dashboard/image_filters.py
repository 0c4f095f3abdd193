"""Controls that choose images of a run: map, metric, order and filters, all bound to the address.

Gallery, Explore and Sample read the same query parameters, so that a selection goes along from one
to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.comparison.from_runs import grouping_of
from attnviz.definitions import metric_title
from attnviz.runs import Notes
from dashboard import notices, run_cache
from dashboard.address import one_of, plain, span
from dashboard.chosen_runs import Chosen, page_of_a_run
from dashboard.controls import chooser, value_or_warning
from dashboard.query import params
from dashboard.selection import (
    CELLS,
    ORDERS,
    OUTCOMES,
    Choice,
    class_name,
    confidence,
    in_order,
    is_binary,
    map_in_words,
    metric_names,
    patch_sizes,
    primary_map,
    scores,
    shown_maps,
    spread,
)

PRIMARY = "energy_pointing_game"

FILTERS = (
    *("map", "order", "outcome", "size", "shape", "class", "predicted", "cell", "group", "tag"),
    *("confidence", "score"),
)
"""The query parameters that choose images and their order."""

_MOST = 200  # groups or classes that a menu offers


@dataclass(frozen=True)
class Images:
    """Images of a run in the chosen order.

    Attributes:
        run: The run.
        table: Its samples.
        map: The map that is shown and scored.
        metric: The metric.
        values: One score per image.
        choice: The filters and the order.
        where: The images that pass, in order.
    """

    run: Any
    table: pd.DataFrame
    map: str
    metric: str
    values: np.ndarray
    choice: Choice
    where: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """How sure the model was of each image."""
        return confidence(self.table)


def carried_filters() -> dict[str, str]:
    """The filters of the address, for a link to another page."""
    here = params()
    found = {name: here[name] for name in FILTERS if name in here}
    return found if "order" in found else {**found, "order": "worst"}


def page_of_images(title: str) -> tuple[Chosen, Images] | None:
    """A page's title, the runs that it compares, and the images of one that were chosen."""
    found = page_of_a_run(title)
    if found is None:
        return None
    choice, run = found
    table = notices.readable(lambda: run_cache.samples(run), run)
    images = None if table is None else _chosen_images(choice, run, table)
    return None if images is None else (choice, images)


def _chosen_images(choice: Chosen, run: Any, table: pd.DataFrame) -> Images | None:
    """The controls, and the images that they choose; None for a run without maps to show."""
    names = shown_maps(run, table)
    if not names:
        st.info(f"`{run.id}` keeps no maps.", icon=":material/image_not_supported:")
        return None
    notes = notices.readable(lambda: run_cache.notes(choice.listing.root)) or run_cache.NO_NOTES
    known: dict[str, str] = {}
    menus = _menus(run, table, names, notes)
    for start in range(0, len(menus), 4):
        for column, (name, draw) in zip(st.columns(4), menus[start : start + 4], strict=False):
            with column:
                known[name] = draw()
    picked = _choice(known, run, notes)
    metric, map_name = known["metric"], known["map"]
    values = scores(table, map_name, metric)
    apart = _spread(choice, run, metric) if picked.order == "disagreement" else None
    where = in_order(table, values, picked, metric=metric, disagreement=apart)
    return Images(run, table, map_name, metric, values, picked, where)


def _menus(
    run: Any, table: pd.DataFrame, names: list[str], notes: Notes
) -> list[tuple[str, Callable[[], str]]]:
    """One menu for each thing by which this run's images can be chosen."""
    again = ("page", "image")
    maps = {name: map_in_words(run, name) for name in names}
    shown = value_or_warning(one_of(params(), "map", names, names[0]))
    metrics = metric_names(table, shown) or [PRIMARY]
    first = PRIMARY if PRIMARY in metrics else metrics[0]
    thing = plain(run.thing)
    menus: list[tuple[str, str, Mapping[str, str], str, tuple[str, ...]]] = [
        ("map", "Map", maps, names[0], ("page", "tau", "score")),
        ("metric", "Metric", {n: metric_title(n) for n in metrics}, first, ("page", "score")),
        ("order", "Order", ORDERS, "worst", ("page",)),
    ]
    if "correct" in table:
        menus.append(("outcome", "Images", OUTCOMES, "all", again))
    for name, column, label in (
        ("class", "label", "Class"),
        ("predicted", "prediction", "Predicted class"),
    ):
        found = _classes(run, table, column)
        if len(found) > 1:
            menus.append((name, label, {"any": "any"} | found, "any", again))
    if is_binary(table):
        cells = {key: words for key, (words, *_) in CELLS.items()}
        menus.append(("cell", "Confusion cell", {"any": "any"} | cells, "any", again))
    groups = [str(one) for one in dict.fromkeys(grouping_of(table) or ())]
    if 1 < len(groups) <= _MOST:
        menus.append(
            ("group", "Group", {"any": "any"} | {g: g for g in groups}, "any", again)
        )  # fmt: skip
    sizes = sorted(set(patch_sizes(table).tolist()))
    words = {"any": "any size"} | {str(s): f"{s} px" if s else f"no {run.thing}" for s in sizes}
    if len(sizes) > 1 and len(sizes) <= _MOST:
        menus.append(("size", f"Size of the {thing}", words, "any", again))
    if "shape" in table and table["shape"].nunique() > 1:
        shapes = {"any": "any shape"} | {str(s): str(s) for s in sorted(table["shape"].unique())}
        menus.append(("shape", "Shape", shapes, "any", again))
    tags = notes.tags_of_images(str(run.dataset))
    if tags:
        menus.append(("tag", "Tag", {"any": "any"} | {t: t for t in tags}, "any", again))
    return [
        (name, partial(chooser, label, name, options, default, forget=forget))
        for name, label, options, default, forget in menus
    ]


def _classes(run: Any, table: pd.DataFrame, column: str) -> dict[str, str]:
    """The classes of a column, by number; empty where it has none, or too many."""
    if column not in table:
        return {}
    values = table[column].dropna().unique()
    whole = [int(v) for v in values if float(v).is_integer()]
    if len(whole) != len(values) or len(whole) > _MOST:
        return {}
    return {str(k): class_name(run, k) for k in sorted(whole)}


def _choice(known: Mapping[str, str], run: Any, notes: Notes) -> Choice:
    def number(name: str) -> int | None:
        value = known.get(name, "any")
        return None if value == "any" else int(value)

    def word(name: str) -> str | None:
        value = known.get(name, "any")
        return None if value == "any" else value

    tag = word("tag")
    of_set = notes.images.get(str(run.dataset), {})
    return Choice(
        known["order"],
        known.get("outcome", "all"),
        number("size"),
        word("shape"),
        label=number("class"),
        prediction=number("predicted"),
        cell=word("cell"),
        group=word("group"),
        tagged=None if tag is None else frozenset(i for i, n in of_set.items() if tag in n.tags),
        confidence=value_or_warning(span(params(), "confidence")),
        score=value_or_warning(span(params(), "score")),
    )


def _spread(choice: Chosen, run: Any, metric: str) -> np.ndarray | None:
    """How far the variants measured on this run's images disagree about each."""
    columns: dict[str, list[np.ndarray]] = {}
    for name, runs in list(choice.groups.items())[:_MOST]:
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
