"""Who does the work: processes of this machine, or a Dask cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Workers:
    """Who does the work; at most one of the three is given.

    Attributes:
        processes: So many of this machine.
        scheduler: The address of a Dask scheduler, whose workers do it.
        dask_local: So many Dask workers, started for the purpose on this machine.
    """

    processes: int | None = None
    scheduler: str | None = None
    dask_local: int | None = None

    @property
    def local(self) -> int | None:
        """How many there are, if they are all on this machine."""
        return self.processes or self.dask_local

    @property
    def given(self) -> bool:
        """Whether any of the three is given."""
        return any((self.processes, self.scheduler, self.dask_local))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
