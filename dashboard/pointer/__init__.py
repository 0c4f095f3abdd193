"""The pointer component: a place in an image, chosen by click or arrow keys."""

from __future__ import annotations

from dashboard.components import component, number

_pointer = component(__file__, "pointer")


def pointer(block: bytes, *, key: str) -> tuple[int, int] | None:
    """Show what `packing.pack_image` packed; the upper left corner chosen just now."""
    placed = _pointer(data=block, key=key, on_placed_change=lambda: None).placed
    if not isinstance(placed, list) or len(placed) != 2:
        return None
    x, y = map(number, placed)
    return None if x is None or y is None else (int(x), int(y))
