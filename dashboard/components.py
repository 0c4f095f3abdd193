"""Streamlit components in plain JavaScript without a build, each in a folder of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st


def component(file: str, name: str, *, before: Sequence[str] = (), shadow: bool = True) -> Any:
    """Build the component from `name.html`, `name.css` and `name.js` beside a file.

    A key may be any text: Streamlit takes none with two underscores, as a variant's name may have.

    Args:
        file: The file beside which they are.
        name: Their name.
        before: Scripts of plain functions that `name.js` calls; they come before it.
        shadow: Whether it has a tree and styles of its own, which the page's do not reach.
    """
    here = Path(file).parent
    parts = {end: (here / f"{name}.{end}").read_text("utf-8") for end in ("html", "css", "js")}
    shared = [(here / f"{one}.js").read_text("utf-8") for one in before]
    parts["js"] = "\n".join([*shared, parts["js"]])
    made = st.components.v2.component(f"attnviz_{name}", **parts, isolate_styles=shadow)

    def mounted(*, key: str, **given: Any) -> Any:
        return made(key=valid_key(key), **given)

    return mounted


def valid_key(key: str) -> str:
    """A component's key, different for different text."""
    return key if "__" not in key else f"named-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def text(sent: Any) -> str | None:
    """What a browser sent, where it is text; None otherwise, since a browser may send anything."""
    return sent if isinstance(sent, str) else None


def number(sent: Any) -> float | None:
    """What a browser sent, where it is a finite number; None otherwise."""
    if isinstance(sent, bool) or not isinstance(sent, int | float):
        return None
    try:
        value = float(sent)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None
