"""The gallery component: tiles of images and maps that the browser paints by itself."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_HERE = Path(__file__).parent


def can_run() -> bool:
    """Whether this Streamlit can run components of our own."""
    return hasattr(getattr(st, "components", None), "v2")


if can_run():
    _tiles = st.components.v2.component(
        "attnviz_tiles",
        html=(_HERE / "tiles.html").read_text("utf-8"),
        css=(_HERE / "tiles.css").read_text("utf-8"),
        js=(_HERE / "tiles.js").read_text("utf-8"),
    )


def gallery(block: bytes, *, key: str) -> str | None:
    """Show packed tiles; the key of the tile that was opened just now, or None.

    Args:
        block: What `dashboard.gallery.packing.pack` returned.
        key: The component's own key on the page.
    """
    result = _tiles(data=block, key=key, on_opened_change=lambda: None)
    return result.opened
