"""`attnviz attribute RUNS … --method …`: attribution maps of trained models, and their scores."""

from __future__ import annotations

import argparse
from concurrent.futures import Executor
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from attnviz.attribution import attribute, methods
from attnviz.cli.argument_types import whole, word
from attnviz.cli.json_output import as_json
from attnviz.cli.pairs import pairs, value
from attnviz.cli.scoring import add_runs, complete_runs, crew, score_table, stored
from attnviz.cli.shared_options import add_target
from attnviz.comparison.from_runs import grouping_of
from attnviz.errors import InputError
from attnviz.evaluation.pieces import largest_grid, on_grid, parts_of
from attnviz.evaluation.saving import several_grids
from attnviz.evaluation.stored import (
    PIECE,
    StoredRun,
    in_order,
    localized,
    merged_metrics,
    with_columns,
)
from attnviz.executors import spread
from attnviz.runs import Run, amend_run
from attnviz.text import table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_runs(parser)
    parser.add_argument(
        "--method", default="layer_gradcam", help="of Captum (default: %(default)s)",
        metavar="NAME",
    )  # fmt: skip
    parser.add_argument("--layer", type=word, metavar="NAME", help="dotted name, for layer methods")
    add_target(parser)
    parser.add_argument("--sign", default="positive", help="positive, abs or signed")
    parser.add_argument("--channels", help="sum, mean, max_abs or norm; the method's own")
    parser.add_argument("--baseline", help="black, white, zero, mean, blur or a number")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE",
        help="a further argument of Captum's, such as n_steps=100; may be repeated",
    )  # fmt: skip
    parser.add_argument("--name", type=word, help="of the map in the run (default: the method's)")
    parser.add_argument("--replace", action="store_true", help="overwrite a map of that name")
    parser.add_argument(
        "--memory", type=whole(1), default=512, metavar="MIB",
        help="budget (default: %(default)s MiB)",
    )  # fmt: skip
    parser.add_argument("--methods", action="store_true", help="list the methods and do nothing")


def run(args: argparse.Namespace) -> int:
    """Add the map and its scores to each run; 0 when all have them."""
    if args.methods:
        print(as_json(methods()) if args.json else table(("method", ""), methods().items()))
        return 0
    name = args.name or args.method
    options = _options(args)
    runs = complete_runs(args.runs)
    for found in runs:
        if name in found.map_names and not args.replace:
            raise InputError(f"{found.id} already has a map {name!r}: pass --name or --replace")
    with crew(args, runs) as executor:
        reports = [_attributed(found, name, options, args, executor) for found in runs]
    if args.json:
        print(as_json({"runs": reports}))
        return 0
    for report in reports:
        print(f"{report['id']}: maps/{name} {' × '.join(map(str, report['shape']))}")
        print(score_table(report["metrics"]) + "\n")
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `attribute`."""
    options: dict[str, Any] = {"method": args.method, "sign": args.sign, "seed": args.seed}
    for name in ("layer", "channels"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if args.baseline is not None:
        options["baseline"] = value(args.baseline)
    further = pairs("--option", args.option)
    for name in further.keys() & signature(attribute).parameters.keys():
        raise InputError(f"--option: expected an argument of Captum's own, got {name!r}")
    return options | further


def _attributed(
    found: Run,
    name: str,
    options: dict[str, Any],
    args: argparse.Namespace,
    executor: Executor | None,
) -> dict[str, Any]:
    """Draw, score (before anything is rounded), and amend the run."""
    bench = stored(args, found.path)
    bench.check_pixels()
    parts = parts_of(bench.dataset.count, PIECE)
    alone = len(parts) == 1  # then the rows are counted, else the parts
    drawn = spread(
        partial(_drawn, bench, options, args.memory, alone and not args.json), parts,
        executor, label=f"attribute {found.id}", shown=not (args.json or alone),
    )  # fmt: skip
    found_maps = [one for maps, _ in drawn for one in maps]
    shape = largest_grid([one.shape[1:] for one in found_maps])
    maps = np.concatenate([on_grid(one, shape) for one in found_maps])
    columns = in_order([(p, scores) for p, (_, scores) in zip(parts, drawn, strict=True)])
    own_grids = several_grids(np.array([one.shape[-2:] for one in found_maps]))
    grid = (maps.shape[-2], maps.shape[-1])
    summaries = bench.summarised(columns, grid, group=grouping_of(found.samples()))
    samples = with_columns(found.samples(), name, columns, anew=True)
    about = {**options, **({} if args.target is None else {"target": args.target}), **own_grids}
    with amend_run(found.path) as writer:
        writer.maps(name, maps, about=about)
        writer.samples(samples)
        writer.finish({"metrics": merged_metrics(found, {name: summaries}, anew=True)})
    return {"id": found.id, "map": name, "shape": list(maps.shape), "metrics": {name: summaries}}


def _drawn(
    bench: StoredRun, options: dict[str, Any], memory: int, shown: bool, part: range
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The maps of one piece's images, one by one where sizes differ, and their scores."""
    by_image: dict[int, np.ndarray] = {}

    def scores(alike: list[int]) -> dict[str, np.ndarray]:
        batch = bench.batch(alike)
        maps = attribute(
            bench.explained, batch.images, target=bench.chosen(batch), size="own",
            value_range=bench.value_range, memory=memory * 2**20, progress=shown, **options,
        ).cpu()  # fmt: skip
        by_image.update(zip(alike, maps.numpy(), strict=True))
        return localized(maps, batch.masks)

    columns = bench.each_size(part, scores)
    return [by_image[index][None] for index in part], columns
