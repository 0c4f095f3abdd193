"""The HTML of a result, for notebooks.

Results of every layer have `_repr_html_`, which calls this. Drawing them needs maps, figures and
tables, which lie above most results, so that `attnviz.notebook` is imported when one is displayed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def html_of(result: Any) -> str:
    """The result as HTML with its pictures; everything in it that is text is escaped."""
    made: str = import_module("attnviz.notebook.results").html_of(result)
    return made
