"""Grids of runs: an axis is a setting with several values.

A value that a variant does not support, such as the placement of an attention it lacks, is dropped:
the variant runs once without it, and the grid notes that.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

from attnviz.errors import InputError, unknown_name
from experiments.settings import Settings, add_arguments, flag_of, type_of

SINGLE = ("path", "device", "threads", "follow", "faithful")
"""Settings that are no axis: one value holds for all runs."""

_UNSAID = ("variant", "seed", "device", "threads")

_WORDS = {
    "variant": ("--variants", "--variant"),
    "seed": ("--seeds",),
    "shape": ("--patch", "--shape"),
}
_OPTIONAL = {entry.name for entry in fields(Settings) if entry.default is None}
_NONE = "none"
_TRUTH = {"yes": True, "no": False, "true": True, "false": False}


@dataclass(frozen=True)
class Grid(Sequence[Settings]):
    """Runs to be made, in order.

    Attributes:
        runs: Their settings; no two are the same run.
        notes: What was left out, a sentence each.
    """

    runs: tuple[Settings, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: Any) -> Any:
        return self.runs[index]

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The settings in which the runs differ, but for the variant and the seed."""
        names = [entry.name for entry in fields(Settings) if entry.name not in _UNSAID]
        return tuple(n for n in names if len({getattr(one, n) for one in self.runs}) > 1)

    def label(self, settings: Settings) -> tuple[str, ...]:
        """The variant and a value per axis: what all seeds of one configuration share."""
        return settings.variant, *(shown(getattr(settings, name)) for name in self.axes)


def joined(grids: Iterable[Grid]) -> Grid:
    """Several grids as one; a run of two of them is made once."""
    every = list(grids)
    runs = {one.run_id: one for each in every for one in each}
    notes = dict.fromkeys(note for each in every for note in each.notes)
    return Grid(tuple(runs.values()), tuple(notes))


def grid(base: Settings, axes: Mapping[str, Sequence[Any]]) -> Grid:
    """Every valid combination of the axes' values; later axes vary fastest.

    Args:
        base: Everything else.
        axes: Setting → its values.

    Raises:
        InputError: A variant or shape that does not exist, or no combination is valid.
    """
    from attnviz.models import variants
    from attnviz.patches import SHAPES

    for name, what, known in (("variant", "variant", variants()), ("shape", "patch shape", SHAPES)):
        for value in axes.get(name, [getattr(base, name)]):
            if value not in known:
                raise unknown_name(what, value, known)
    runs: dict[str, Settings] = {}
    notes: dict[str, None] = {}
    for values in itertools.product(*axes.values()):
        try:
            chosen = dataclasses.replace(base, **dict(zip(axes, values, strict=True)))
            settings, note = _possible(chosen)
        except InputError as error:
            settings, note = None, f"left out: {error}"
        if settings is not None:
            runs.setdefault(settings.run_id, settings)
        if note:
            notes[note] = None
    if not runs:
        raise InputError(next(iter(notes), "expected at least one value for each axis, got none"))
    return Grid(tuple(runs.values()), tuple(notes))


def add_axes(parser: argparse.ArgumentParser) -> None:
    """Every setting as a flag; all but a few take several values, separated by commas."""
    group = parser.add_argument_group("axes", "several values, separated by commas, make a grid")
    for entry in fields(Settings):
        if entry.name in SINGLE:
            continue
        shown = "" if entry.default is None else f" (default: {entry.default})"
        extra = "; a number alone is that many, from 0" if entry.name == "seed" else ""
        group.add_argument(
            *_WORDS.get(entry.name, (flag_of(entry.name),)),
            dest=entry.name,
            type=_seeds if entry.name == "seed" else partial(_values, entry),
            default=argparse.SUPPRESS,
            metavar="VALUE[,VALUE…]",
            help=f"{entry.metadata['help']}{extra}{shown}",
        )
    taken = tuple(entry.name for entry in fields(Settings) if entry.name not in SINGLE)
    add_arguments(parser, leave_out=taken)


def chosen_axes(args: argparse.Namespace) -> dict[str, list[Any]]:
    """The values of each setting that was given; variants vary slowest, seeds fastest."""
    names = [entry.name for entry in fields(Settings) if entry.name not in ("variant", "seed")]
    given = vars(args)
    return {
        name: given[name]
        for name in ("variant", *names, "seed")
        if name in given and name not in SINGLE
    }


def _possible(settings: Settings) -> tuple[Settings, str]:
    """The settings, without those that the variant does not support, and a note on that.

    Raises:
        InputError: The variant supports them in no way.
    """
    try:
        _tried(settings)
    except InputError as error:
        for name in settings.model.keys() & _OPTIONAL:
            nothing: dict[str, Any] = {name: None}
            without = dataclasses.replace(settings, **nothing)
            try:
                _tried(without)
            except InputError:
                continue
            return without, f"{settings.variant} takes no {name}: it runs without"
        raise error
    return settings, ""


def _tried(settings: Settings) -> None:
    from attnviz.models import build_model

    build_model(settings.variant, **settings.model)


def _values(entry: dataclasses.Field[Any], text: str) -> list[Any]:
    return [_value(entry, word.strip()) for word in text.split(",") if word.strip()]


def _value(entry: dataclasses.Field[Any], word: str) -> Any:
    choices = entry.metadata["choices"]
    if word == _NONE and entry.default is None:
        return None
    if isinstance(entry.default, bool):
        if word not in _TRUTH:
            raise argparse.ArgumentTypeError(f"expected yes or no, got {word!r}")
        return _TRUTH[word]
    try:
        value = type_of(entry)(word)
    except ValueError:
        kind = "a whole number" if type_of(entry) is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {kind}, got {word!r}") from None
    if choices and value not in choices:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(choices)}, got {word!r}")
    return value


def _seeds(text: str) -> list[int]:
    """`5` is 0 to 4; `3,7` and `3,` are those."""
    try:
        numbers = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers, got {text!r}") from None
    if "," not in text:
        numbers = list(range(numbers[0])) if numbers else []
    if not numbers:
        raise argparse.ArgumentTypeError(f"expected 1 or more seeds, got {text!r}")
    return numbers


def shown(value: Any) -> str:
    """A value as a word of a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)
