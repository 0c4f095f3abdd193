"""`attnviz migrate RUNS`: write headers of an earlier form anew.

Earlier versions wrote the level `redrawn` as `ceiling`, which a reader still accepts; this command
writes the present name. A header that was edited by hand is sealed again, so that `attnviz verify`
accepts the edit.
"""

from __future__ import annotations

import argparse

from attnviz.cli.json_output import as_json
from attnviz.cli.shared_options import add_json
from attnviz.errors import RunError
from attnviz.runs import Run, list_runs, migrate_run
from attnviz.text import printable


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("runs", help="a folder of runs, or of one run")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Migrate each run; 1 if any migration failed."""
    results = {run.id: _migrated(run) for run in list_runs(args.runs)}
    if args.json:
        print(as_json(results))
    else:
        for run_id, result in results.items():
            print(f"{run_id}: {printable(result)}")
    return 1 if any(result.startswith("failed") for result in results.values()) else 0


def _migrated(run: Run) -> str:
    try:
        return "header written anew" if migrate_run(run.path) else "is up to date"
    except RunError as error:
        return f"failed: {error}"
