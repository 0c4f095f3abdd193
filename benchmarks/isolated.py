"""Measurements of many models, each in a child process with limits of memory and time.

Results are kept as JSON lines, one a model, so that a run that was stopped continues where it was.
A child that exceeds a limit is a result, too: its `failure` says which.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MEMORY, SECONDS = 5.0, 400.0
"""Limits of a child: gigabytes beyond those of the parent, and seconds."""

Measure = Callable[[], dict[str, Any]]


def isolated(
    measurements: Iterable[tuple[str, Measure]], kept: Path | None, minutes: float | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results by name, of a file where they are known; ends early after so many minutes.

    Args:
        measurements: Names and functions without arguments that return JSON data.
        kept: The file, which is read and appended to; None to keep nothing.
        minutes: After which no further measurement begins; the names left over have no result.
    """
    known = dict(_read(kept)) if kept is not None and kept.exists() else {}
    start = time.monotonic()
    for name, measure in measurements:
        if name not in known:
            if minutes is not None and time.monotonic() - start > 60 * minutes:
                continue
            known[name] = in_child(measure)
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps([name, known[name]]) + "\n")
        yield name, known[name]


def in_child(measure: Measure, gigabytes: float = MEMORY, seconds: float = SECONDS) -> Any:
    """The result of a function that runs in a child process, or `{"failure": reason}`."""
    context = multiprocessing.get_context("fork")  # a spawned child would import torch again
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_measured, args=(measure, theirs, gigabytes))
    child.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return {"failure": f"no result after {seconds:.0f} s"}
        return ours.recv()
    except EOFError:
        child.join()
        return {"failure": f"the process ended with {child.exitcode}"}
    finally:
        child.kill()
        child.join()


def _measured(measure: Measure, to: Connection, gigabytes: float) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        to.send(measure())
    except (MemoryError, RuntimeError) as error:  # torch reports memory as a RuntimeError
        to.send({"failure": str(error).partition("\n")[0]})


def _read(kept: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in kept.read_text().splitlines():
        name, result = json.loads(line)
        yield name, result
