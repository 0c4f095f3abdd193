"""Progress of long work on stderr: a tqdm bar on a terminal, plain lines anywhere else.

A line gives the amount done, the time so far, and the estimated rest at the same speed. The first
comes after `EVERY` seconds, the next ones after `EVERY` more or a tenth of the time so far,
whichever is longer: work of a few seconds prints nothing, work of a day some eighty lines.
`TQDM_DISABLE`, which worker processes have set, silences both.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import suppress
from typing import Any, TypeVar

EVERY = 10.0
"""Seconds before the first line, and at least between two."""

T = TypeVar("T")


class Progress:
    """Progress of a task; a context manager.

    Args:
        total: How many units there are; None if not known.
        label: Name of the task, such as `"measure mha-s0"`.
        unit: The plural of what is counted.
        initial: How many were done before; they do not count for the speed.
        shown: Whether anything is printed, unless `TQDM_DISABLE` is set.
        leave: Whether a terminal keeps the finished bar.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        total: int | None,
        *,
        label: str,
        unit: str,
        initial: int = 0,
        shown: bool = True,
        leave: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.label, self.unit, self.done = total, label, unit, initial
        self.shown = shown and not os.environ.get("TQDM_DISABLE")
        self._initial, self._clock = initial, clock
        self._began, self._due, self._printed = clock(), EVERY, False
        self._bar = self._terminal_bar(leave) if self.shown and sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._printed and kind is None:
            self._print(f"{self._amount()} in {interval(self._passed)}")

    @property
    def due(self) -> bool:
        """Whether `update` would print now, so that costly notes are computed only then."""
        return self.shown and (self._bar is not None or self._passed >= self._due)

    def update(self, count: int = 1, notes: Mapping[str, str] | None = None) -> None:
        """Count some more units as done; notes, name → value, are printed behind."""
        self.reach(self.done + count, notes)

    def reach(self, done: int, notes: Mapping[str, str] | None = None) -> None:
        """Set how many units are done by now."""
        step, self.done = done - self.done, done
        if self._bar is not None:
            if notes:
                self._bar.set_postfix(dict(notes), refresh=False)
            self._bar.update(step)
        elif self.due:
            parts = (f"{name} {value}" for name, value in (notes or {}).items())
            self._print(", ".join([self._amount(), *self._times(), *parts]))

    def _terminal_bar(self, leave: bool) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self.total, initial=self.done, desc=self.label, unit=f" {self.unit}",
            leave=leave, file=sys.stderr, disable=False,
        )  # fmt: skip

    def _print(self, text: str) -> None:
        print(f"{self.label}: {text}", file=sys.stderr, flush=True)
        self._printed, self._due = True, self._passed + max(EVERY, self._passed / 10)

    @property
    def _passed(self) -> float:
        return self._clock() - self._began

    def _amount(self) -> str:
        if self.total is None:
            return f"{self.done:,} {self.unit}"
        return f"{self.done:,} of {self.total:,} {self.unit}"

    def _times(self) -> list[str]:
        parts = [f"{interval(self._passed)} so far"]
        made = self.done - self._initial
        if self.total is not None and made > 0:
            rest = self._passed * (self.total - self.done) / made
            parts.append(f"about {interval(rest)} left")
        return parts


def tracked(
    items: Iterable[T],
    *,
    label: str,
    unit: str,
    total: int | None = None,
    shown: bool = True,
    leave: bool = True,
) -> Iterator[T]:
    """Iterate over items, counting each when the next is requested.

    Args:
        items: What is gone through.
        label: What is done.
        unit: The plural of what is counted.
        total: How many there are; by default the items' own length, if they have one.
        shown: As of `Progress`.
        leave: As of `Progress`.
    """
    if total is None and isinstance(items, Sized):
        with suppress(TypeError):  # a DataLoader over a stream has a length that raises
            total = len(items)
    with Progress(total, label=label, unit=unit, shown=shown, leave=leave) as progress:
        iterator = iter(items)
        while True:
            try:
                yield next(iterator)  # without a name, so that the caller alone holds the item
            except StopIteration:
                return
            progress.update()


def interval(seconds: float) -> str:
    """`1:05` or `2:03:04`; days are hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
