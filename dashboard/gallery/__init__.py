"""The gallery component: tiles of images and maps that the browser paints and saves by itself.

`tiles.js` is the component, `sheet.js` the files that it saves; both are plain functions over one
block of bytes (`attnviz.figures.packing`), without Streamlit in them.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboard.components import component, text, valid_key
from dashboard.query import put

_tiles = component(__file__, "tiles", before=("sheet",))

KEPT = ("tau", "opacity", "colours", "box")
"""The query parameters in which the settings of a gallery are kept."""


def gallery(block: bytes, *, key: str) -> str | None:
    """Show packed tiles; the key of the tile that was opened just now, or None.

    What the reader sets in a gallery that was packed with `remembers=True` goes into the address.

    Args:
        block: What `attnviz.figures.packing.pack` returned.
        key: The component's own key on the page.
    """
    result = _tiles(
        data=block, key=key, on_opened_change=lambda: None,
        on_settings_change=lambda: _remember(valid_key(key)),
    )  # fmt: skip
    return text(result.opened)


def changes(key: str) -> int:
    """How many changes of a gallery's settings have arrived."""
    count: int = st.session_state.get(f"{valid_key(key)} changes", 0)
    return count


def _remember(key: str) -> None:
    """Put what was set into the address."""
    sent: Any = st.session_state[key].get("settings")
    if not isinstance(sent, dict):
        return
    count = sent.get("change")
    if isinstance(count, int):
        st.session_state[f"{key} changes"] = count
    values = {name: sent.get(name) for name in KEPT}
    put({name: one for name, one in values.items() if isinstance(one, str) and len(one) <= 16})
