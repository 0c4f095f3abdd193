"""Gallery: one run's maps image by image, worst first, with an adjustable threshold."""

from __future__ import annotations

import streamlit as st

from dashboard import notices, run_cache
from dashboard.chosen_runs import chosen, one_run
from dashboard.image_filters import chosen_images
from dashboard.image_pages import image_page

PAGE = {"title": "Gallery", "icon": ":material/grid_view:", "order": 1}


def main() -> None:
    """The page."""
    st.title("Gallery")
    choice = chosen()
    if choice is None:
        return
    run = one_run(choice)
    if run is None:
        return
    table = notices.readable(lambda: run_cache.samples(run), run)
    if table is None:
        return
    images = chosen_images(choice, run, table)
    if images is not None:
        image_page(choice, images)


main()
