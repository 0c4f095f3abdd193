"""Gallery: one run's maps image by image, worst first, with an adjustable threshold."""

from __future__ import annotations

from dashboard.image_filters import page_of_images
from dashboard.image_pages import image_page

PAGE = {"title": "Gallery", "icon": ":material/grid_view:", "order": 1}


def main() -> None:
    """The page."""
    found = page_of_images("Gallery")
    if found is not None:
        image_page(*found)


main()
