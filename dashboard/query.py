"""The query parameters of the address, which are read and written here alone.

A browser sends its address along with each action, and what the server writes into the address
reaches it a moment later. An action in between comes with the address from before, which would undo
what was written. So what was written is kept, and written again where an address comes that has the
value from before, unless the reader went back in the browser's history or opened a page.
"""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st
from streamlit.navigation.page import StreamlitPage
from streamlit.runtime.scriptrunner import get_script_run_ctx

_WRITTEN = "query_written"  # of this reader: parameter → its value, and those that it had before
_PAGE = "query_page"


def params() -> Mapping[str, str]:
    """The query parameters, with what was written and has not reached the browser yet."""
    written = st.session_state.get(_WRITTEN)
    if written and _went_back():
        forget()
    elif written:
        here = st.query_params
        _write({name: value for name, (value, old) in written.items() if here.get(name) in old})
    return st.query_params


def put(values: Mapping[str, str | None]) -> None:
    """Write query parameters into the address, as one step of the browser's history.

    Args:
        values: Parameter → its value; None removes it.
    """
    here = params()
    written = st.session_state.setdefault(_WRITTEN, {})
    for name, value in values.items():
        _, old = written.get(name, (None, frozenset()))
        written[name] = (value, (old | {here.get(name)}) - {value})
    _write(values)


def open_page(page: str | StreamlitPage, values: Mapping[str, str]) -> None:
    """Open a page with these query parameters and no others; does not return.

    Args:
        page: Its name, as in the address, or the page itself.
        values: Parameter → its value.
    """
    forget()
    st.switch_page(f"views/{page}.py" if isinstance(page, str) else page, query_params=values)


def entered(page: str) -> None:
    """Note which page is shown: what was written on another one is not for this one."""
    if st.session_state.get(_PAGE) != page:
        st.session_state[_PAGE] = page
        forget()


def forget() -> None:
    """Take the next address as it comes."""
    st.session_state.pop(_WRITTEN, None)


def _write(values: Mapping[str, str | None]) -> None:
    before = st.query_params.to_dict()
    after = {name: value for name, value in {**before, **values}.items() if value is not None}
    if after != before:
        st.query_params.from_dict(after)


def _went_back() -> bool:
    """Whether this run was caused by the browser's Back or Forward."""
    context = get_script_run_ctx()
    return bool(getattr(context, "is_history_navigation", False))
