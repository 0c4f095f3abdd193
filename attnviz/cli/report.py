"""`attnviz report RUNS …`: write one self-contained HTML page about some runs."""

from __future__ import annotations

import argparse
import sys

from attnviz.cli.argument_types import file, word
from attnviz.comparison.inputs import open_runs
from attnviz.report import write_report
from attnviz.text import printable


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("runs", nargs="+", help="folders of runs, or of single runs")
    parser.add_argument(
        "--out", type=file(".html", ".htm"), default="report.html", metavar="HTML",
        help="where to (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--primary",
        default="energy_pointing_game",
        metavar="METRIC",
        help="the metric that ranks (default: %(default)s)",
    )
    parser.add_argument(
        "--map", type=word, metavar="NAME", help="score this map (default: each run's primary)"
    )
    parser.add_argument(
        "--title",
        help="of the page (default: which variant looks at what the runs look for)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page; 1 where its runs cannot be ranked, which the page states too."""
    study = write_report(
        open_runs(args.runs), args.out, primary=args.primary, map_name=args.map, title=args.title
    )
    print(printable(args.out))
    if study.refusal:
        print(f"attnviz: not ranked: {printable(study.refusal)}", file=sys.stderr)
        return 1
    return 0
