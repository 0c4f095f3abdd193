"""The table of runs: columns, order, groups, and why a run cannot be ranked with others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnviz.comparison.cohorts import question, question_in_words
from attnviz.definitions import short_title
from attnviz.runs import Notes, flat
from dashboard.notices import state_in_words
from dashboard.summaries import level
from dashboard.table import Cell, Column, Row

PRIMARY = "energy_pointing_game"
DEFAULT = ("variant", "seed", "question", "state", "why", "accuracy", "score", "started")
PER_PAGE = 50
MOST_SETTINGS = 60

Value = Any


@dataclass(frozen=True)
class Field:
    """One thing that is known of a run.

    Attributes:
        label: The column's words.
        of: The value of a run.
        help: Its meaning.
        number: Whether it is a number.
        decimals: Of the number.
    """

    label: str
    of: Callable[[Any], Value]
    help: str = ""
    number: bool = False
    decimals: int = 3


def fields(notes: Notes, settings: Sequence[str]) -> dict[str, Field]:
    """The columns that a table of runs can have.

    Args:
        notes: Tags and notes of the folder.
        settings: The settings in which its runs differ.
    """
    known = {
        "variant": Field("variant", lambda run: run.variant),
        "seed": Field("seed", lambda run: run.seed, number=True, decimals=0),
        "question": Field("question", lambda run: question_in_words(question(run))),
        "state": Field("state", lambda run: state_in_words(run.state)),
        "why": Field("why", why, "Why it is in that state"),
        "accuracy": Field("accuracy", lambda run: run.summary.get("accuracy"), number=True),
        "score": Field(
            short_title(PRIMARY), score, "Mean energy pointing game of the primary map", number=True
        ),
        "seconds": Field("seconds", lambda run: run.summary.get("seconds"), number=True,
                         decimals=0),
        "data": Field("data", lambda run: (run.dataset or "")[:8], "Digest of the test images"),
        "started": Field("started (UTC)", started),
        "tags": Field("tags", lambda run: ", ".join(notes.runs[run.id].tags)
                      if run.id in notes.runs else ""),
        "note": Field("note", lambda run: notes.runs[run.id].note if run.id in notes.runs else ""),
    }  # fmt: skip
    for key in settings[:MOST_SETTINGS]:
        known[f"setting.{key}"] = Field(key, lambda run, key=key: flat(run.settings).get(key))
    return known


def why(run: Any) -> str:
    """Why a run is in its state, or how far it has come."""
    epoch = run.progress.get("epoch")
    return run.reason or (f"epoch {epoch}" if run.state == "running" and epoch else "")


def score(run: Any) -> float | None:
    """The mean of the primary metric of a run's own map."""
    return level(run, run.summary.get("map"), PRIMARY, "mean")


def started(run: Any) -> str:
    """When a run was begun."""
    return f"{run.created:%Y-%m-%d %H:%M}" if run.created else ""


def unrankable(run: Any, chosen: Sequence[Any]) -> str:
    """Why a run cannot be ranked with the chosen ones; empty where it can."""
    if run.state != "complete":
        return state_in_words(run.state)
    others = [one for one in chosen if one.state == "complete" and one.id != run.id]
    if not others:
        return ""
    first = others[0]
    if run.dataset != first.dataset:
        return f"other test images than {first.id}"
    mine, its = dict(question(run)), dict(question(first))
    odd = [key for key in (mine | its) if mine.get(key) != its.get(key)]
    if not odd:
        return ""
    differ = ", ".join(f"{key} {mine.get(key, 'not set')}, not {its.get(key, 'not set')}"
                       for key in odd[:2])  # fmt: skip
    return f"another question than {first.id}: {differ}"


def in_order(runs: Sequence[Any], value: Callable[[Any], Value], *, down: bool) -> list[Any]:
    """Runs in the order of a column; those without a value last, equals as they were."""
    known = [run for run in runs if not _missing(value(run))]
    rest = [run for run in runs if _missing(value(run))]
    numbers = all(isinstance(value(run), int | float) for run in known)
    key = value if numbers else lambda run: str(value(run)).casefold()
    return sorted(known, key=key, reverse=down) + rest


def rows_of(
    runs: Sequence[Any],
    shown: Mapping[str, Field],
    ticked: set[str],
    chosen: Sequence[Any],
) -> list[Row]:
    """The rows of some runs.

    Args:
        runs: The runs on this page.
        shown: The columns beside the run's id.
        ticked: Ids of the ticked runs.
        chosen: The ticked runs.
    """
    found = []
    for run in runs:
        reason = unrankable(run, chosen)
        first = Cell(run.id, words=reason)
        cells = (first, *(Cell(_text(one.of(run), one)) for one in shown.values()))
        found.append(Row(run.id, cells, run.id in ticked, reason))
    return found


def columns_of(shown: Mapping[str, Field], sort: str, *, down: bool) -> list[Column]:
    """The columns, the one that orders marked."""
    first = Column("run", "run", chosen=sort == "run", down=down)
    return [first] + [
        Column(key, one.label, one.help, one.number, key == sort, down=down)
        for key, one in shown.items()
    ]


def grouped(runs: Sequence[Any], value: Callable[[Any], Value]) -> dict[str, list[Any]]:
    """Runs by a column's value, the largest group first."""
    out: dict[str, list[Any]] = {}
    for run in runs:
        found = value(run)
        out.setdefault("not set" if _missing(found) else str(found), []).append(run)
    return dict(sorted(out.items(), key=lambda one: -len(one[1])))


def group_rows(
    groups: Mapping[str, Sequence[Any]], ticked: set[str], chosen: Sequence[Any]
) -> list[Row]:
    """A row per group: how many runs, mean and range of accuracy and score."""
    found = []
    for name, members in groups.items():
        complete = [run for run in members if run.state == "complete"]
        reasons = [unrankable(run, chosen) for run in members]
        reason = reasons[0] if all(reasons) else ""
        cells = (
            Cell(name, words=reason),
            Cell(str(len(members))),
            Cell(str(len(complete))),
            Cell(_spread([run.summary.get("accuracy") for run in complete])),
            Cell(_spread([score(run) for run in complete])),
        )
        on = bool(complete) and all(run.id in ticked for run in complete)
        found.append(Row(name, cells, on, reason))
    return found


def group_columns(label: str) -> list[Column]:
    """The columns of `group_rows`."""
    return [
        Column("group", label, sorts=False),
        Column("runs", "runs", number=True, sorts=False),
        Column("complete", "complete", number=True, sorts=False),
        Column("accuracy", "accuracy, mean (least to greatest)", number=True, sorts=False),
        Column("score", f"{short_title(PRIMARY)}, mean (least to greatest)", number=True,
               sorts=False),
    ]  # fmt: skip


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "–"
    mean = f"{np.mean(known):.3f}"
    return mean if len(known) < 2 else f"{mean} ({min(known):.3f} to {max(known):.3f})"


def _missing(value: Value) -> bool:
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def _text(value: Value, one: Field) -> str:
    if _missing(value):
        return "–" if one.number else ""
    if one.number and isinstance(value, int | float):
        return f"{value:.{one.decimals}f}"
    return str(value)[:200]
