"""Convert score tables or run folders to one `Group` per variant."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from attnviz.comparison.from_runs import run_groups
from attnviz.comparison.groups import Group, array
from attnviz.comparison.tables import is_list, table_group
from attnviz.definitions import DEFINITIONS, LEVELS, level_key, limits_of
from attnviz.errors import InputError, unknown_name
from attnviz.statistics.clusters import GROUP, labelled
from attnviz.statistics.variance import mean_of_valid

Source: TypeAlias = Mapping[str, Any] | Sequence[Any] | str | os.PathLike[str]
"""What `compare` reads: score tables, runs or evaluations by variant, a list of runs or of
evaluations, or a folder of runs."""


ROUNDING = 1e-5
"""By how much rounding may take a score over its metric's limits."""

DISTINCT = 8
"""Different scores in a table from which two trainings do not agree by chance."""


def read_groups(
    source: Source,
    *,
    primary: str,
    metrics: Sequence[str] | None,
    baselines: Mapping[str, Any] | None,
    map_name: str | None,
    groups: Any = None,
) -> tuple[list[Group], list[str]]:
    """Convert the input of `compare` to groups on the same images, and notes on what was left out.

    Raises:
        InputError: It is no table and no run, one variant's table without its name, lacks a
            metric, or is not comparable.
    """
    if isinstance(source, Mapping) and source and {*source} <= {*DEFINITIONS, "correct", GROUP}:
        raise InputError(
            f"compare: expected {{variant: scores}}, got one table of {', '.join(source)}; give it "
            "a name: {'name': scores}"
        )
    if not isinstance(source, Mapping):
        found, notes = run_groups(by_variant(open_runs(source)), map_name)
    elif any(_is_run(entry) for entry in source.values()):
        opened = {str(name): open_runs(entry) for name, entry in source.items()}
        found, notes = run_groups(opened, map_name)
    else:
        found = [table_group(str(name), entry, primary) for name, entry in source.items()]
        notes = []
    if not found:
        raise InputError("compare: expected at least one variant, got none")
    _same_images(found)
    grouping = _same_grouping(found, groups)
    chosen = _choose(found, primary, metrics)
    doubts = [note for group in found for note in (*_outside(group, chosen), *_copies(group))]
    levels = _levels(baselines)
    return [_narrowed(group, chosen, levels, grouping) for group in found], [*notes, *doubts]


def _outside(group: Group, chosen: Iterable[str]) -> Iterator[str]:
    """A note for each metric whose mean the metric cannot take, such as percent."""
    for name in chosen:
        low, high = limits_of(name)
        known = group.values[name][np.isfinite(group.values[name])]
        if len(known) and not low - ROUNDING <= known.mean() <= high + ROUNDING:
            other = known[(known < low) | (known > high)]
            yield (
                f"{group.variant}, {name}: {len(other)} of {len(known)} scores, such as "
                f"{other[0]:g}, lie outside {low:g} to {high:g}, where intervals end: divide "
                "percent by 100, or state low= and high= in the definition of a metric of your own"
            )


def _copies(group: Group) -> Iterator[str]:
    """A note where trainings have the same scores to the last bit.

    Judged by all metrics, and only where scores differ between images: two trainings may both hit
    every image.
    """
    seeds: dict[bytes, list[str]] = {}
    for i, seed in enumerate(group.seeds):
        rows = [np.ascontiguousarray(scores[i]) for scores in group.values.values()]
        if max(len(np.unique(row[np.isfinite(row)])) for row in rows) >= DISTINCT:
            seeds.setdefault(b"".join(row.tobytes() for row in rows), []).append(str(seed))
    for same in seeds.values():
        if len(same) > 1:
            yield (
                f"{group.variant}: the scores of seeds {', '.join(same)} are the same on all "
                f"{group.images} images to the last bit: was the seed applied? Copies of one "
                "training are no replicates, and no interval, p or winner holds for them"
            )


def _same_grouping(groups: Sequence[Group], given: Any) -> tuple[Any, ...] | None:
    """The images' groups: those given, or those that the variants bring, if they agree."""
    images = groups[0].images
    named = labelled(given, "compare")
    if named is not None and len(named) != images:
        raise InputError(f"compare: expected a group for each of {images} images, got {len(named)}")
    if given is not None:
        return named
    brought = {group.variant: group.grouping for group in groups if group.grouping is not None}
    if len(set(brought.values())) > 1:
        raise InputError(
            f"compare: expected the same groups of images for all variants, got others for "
            f"{' and '.join(brought)}"
        )
    return next(iter(brought.values()), None)


