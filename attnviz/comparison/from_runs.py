"""Groups of scores from run folders, after checking that the runs are comparable.

Every difference that would bias a ranking is an error that names it: other images, another
question, replicates with different training settings. What may differ between variants is the model
and how it was trained; a difference in training settings gives a note, since it may explain the
ranking. Within one variant only the seed may differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attnviz.comparison.groups import Group, thing_of
from attnviz.definitions import LEVELS
from attnviz.errors import InputError, unknown_name
from attnviz.runs import ABSENT, differing, in_words
from attnviz.statistics.clusters import GROUP, labelled
from attnviz.statistics.variance import mean_of_valid

_NEEDED = ("index", "x0", "y0", "x1", "y1")
_SHARED = ("label", "name")
"""Columns that must agree between runs that have them."""
_QUESTION = {
    *("question", "target", "data", "dataset", "folder", "split", "test", "image", "side"),
    *("patch", "size", "shape", "fill", "opacity", "count", "fraction"),
}
_INCIDENTAL = {
    *("variant", "name", "seed", "out", "runs", "root"),
    *("device", "workers", "threads", "resume", "progress"),
}


def run_groups(
    runs: Mapping[str, Sequence[Any]], map_name: str | None = None
) -> tuple[list[Group], list[str]]:
    """One group per variant from its complete runs, and notes on what was left out.

    Args:
        runs: Variant → runs.
        map_name: The map that is scored; each run's primary map by default.

    Raises:
        InputError: No run is complete, or they may not be ranked; the message names the difference.
        RunError: A table cannot be read.
    """
    kept = {
        variant: _by_name(run for run in group if run.state == "complete")
        for variant, group in runs.items()
    }
    kept = {variant: group for variant, group in kept.items() if group}
    unfit = [run for group in runs.values() for run in group if run.state != "complete"]
    if not kept:
        raise none_complete("compare: ", unfit)
    kept, frames, unscored = _scored(kept)
    _same_question({name: run for group in kept.values() for name, run in group.items()})
    for variant, group in kept.items():
        _replicates(variant, group)
    _same_rows(frames)
    groups = [_group(variant, group, frames, map_name) for variant, group in kept.items()]
    return groups, [*_trained_unlike(kept), *_left_out(unfit), *unscored]


def _scored(
    kept: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], list[str]]:
    """The runs that have scores, their samples, and a note on each of the others.

    Raises:
        InputError: No run has.
    """
    frames: dict[str, Any] = {}
    wrong: dict[str, InputError] = {}
    for group in kept.values():
        for name, run in group.items():
            try:
                frames[name] = samples_of(run)
            except InputError as error:
                wrong[name] = error
    if not frames:
        raise next(iter(wrong.values()))
    found = {
        variant: {name: run for name, run in group.items() if name in frames}
        for variant, group in kept.items()
    }
    notes = [f"left out: {str(error).removeprefix('compare: ')}" for error in wrong.values()]
    return {variant: group for variant, group in found.items() if group}, frames, notes


def none_complete(what: str, runs: Sequence[Any]) -> InputError:
    """The error for a set of runs without a complete one; it lists their states."""
    states = ", ".join(f"{run.id} is {run.state}" for run in runs[:5]) or "no run at all"
    return InputError(f"{what}expected at least one complete run, got {states}")


def by_seed(runs: Iterable[Any]) -> list[Any]:
    """Runs in the order of their seeds; those without one last."""
    return sorted(runs, key=lambda run: (run.seed is None, run.seed or 0, run.id))


def _by_name(runs: Iterable[Any]) -> dict[str, Any]:
    """Runs by id, or by folder where two folders hold the same id; in the order of their seeds."""
    found = by_seed(runs)
    twice = Counter(run.id for run in found)
    return {run.id if twice[run.id] == 1 else run.location: run for run in found}


def samples_of(run: Any) -> Any:
    """A run's samples, with the columns that a comparison needs.

    Raises:
        InputError: It has no samples, or not these columns.
    """
    if "samples.parquet" not in getattr(run, "files", {"samples.parquet": None}):
        raise InputError(f"compare: run {run.id}: expected samples, got a run without any")
    frame = run.samples()
    missing = [column for column in _NEEDED if column not in frame]
    if missing:
        raise InputError(
            f"compare: run {run.id}: expected samples with the columns {', '.join(_NEEDED)}, "
            f"got none called {', '.join(missing)}"
        )
    return frame


def _group(
    variant: str, runs: Mapping[str, Any], frames: Mapping[str, Any], map_name: str | None
) -> Group:
    """One variant's runs: the rows with a patch, the columns of one map."""
    scores, correct, levels = [], [], []
    grouping: tuple[Any, ...] | None = None
    for name, run in runs.items():
        frame = frames[name]
        chosen = map_of(run, frame, map_name)
        marked = frame[patched(frame)]
        scores.append(_columns(marked, f"{chosen}/"))
        correct.append(_correct(marked))
        grouping = grouping or grouping_of(marked)
        levels.append((run.summary.get("metrics") or {}).get(chosen) or {})
    shared = [metric for metric in scores[0] if all(metric in one for one in scores)]
    return Group(
        variant,
        tuple(name if run.seed is None else run.seed for name, run in runs.items()),
        {metric: np.stack([one[metric] for one in scores]) for metric in shared},
        np.stack(correct),
        tuple(_accuracy(run, frames[name]) for name, run in runs.items()),
        {metric: _mean_levels([one.get(metric) or {} for one in levels]) for metric in shared},
        grouping,
        thing_of(runs.values()),
    )


