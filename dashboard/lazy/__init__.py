"""Lazy content below the fold: drawn when scrolled into view.

Three Vega charts and a table cost a new reader two megabytes of script and a second of parsing
before the answer above them is painted.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboard.components import component

_below = component(__file__, "below")


AT_ONCE = False
"""Whether everything is drawn at once, in view or not."""


_PAGE, _SEEN = "lazy_page", "lazy_seen"  # of this reader: the page, and which of its places


def entered(page: str) -> None:
    """Forget what was in view on the page before: a page that is opened draws its first screen."""
    if st.session_state.get(_PAGE) != page:
        st.session_state[_PAGE], st.session_state[_SEEN] = page, frozenset()


def below(draw: Callable[[], None], label: str, *, key: str) -> None:
    """Call `draw` once its place is in view; from then on at once, until another page is opened.

    Args:
        draw: Function that draws the elements.
        label: Their name, on the button that loads them.
        key: Unique key of this place.
    """
    st.fragment(lambda: _part(draw, label, f"below_{key}"))()


def _part(draw: Callable[[], None], label: str, seen: str) -> None:
    if AT_ONCE:
        return draw()
    place = st.empty()
    shown = st.session_state.get(_SEEN, frozenset())
    if seen not in shown:
        with place:
            near = _below(
                data={"label": label}, key=f"{seen}_place", on_near_change=lambda: None
            ).near
        if not near:
            return None
        st.session_state[_SEEN] = shown | {seen}
    with place.container():
        return draw()
