"""What lies below the fold: made and sent when the reader comes near it.

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
        draw: What puts elements on the page.
        label: What they are, on the button that asks for them.
        key: Tells several such places apart.
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
