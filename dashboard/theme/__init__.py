"""The theme component: runs the page again when the reader switches the theme.

Streamlit repaints its own elements at once; charts and plots carry colours that the server chose.
"""

from __future__ import annotations

from dashboard.components import component

_theme = component(__file__, "theme")


def follow_theme() -> None:
    """Run the page again after each switch."""
    _theme(data=None, key="theme", on_background_change=lambda: None)
