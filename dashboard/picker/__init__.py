"""The attention picker: a place of an image, and its attention in every head."""

from __future__ import annotations

from dashboard.components import component

_picker = component(__file__, "picker")


def picker(block: bytes, *, key: str) -> None:
    """Show what `attnviz.figures.packing.pack_rows` packed; hovering costs no message."""
    _picker(data=block, key=key)
