"""The attention picker: a place of an image, and where it looks in every head."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboard.gallery import can_run

_HERE = Path(__file__).parent

if can_run():
    _picker = st.components.v2.component(
        "attnviz_picker",
        html=(_HERE / "picker.html").read_text("utf-8"),
        css=(_HERE / "picker.css").read_text("utf-8"),
        js=(_HERE / "picker.js").read_text("utf-8"),
    )


def picker(block: bytes, *, key: str) -> None:
    """Show what `dashboard.packing.pack_rows` packed; hovering costs no message."""
    _picker(data=block, key=key)
