"""Results in notebooks: what `print` shows, with pictures, and views to look at.

html        the HTML of every result, light and dark
show        `show`: images, maps, heads and attention as a widget and as a page
components  the dashboard's components as one script
"""

from __future__ import annotations

from attnviz.notebook.views import show

__all__ = ["show"]
