"""`attnviz ls RUNS`: one line a run, with its state and the reason for it."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from attnviz.cli.json_output import as_json
from attnviz.cli.shared_options import add_json
from attnviz.runs import STATES, Run, list_runs
from attnviz.text import printable, table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("runs", help="a folder of runs, or an address such as s3://bucket/runs")
    parser.add_argument("--state", choices=STATES, action="append", help="only runs in this state")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """List the runs; 0 whatever their state (`attnviz verify` judges)."""
    found = list_runs(args.runs)
    runs = found.of(*args.state) if args.state else found
    if args.json:
        print(as_json({"runs": [as_dict(run) for run in runs], "left_out": dict(found.left_out)}))
        return 0
    header = ("id", "state", "variant", "seed", "accuracy", "created", "reason")
    print(table(header, (_row(run, header) for run in runs)))
    counts = Counter(run.state for run in runs)
    print(f"\n{len(runs)} runs: " + ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s]))
    for name, reason in found.left_out.items():
        print(f"left out: {printable(name)} ({reason})")
    return 0


def _row(run: Run, header: tuple[str, ...]) -> tuple[object, ...]:
    facts = as_dict(run)
    if run.state == "running" and "epoch" in run.progress:
        facts["reason"] = f"epoch {run.progress['epoch']} of {run.progress.get('epochs', '?')}"
    return tuple(facts[key] for key in header)


def as_dict(run: Run) -> dict[str, Any]:
    """One run's entry in the listing, as a dictionary."""
    return {
        "id": run.id,
        "state": run.state,
        "reason": run.reason,
        "variant": run.variant,
        "seed": run.seed,
        "accuracy": run.summary.get("accuracy"),
        "created": run.created,
        "dataset": run.dataset,
        "progress": dict(run.progress),
    }
