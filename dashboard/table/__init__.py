"""The table component: rows that are ticked and opened by id, columns that sort or rank.

Streamlit's own table ticks rows by position: a filter, a sort or a new run moves the ticks to other
rows. Here every row has a key, and the browser sends keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import streamlit as st

from dashboard.components import component, text, valid_key

_table = component(__file__, "table")


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: Sent by the browser when the column is chosen.
        label: Its words.
        help: Its meaning, shown on request and read by a screen reader.
        number: Whether its cells are aligned as numbers.
        chosen: Whether the table is ordered by it.
        sorts: Whether it can be chosen.
        down: Whether the order is from the greatest value on.
    """

    key: str
    label: str
    help: str = ""
    number: bool = False
    chosen: bool = False
    sorts: bool = True
    down: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: What it says.
        small: A short addition, such as a rank.
        hatched: Whether it is hatched, as a score that is no better than chance.
        strong: Whether it is set bold.
        words: The cell for a screen reader, where its text does not say it.
        key: Sent by the browser when the cell is opened; empty if it cannot be opened.
        tint: Its background, `#rrggbb`, or empty.
        ink: Its text's colour on that.
        chosen: Whether it is marked as chosen.
    """

    text: str
    small: str = ""
    hatched: bool = False
    strong: bool = False
    words: str = ""
    key: str = ""
    tint: str = ""
    ink: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        key: Sent by the browser when the row is opened or ticked.
        cells: One per column.
        ticked: Whether it is ticked.
        reason: Why it cannot be ticked; empty where it can.
    """

    key: str
    cells: tuple[Cell, ...]
    ticked: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Event:
    """What the reader did.

    Attributes:
        sorted: The column that was chosen just now, or None.
        opened: The row or cell that was opened just now, or None.
        ticked: The rows that are ticked now, of those that were shown; None without a change.
        shown: The rows that were shown when they were ticked.
    """

    sorted: str | None
    opened: str | None
    ticked: tuple[str, ...] | None
    shown: tuple[str, ...] = ()


def table(
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    label: str,
    key: str,
    ticks: bool = False,
    opens: bool = False,
    dense: bool = False,
    on_sort: Callable[[str], None] | None = None,
) -> Event:
    """Show a table; what the reader did just now.

    Args:
        columns: The columns.
        rows: The rows on this page.
        label: The table in words.
        key: The component's own key on the page.
        ticks: Whether rows can be ticked.
        opens: Whether the first cell of a row opens it.
        dense: Whether columns are as narrow as their numbers.
        on_sort: Called with the column that was chosen, before the page runs again for it.
    """
    names = {column.key for column in columns}
    data = {
        "columns": [asdict(column) for column in columns],
        "rows": [asdict(row) for row in rows],
        "label": label,
        "ticks": ticks,
        "opens": opens,
        "dense": dense,
    }
    found = _table(
        data=data, key=key, on_opened_change=_quiet, on_ticked_change=_quiet,
        on_sorted_change=lambda: _sort(valid_key(key), names, on_sort),
    )  # fmt: skip
    ticked, shown = _ticks(found.ticked, {row.key for row in rows})
    wanted = text(found.sorted)
    known = {row.key for row in rows} | {cell.key for row in rows for cell in row.cells if cell.key}
    opened = text(found.opened)
    return Event(
        wanted if wanted in names else None, opened if opened in known else None, ticked, shown
    )


def _sort(key: str, names: set[str], on_sort: Callable[[str], None] | None) -> None:
    wanted = text(st.session_state[key].get("sorted"))
    if on_sort is not None and wanted in names:
        on_sort(wanted)


def _quiet() -> None:
    """Nothing to do at once: the page's run reads what happened."""


def _ticks(sent: Any, known: set[str]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """What a browser sent, as far as it is a list of rows."""
    if not isinstance(sent, dict):
        return None, ()
    lists = [sent.get(name) for name in ("ticked", "shown")]
    if not all(isinstance(one, list) for one in lists):
        return None, ()
    ticked, shown = (tuple(key for key in map(text, one) if key in known) for one in lists)
    return ticked, shown
