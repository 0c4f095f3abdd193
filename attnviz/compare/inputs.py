"""From what people have, tables of scores or run folders, to one `Group` per variant.

Everything that makes a ranking unfair is refused here, by name: other images, another question,
"replicates" that were not trained alike. What may differ between variants is the model and how it
was trained; a difference in training settings is said in a note, since it may be the reason for
what is seen. Within one variant only the seed may differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from attnviz.errors import InputError, unknown_name

Source: TypeAlias = Mapping[str, Any] | Sequence[Any] | str | os.PathLike[str]
"""What `compare` reads: score tables or runs by variant, a list of runs, or a folder of runs."""

LOWER_IS_BETTER = frozenset({"deletion_auc", "avg_drop", "complexity", "infidelity", "sensitivity"})
"""The metrics of which less is better; of all others, more is."""

LEVELS = ("chance", "centre", "ceiling")
"""What stands beside a score: a random map's, a centred blob's, the grid's best."""

_BOX = ["x0", "y0", "x1", "y1"]
_QUESTION = {
    *("data", "dataset", "folder", "split", "image", "fraction", "count"),
    *("patch", "size", "shape", "fill", "opacity"),
}
_INCIDENTAL = {
    *("variant", "name", "seed", "out", "runs", "root"),
    *("device", "workers", "threads", "resume", "progress"),
}


@dataclass(frozen=True, eq=False)
class Group:
    """One variant's measurements, image by image and seed by seed.

    Attributes:
        variant: Its name.
        seeds: One label per training seed.
        values: Metric → scores (seeds, images), NaN where an image cannot be scored.
        correct: (seeds, images), 1 where the image was classified rightly, or None.
        accuracy: One per seed over all test images, NaN where it is not known.
        levels: Metric → {"chance": …, "centre": …, "ceiling": …}, as far as known.
    """

    variant: str
    seeds: tuple[Any, ...]
    values: dict[str, np.ndarray]
    correct: np.ndarray | None = None
    accuracy: tuple[float, ...] = ()
    levels: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many images were measured."""
        return int(next(iter(self.values.values())).shape[1])


def read_groups(
    source: Source,
    *,
    primary: str,
    metrics: Sequence[str] | None,
    baselines: Mapping[str, Any] | None,
    map_name: str | None,
) -> tuple[list[Group], list[str]]:
    """Whatever `compare` was given, as groups on the same images, and notes on what was left out.

    Raises:
        InputError: It is no table and no run, lacks a metric, or is not comparable.
    """
    if not isinstance(source, Mapping):
        groups, notes = _from_runs(_by_variant(_open(source)), map_name)
    elif any(_is_run(entry) for entry in source.values()):
        opened = {str(name): _open(entry) for name, entry in source.items()}
        groups, notes = _from_runs(opened, map_name)
    else:
        groups, notes = [_table(str(name), entry, primary) for name, entry in source.items()], []
    if not groups:
        raise InputError("compare: expected at least one variant, got none")
    _same_images(groups)
    chosen = _choose(groups, primary, metrics)
    groups = [_narrowed(group, chosen, _levels(baselines)) for group in groups]
    return groups, notes


# Tables


def array(values: Any, what: str) -> np.ndarray:
    """Numbers of any kind, torch tensors on any device included, as a float64 array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"compare: {what}: expected an array of numbers, got {error}") from None


def _table(variant: str, entry: Any, primary: str) -> Group:
    """One variant's scores, given as a dict, a list of dicts, or the primary metric's array."""
    if isinstance(entry, Mapping):
        entry = [entry]
    if not _listed(entry) or not any(isinstance(one, Mapping) for one in entry):
        entry = [{primary: entry}]
    values: dict[str, np.ndarray] = {}
    for name in entry[0]:
        odd = [i for i, scores in enumerate(entry) if name not in scores]
        if odd:
            raise InputError(
                f"compare: {variant}: expected the same metrics for every seed, "
                f"got no {name!r} for seed {odd[0]}"
            )
        values[name] = _rows([scores[name] for scores in entry], f"{variant}, {name}")
    _same_shape(variant, values)
    correct = values.pop("correct", None)
    accuracy = () if correct is None else tuple(float(row) for row in np.nanmean(correct, axis=1))
    if not values:
        raise InputError(f"compare: {variant}: expected scores, got a table without any")
    seeds = tuple(range(len(next(iter(values.values())))))
    return Group(variant, seeds, values, correct, accuracy)


