"""The navigation component: links to the pages that carry along what was chosen.

One element instead of a dozen, drawn once per page: what is carried is read from the address when
a link is used.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboard.components import component
from dashboard.controls import CARRIED, carried
from dashboard.pages import PageInfo
from dashboard.query import open_page

_links = component(__file__, "navigation", shadow=False)  # its links count as the page's own


def navigation(pages: dict[PageInfo, Any], current: PageInfo) -> None:
    """Show the links, and open the page whose link was used just now.

    Args:
        pages: Each page with its properties.
        current: The page that is shown.
    """
    st.fragment(lambda: _navigation(pages, current))()


def _navigation(pages: dict[PageInfo, Any], current: PageInfo) -> None:
    told = [
        {
            "name": page.name, "title": page.title, "first": not number,
            "icon": page.icon.removeprefix(":material/").removesuffix(":"),
        }
        for number, page in enumerate(pages)
    ]  # fmt: skip
    data = {"pages": told, "current": current.name, "carried": list(CARRIED)}
    wanted = _links(data=data, key="navigation", on_page_change=lambda: None).page
    for page, target in pages.items():
        if page.name == wanted:
            open_page(target, carried())
