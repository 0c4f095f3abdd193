"""`attnviz export RUNS`: the tables of complete runs, joined, or whole runs for a tracker."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attnviz.cli.argument_types import file
from attnviz.cli.show import scores
from attnviz.errors import AttnvizError, RunError, unknown_name
from attnviz.runs import Run, flat, list_runs
from attnviz.runs.outputs import outside_runs, write_output
from attnviz.runs.storage import cause_of

if TYPE_CHECKING:
    from pandas import DataFrame

_TABLES = ("samples", "scores", "curves")
_SUFFIXES = (".csv", ".json", ".parquet")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("runs", help="a folder of runs, or of one run")
    parser.add_argument(
        "--table",
        choices=_TABLES,
        default="samples",
        help="samples: a row per image; scores: a row per metric; curves: a row per epoch",
    )
    parser.add_argument(
        "--out", type=file(*_SUFFIXES), help="a .csv, .json or .parquet file; else CSV, here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of CSV")
    parser.add_argument(
        "--to",
        nargs=2,
        metavar=("TOOL", "DIR"),
        help="curves, maps over their images, scores and the comparison, as files of a tracker in "
        "DIR: tensorboard, wandb (offline), trackio (local) or mlflow (a local store)",
    )


def run(args: argparse.Namespace) -> int:
    """Write one table with the columns `run`, `variant`, `seed` in front."""
    found = list_runs(args.runs)
    if args.to is not None:
        return _hand_over(list(found.of("complete", "stopped", "stale", "running")), *args.to)
    if not found.complete:
        raise RunError(f"export {found.where}: no complete run among {len(found)}")
    frame = joined(list(found.complete), args.table)
    suffix = args.out.suffix.lower() if args.out is not None else ".json" if args.json else ".csv"
    content = _content(frame, suffix)
    if args.out is None:
        sys.stdout.write(content.decode())
    else:
        write_output(args.out, content)
        if not args.json:
            print(f"{args.out}: {len(frame)} rows, {frame.shape[1]} columns")
    skipped = len(found) - len(found.complete)
    if skipped:
        print(f"attnviz: left out {skipped} runs that are not complete", file=sys.stderr)
    return 0


def _hand_over(runs: list[Run], tool: str, folder: str) -> int:
    """Give runs, and where there are several their comparison, to a tracker."""
    from attnviz.trackers.stored import KEEPERS, comparison_table, hand_over, kept_in

    if tool not in KEEPERS:
        raise unknown_name("tracker", tool, KEEPERS)
    if not runs:
        raise RunError("export: no run that can be read")
    target = outside_runs(Path(folder))
    for run in runs:
        with kept_in(tool, target, run.id, flat(run.settings)) as tracker:
            hand_over(run, tracker)
    complete = [run for run in runs if run.state == "complete"]
    print(f"{target}: {len(runs)} run{'s' if len(runs) > 1 else ''} for {tool}")
    if len(complete) < 2:
        return 0
    try:
        table = comparison_table(complete)
    except AttnvizError as error:
        print(f"attnviz: no comparison table: {error}", file=sys.stderr)
        return 0
    with kept_in(tool, target, "comparison") as tracker:
        tracker.table("comparison", table, 0)
        tracker.finish()
    return 0


def joined(runs: list[Run], table: str) -> DataFrame:
    """One table of all runs, each row naming its run, variant and seed."""
    import pandas as pd

    frames = []
    for run in runs:
        frame = _table(run, table)
        for column, value in (("seed", run.seed), ("variant", run.variant), ("run", run.id)):
            if column in frame.columns:
                frame = frame.drop(columns=column)
            frame.insert(0, column, value)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _table(run: Run, table: str) -> DataFrame:
    import pandas as pd

    if table == "samples":
        return run.samples()
    return run.curves() if table == "curves" else pd.DataFrame(list(scores(run)))


def _content(frame: DataFrame, suffix: str) -> bytes:
    import io

    if suffix == ".csv":
        return frame.to_csv(index=False).encode()
    if suffix == ".json":
        text: str = frame.to_json(orient="records", indent=1)
        return f"{text}\n".encode()
    buffer = io.BytesIO()
    try:
        frame.to_parquet(buffer, index=False)
    except (ValueError, TypeError) as error:
        raise RunError(f"export: these columns do not fit Parquet ({cause_of(error)})") from error
    return buffer.getvalue()
