"""Lazy content below the fold: drawn when scrolled into view.

Three Vega charts and a table cost a new reader two megabytes of script and a second of parsing
before the answer above them is painted.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboard.components import component

_below = component(__file__, "below")


def below(draw: Callable[[], None], label: str, *, key: str) -> None:
    """Call `draw` once its place is in view; from then on at once, for this reader.

    Args:
        draw: Function that draws the elements.
        label: Their name, on the button that loads them.
        key: Unique key of this place.
    """
    st.fragment(lambda: _part(draw, label, f"below_{key}"))()


def _part(draw: Callable[[], None], label: str, seen: str) -> None:
    place = st.empty()
    if not st.session_state.get(seen):
        with place:
            near = _below(
                data={"label": label}, key=f"{seen}_place", on_near_change=lambda: None
            ).near
        if not near:
            return
        st.session_state[seen] = True
    with place.container():
        draw()