def _same_images(groups: Sequence[Group]) -> None:
    counts = {group.variant: group.images for group in groups}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{variant} on {n}" for variant, n in counts.items())
        raise InputError(
            f"compare: cannot rank variants measured on different images: {listed}; "
            "measure all of them on the same images, in the same order"
        )


def _choose(groups: Sequence[Group], primary: str, metrics: Sequence[str] | None) -> list[str]:
    """The metrics to report, the primary one first; those that all have, unless named."""
    shared = [
        name for name in groups[0].values if all(name in group.values for group in groups[1:])
    ]
    wanted = list(dict.fromkeys([primary, *(shared if metrics is None else metrics)]))
    for name in wanted:
        lacking = [group.variant for group in groups if name not in group.values]
        if lacking and len(lacking) < len(groups):
            raise InputError(
                f"compare: expected {name!r} of every variant, got none of {', '.join(lacking)}"
            )
        if lacking:
            raise unknown_name("metric", name, shared)
    return wanted


def _narrowed(
    group: Group,
    chosen: list[str],
    given: dict[str, dict[str, float]],
    grouping: tuple[Any, ...] | None,
) -> Group:
    """The variant with the chosen metrics only, their levels, and the images' groups."""
    levels = {name: {**group.levels.get(name, {}), **given.get(name, {})} for name in chosen}
    values = {name: group.values[name] for name in chosen}
    accuracy = group.accuracy or (float("nan"),) * len(group.seeds)
    return replace(group, values=values, accuracy=accuracy, levels=levels, grouping=grouping)


def _levels(baselines: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    """Baselines by metric, whichever way round they came, averaged over images."""
    levels: dict[str, dict[str, float]] = {}
    for outer, inner in (baselines or {}).items():
        if not isinstance(inner, Mapping):
            raise InputError(
                f"compare: baselines: expected {{metric: {{level: value}}}}, got "
                f"{type(inner).__name__} for {outer!r}"
            )
        for key, value in inner.items():
            metric, level = (key, outer) if level_key(outer) in LEVELS else (outer, key)
            numbers = array(value, f"baseline {level} of {metric}")
            levels.setdefault(metric, {})[level_key(level)] = float(mean_of_valid(numbers.ravel()))
    return levels


def _is_run(entry: Any) -> bool:
    """Whether a variant's entry is a run, a path, or a list of such."""
    if is_list(entry):
        return bool(len(entry)) and all(_is_run(one) for one in entry)
    return isinstance(entry, (str, os.PathLike)) or hasattr(entry, "samples")


def open_runs(source: Any) -> list[Any]:
    """Runs from runs, paths, folders, or any list of these."""
    if isinstance(source, (str, os.PathLike)):
        from attnviz.runs import list_runs

        return list(list_runs(source))
    if hasattr(source, "samples"):
        return [_run_of(source)]
    if not is_list(source):
        raise InputError(
            "compare: expected {variant: scores}, runs, or a folder of runs, "
            f"got {type(source).__name__}"
        )
    return [run for entry in source for run in open_runs(entry)]


def by_variant(runs: Iterable[Any]) -> dict[str, list[Any]]:
    """Runs under the name of their variant, in the order in which they came."""
    grouped: dict[str, list[Any]] = {}
    for run in runs:
        grouped.setdefault(str(run.variant), []).append(run)
    return grouped


@dataclass(frozen=True)
class _Evaluated:
    """An evaluation that was not saved, as a complete run."""

    id: str
    location: str
    variant: str
    seed: int | None
    thing: str
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    samples: Callable[[], Any]
    state: str = "complete"
    dataset: str | None = None


def _run_of(entry: Any) -> Any:
    """A run itself; of an evaluation the run where it was saved, or its scores in memory."""
    if callable(entry.samples):
        return entry
    if "run" in entry.facts:
        from attnviz.runs import open_run

        return open_run(entry.facts["run"])
    seed = "" if entry.seed is None else f", seed {entry.seed}"
    name = f"{entry.variant}{seed}"
    return _Evaluated(
        id=name,
        location=f"{name} ({id(entry):x})",
        variant=entry.variant,
        seed=entry.seed,
        thing=entry.thing,
        settings={"thing": entry.thing, "target": entry.target},
        summary={
            "map": entry.primary,
            "metrics": entry.summary,
            "accuracy": None if math.isnan(entry.accuracy) else entry.accuracy,
        },
        samples=lambda: entry.samples,
    )
