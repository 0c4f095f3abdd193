"""HTML construction with escaping: all text not made by `tag` is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

_VOID = {"img", "meta", "br", "source", "col"}


class Html(str):
    """Text that is HTML already; only `tag`, `joined` and `raw` make it."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element; children that are no `Html` are escaped, those that are None left out.

    Args:
        name: Of the element.
        children: What it holds: `Html`, anything with a text, or iterables of these.
        attributes: By name, a trailing underscore dropped (`class_`), other underscores as dashes;
            None leaves one out.

    Returns:
        The element.
    """
    rendered = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{rendered}>")
    return Html(f"<{name}{rendered}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Html:
    """Children one after the other."""
    return Html("".join(map(_child, children)))


def raw(text: str) -> Html:
    """HTML from a constant of this package; never from a run."""
    return Html(text)


def _child(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, Iterable) and not isinstance(child, str):
        return joined(child)
    return html.escape(str(child))


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]], *, caption: Any) -> Html:
    """A table with a caption, which scrolls sideways where it is too wide for the page."""
    listed = [row if isinstance(row, Html) else list(row) for row in rows]
    first: Any = next((row for row in listed if not isinstance(row, Html)), ())
    numbers = [i > 0 and _is_number(cell) for i, cell in enumerate(first)]
    head = tag("tr", (
        tag("th", cell, scope="col", class_="n" if number else None)
        for cell, number in zip_longest(header, numbers)
    ))  # fmt: skip
    body = (row if isinstance(row, Html) else line(row) for row in listed)
    return tag(
        "div",
        tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body)),
        class_="wide",
        tabindex="0",
        role="group",
        aria_label=str(caption),
    )


def line(cells: Iterable[Any], *, class_: str | None = None) -> Html:
    """A row: its first cell is its header, numbers align right."""
    return tag("tr", (_cell(cell, first=i == 0) for i, cell in enumerate(cells)), class_=class_)


def _cell(cell: Any, *, first: bool) -> Html:
    if first:
        return tag("th", cell, scope="row")
    return tag("td", cell, class_="n" if _is_number(cell) else None)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, str) and cell[:1] in "+-–0123456789" and not isinstance(cell, Html)