def _correct(frame: Any) -> np.ndarray:
    """1 where the model was right, NaN where that is not known."""
    if "correct" not in frame:
        return np.full(len(frame), np.nan)
    found: np.ndarray = frame["correct"].to_numpy(dtype=np.float64, na_value=np.nan)
    return found


def grouping_of(frame: Any) -> tuple[Any, ...] | None:
    """The group of each sample, None where the table names none."""
    return labelled(frame[GROUP].to_numpy(), "compare") if GROUP in frame else None


def _columns(frame: Any, prefix: str) -> dict[str, np.ndarray]:
    """The columns that start with a map's name, by metric."""
    return {
        str(column).removeprefix(prefix): frame[column].to_numpy(np.float64, na_value=np.nan)
        for column in frame.columns
        if str(column).startswith(prefix)
    }


def patched(frame: Any) -> np.ndarray:
    """Which images have a marked object, (n,) bool."""
    marked = (frame["x1"] > frame["x0"]) & (frame["y1"] > frame["y0"])
    return np.asarray(marked.to_numpy())


def map_names(frame: Any) -> list[str]:
    """The maps that have scores, in the table's order."""
    columns = (str(column) for column in frame.columns)
    return list(dict.fromkeys(name.rpartition("/")[0] for name in columns if "/" in name))


def map_of(run: Any, frame: Any, map_name: str | None) -> str:
    """The scored map: the requested one, the run's primary one, or its only one."""
    known = map_names(frame)
    chosen = map_name or run.summary.get("map") or (known[0] if len(known) == 1 else None)
    if chosen is None:
        raise InputError(
            f"compare: run {run.id} names no primary map: expected map_name=, one of "
            f"{', '.join(known) or 'those that it scored, but it scored none'}"
        )
    if chosen not in known:
        raise unknown_name(f"map of run {run.id}", str(chosen), known)
    return str(chosen)


def _accuracy(run: Any, frame: Any) -> float:
    reported = run.summary.get("accuracy")
    return mean_of_valid(_correct(frame)).item() if reported is None else float(reported)


