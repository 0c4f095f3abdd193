"""The result of a watch: a mapping from dotted names to records, and a table of them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from attnviz import text
from attnviz.capture.record import Record, changed
from attnviz.capture.steps import Pass, Steps, joined
from attnviz.display import html_of
from attnviz.errors import InputError


class Capture(Mapping[str, Record]):
    """Records by the model's own dotted names, in the order in which the model ran.

    A name that occurs several times gets `#0`, `#1`, …; `capture["attn"]` also finds the only
    record within `attn`.

    Attributes:
        unused: Softmaxes of q · k and gates that were computed and never multiplied with data, as
            far as they were followed.
        output: In a stream, the model's output.
        batch: In a stream, the loader's own item.
    """

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._named: dict[str, Record] = {}
        self._passes: dict[str, list[Pass]] = {}
        self._stale = False
        self.unused: list[Record] = []
        self.output: Any = None
        self.batch: Any = None

    def _add(self, record: Record) -> int:
        self._records.append(record)
        self._stale = True
        return len(self._records) - 1

    def _set(self, number: int, record: Record) -> None:
        self._records[number] = record
        self._stale = True

    def _drop(self, numbers: Collection[int]) -> None:
        self._records = [r for i, r in enumerate(self._records) if i not in numbers]
        self._stale = True

    @property
    def _by_name(self) -> dict[str, Record]:
        if self._stale:
            total = Counter(record.name for record in self._records)
            seen: Counter[str] = Counter()
            self._named = {}
            for record in self._records:
                name = record.name
                if total[name] > 1:
                    record = changed(record, name=f"{name}#{seen[name]}")
                    seen[name] += 1
                self._named[record.name] = record
            self._stale = False
        return self._named

    @property
    def attention(self) -> dict[str, Record]:
        """The attentions alone, by name."""
        return {name: record for name, record in self.items() if record.kind == "attention"}

    @property
    def gates(self) -> dict[str, Record]:
        """The gates alone, by name."""
        return {name: record for name, record in self.items() if record.kind == "gate"}

    @property
    def steps(self) -> dict[str, Steps]:
        """The attentions of a model that generates, each over all forward passes, by module.

        Watch with `reduce="steps"`: whole weights of a prompt grow with the square of its tokens.
        The capture then has one record per module, that of its first forward pass.

        Raises:
            InputError: No record holds rows.
        """
        return joined(self._records, self._passes)

    def __getitem__(self, name: str) -> Record:
        if not isinstance(name, str):
            raise MissingRecordError(
                f"expected the name of a record, got {name!r}: for the last record, "
                "list(seen.values())[-1]"
            )
        if name in self._by_name:
            return self._by_name[name]
        within = [
            record
            for full, record in self._by_name.items()
            if name in (record.origin, full.partition("#")[0]) or full.startswith(f"{name}.")
        ]
        if len(within) == 1:
            return within[0]
        raise MissingRecordError(self._missing(name, [record.name for record in within]))

    def _missing(self, name: str, within: list[str]) -> str:
        if within:
            return f"{name!r} stands for several records: choose one of {', '.join(within)}"
        near = difflib.get_close_matches(name, list(self._by_name), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(self._by_name) or "nothing"
        return f"no record {name!r}: {hint}seen were {known}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._records)

    def _repr_html_(self) -> str:
        return html_of(self)

    def __repr__(self) -> str:
        return table(self)


class MissingRecordError(InputError, KeyError):
    """A capture holds no record of a name."""

    __str__ = Exception.__str__


def table(capture: Capture) -> str:
    """The capture as text, one row per record."""
    if not len(capture):
        return "Capture: nothing seen"
    head = ("name", "kind", "shape", "axis", "grid", "how", "source")
    rows = [_row(record) for record in capture.values()]
    lines = text.table(head, rows, rule=True).splitlines()
    gates = len(capture.gates)
    lines.append(
        f"{len(capture.attention)} attention, {gates} {'gate' if gates == 1 else 'gates'}"
        + (f", {len(capture.unused)} computed and not applied" if capture.unused else "")
    )
    return "\n".join(lines)


def _row(record: Record) -> tuple[str, ...]:
    grid = "×".join(map(str, record.key_grid)) if record.key_grid else "–"
    if record.prefix:
        grid = f"{record.prefix}+{grid}"
    if record.windows is not None:
        grid += f" in {record.windows.grid[0]}×{record.windows.grid[1]}"
    shape = "×".join(map(str, record.shape)) or "–"
    how = record.how
    if record.check is not None:
        how += f" ±{record.check:.0e}"
    return (record.name, record.kind, shape, record.axis or "–", grid, how, record.source)
