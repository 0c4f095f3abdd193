"""`attnviz measure RUNS …`: score the maps that runs hold, against masks and against the model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from attnviz.attribution import methods
from attnviz.cli.argument_types import whole, word
from attnviz.cli.json_output import as_json
from attnviz.cli.scoring import add_runs, complete_runs, crew, score_table, stored
from attnviz.cli.shared_options import add_target
from attnviz.comparison.from_runs import grouping_of
from attnviz.comparison.text import records
from attnviz.errors import InputError, unknown_name
from attnviz.evaluation.pieces import parts_of
from attnviz.evaluation.stored import PIECE, StoredRun, in_order, merged_metrics, with_columns
from attnviz.executors import spread
from attnviz.faithfulness import (
    DEFAULT,
    METRICS,
    Knockout,
    faithfulness_scores,
    knockout,
    randomisation,
)
from attnviz.metrics import agreement
from attnviz.runs import Run, amend_run


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_runs(parser)
    parser.add_argument("--maps", nargs="+", metavar="NAME", help="which maps (default: all)")
    parser.add_argument(
        "--metrics", nargs="*", metavar="KEY",
        help="localisation metrics (default: all; none after --metrics alone)",
    )  # fmt: skip
    parser.add_argument(
        "--faithfulness", nargs="*", metavar="KEY",
        help=f"does the map matter to the model: {', '.join(METRICS)} (default: the first seven)",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", default="black", help="what replaces a removed place (default: black)"
    )
    parser.add_argument("--steps", type=whole(1), default=32, help="of deletion and insertion")
    parser.add_argument(
        "--agree-with", type=word, metavar="MAP",
        help="agreement of every map with this one of the run",
    )  # fmt: skip
    parser.add_argument(
        "--mprt", action="store_true",
        help="whether maps of Captum's methods change when the weights are random",
    )  # fmt: skip
    add_target(parser)
    parser.add_argument("--knockout", action="store_true", help="what each head and gate is worth")
    parser.add_argument(
        "--images", type=whole(1), metavar="K",
        help="only the first K images for metrics that run the model (the others score NaN)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Score, and add the scores to the runs."""
    _check(args)
    runs = complete_runs(args.runs)
    with crew(args, runs) as executor:
        reports = [_measured(found, args, executor) for found in runs]
    if args.json:
        print(as_json({"runs": reports}))
        return 0
    for report in reports:
        print(f"{report['id']}\n{score_table(report['metrics'])}")
        if report["knockout"]:
            print(report["text"])
        print()
    return 0


def _check(args: argparse.Namespace) -> None:
    for key in args.faithfulness or ():
        if key not in METRICS:
            raise unknown_name("faithfulness metric", key, METRICS)


def _measured(found: Run, args: argparse.Namespace, executor: Executor | None) -> dict[str, Any]:
    bench = stored(args, found.path)
    names = _chosen(bench, args.maps)
    if args.agree_with:
        _chosen(bench, [args.agree_with])
    tasks = [(name, part) for name in names for part in parts_of(bench.dataset.count, PIECE)]
    reads_maps = args.metrics != [] or args.agree_with or args.faithfulness is not None
    for name in [*names, *([args.agree_with] if args.agree_with else [])] if reads_maps else ():
        _refuse_resized(found, name)
    results = spread(
        partial(_scores_of, bench, args), tasks, executor,
        label=f"measure {found.id}", shown=not args.json,
    )  # fmt: skip
    samples, summaries = found.samples(), {}
    for name in names:
        done = zip(tasks, results, strict=True)
        columns = in_order([(part, scores) for (map_, part), scores in done if map_ == name])
        samples = with_columns(samples, name, columns)
        metrics, grid = args.metrics, found.entry(f"maps/{name}").shape or ()
        summaries[name] = bench.summarised(
            columns,
            grid[1 - bench.map_axes :],
            metrics,
            bench.thresholds(name),
            group=grouping_of(samples),
        )
    cuts = _knocked(bench, args, executor) if args.knockout else None
    rows = [] if cuts is None else records(cuts.table)
    with amend_run(found.path) as writer:
        writer.samples(samples)
        fresh: dict[str, Any] = {"metrics": merged_metrics(found, summaries)}
        writer.finish(fresh | ({"knockout": rows} if rows else {}))
    return {"id": found.id, "metrics": summaries, "knockout": rows, "text": repr(cuts)}


def _refuse_resized(found: Run, name: str) -> None:
    """An `InputError` for maps that do not lie on their own grids, and so would score otherwise."""
    grids = found.about(f"maps/{name}").get("grids")
    if grids:
        told = ", ".join(" × ".join(map(str, grid)) for grid in grids[:4])
        raise InputError(
            f"{found.id}: the maps {name!r} of images of several sizes had the grids {told} and "
            "are kept on one: they are not what was scored; attnviz evaluate scores them, with "
            "--faithfulness as well"
        )


