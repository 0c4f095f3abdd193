"""Who was asked to do the work: the flags of every command that shares it."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from attnviz.cli.argument_types import whole, word


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
        """Whether anybody was asked for."""
        return any((self.processes, self.scheduler, self.dask_local))


def add_workers(parser: argparse.ArgumentParser, *, default: str) -> None:
    """The flags `--workers`, `--scheduler` and `--dask-local`, of which one may be given.

    Args:
        parser: What they are added to.
        default: What happens without any, for the help.
    """
    group = parser.add_argument_group("workers").add_mutually_exclusive_group()
    group.add_argument(
        "--workers", type=whole(1), metavar="N", help=f"processes at once (default: {default})"
    )
    group.add_argument(
        "--scheduler", type=word, metavar="ADDRESS",
        help="a Dask scheduler, such as tcp://host:8786",
    )  # fmt: skip
    group.add_argument(
        "--dask-local", type=whole(1), metavar="N", help="Dask workers on this machine"
    )


def chosen_workers(args: argparse.Namespace) -> Workers:
    """What the flags of `add_workers` say."""
    return Workers(args.workers, args.scheduler, args.dask_local)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
