"""argparse options that choose an executor."""

from __future__ import annotations

import argparse

from attnviz.cli.argument_types import whole, word
from attnviz.executors import Workers


def add_workers(parser: argparse.ArgumentParser, *, default: str) -> None:
    """The flags `--workers`, `--scheduler` and `--dask-local`, of which one may be given.

    Args:
        parser: The parser to extend.
        default: The default, described for the help text.
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
    """The executor that the options of `add_workers` choose."""
    return Workers(args.workers, args.scheduler, args.dask_local)