def _rows(seeds: list[Any], what: str) -> np.ndarray:
    """Scores (images,) of each seed, or (seeds, images) at once, as (seeds, images)."""
    if len(seeds) == 1 and _listed(seeds[0]) and len(seeds[0]) and np.ndim(seeds[0][0]) == 1:
        seeds = list(seeds[0])
    rows = [np.atleast_1d(array(row, what)) for row in seeds]
    if len(rows) == 1 and rows[0].ndim == 2:
        rows = list(rows[0])
    shapes = sorted({row.shape for row in rows})
    if len(shapes) != 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise InputError(
            f"compare: {what}: expected one score per image, (images,) for each seed or "
            f"(seeds, images), got {' and '.join(map(str, shapes)) or 'nothing'}"
        )
    return np.stack(rows)


def _same_shape(variant: str, values: Mapping[str, np.ndarray]) -> None:
    """Refuse a table whose metrics were not measured on the same seeds and images."""
    shapes = {name: rows.shape for name, rows in values.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(
            f"compare: {variant}: expected every metric on the same (seeds, images), got {listed}"
        )


def _listed(entry: Any) -> bool:
    return isinstance(entry, Sequence) and not isinstance(entry, str)


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
        if name not in shared:
            raise unknown_name("metric, or one that some variant lacks,", name, shared)
    return wanted


def _narrowed(group: Group, chosen: list[str], given: dict[str, dict[str, float]]) -> Group:
    """The group with the chosen metrics only, and the levels known for them."""
    levels = {name: {**group.levels.get(name, {}), **given.get(name, {})} for name in chosen}
    values = {name: group.values[name] for name in chosen}
    accuracy = group.accuracy or (float("nan"),) * len(group.seeds)
    return Group(group.variant, group.seeds, values, group.correct, accuracy, levels)


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
            metric, level = (key, outer) if outer in LEVELS else (outer, key)
            numbers = array(value, f"baseline {level} of {metric}")
            levels.setdefault(metric, {})[level] = float(np.nanmean(numbers))
    return levels


# Runs


def _is_run(entry: Any) -> bool:
    """Whether a variant's entry is a run, a path, or a list of such."""
    if _listed(entry):
        return bool(len(entry)) and all(_is_run(one) for one in entry)
    return isinstance(entry, (str, os.PathLike)) or hasattr(entry, "samples")


def _open(source: Any) -> list[Any]:
    """Runs from runs, paths, folders, or any list of these."""
    from attnviz.runs import list_runs

    if isinstance(source, (str, os.PathLike)):
        return list(list_runs(source))
    if hasattr(source, "samples"):
        return [source]
    if not _listed(source):
        raise InputError(
            "compare: expected {variant: scores}, runs, or a folder of runs, "
            f"got {type(source).__name__}"
        )
    return [run for entry in source for run in _open(entry)]


def _by_variant(runs: Iterable[Any]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for run in runs:
        grouped.setdefault(str(run.variant), []).append(run)
    return grouped


def _from_runs(
    grouped: dict[str, list[Any]], map_name: str | None
) -> tuple[list[Group], list[str]]:
    """Groups from run folders, after every check that makes them comparable."""
    complete = {
        variant: sorted((run for run in runs if run.state == "complete"), key=_seed)
        for variant, runs in grouped.items()
    }
    complete = {variant: runs for variant, runs in complete.items() if runs}
    left_out = [run for runs in grouped.values() for run in runs if run.state != "complete"]
    if not complete:
        states = ", ".join(f"{run.id} is {run.state}" for run in left_out[:5]) or "no run at all"
        raise InputError(f"compare: expected at least one complete run, got {states}")
    _comparable(complete)
    frames = {run.id: run.samples() for runs in complete.values() for run in runs}
    _same_rows(frames)
    groups = [_group(variant, runs, frames, map_name) for variant, runs in complete.items()]
    notes = [f"left out: {run.id} ({run.state})" for run in left_out]
    return groups, notes + _trained_unlike(complete)


def _seed(run: Any) -> tuple[int, str]:
    return (int(run.seed), run.id)


def _group(
    variant: str, runs: Sequence[Any], frames: Mapping[str, Any], map_name: str | None
) -> Group:
    """One variant's runs as a group: the rows with a patch, the columns of one map."""
    scores, correct, levels = [], [], []
    for run in runs:
        frame = frames[run.id]
        patched = frame[(frame.x1 > frame.x0) & (frame.y1 > frame.y0)]
        name = _map_of(run, frame, map_name)
        prefix = f"{name}/"
        columns = [column for column in frame.columns if column.startswith(prefix)]
        scores.append(
            {c.removeprefix(prefix): patched[c].to_numpy(dtype=np.float64) for c in columns}
        )
        correct.append(patched["correct"].to_numpy(dtype=np.float64))
        levels.append(run.summary.get("metrics", {}).get(name, {}))
    shared = [metric for metric in scores[0] if all(metric in one for one in scores)]
    return Group(
        variant,
        tuple(run.seed for run in runs),
        {metric: np.stack([one[metric] for one in scores]) for metric in shared},
        np.stack(correct),
        tuple(_accuracy(run, frames[run.id]) for run in runs),
        {metric: _mean_levels([one.get(metric, {}) for one in levels]) for metric in shared},
    )


def _map_of(run: Any, frame: Any, map_name: str | None) -> str:
    """The map whose scores count: the one asked for, the run's primary one, or its only one."""
    known = list(
        dict.fromkeys(column.rpartition("/")[0] for column in frame.columns if "/" in column)
    )
    name = map_name or run.summary.get("map") or (known[0] if len(known) == 1 else None)
    if name is None:
        raise InputError(
            f"compare: {run.id} names no primary map: expected map_name=, one of {', '.join(known)}"
        )
    if name not in known:
        raise unknown_name(f"map in run {run.id}", name, known)
    return str(name)


def _accuracy(run: Any, frame: Any) -> float:
    return float(run.summary.get("accuracy", frame["correct"].mean()))


def _mean_levels(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean over seeds of each level that every seed has."""
    known = [name for name in LEVELS if all(row.get(name) is not None for row in rows)]
    return {name: float(np.mean([row[name] for row in rows])) for name in known}


# What may be compared


def _comparable(grouped: Mapping[str, Sequence[Any]]) -> None:
    """Refuse runs that saw other images, answer another question, or are no replicates."""
    runs = [run for group in grouped.values() for run in group]
    digests = {run.id: str(run.dataset) for run in runs}
    if len(set(digests.values())) > 1:
        raise InputError(
            f"compare: cannot rank runs measured on different images: {_disagreement(digests)}"
        )
    flat = {run.id: flattened(run.settings) for run in runs}
    asked = [key for key in _differing(flat) if _asks(key)]
    if asked:
        raise InputError(
            "compare: cannot rank runs that answer different questions: "
            + "; ".join(f"{key}: {_disagreement(_column(flat, key))}" for key in asked)
        )
    for variant, group in grouped.items():
        _replicates(variant, group, {run.id: flat[run.id] for run in group})


def _replicates(variant: str, group: Sequence[Any], flat: Mapping[str, dict[str, Any]]) -> None:
    """Refuse a variant whose runs differ in more than the seed, or not even in that."""
    odd = [key for key in _differing(flat) if not _incidental(key)]
    if odd:
        listed = "; ".join(f"{key}: {_disagreement(_column(flat, key))}" for key in odd)
        raise InputError(
            f"compare: expected the runs of {variant} to differ in their seed alone, got {listed}; "
            "name them apart: {'name': runs, 'other name': runs}"
        )
    seeds = [run.seed for run in group]
    twice = [run.id for run in group if seeds.count(run.seed) > 1]
    if twice:
        raise InputError(
            f"compare: expected one run of {variant} per seed, got {', '.join(twice)}: choose one"
        )


def _same_rows(frames: Mapping[str, Any]) -> None:
    """Refuse runs whose sample tables list other images, labels or boxes."""
    first_id, first = next(iter(frames.items()))
    for run_id, frame in frames.items():
        for column in ("index", "label", *_BOX):
            if not np.array_equal(first[column].to_numpy(), frame[column].to_numpy()):
                raise InputError(
                    f"compare: cannot rank runs measured on different images: {first_id} and "
                    f"{run_id} differ in the column {column!r} of their samples"
                )


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, with dots between the keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _trained_unlike(grouped: Mapping[str, Sequence[Any]]) -> list[str]:
    """A note for each setting that variants share by name but not by value."""
    flat = {variant: flattened(runs[0].settings) for variant, runs in grouped.items()}
    keys = [key for key in _differing(flat) if not _incidental(key)]
    return [
        f"trained unlike: {key}: {_disagreement(_column(flat, key))}"
        for key in keys
        if all(key in one for one in flat.values())
    ]


def _asks(key: str) -> bool:
    """Whether a setting is part of the question: `patch_size`, `data.folder`, `opacity`."""
    return bool({key, key.replace(".", "_").split("_")[0]} & _QUESTION)


def _incidental(key: str) -> bool:
    """Whether a setting says where and from which seed, not how, a run was trained."""
    return key in _INCIDENTAL or key.endswith("seed")


def _differing(flat: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The keys whose values are not the same everywhere; absent is a value too."""
    keys = dict.fromkeys(key for one in flat.values() for key in one)
    return [key for key in keys if len(set(_column(flat, key).values())) > 1]


def _column(flat: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, str]:
    return {name: repr(one[key]) if key in one else "(none)" for name, one in flat.items()}


def _disagreement(values: Mapping[str, str]) -> str:
    """`value (who, who), value (who)`, short enough for one line."""
    holders: dict[str, list[str]] = {}
    for name, value in values.items():
        holders.setdefault(value[:12] if len(value) > 40 else value, []).append(name)
    return ", ".join(
        f"{value} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for value, names in holders.items()
    )