def _chosen(bench: StoredRun, names: Sequence[str] | None) -> list[str]:
    """The requested maps; by default those with one map for each image, not head by head."""
    found, count = bench.run, bench.dataset.count
    shapes = {name: found.entry(f"maps/{name}").shape for name in found.map_names}
    whole = [name for name, shape in shapes.items() if shape and shape[0] == count]
    for name in names or ():
        if name not in shapes:
            raise unknown_name(f"map of {found.id}", name, whole)
        if name not in whole:
            raise InputError(
                f"{found.id}: expected maps of all {count} images, {name!r} holds {shapes[name]}"
            )
    return (
        list(dict.fromkeys(names))
        if names
        else [name for name in whole if len(shapes[name] or ()) == bench.map_axes]
    )


def _scores_of(
    bench: StoredRun, args: argparse.Namespace, task: tuple[str, range]
) -> dict[str, np.ndarray]:
    """All requested scores of one map, of one piece's images."""
    name, part = task
    columns: dict[str, np.ndarray] = {}
    if args.metrics != []:
        columns |= bench.localized(name, part, args.metrics)
    if args.agree_with and args.agree_with != name:
        columns |= _agreement(bench, name, part, args.agree_with)
    asked = range(part.start, min(part.stop, _asked(bench, args).stop))
    if asked and args.faithfulness is not None:
        columns |= bench.each_size(asked, lambda alike: _faithfulness(bench, name, alike, args))
    if asked and args.mprt:
        columns |= bench.each_size(asked, lambda alike: _mprt(bench, name, alike, args.seed))
    return columns


def _asked(bench: StoredRun, args: argparse.Namespace) -> range:
    """The images on which the model is run."""
    return range(min(bench.dataset.count, args.images or bench.dataset.count))


def _agreement(bench: StoredRun, name: str, part: range, with_map: str) -> dict[str, np.ndarray]:
    def agreed(alike: list[int]) -> dict[str, np.ndarray]:
        one, other = (bench.upsampled(n, alike).cpu() for n in (name, with_map))
        return {f"agreement_{key}": _column(value) for key, value in agreement(one, other).items()}

    return bench.each_size(part, agreed)


def _faithfulness(
    bench: StoredRun, name: str, part: Sequence[int], args: argparse.Namespace
) -> dict[str, np.ndarray]:
    batch = bench.batch(part)
    scores = faithfulness_scores(
        bench.explained,
        batch.images,
        bench.upsampled(name, part),
        target=bench.chosen(batch),
        value_range=bench.value_range,
        metrics=args.faithfulness or DEFAULT,
        baseline=args.baseline,
        steps=args.steps,
        seed=args.seed,
    )
    return {key: _column(score) for key, score in scores.items()}


def _mprt(bench: StoredRun, name: str, part: Sequence[int], seed: int) -> dict[str, np.ndarray]:
    """The randomisation check of a map that a method of Captum drew; none for other maps.

    Raises:
        InputError: The map was drawn with an argument that a run cannot hold.
    """
    about = bench.run.about(f"maps/{name}")
    if about.get("method", name) not in methods():
        return {}
    if about.get("not_kept"):
        raise InputError(
            f"{bench.run.id}: {name!r} was drawn with {', '.join(about['not_kept'])} that a run "
            "cannot hold, and so cannot be drawn again: call attnviz.faithfulness.randomisation "
            "with it, or name the maps to measure, --maps"
        )
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in about.items()
        if key not in ("method", "drawn", "grids") and value not in ("", None)
    }
    batch = bench.batch(part)
    if isinstance(options.get("baseline"), str):
        options.setdefault("value_range", bench.value_range)
    if not isinstance(options.get("target"), int):
        options["target"] = bench.chosen(batch)
    options.setdefault("seed", seed)
    check = randomisation(bench.explained, batch.images, about.get("method", name), **options)
    return {"mprt": _column(check.mprt)}


def _knocked(bench: StoredRun, args: argparse.Namespace, executor: Executor | None) -> Knockout:
    """The worth of each head and gate, over all images at once: one piece of work.

    Of images of several sizes those of the most frequent one are taken.
    """
    cut = partial(_cut, bench)
    asked = _asked(bench, args)
    (cuts,) = spread(cut, [asked], executor, label=f"knock out {bench.run.id}", shown=False)
    return cuts


def _cut(bench: StoredRun, asked: range) -> Knockout:
    batch = bench.batch(max(bench.by_size(asked), key=len))
    return knockout(bench.explained, batch.images, target=bench.chosen(batch))


def _column(scores: Tensor) -> np.ndarray:
    return scores.double().cpu().numpy()
