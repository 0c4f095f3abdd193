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

_links = component(__file__, "navigation")


def navigation(pages: dict[PageInfo, Any], current: PageInfo) -> None:
    """Show the links, and open the page whose link was used just now.

    Args:
        pages: What is told of each page, and the page.
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
    wanted = _links(
        data=data, key="navigation", on_page_change=lambda: None, isolate_styles=False
    ).page  # in the page's own tree: axe takes no link to the content for one before a shadow's
    for page, target in pages.items():
        if page.name == wanted:
            st.switch_page(target, query_params=carried())
