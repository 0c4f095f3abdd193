"""Progress of a sweep: a table redrawn in place on a terminal, plain lines anywhere else."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from attnviz.errors import RunError
from attnviz.progress import Progress
from attnviz.runs import Run, open_run
from attnviz.text import table
from experiments.axes import Grid
from experiments.running import Outcome
from experiments.settings import Settings

_UP, _CLEAR = "\x1b[{}F", "\x1b[J"
_ORDER = ("failed", "stopped", "running", "waiting", "done")
_ENDED = ("done", "failed", "stopped")


@dataclass(frozen=True)
class Standing:
    """The state of one run.

    Attributes:
        state: `"waiting"`, `"running"`, `"done"`, `"failed"` or `"stopped"`.
        epoch: How many epochs are done.
        accuracy: Of the last epoch's validation or, at the end, of the test; None if not known.
        energy: The energy-based pointing game of the primary map, likewise.
        pointing: The pointing game, likewise.
        seconds: Spent in training.
    """

    state: str
    epoch: int = 0
    accuracy: float | None = None
    energy: float | None = None
    pointing: float | None = None
    seconds: float | None = None


class ProgressTable:
    """The progress of a sweep, a row per variant and setting; lines where there is no terminal.

    Args:
        plan: The runs.
        root: Where they are.
        outcomes: Of those that need not be made, by run id.
        stream: The terminal; stderr by default.
    """

    def __init__(
        self,
        plan: Grid,
        root: Path,
        outcomes: Mapping[str, Outcome],
        stream: TextIO | None = None,
    ) -> None:
        self.plan, self.root = plan, root
        self.stream = stream or sys.stderr
        self.shown = self.stream.isatty()
        self._kept: dict[str, Standing] = {}
        self._drawn = 0
        self._begun = time.monotonic()
        self._known = dict(outcomes)
        self._already = self._epochs(self._standings())
        total = sum(one.epochs for one in plan)
        self._lines = Progress(
            total, label="all runs", unit="epochs", initial=self._already, shown=not self.shown
        )

    def __enter__(self) -> ProgressTable:
        self.show({})
        return self

    def __exit__(self, *raised: Any) -> None:
        self._erase()
        if not self.shown:
            self._lines.done = self._epochs(self._standings())
        self._lines.__exit__(*raised)

    def show(self, outcomes: Mapping[str, Outcome]) -> None:
        """Draw it again with these outcomes known, too."""
        self._known |= outcomes
        if not self.shown:
            self._print()
            return
        standings = self._standings()
        columns, lines = shutil.get_terminal_size()
        text = rows(self.plan, standings).split("\n")
        if len(text) > lines - 3:
            text = [*text[: lines - 4], f"… {len(text) - lines + 4} rows more"]
        self._erase()
        drawn = [*text, self._progress(standings, columns)]
        print("\n".join(line[: columns - 1] for line in drawn), file=self.stream, flush=True)
        self._drawn = len(drawn)

    def _erase(self) -> None:
        if self._drawn:
            print(_UP.format(self._drawn) + _CLEAR, end="", file=self.stream, flush=True)
        self._drawn = 0

    def _print(self) -> None:
        """A line, if one is due: only then are the folders of the runs read."""
        if self._lines.due:
            standings = self._standings()
            self._lines.reach(self._epochs(standings), {"runs": _counted(standings)})

    def _progress(self, standings: Sequence[Standing], columns: int) -> str:
        """Epochs done of all, with the time left; epochs done before do not count for the speed."""
        return str(
            tqdm.format_meter(
                self._epochs(standings), sum(one.epochs for one in self.plan),
                time.monotonic() - self._begun, ncols=columns - 1, prefix="all runs",
                unit=" epochs", initial=self._already, postfix=_counted(standings),
            )
        )  # fmt: skip

    def _epochs(self, standings: Sequence[Standing]) -> int:
        """Epochs done; a run that has ended has done all of its own."""
        both = zip(self.plan, standings, strict=True)
        return sum(s.epochs if one.state in _ENDED else one.epoch for s, one in both)

    def _standings(self) -> list[Standing]:
        return [self._standing(settings) for settings in self.plan]

    def _standing(self, settings: Settings) -> Standing:
        """The state of a run; one that has ended is read once."""
        key = settings.run_id
        if key not in self._kept:
            outcome = self._known.get(key)
            found = standing(settings, self.root, outcome)
            if outcome is None or outcome.state == "lost":
                return found
            self._kept[key] = found
        return self._kept[key]


def standing(settings: Settings, root: Path, outcome: Outcome | None) -> Standing:
    """The state of a run, from its outcome if it has one, and from its folder."""
    state = "" if outcome is None else outcome.state.replace("reused", "done")
    try:
        run = open_run(root / settings.run_id)
    except RunError:
        return Standing(state or "waiting")
    if run.state == "complete":
        return _complete(run)
    progress = run.progress
    return Standing(
        state or ("running" if run.state == "running" else "waiting"),
        int(progress.get("epoch", 0)),
        progress.get("val_accuracy"),
        progress.get("val_energy_pointing_game"),
        progress.get("val_pointing_game"),
        progress.get("seconds"),
    )


def _counted(standings: Sequence[Standing]) -> str:
    """How many runs are in which state, such as `2 running, 4 waiting`."""
    states = Counter(one.state for one in standings)
    return ", ".join(f"{states[name]} {name}" for name in _ORDER if states[name])


def rows(plan: Grid, standings: Sequence[Standing]) -> str:
    """One row per variant and setting, means over its seeds."""
    groups: dict[tuple[str, ...], list[tuple[Settings, Standing]]] = {}
    for settings, one in zip(plan, standings, strict=True):
        groups.setdefault(plan.label(settings), []).append((settings, one))
    header = ("variant", *plan.axes, "state", "epoch", "accuracy", "energy", "pointing", "seconds")
    return table(header, [(*label, *_row(group)) for label, group in groups.items()])


def _row(group: Sequence[tuple[Settings, Standing]]) -> tuple[Any, ...]:
    standings = [one for _, one in group]
    states = Counter(one.state for one in standings)
    state = ", ".join(
        f"{states[name]} {name}" if len(group) > 1 else name for name in _ORDER if states[name]
    )
    done, all_ = sum(one.epoch for one in standings), sum(s.epochs for s, _ in group)
    scores = ("accuracy", "energy", "pointing")
    means = (_mean(getattr(one, name) for one in standings) for name in scores)
    seconds = _mean(one.seconds for one in standings)
    return state, f"{done}/{all_}", *means, None if seconds is None else f"{seconds:.0f}"


def _complete(run: Run) -> Standing:
    summary = run.summary
    scores = summary["metrics"][summary["map"]]
    energy, pointing = (scores[name]["mean"] for name in ("energy_pointing_game", "pointing_game"))
    return Standing(
        "done", summary["epochs"], summary["accuracy"], energy, pointing, summary["seconds"]
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
