"""Streamlit components in plain JavaScript without a build, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st


def component(file: str, name: str) -> Any:
    """The component that `name.html`, `name.css` and `name.js` beside a file make."""
    here = Path(file).parent
    parts = {end: (here / f"{name}.{end}").read_text("utf-8") for end in ("html", "css", "js")}
    return st.components.v2.component(f"attnviz_{name}", **parts)