def _mean_levels(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean over seeds of each level that every seed has."""
    known = [name for name in LEVELS if all(row.get(name) is not None for row in rows)]
    return {name: float(np.mean([row[name] for row in rows])) for name in known}


# What may be compared


def _same_question(runs: Mapping[str, Any]) -> None:
    """Refuse runs with other test images or another question."""
    digests = {name: str(run.dataset) for name, run in runs.items()}
    if len(set(digests.values())) > 1:
        raise InputError(
            f"compare: cannot rank runs measured on different images: {disagreement(digests)}"
        )
    questions = {
        key: values
        for key, values in _differing({n: r.settings for n, r in runs.items()}).items()
        if asks(key) and not _unsaid(key, values)
    }
    if questions:
        raise InputError(
            f"compare: cannot rank runs that answer different questions: {_listed(questions)}"
        )


def _unsaid(key: str, values: Mapping[str, str]) -> bool:
    """Whether runs that say something agree in it: older versions, and others, do not say it."""
    said = {value for value in values.values() if value != ABSENT}
    return key in ("factory", "target") and len(said) < 2


def _replicates(variant: str, runs: Mapping[str, Any]) -> None:
    """Refuse a variant whose runs differ in more than the seed, or share a seed."""
    odd = {
        key: values
        for key, values in _differing({n: r.settings for n, r in runs.items()}).items()
        if not incidental(key) and not _unsaid(key, values)
    }
    if odd:
        raise InputError(
            f"compare: expected the runs of {variant} to differ in their seed alone, got "
            f"{_listed(odd)}; name them apart: {{'one name': runs, 'other name': runs}}"
        )
    seeds = Counter(run.seed for run in runs.values() if run.seed is not None)
    twice = [name for name, run in runs.items() if seeds[run.seed] > 1]
    if twice:
        raise InputError(
            f"compare: expected one run of {variant} per seed, got {', '.join(twice)}; choose one"
        )


def _same_rows(frames: Mapping[str, Any]) -> None:
    """Refuse runs whose samples list other images, labels or boxes."""
    first, against = next(iter(frames.items()))
    grouped = {name: grouping_of(frame) for name, frame in frames.items()}
    known = {name: labels for name, labels in grouped.items() if labels is not None}
    if len(set(known.values())) > 1:
        raise InputError(
            f"compare: cannot rank runs whose samples name other groups: {', '.join(known)} differ "
            f"in the column {GROUP!r}"
        )
    for name, frame in frames.items():
        both = [column for column in _SHARED if column in against and column in frame]
        for column in (*_NEEDED, *both):
            if (
                not against[column]
                .reset_index(drop=True)
                .equals(frame[column].reset_index(drop=True))
            ):
                raise InputError(
                    f"compare: cannot rank runs measured on different images: {first} and {name} "
                    f"differ in the column {column!r} of their samples"
                )


def _trained_unlike(kept: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A note for each setting that differs between variants and is not part of their names."""
    settings = {variant: next(iter(runs.values())).settings for variant, runs in kept.items()}
    return [
        f"trained unlike: {key}: {disagreement(values)}"
        for key, values in _differing(settings).items()
        if not (incidental(key) or key == "factory")
        and ABSENT not in values.values()
        and not _named_by(key, values)
    ]


def _named_by(key: str, values: Mapping[str, str]) -> bool:
    """Whether each variant's name contains its value of a setting; None needs no mention."""
    words = {"True": "yes", "False": "no"}
    return all(
        value == "None" or f"{key.replace('_', ' ')} {words.get(value, value)}" in variant
        for variant, value in values.items()
    )


def _left_out(runs: Sequence[Any]) -> list[str]:
    """One note on the runs that are not complete."""
    states = Counter(run.state for run in runs)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    names = ", ".join(run.id for run in runs[:4]) + (", …" if len(runs) > 4 else "")
    return [f"left out: {counted} ({names})"] if runs else []


# Settings


def asks(key: str) -> bool:
    """Whether a setting is part of the question: `patch_size`, `data.folder`, `opacity`."""
    return bool({key, key.replace(".", "_").split("_")[0]} & _QUESTION)


def incidental(key: str) -> bool:
    """Whether a setting is a place, a seed or of the measurement, and not of the training."""
    return key in _INCIDENTAL or key.endswith("seed") or key.startswith("evaluation.")


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    return in_words(differing(settings))


def disagreement(values: Mapping[str, str]) -> str:
    """`value (run, run), value (run)`, short enough for one line."""
    holders: dict[str, list[str]] = {}
    for name, value in values.items():
        holders.setdefault(value, []).append(name)
    return ", ".join(
        f"{value[:12] + '…' if len(value) > 32 else value} "
        f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for value, names in holders.items()
    )


def _listed(settings: Mapping[str, Mapping[str, str]]) -> str:
    return "; ".join(f"{key}: {disagreement(values)}" for key, values in settings.items())
