"""`attnviz diff RUN RUN …`: the settings in which runs differ, and nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from attnviz.cli.json_output import as_json
from attnviz.cli.shared_options import add_json
from attnviz.errors import InputError
from attnviz.runs import Run, differing, open_run
from attnviz.text import table

_FACTS = ("variant", "seed", "dataset", "state")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run", nargs="+", help="the folders of two or more runs")
    parser.add_argument("--environment", action="store_true", help="versions and devices too")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the differences; 0 whether there are any or not."""
    if len(args.run) < 2:
        raise InputError(f"diff: expected two runs or more, got {len(args.run)}")
    runs = [open_run(path) for path in args.run]
    found = differences(runs, environment=args.environment)
    if args.json:
        print(as_json({"runs": [run.id for run in runs], "differences": found}))
    elif found:
        print(table(("setting", *(run.id for run in runs)), ((k, *v) for k, v in found.items())))
    else:
        print("no difference")
    return 0


def differences(runs: list[Run], *, environment: bool = False) -> dict[str, tuple[Any, ...]]:
    """Facts, settings and, if wanted, environment in which runs differ, one value per run."""
    facts = {name: tuple(getattr(run, name) for run in runs) for name in _FACTS}
    found = {name: values for name, values in facts.items() if len(set(values)) > 1}
    found |= _values([run.settings for run in runs])
    if environment:
        versions = _values([run.environment for run in runs])
        found |= {f"environment.{name}": values for name, values in versions.items()}
    return found


def _values(settings: list[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """By number: two folders may hold a run of the same id."""
    columns = differing({str(number): one for number, one in enumerate(settings)})
    return {key: tuple(column.values()) for key, column in columns.items()}
