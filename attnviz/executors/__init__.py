"""Executors for parallel work: local processes or a Dask cluster, behind one interface.

    workers  how many, and where
    pool     processes of this machine
    cluster  a Dask cluster
    fitness  which of a cluster's workers can share the work

Both are executors of `concurrent.futures`, so that calling code does not depend on either.
Dask is the optional extra `attnviz[dask]`; it sends pickles, so use it in a trusted network only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from attnviz.errors import RunError
from attnviz.executors.cluster import crew, is_cancelled
from attnviz.executors.pool import interruptible, processes
from attnviz.executors.workers import Workers, cores
from attnviz.progress import tracked

__all__ = [
    "Workers",
    "cores",
    "executor_of",
    "interruptible",
    "is_cancelled",
    "processes",
    "spread",
]

T = TypeVar("T")


@contextmanager
def executor_of(workers: Workers, *shared: Path) -> Iterator[Executor]:
    """Open an executor for the block; on an interrupt, its tasks are cancelled.

    Args:
        workers: The executor's options; exactly one of the three is set.
        shared: Folders that all workers must be able to read; this is checked.

    Raises:
        InputError: The cluster is not there, has no workers, other versions of what matters or
            several threads a worker, or does not see the folder; or Dask is not installed.
    """
    found = processes(workers.processes) if workers.processes else crew(workers, *shared)
    with found as executor:
        yield executor


def spread(
    function: Callable[[Any], T],
    parts: Sequence[Any],
    executor: Executor | None,
    *,
    label: str,
    shown: bool = True,
) -> list[T]:
    """Map a function over parts in order, by an executor or, without one, in this process.

    Args:
        function: Picklable by name, or a `functools.partial` of such a one.
        parts: The arguments, one per call.
        executor: The executor; None for this process.
        label: Label of the progress line on stderr.
        shown: Whether progress is printed, as of `attnviz.progress.Progress`.

    Raises:
        RunError: A process died; a Dask worker that dies is replaced by another.
    """
    each = partial(_interruptibly, function)
    results = map(function, parts) if executor is None else executor.map(each, parts)
    try:
        return list(
            tracked(results, label=label, unit="parts", total=len(parts), shown=shown, leave=False)
        )
    except BrokenProcessPool as error:
        raise RunError(
            f"{label}: a worker process was killed, perhaps for its memory; use fewer --workers"
        ) from error


def _interruptibly(function: Callable[[Any], T], part: Any) -> T:
    with interruptible():
        return function(part)
