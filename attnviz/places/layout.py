"""The places of all attention records of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attnviz.capture import Record
from attnviz.capture.record import changed
from attnviz.errors import InputError
from attnviz.text import table
from attnviz.token_places import NO_QUERIES, RecordPlaces


class Layout(Mapping[str, RecordPlaces]):
    """Which token is which place, for every attention record of a model.

    Attributes:
        passes: How many forward passes it took.
    """

    def __init__(self, places: Mapping[str, RecordPlaces], passes: int = 0) -> None:
        self._places = dict(places)
        self.passes = passes

    def __getitem__(self, name: str) -> RecordPlaces:
        found = self._places.get(name)
        if found is None:
            known = ", ".join(list(self._places)[:12]) or "nothing"
            raise UnknownRecordError(f"no places of {name!r} in this layout; it has {known}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def onto(self, records: Mapping[str, Record]) -> dict[str, Record]:
        """The records of a capture with these places, for functions that read records.

        A record without an entry keeps its own.
        """
        return {
            name: changed(record, places=self._places.get(name, record.places))
            for name, record in records.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The same as plain lists, numbers and strings, for JSON."""
        places = {name: one.to_dict() for name, one in self._places.items()}
        return {"passes": self.passes, "places": places}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        """A layout from what `to_dict` returned."""
        places = {name: RecordPlaces.from_dict(v) for name, v in values["places"].items()}
        return cls(places, int(values["passes"]))

    def __repr__(self) -> str:
        if not self._places:
            return "Layout: no attention"
        rows = (_row(name, one) for name, one in self._places.items())
        columns = table(("name", "how", "queries", "keys", "error"), rows, rule=True)
        all_ = self._places.values()
        keys = sum(not one.keys.known for one in all_)
        queries = sum(not (one.queries.known or one.queries.reason == NO_QUERIES) for one in all_)
        records, passes = _counted(len(all_), "record"), _counted(self.passes, "forward pass", "es")
        unknown = f"{keys} with unknown keys, {queries} with unknown queries"
        return f"{columns}\n{records}, {unknown}, {passes}"


class UnknownRecordError(InputError, KeyError):
    """A layout has no entry for the record of this name."""

    __str__ = Exception.__str__


def _counted(count: int, word: str, several: str = "s") -> str:
    return f"{count} {word}{'' if count == 1 else several}"


def _row(name: str, one: RecordPlaces) -> tuple[str, ...]:
    how: str = one.keys.status
    if one.queries.status != how:
        how = f"{one.queries.status}, {how}"
    errors = [side.error for side in (one.queries, one.keys) if side.error == side.error]
    error = f"{max(errors):.2f} cells" if errors else "–"
    return name, how, str(one.queries), str(one.keys), error
