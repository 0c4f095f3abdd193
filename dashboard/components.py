"""Components of our own: plain JavaScript without a build, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st


def can_run() -> bool:
    """Whether this Streamlit can run components of our own."""
    return hasattr(getattr(st, "components", None), "v2")


def component(file: str, name: str) -> Any:
    """What `name.html`, `name.css` and `name.js` beside a file make; None where it cannot run."""
    if not can_run():
        return None
    here = Path(file).parent
    parts = {end: (here / f"{name}.{end}").read_text("utf-8") for end in ("html", "css", "js")}
    return st.components.v2.component(f"attnviz_{name}", **parts)
