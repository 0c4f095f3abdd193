"""Named views: addresses of the dashboard that readers keep beside the runs."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import streamlit as st

from attnviz.runs import name_view
from dashboard import notices, run_cache
from dashboard.address import plain
from dashboard.controls import changes_allowed, root
from dashboard.pages import listed
from dashboard.query import open_page, params


def named_views(page: str) -> None:
    """The kept views, each a link, and a field to keep the present one.

    Args:
        page: The page that this is.
    """
    folder = root()
    notes = notices.readable(lambda: run_cache.notes(folder)) or run_cache.NO_NOTES
    if not notes.views and not changes_allowed(folder):
        return
    count = f" ({len(notes.views)})" if notes.views else ""
    with st.expander(f"Named views{count}"):
        known = {one.name for one in listed()}
        for name, address in sorted(notes.views.items()):
            target, _, query = address.partition("?")
            if target not in known:
                continue
            with st.container(horizontal=True, vertical_alignment="center"):
                if st.button(plain(name), key=f"view_{name}"):
                    open_page(target, dict(parse_qsl(query)))
                if changes_allowed(folder):
                    st.button(
                        "Forget", key=f"forget_{name}", type="tertiary", on_click=_forget,
                        args=(folder, name),
                    )  # fmt: skip
        if changes_allowed(folder):
            _keep(folder, page)


def _keep(folder: str, page: str) -> None:
    with st.form("keep_view", border=False, clear_on_submit=True):
        name = st.text_input("Keep this view as", max_chars=80)
        if st.form_submit_button("Keep") and name.strip():
            query = urlencode(dict(params()))
            done = notices.readable(lambda: name_view(folder, name, f"{page}?{query}"))
            if done is not None:
                st.rerun()


def _forget(folder: str, name: str) -> None:
    notices.readable(lambda: name_view(folder, name, None))
