"""`attnviz export RUNS`: the tables of complete runs, joined, for other tools."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from attnviz.cli.argument_types import file
from attnviz.cli.show import scores
from attnviz.errors import RunError
from attnviz.runs import Run, list_runs
from attnviz.runs.outputs import write_output
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


def run(args: argparse.Namespace) -> int:
    """Write one table with the columns `run`, `variant`, `seed` in front."""
    found = list_runs(args.runs)
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
