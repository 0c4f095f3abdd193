"""Slices of volumes and frames of videos: which one the pages show."""

from __future__ import annotations

import streamlit as st

from attnviz.runs.datasets import Cut
from dashboard import notices, run_cache
from dashboard.address import whole
from dashboard.controls import value_or_warning
from dashboard.query import params, put

_OBJECT = "object"


def slice_chooser(root: str, digest: str) -> int | None:
    """A slider over the slices or frames of the test images, bound to the address.

    Returns:
        The one that is shown of every image; None for that of each which shows most of its
        object, and where the test images have no slices.
    """
    depth = notices.readable(lambda: run_cache.depth(root, digest))
    if depth is None:
        return None
    name = "Frame" if run_cache.dataset_info(root, digest).get("axis") == "frame" else "Slice"
    found = value_or_warning(whole(params(), "slice", 0, depth - 1, -1))
    at = None if found < 0 else found
    st.session_state["slices"] = _OBJECT if at is None else at
    st.select_slider(
        f"{name} of each volume" if name == "Slice" else "Frame of each video",
        [_OBJECT, *range(depth)],
        key="slices",
        format_func=lambda one: "most of the object" if one == _OBJECT else f"{name} {one}",
        on_change=_write,
    )
    return at


def _write() -> None:
    value = st.session_state["slices"]
    put({"slice": None if value == _OBJECT else str(value)})


def at_slice(cut: Cut, place: int = 0) -> str:
    """Which slice of an image is shown, in words; nothing of plain images."""
    return "" if cut.at is None else f", {cut.axis} {int(cut.at[place])} of {cut.depth}"
