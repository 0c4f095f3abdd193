"""What `attribute` and `measure` share: a run's model, its images, and scores as columns.

A run is read a piece at a time, so that the maps of ten thousand images never are in memory at
once, and it is amended at the end in one step: a kill leaves it as it was. The pieces are the same
whoever works on them, and so are the numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.cli.argument_types import seed
from attnviz.cli.devices import add_device
from attnviz.cli.worker_arguments import add_workers, chosen_workers
from attnviz.comparison.from_runs import none_complete
from attnviz.definitions import SHOWN_LEVELS
from attnviz.errors import InputError, RunError
from attnviz.executors import executor_of
from attnviz.maps import resized
from attnviz.metrics import METRICS, baselines, localization
from attnviz.models import rebuild_model
from attnviz.models.pixels import as_input
from attnviz.runs import Dataset, Run, list_runs
from attnviz.statistics.summary import summarised
from attnviz.text import table

if TYPE_CHECKING:
    from pandas import DataFrame

PIECE = 256
"""Images read and scored at a time."""


def add_runs(parser: argparse.ArgumentParser) -> None:
    """The arguments that both commands take."""
    parser.add_argument("runs", nargs="+", help="folders of runs, or of single runs")
    add_device(parser)
    parser.add_argument("--seed", type=seed, default=0, help="of everything random (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_workers(parser, default="none, all is done right here")


def complete_runs(places: Sequence[str]) -> list[Run]:
    """The complete runs at these places, each once.

    Raises:
        InputError: There is none; the message says what state the others are in.
    """
    found = list({run.location: run for place in places for run in list_runs(place)}.values())
    complete = [run for run in found if run.state == "complete"]
    if not complete:
        raise none_complete("", found)
    return complete


def rebuilt(run: Run, device: str) -> nn.Module:
    """The run's trained model, in evaluation mode.

    Raises:
        InputError: The variant is none of `attnviz.models`, or its settings or weights do not fit.
        RunError: The run kept no weights.
    """
    weights = run.weights()
    try:
        return rebuild_model(run.variant, run.settings, weights).to(device)
    except InputError as error:
        raise InputError(f"{run.id}: {error}") from error


def as_images(pixels: np.ndarray, device: str) -> Tensor:
    """`(n, h, w, 3)` bytes as the reference models take them: `(n, 3, h, w)` in [−1, 1]."""
    images = torch.from_numpy(np.array(pixels)).to(device)
    return as_input(images.permute(0, 3, 1, 2))


@contextmanager
def crew(args: argparse.Namespace, runs: Sequence[Run]) -> Iterator[Executor | None]:
    """Who does the work, as the flags say; None is this process alone."""
    workers = chosen_workers(args)
    if not workers.given:
        yield None
        return
    with executor_of(workers, *{run.path.parent.absolute() for run in runs}) as executor:
        yield executor


def pieces(n: int) -> list[range]:
    """`0 … n − 1` in pieces of `PIECE`."""
    return [range(start, min(n, start + PIECE)) for start in range(0, n, PIECE)]


def in_order(parts: Sequence[tuple[range, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The columns of all pieces as one; NaN where a piece has no such column, or a shorter one."""
    count = sum(len(part) for part, _ in parts)
    whole: dict[str, np.ndarray] = {}
    for part, columns in parts:
        for key, column in columns.items():
            whole.setdefault(key, np.full(count, np.nan, column.dtype))
            whole[key][part.start : part.start + len(column)] = column
    return whole


def scores_of(
    maps: Tensor,
    masks: np.ndarray,
    metrics: Sequence[str] | None = None,
    threshold: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Localisation scores of some maps.

    Args:
        maps: `(k, h, w)` on their own grid; they are upsampled bilinearly.
        masks: `(k, H, W)`.
        metrics: Keys of `attnviz.metrics.METRICS`; None takes all that need no other threshold.
        threshold: By metric, from the validation images.

    Returns:
        Metric → `(k,)` scores.
    """
    truth = torch.from_numpy(np.array(masks))
    upsampled = resized(maps.cpu(), (int(truth.shape[-2]), int(truth.shape[-1])), "bilinear")
    wanted = _metrics(metrics, threshold)
    scores = localization(upsampled, truth, wanted, threshold=threshold)
    return {key: score.numpy() for key, score in scores.items()}


def summaries_of(
    columns: Mapping[str, np.ndarray],
    dataset: Dataset,
    grid: tuple[int, int],
    metrics: Sequence[str] | None = None,
    threshold: Mapping[str, float] | None = None,
    group: Any = None,
) -> dict[str, dict[str, Any]]:
    """Mean, interval and counts of each column; of localisation the reference levels too."""
    levels = _levels(dataset, grid, _metrics(metrics, threshold), threshold)
    return {
        key: summarised(key, column, levels.get(key), group=group)
        for key, column in columns.items()
    }


def _metrics(metrics: Sequence[str] | None, threshold: Mapping[str, float] | None) -> list[str]:
    if metrics is not None:
        return list(metrics)
    return [key for key, m in METRICS.items() if not m.thresholded or key in (threshold or {})]


def _levels(
    dataset: Dataset,
    grid: tuple[int, int],
    metrics: Sequence[str],
    threshold: Mapping[str, float] | None,
) -> Mapping[str, Mapping[str, float]]:
    """The reference levels of these very masks; none where every mask is empty."""
    if not metrics:
        return {}
    masks = dataset.masks()
    found = masks.reshape(len(masks), -1).any(1)
    if not found.any():
        return {}
    return baselines(torch.from_numpy(masks[found]), grid, list(metrics), threshold=threshold)


def with_columns(
    samples: DataFrame, name: str, columns: Mapping[str, np.ndarray], *, anew: bool = False
) -> DataFrame:
    """The samples with a map's scores; `anew` drops the scores it had before."""
    import pandas as pd

    if anew:
        samples = samples[[c for c in samples.columns if not c.startswith(f"{name}/")]]
    fresh = {f"{name}/{key}": column for key, column in columns.items()}
    for key, column in fresh.items():
        if len(column) != len(samples):
            raise RunError(
                f"{key}: expected {len(samples)} scores, one per sample, got {len(column)}"
            )
    kept = samples[[column for column in samples.columns if column not in fresh]]
    return pd.concat([kept, pd.DataFrame(fresh, index=samples.index)], axis=1)


def merged_metrics(
    run: Run, fresh: Mapping[str, Mapping[str, Any]], *, anew: bool = False
) -> dict[str, Any]:
    """The summary's metrics with these put in; maps and metrics that are not named stay."""
    before = dict(run.summary.get("metrics") or {})
    for name, scores in fresh.items():
        before[name] = {**({} if anew else before.get(name, {})), **scores}
    return before


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
