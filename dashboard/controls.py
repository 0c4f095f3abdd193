"""Controls shared by all pages: folder of runs, selections bound to the address, warnings.

The address is the state. A control is bound to a query parameter here: its value comes from the
address at each run and goes back there when the reader changes it, so that every view can be sent
to a colleague. Streamlit's own `bind=` would drop a bad value silently.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

from dashboard.address import one_of, several, share
from dashboard.palettes import Ink, ink
from dashboard.query import open_page, params, put

T = TypeVar("T")

CARRIED = ("runs", "run", "metric", "image", "data")
"""The query parameters that are kept on the way to another page."""

_STYLE = """
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] * { opacity: 1; }
[data-testid="stCaptionContainer"] p { color: inherit; font-size: 0.9rem; }
.stMultiSelect :has(> span[title]) {
  background: color-mix(in srgb, currentcolor 14%, transparent) !important;
  color: inherit !important;
}
.stMultiSelect span[title], .stMultiSelect :has(> span[title]) * { color: inherit !important; }
.block-container, [data-testid="stMainBlockContainer"] {
  padding: 3.2rem 3rem 4rem; max-width: 84rem;
}
"""


def root() -> str:
    """The folder, or fsspec address, whose runs are shown: environment, argument, or `runs`."""
    given = os.environ.get("ATTNVIZ_RUNS")
    if given:
        return given
    arguments = [word for word in sys.argv[1:] if not word.startswith("-")]
    return arguments[0] if arguments else "runs"


def changes_allowed(folder: str) -> bool:
    """Whether readers may note, rename and delete: on a local folder, unless it is switched off.

    `attnviz dashboard --host` with an address that others reach switches it off.
    """
    return "://" not in folder and os.environ.get("ATTNVIZ_CHANGES", "1") != "0"


def dress() -> None:
    """Style captions, chosen words and primary buttons: Streamlit has too little contrast."""
    primary = '[data-testid^="stBaseButton-primary"]'
    button = f"{primary}, {primary} * {{ color: {colours().on_mark} !important; }}"
    st.html(f"<style>{_STYLE}{button}</style>")


def colours() -> Ink:
    """The colours of charts for the reader's theme."""
    return ink(st.context.theme.type)


def carried(**more: Any) -> dict[str, str]:
    """Query parameters for another page: those carried over, updated."""
    here = params()
    kept = {name: here[name] for name in CARRIED if name in here}
    return kept | {name: str(value) for name, value in more.items()}


def go(page: str, **choices: Any) -> None:
    """Open another page with some choices."""
    open_page(page, carried(**choices))


def value_or_warning(answer: tuple[T, str | None]) -> T:
    """A value read from the address; its warning, if any, is shown."""
    value, complaint = answer
    if complaint:
        st.warning(complaint, icon=":material/link_off:")
    return value


def chooser(
    label: str,
    name: str,
    options: Sequence[str] | Mapping[str, str],
    default: str,
    *,
    help: str | None = None,
    forget: Sequence[str] = (),
) -> str:
    """A select box that is bound to a query parameter.

    Args:
        label: What is chosen.
        name: The query parameter.
        options: Keys, or keys with the words to show.
        default: The key while the address names none.
        help: Shown on request.
        forget: Query parameters that lose their meaning when this one changes.
    """
    keys = list(options)
    value = value_or_warning(one_of(params(), name, keys, default))
    words = options if isinstance(options, Mapping) else {key: key for key in keys}
    key = f"choose_{name}"
    st.session_state[key] = value
    st.selectbox(
        label,
        keys,
        key=key,
        format_func=lambda one: words.get(one, one),
        help=help,
        on_change=_write,
        args=(name, key, default, tuple(forget)),
    )
    return value


def typed(label: str, name: str, hint: str) -> str:
    """A line of text that is bound to a query parameter."""
    key = f"type_{name}"
    value = str(params().get(name, ""))
    st.session_state[key] = value
    st.text_input(label, key=key, placeholder=hint, on_change=_write, args=(name, key, "", ()))
    return value


def number(label: str, name: str, low: int, high: int, value: int) -> None:
    """A whole number that is bound to a query parameter; `value` is what was read from it."""
    key = f"number_{name}"
    st.session_state[key] = value
    st.number_input(label, low, high, key=key, on_change=_write, args=(name, key, None, ()))


def ratio(label: str, name: str, default: float, *, help: str | None = None) -> float:
    """A slider from 0 to 1 that is bound to a query parameter."""
    key = f"ratio_{name}"
    value = value_or_warning(share(params(), name, default))
    st.session_state[key] = value
    st.slider(
        label, 0.0, 1.0, step=0.05, key=key, help=help, on_change=_write,
        args=(name, key, default, ()),
    )  # fmt: skip
    return value


def many(
    label: str, name: str, options: Mapping[str, str], *, default: Sequence[str] = ()
) -> list[str]:
    """A choice of several that is bound to a query parameter, separated by commas."""
    key = f"many_{name}"
    value = value_or_warning(several(params(), name, options))
    if name not in params():
        value = list(default)
    st.session_state[key] = value
    st.multiselect(
        label, list(options), key=key, format_func=lambda one: options.get(one, one),
        on_change=_write_many, args=(name, key),
    )  # fmt: skip
    return value


def _write_many(name: str, key: str) -> None:
    put({name: ",".join(st.session_state[key]) or None})


def _write(name: str, key: str, default: Any, forget: Sequence[str]) -> None:
    value = st.session_state[key]
    put(dict.fromkeys(forget) | {name: None if value == default else str(value)})


def stepper(
    name: str, before: int | None, after: int | None, words: str, *, keys: bool = True
) -> None:
    """Previous and next, as buttons and as the arrow keys, bound to a query parameter.

    Args:
        name: The query parameter.
        before: What it becomes with "previous"; None at the beginning.
        after: What it becomes with "next"; None at the end.
        words: Where the reader is, shown between the two.
        keys: Whether ← and → do the same.
    """
    shortcuts = ("Left", "Right") if keys else (None, None)
    with st.container(horizontal=True, vertical_alignment="center"):
        for label, target, shortcut in zip(
            ("Previous", "Next"), (before, after), shortcuts, strict=True
        ):
            st.button(
                label,
                key=f"{name}_{label}",
                disabled=target is None,
                shortcut=shortcut,
                on_click=_set,
                args=(name, target),
                width=130,
            )
        st.markdown(words, width="content")


def _set(name: str, value: int | None) -> None:
    if value is not None:
        put({name: str(value)})


def draw(build: Callable[..., Any], *data: Any, alt: str, **options: Any) -> None:
    """Draw a chart of `dashboard.charts`.

    Its specification is kept by content: to make and validate one costs Altair 40 ms and more.

    Args:
        build: The function that makes it.
        data: Its tables and other positional arguments.
        alt: The chart in words, with its numbers.
        options: Its options; the theme's colours are added.
    """
    serialised = [one.to_csv() if isinstance(one, pd.DataFrame) else repr(one) for one in data]
    shades = colours()
    key = (build.__name__, *serialised, repr(sorted(options.items())), repr(shades))
    spec = _spec(key, lambda: build(*data, ink=shades, **options).to_dict())
    st.vega_lite_chart(spec, theme=None, alt=alt)


@st.cache_resource(max_entries=256, show_spinner=False)
def _spec(key: tuple[str, ...], _make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return _make()


def offer(label: str, make: Callable[[], bytes], name: str, mime: str, *, key: str) -> None:
    """A download that is created on request, not on every run of the page."""
    st.download_button(label, make, file_name=name, mime=mime, key=key, on_click="ignore")
