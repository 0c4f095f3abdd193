"""Options that select local processes or a Dask cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Workers:
    """Selection of an executor; at most one of the three is set.

    Attributes:
        processes: Number of local processes.
        scheduler: Address of a running Dask scheduler.
        dask_local: Number of Dask workers to start on this machine.
    """

    processes: int | None = None
    scheduler: str | None = None
    dask_local: int | None = None

    @property
    def local(self) -> int | None:
        """Number of workers on this machine, None for a remote scheduler."""
        return self.processes or self.dask_local

    @property
    def given(self) -> bool:
        """Whether any of the three is given."""
        return any((self.processes, self.scheduler, self.dask_local))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
