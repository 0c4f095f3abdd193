"""Explore: one dot per image, confidence against score; what is brushed fills the gallery."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import streamlit as st

from attnviz.definitions import metric_title, short_title
from attnviz.runs import tag_images
from dashboard import notices
from dashboard.address import plain
from dashboard.chosen_runs import Chosen
from dashboard.controls import changes_allowed
from dashboard.explorer import explorer
from dashboard.image_filters import Images, page_of_images
from dashboard.image_pages import image_page
from dashboard.named_views import named_views
from dashboard.query import put
from dashboard.selection import in_order

PAGE = {"title": "Explore", "icon": ":material/scatter_plot:", "order": 0.5}


def main() -> None:
    """The page."""
    found = page_of_images("Explore")
    if found is None:
        return
    choice, images = found
    _dots(images)
    _tags(choice, images)
    named_views("explore")
    image_page(choice, images)


def _dots(images: Images) -> None:
    """The dots of all images that pass the other filters, and the brush."""
    picked = images.choice
    others = _without_brush(images)
    known = others & np.isfinite(images.values) & np.isfinite(images.confidence)
    missing = int(others.sum() - known.sum())
    if not known.any():
        st.info(
            "No image has both a confidence and a score, so none is drawn.",
            icon=":material/scatter_plot:",
        )
        return
    name = short_title(images.metric)
    x, y = images.confidence[known], images.values[known]
    brushed = explorer(
        x, y, _wrong(images)[known], names=("confidence", name),
        brush=(picked.confidence, picked.score),
        label=f"{int(known.sum())} images by confidence, {x.min():.2f} to {x.max():.2f}, and "
        f"{metric_title(images.metric)}, {y.min():.3f} to {y.max():.3f}",
        key="explorer",
    )  # fmt: skip
    left_out = f" {missing} images without a score or a confidence have no dot." if missing else ""
    st.caption(
        f"Confidence: the model's probability of the class that it predicted. {plain(name)}: "
        f"{plain(metric_title(images.metric))} of {plain(images.map)}.{left_out} Drag over the "
        "dots or over a histogram to choose images; they follow below."
    )
    if brushed is not None:
        words = [None if span is None else f"{span[0]:.6g}~{span[1]:.6g}" for span in brushed]
        put(dict(zip(("confidence", "score"), words, strict=True)) | {"page": None})
        st.rerun()


def _without_brush(images: Images) -> np.ndarray:
    """Which images pass all filters but the brush."""
    bare = replace(images.choice, confidence=None, score=None, order="number")
    keep = np.zeros(len(images.table), bool)
    keep[in_order(images.table, images.values, bare, metric=images.metric)] = True
    return keep


def _wrong(images: Images) -> np.ndarray:
    if "correct" not in images.table:
        return np.zeros(len(images.table), bool)
    return images.table["correct"].to_numpy(dtype=float) == 0


def _tags(choice: Chosen, images: Images) -> None:
    """A tag for all images that are chosen."""
    folder = choice.listing.root
    if not changes_allowed(folder) or not len(images.where):
        return
    with st.expander(f"Tag these {len(images.where)} images"), st.form("tag", border=False):
        tag = st.text_input("Tag", max_chars=40)
        with st.container(horizontal=True):
            add = st.form_submit_button("Add to all")
            take = st.form_submit_button("Take from all")
        if (add or take) and tag.strip():
            _tag(folder, images, tag, on=add)


def _tag(folder: str, images: Images, tag: str, *, on: bool) -> None:
    where: list[Any] = images.where.tolist()
    done = notices.readable(
        lambda: tag_images(folder, str(images.run.dataset), where, tag, on=on)
    )  # fmt: skip
    if done is not None:
        st.rerun()


main()
