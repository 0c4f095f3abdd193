"""`attnviz measure RUNS …`: score the maps that runs hold, against masks and against the model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.attribution import methods
from attnviz.cli.scoring import (
    add_runs,
    as_images,
    complete_runs,
    merged_metrics,
    pieces,
    rebuilt,
    score_table,
    scored,
    test_set,
    with_columns,
)
from attnviz.cli.tables import as_json
from attnviz.compare.summary import summarised
from attnviz.errors import InputError, unknown_name
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
from attnviz.runs import Dataset, Run, amend_run


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
    parser.add_argument("--steps", type=int, default=32, help="of deletion and insertion")
    parser.add_argument(
        "--agree-with", metavar="MAP", help="agreement of every map with this one of the run"
    )
    parser.add_argument(
        "--mprt", action="store_true",
        help="whether maps of Captum's methods change when the weights are random",
    )  # fmt: skip
    parser.add_argument("--knockout", action="store_true", help="what each head and gate is worth")
    parser.add_argument(
        "--images", type=int, metavar="K",
        help="only the first K images for what asks the model (the others score NaN)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Score, and add the scores to the runs."""
    _check(args)
    reports = [_measured(found, args) for found in complete_runs(args.runs)]
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
    if args.images is not None and args.images < 1:
        raise InputError(f"--images: expected at least 1, got {args.images}")


@dataclass(frozen=True)
class Bench:
    """A run on which something is measured.

    Attributes:
        run: The run.
        dataset: Its test images.
        model: Its trained model; built when it is first asked for.
        args: What the command was told.
    """

    run: Run
    dataset: Dataset
    model: Callable[[], nn.Module]
    args: argparse.Namespace

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

    @property
    def asked(self) -> int:
        """How many images the model is asked about."""
        return min(self.dataset.count, self.args.images or self.dataset.count)


def _measured(found: Run, args: argparse.Namespace) -> dict[str, Any]:
    model: list[nn.Module] = []

    def once() -> nn.Module:
        if not model:
            model.append(rebuilt(found, args.device))
        return model[0]

    bench = Bench(found, test_set(found), once, args)
    samples, summaries = found.samples(), {}
    for name in _chosen(found, args.maps, bench.dataset.count):
        columns, summaries[name] = _scores_of(bench, name)
        samples = with_columns(samples, name, columns)
    cuts = _knocked(bench) if args.knockout else None
    rows = [] if cuts is None else cuts.table.to_dict("records")
    with amend_run(found.path) as writer:
        writer.samples(samples)
        fresh: dict[str, Any] = {"metrics": merged_metrics(found, summaries)}
        writer.finish(fresh | ({"knockout": rows} if rows else {}))
    return {"id": found.id, "metrics": summaries, "knockout": rows, "text": repr(cuts)}


def _chosen(found: Run, names: Sequence[str] | None, count: int) -> list[str]:
    """The maps asked for; by default those with one map for each image, not head by head."""
    shapes = {name: found.files[f"maps/{name}.safetensors"].shape for name in found.map_names}
    whole = [name for name, shape in shapes.items() if shape and shape[0] == count]
    for name in names or ():
        if name not in shapes:
            raise unknown_name(f"map of {found.id}", name, whole)
        if name not in whole:
            raise InputError(
                f"{found.id}: expected maps of all {count} images, {name!r} holds {shapes[name]}"
            )
    return list(names) if names else [name for name in whole if len(shapes[name] or ()) == 3]


def _scores_of(bench: Bench, name: str) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Everything that was asked for about one map: columns, and their summary."""
    args = bench.args
    columns: dict[str, np.ndarray] = {}
    summaries: dict[str, dict[str, Any]] = {}
    if args.metrics != []:
        threshold = (bench.run.summary.get("thresholds") or {}).get(name)
        columns, summaries = scored(
            partial(bench.maps, name), bench.dataset, args.metrics, threshold
        )
    more: dict[str, np.ndarray] = {}
    if args.agree_with and args.agree_with != name:
        more |= _agreement(bench, name)
    if args.faithfulness is not None:
        more |= _faithfulness(bench, name)
    if args.mprt:
        more |= _mprt(bench, name)
    extra = {key: summarised(key, column) for key, column in more.items()}
    return columns | more, summaries | extra


def _agreement(bench: Bench, name: str) -> dict[str, np.ndarray]:
    other = bench.args.agree_with
    if other not in bench.run.map_names:
        raise unknown_name(f"map of {bench.run.id}", other, bench.run.map_names)
    parts = [
        agreement(bench.upsampled(name, part).cpu(), bench.upsampled(other, part).cpu())
        for part in pieces(bench.dataset.count)
    ]
    return {f"agreement_{key}": _joined([part[key] for part in parts]) for key in parts[0]}


def _faithfulness(bench: Bench, name: str) -> dict[str, np.ndarray]:
    args = bench.args
    parts = [
        faithfulness_scores(
            bench.model(),
            bench.images(part),
            bench.upsampled(name, part),
            metrics=args.faithfulness or DEFAULT,
            baseline=args.baseline,
            steps=args.steps,
            seed=args.seed,
        )
        for part in pieces(bench.asked)
    ]
    return {key: _padded(bench, [part[key] for part in parts]) for key in parts[0]}


def _mprt(bench: Bench, name: str) -> dict[str, np.ndarray]:
    """The randomisation check of a map that a method of Captum drew; none for other maps."""
    about = dict(bench.run.about(f"maps/{name}"))
    method = about.pop("method", name)
    if method not in methods():
        return {}
    seed = about.pop("seed", bench.args.seed)
    parts = [
        randomisation(bench.model(), bench.images(part), method, seed=seed, **about).mprt
        for part in pieces(bench.asked)
    ]
    return {"mprt": _padded(bench, parts)}


def _knocked(bench: Bench) -> Knockout:
    return knockout(bench.model(), bench.images(range(bench.asked)), seed=bench.args.seed)


def _joined(parts: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([part.double().cpu() for part in parts]).numpy()


def _padded(bench: Bench, parts: Sequence[Tensor]) -> np.ndarray:
    """The scores of the first images, NaN for those that nobody asked about."""
    scores = np.full(bench.dataset.count, np.nan)
    scores[: bench.asked] = _joined(parts)
    return scores
