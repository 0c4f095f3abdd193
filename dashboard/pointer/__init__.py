"""The pointer component: a place in an image, clicked or walked to with the arrow keys."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboard.gallery import can_run

_HERE = Path(__file__).parent

if can_run():
    _pointer = st.components.v2.component(
        "attnviz_pointer",
        html=(_HERE / "pointer.html").read_text("utf-8"),
        css=(_HERE / "pointer.css").read_text("utf-8"),
        js=(_HERE / "pointer.js").read_text("utf-8"),
    )


def pointer(block: bytes, *, key: str) -> tuple[int, int] | None:
    """Show what `dashboard.packing.pack_image` packed; the upper left corner chosen just now."""
    placed = _pointer(data=block, key=key, on_placed_change=lambda: None).placed
    return None if placed is None else (int(placed[0]), int(placed[1]))
