"""`attnviz compare RUNS …`: rank runs, with intervals and tests over seeds, groups and images."""

from __future__ import annotations

import argparse

from attnviz.cli.argument_types import file, seed, whole, word
from attnviz.cli.json_output import as_json
from attnviz.comparison import Comparison, compare
from attnviz.comparison.inputs import open_runs
from attnviz.text import printable


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("runs", nargs="+", help="folders of runs, or of single runs")
    parser.add_argument(
        "--primary",
        default="energy_pointing_game",
        metavar="METRIC",
        help="the metric that ranks (default: %(default)s)",
    )
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help="report only these besides")
    parser.add_argument(
        "--map", type=word, metavar="NAME", help="score this map (default: each run's primary)"
    )
    parser.add_argument(
        "--resamples",
        type=whole(2),
        default=10_000,
        metavar="N",
        help="studies drawn to adjust for the number of pairs (default: %(default)s)",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="of the intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of these studies (default: %(default)s)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--csv", action="store_true", help="print the table as CSV")
    form.add_argument("--markdown", action="store_true", help="print the ranking as Markdown")
    form.add_argument("--latex", action="store_true", help="print the ranking for LaTeX")
    parser.add_argument(
        "--figure", type=file(".png"), metavar="PNG", help="write the dot plot there, too"
    )


def run(args: argparse.Namespace) -> int:
    """Compare, print, and write the figure if requested."""
    result = compare(
        open_runs(args.runs),
        primary=args.primary,
        metrics=args.metrics,
        resamples=args.resamples,
        confidence=args.confidence,
        seed=args.seed,
        map_name=args.map,
    )
    if args.figure:
        from attnviz.figures import save_png

        save_png(result.figure(), args.figure)
    print(_text(result, args))
    return 0


def _text(result: Comparison, args: argparse.Namespace) -> str:
    """The result in the requested form; only JSON escapes control characters itself."""
    if args.json:
        return as_json(result.to_dict())
    if args.csv:
        text = result.table.to_csv(index=False).rstrip("\n")
    elif args.markdown:
        text = result.to_markdown(args.metrics and result.metrics)
    elif args.latex:
        text = result.to_latex(args.metrics and result.metrics).rstrip("\n")
    else:
        text = repr(result)
    return "\n".join(map(printable, text.split("\n")))
