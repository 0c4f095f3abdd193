"""Notices for bad states: the problem, its place, and a command to copy. Never a traceback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from shlex import quote
from typing import Any, TypeVar

import streamlit as st

from attnviz.errors import AttnvizError
from dashboard.address import plain, quoted

T = TypeVar("T")


def command(text: str) -> None:
    """A command to copy."""
    st.code(text, language="bash", wrap_lines=True)


def nothing_here(root: str, reason: str | None = None) -> None:
    """Notice: no such folder, or no runs in it."""
    st.warning(
        f"No runs in {quoted(root)}. {plain(reason) + '. ' if reason else ''}"
        "Finished runs to browse, or a run of your own model and images:",
        icon=":material/folder_off:",
    )
    command("attnviz demo")
    out = quote(root if "://" not in root else "runs")
    command(f"attnviz evaluate MODULE:FACTORY --images FOLDER --masks FOLDER --out {out}/NAME")


def unreachable(root: str, reason: str, age: float | None) -> None:
    """Notice: the store did not answer."""
    shown = (
        "There is no earlier listing to show."
        if age is None
        else f"What is shown is the last good listing, {_ago(age)} old."
    )
    st.error(
        f"{quoted(root)} cannot be reached: {plain(reason)}. {shown}", icon=":material/cloud_off:"
    )
    st.button("Retry", key="retry", icon=":material/refresh:")


def broken(error: Exception, run: Any | None = None) -> None:
    """A file that cannot be read; the rest of the page goes on."""
    st.error(f"{plain(error)}", icon=":material/broken_image:")
    if run is not None:
        verify(run)


def verify(run: Any) -> None:
    """The command that names every fault of a run."""
    command(f"attnviz verify {quote(run.location)}")


def readable(read: Callable[[], T], run: Any | None = None) -> T | None:
    """What `read` returns; None, with the reason shown, where a run cannot be read."""
    try:
        return read()
    except (AttnvizError, OSError, ValueError, KeyError) as error:
        broken(error, run)
        return None


def not_ranked(listing: Any) -> None:
    """The runs that are listed but not ranked, and the folders that are none, with the reasons."""
    others = [run for run in listing.runs if run.state != "complete"]
    if not others and not listing.left_out:
        return
    counts = Counter(state_in_words(run.state) for run in others)
    parts = [f"{n} {state}" for state, n in counts.items()]
    strays = len(listing.left_out)
    if strays:
        parts.append(f"{strays} folder{'s' if strays > 1 else ''} without run.json")
    with st.expander(f"Not ranked: {', '.join(parts)}"):
        for run in others[:50]:
            reason = f" – {plain(run.reason)}" if run.reason else ""
            st.markdown(f"- {quoted(run.id)}: {state_in_words(run.state)}{reason}")
        if len(others) > 50:
            st.markdown(f"- … and {len(others) - 50} more; see Runs.")
        for name, reason in list(listing.left_out.items())[:50]:
            st.markdown(f"- {quoted(name)}: left out, {plain(reason)}")
        faulty = [run for run in others if run.state == "broken"]
        if faulty:
            verify(faulty[0])


def state_in_words(state: str) -> str:
    """A run's state as text for the reader."""
    return {"running": "training", "stale": "stopped?", "newer": "newer schema"}.get(state, state)


def _ago(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
