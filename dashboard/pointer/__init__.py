"""The pointer component: a place in an image, chosen by click or arrow keys."""

from __future__ import annotations

from dashboard.components import component

_pointer = component(__file__, "pointer")


def pointer(block: bytes, *, key: str) -> tuple[int, int] | None:
    """Show what `packing.pack_image` packed; the upper left corner chosen just now."""
    placed = _pointer(data=block, key=key, on_placed_change=lambda: None).placed
    return None if placed is None else (int(placed[0]), int(placed[1]))
