"""Streamlit components in plain JavaScript without a build, each in a folder of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import streamlit as st


def component(
    file: str, name: str, *, before: Sequence[str] = (), shadow: bool = True, lasting: bool = False
) -> Any:
    """Build the component from `name.html`, `name.css` and `name.js` beside a file.

    A key may be any text: Streamlit takes none with two underscores, as a variant's name may have.

    What a browser sends is returned once, by the run that it causes, and is None afterwards, even
    where a browser sends it as a state that stays: a page that runs again for it would never end.

    Args:
        file: The file beside which they are.
        name: Their name.
        before: Scripts of plain functions that `name.js` calls; they come before it.
        shadow: Whether it has a tree and styles of its own, which the page's do not reach.
        lasting: Whether what was sent is returned until something else is sent.
    """
    here = Path(file).parent
    parts = {end: (here / f"{name}.{end}").read_text("utf-8") for end in ("html", "css", "js")}
    shared = [(here / f"{one}.js").read_text("utf-8") for one in before]
    parts["js"] = "\n".join([*shared, parts["js"]])
    made = st.components.v2.component(f"attnviz_{name}", **parts, isolate_styles=shadow)

    def mounted(*, key: str, **given: Any) -> Any:
        valid = valid_key(key)
        if lasting:
            return made(key=valid, **given)
        calls = {
            one.removeprefix("on_").removesuffix("_change"): call
            for one, call in given.items()
            if one.startswith("on_")
        }
        sent = st.session_state.pop(f"{valid} sent", ())
        given |= {f"on_{one}_change": _noted(f"{valid} sent", one, calls[one]) for one in calls}
        found = made(key=valid, **given)
        return SimpleNamespace(**{one: found.get(one) if one in sent else None for one in calls})

    return mounted


def _noted(key: str, name: str, call: Callable[[], None]) -> Callable[[], None]:
    """A callback that first notes for the next run that something was sent just now."""

    def noted() -> None:
        st.session_state[key] = {*st.session_state.get(key, ()), name}
        call()

    return noted


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
