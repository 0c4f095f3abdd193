"""Arguments and output that `attribute` and `measure` share.

A run is amended at the end in one step: a kill leaves it as it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from attnviz.cli.argument_types import seed, word
from attnviz.cli.devices import add_device
from attnviz.cli.model_arguments import FORMS, add_scale, add_setting, build, scale_of
from attnviz.cli.pairs import pairs
from attnviz.cli.shared_options import add_json
from attnviz.cli.worker_arguments import add_workers, chosen_workers
from attnviz.comparison.from_runs import none_complete
from attnviz.definitions import SHOWN_LEVELS
from attnviz.evaluation.stored import StoredRun
from attnviz.executors import executor_of
from attnviz.runs import Run, list_runs, open_run
from attnviz.text import table


def add_runs(parser: argparse.ArgumentParser) -> None:
    """The arguments that both commands take."""
    parser.add_argument("runs", nargs="+", help="folders of runs, or of single runs")
    add_stored_model(parser)
    add_device(parser)
    parser.add_argument("--seed", type=seed, default=0, help="of everything random (default: 0)")
    add_json(parser)
    add_workers(parser, default="none, all is done right here")


def complete_runs(places: Sequence[str]) -> list[Run]:
    """The complete runs at these places, each once.

    Raises:
        InputError: There is none; the message has the state of the others.
    """
    found = list({run.location: run for place in places for run in list_runs(place)}.values())
    complete = [run for run in found if run.state == "complete"]
    if not complete:
        raise none_complete("", found)
    return complete


def add_stored_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that build the model of a run of one's own."""
    parser.add_argument(
        "--model", type=word, metavar="FACTORY",
        help=f"that built the runs' model, for runs of one's own: {FORMS}",
    )  # fmt: skip
    add_setting(parser)
    add_scale(parser)


def stored(args: argparse.Namespace, path: Path) -> StoredRun:
    """A run with the model and the normalisation that the arguments give."""
    return StoredRun(
        path.absolute(), build=_builder(args, open_run(path)), device=args.device,
        scale=scale_of(args), target=getattr(args, "target", None),
    )  # fmt: skip


def _builder(args: argparse.Namespace, run: Run) -> Callable[[], nn.Module] | None:
    """What builds the model: the factory of the command line with the run's own settings."""
    if args.model is None:
        return None
    same = run.settings.get("factory") == args.model
    kept = run.settings.get("model") if same else None
    known = dict(kept) if isinstance(kept, Mapping) else {}
    return partial(build, args.model, **(known | pairs("--setting", args.setting)))


@contextmanager
def crew(args: argparse.Namespace, runs: Sequence[Run]) -> Iterator[Executor | None]:
    """The executor that the flags choose; None is this process alone."""
    workers = chosen_workers(args)
    if not workers.given:
        yield None
        return
    with executor_of(workers, *{run.path.parent.absolute() for run in runs}) as executor:
        yield executor


def score_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Maps and metrics as text: mean, interval, chance, the mask redrawn, how many counted."""
    header = ("map", "metric", "mean", "low", "high", *SHOWN_LEVELS, "valid")
    rows = [
        (name, key, s["mean"], s["low"], s["high"], *(s.get(level) for level in SHOWN_LEVELS),
         f"{s['valid']}/{s['n']}")
        for name, scores in summaries.items()
        for key, s in scores.items()
    ]  # fmt: skip
    return table(header, rows)
