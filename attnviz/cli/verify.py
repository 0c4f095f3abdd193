"""`attnviz verify RUNS`: sizes, checksums and schema of every file of every run."""

from __future__ import annotations

import argparse

from attnviz.cli.json_output import as_json
from attnviz.cli.shared_options import add_json
from attnviz.runs import list_runs, verify
from attnviz.text import table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("runs", help="a folder of runs, or of one run")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Name each fault; 1 if there is any."""
    faults = verify(args.runs)
    if args.json:
        print(as_json([fault.as_dict() for fault in faults]))
        return 1 if faults else 0
    if faults:
        print(table(("kind", "fault"), ((fault.kind, fault) for fault in faults)))
    count = len(list_runs(args.runs))
    print(f"{count} runs, {len(faults)} faults" if faults else f"{count} runs, all well")
    return 1 if faults else 0
