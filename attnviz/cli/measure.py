"""`attnviz measure RUNS …`: score the maps that runs hold, against masks and against the model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.attribution import methods
from attnviz.cli.argument_types import whole, word
from attnviz.cli.json_output import as_json
from attnviz.cli.scoring import (
    add_runs,
    as_images,
    complete_runs,
    crew,
    in_order,
    merged_metrics,
    pieces,
    rebuilt,
    score_table,
    scores_of,
    summaries_of,
    with_columns,
)
from attnviz.comparison.from_runs import grouping_of
from attnviz.comparison.text import records
from attnviz.errors import InputError, unknown_name
from attnviz.executors import spread
from attnviz.faithfulness import (
    DEFAULT,
    METRICS,
    Knockout,
    faithfulness_scores,
    knockout,
    randomisation,
)
from attnviz.maps import resized
from attnviz.metrics import agreement
from attnviz.runs import Run, amend_run, open_run


def arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
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
    parser.add_argument("--knockout", action="store_true", help="what each head and gate is worth")
    parser.add_argument(
        "--images", type=whole(1), metavar="K",
        help="only the first K images for what asks the model (the others score NaN)",
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


class Bench:
    """A run on which something is measured.

    Attributes:
        run: The run.
        dataset: Its test images.
        args: What the command was told.
    """

    def __init__(self, path: Path, args: argparse.Namespace) -> None:
        self.run = open_run(path)
        self.dataset = self.run.test_set()
        self.args = args

    @cached_property
    def model(self) -> nn.Module:
        """Its trained model; built when it is first asked for."""
        return rebuilt(self.run, self.args.device)

    def maps(self, name: str, part: Sequence[int]) -> Tensor:
        """`(k, h, w)` maps on their own grid; heads are averaged."""
        maps = torch.from_numpy(np.array(self.run.maps(name, list(part))))
        return maps.mean(1) if maps.ndim == 4 else maps

    def upsampled(self, name: str, part: Sequence[int]) -> Tensor:
        """`(k, H, W)` maps at the images' size, bilinearly."""
        h, w = self.dataset.masks([0]).shape[-2:]
        return resized(self.maps(name, part), (h, w), "bilinear").to(self.args.device)

    def images(self, part: Sequence[int]) -> Tensor:
        """`(k, 3, h, w)`."""
        return as_images(self.dataset.images(list(part)), self.args.device)

    def threshold(self, name: str) -> Mapping[str, float] | None:
        """A map's τ by metric, from the validation images."""
        found: Mapping[str, Mapping[str, float]] = self.run.summary.get("thresholds") or {}
        return found.get(name)

    @property
    def asked(self) -> range:
        """The images that the model is asked about."""
        return range(min(self.dataset.count, self.args.images or self.dataset.count))


def _measured(found: Run, args: argparse.Namespace, executor: Executor | None) -> dict[str, Any]:
    bench = Bench(found.path.absolute(), args)
    names = _chosen(found, args.maps, bench.dataset.count)
    if args.agree_with:
        _chosen(found, [args.agree_with], bench.dataset.count)
    tasks = [(name, part) for name in names for part in pieces(bench.dataset.count)]
    results = spread(
        partial(_scores_of, bench.run.path, args), tasks, executor,
        label=f"measure {found.id}", shown=not args.json,
    )  # fmt: skip
    samples, summaries = found.samples(), {}
    for name in names:
        done = zip(tasks, results, strict=True)
        columns = in_order([(part, scores) for (map_, part), scores in done if map_ == name])
        samples = with_columns(samples, name, columns)
        metrics, grid = args.metrics, found.entry(f"maps/{name}").shape or ()
        summaries[name] = summaries_of(
            columns,
            bench.dataset,
            (grid[-2], grid[-1]),
            metrics,
            bench.threshold(name),
            group=grouping_of(samples),
        )
    cuts = _knocked(bench, executor) if args.knockout else None
    rows = [] if cuts is None else records(cuts.table)
    with amend_run(found.path) as writer:
        writer.samples(samples)
        fresh: dict[str, Any] = {"metrics": merged_metrics(found, summaries)}
        writer.finish(fresh | ({"knockout": rows} if rows else {}))
    return {"id": found.id, "metrics": summaries, "knockout": rows, "text": repr(cuts)}


def _chosen(found: Run, names: Sequence[str] | None, count: int) -> list[str]:
    """The maps asked for; by default those with one map for each image, not head by head."""
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
        else [name for name in whole if len(shapes[name] or ()) == 3]
    )


def _scores_of(
    path: Path, args: argparse.Namespace, task: tuple[str, range]
) -> dict[str, np.ndarray]:
    """Everything that was asked for about one map of one piece's images."""
    (name, part), bench = task, Bench(path, args)
    columns: dict[str, np.ndarray] = {}
    if args.metrics != []:
        masks = bench.dataset.masks(list(part))
        columns |= scores_of(bench.maps(name, part), masks, args.metrics, bench.threshold(name))
    if args.agree_with and args.agree_with != name:
        columns |= _agreement(bench, name, part)
    asked = range(part.start, min(part.stop, bench.asked.stop))
    if asked and args.faithfulness is not None:
        columns |= _faithfulness(bench, name, asked)
    if asked and args.mprt:
        columns |= _mprt(bench, name, asked)
    return columns


def _agreement(bench: Bench, name: str, part: range) -> dict[str, np.ndarray]:
    one, other = (bench.upsampled(n, part).cpu() for n in (name, bench.args.agree_with))
    return {f"agreement_{key}": _column(value) for key, value in agreement(one, other).items()}


def _faithfulness(bench: Bench, name: str, part: range) -> dict[str, np.ndarray]:
    args = bench.args
    scores = faithfulness_scores(
        bench.model,
        bench.images(part),
        bench.upsampled(name, part),
        metrics=args.faithfulness or DEFAULT,
        baseline=args.baseline,
        steps=args.steps,
        seed=args.seed,
    )
    return {key: _column(score) for key, score in scores.items()}


def _mprt(bench: Bench, name: str, part: range) -> dict[str, np.ndarray]:
    """The randomisation check of a map that a method of Captum drew; none for other maps."""
    about = dict(bench.run.about(f"maps/{name}"))
    method = about.pop("method", name)
    if method not in methods():
        return {}
    seed = about.pop("seed", bench.args.seed)
    check = randomisation(bench.model, bench.images(part), method, seed=seed, **about)
    return {"mprt": _column(check.mprt)}


def _knocked(bench: Bench, executor: Executor | None) -> Knockout:
    """What is worth what, over all images at once: one piece of work."""
    cut = partial(_cut, bench.run.path)
    (cuts,) = spread(cut, [bench.args], executor, label=f"knock out {bench.run.id}", shown=False)
    return cuts


def _cut(path: Path, args: argparse.Namespace) -> Knockout:
    bench = Bench(path, args)
    return knockout(bench.model, bench.images(bench.asked))


def _column(scores: Tensor) -> np.ndarray:
    return scores.double().cpu().numpy()
