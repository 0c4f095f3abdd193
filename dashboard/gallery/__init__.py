"""The gallery component: tiles of images and maps that the browser paints by itself."""

from __future__ import annotations

from dashboard.components import component

_tiles = component(__file__, "tiles")


def gallery(block: bytes, *, key: str) -> str | None:
    """Show packed tiles; the key of the tile that was opened just now, or None.

    Args:
        block: What `attnviz.figures.packing.pack` returned.
        key: The component's own key on the page.
    """
    result = _tiles(data=block, key=key, on_opened_change=lambda: None)
    return result.opened
