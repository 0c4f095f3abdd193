"""`attnviz migrate RUNS`: write runs of an older schema under the present one."""

from __future__ import annotations

import argparse

from attnviz.cli.json_output import as_json
from attnviz.errors import RunError
from attnviz.runs import SCHEMA, Run, list_runs, migrate_run
from attnviz.text import printable


def arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("runs", help="a folder of runs, or of one run")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Migrate each run; 1 if one could not be."""
    results = {run.id: _migrated(run) for run in list_runs(args.runs)}
    if args.json:
        print(as_json(results))
    else:
        for run_id, result in results.items():
            print(f"{run_id}: {printable(result)}")
    return 1 if any(result.startswith("failed") for result in results.values()) else 0


def _migrated(run: Run) -> str:
    try:
        before = run.schema
        if migrate_run(run.path):
            return f"migrated from schema {before} to {SCHEMA}"
    except RunError as error:
        return f"failed: {error}"
    return f"is of schema {SCHEMA} already"
