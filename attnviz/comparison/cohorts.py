"""Groups of comparable runs, and the settings that distinguish them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from attnviz.comparison.from_runs import asks, incidental
from attnviz.runs import differing, flat, in_words


@dataclass(frozen=True)
class Cohort:
    """Runs that may be ranked together: same test images, same question.

    Attributes:
        dataset: The digest of the test images.
        question: The settings that make the question, as `(key, value)` pairs.
        runs: The runs, one per variant and seed.
        replaced: Older runs of the same variant, settings and seed.
    """

    dataset: str
    question: tuple[tuple[str, str], ...]
    runs: tuple[Any, ...]
    replaced: tuple[Any, ...] = ()

    @cached_property
    def variants(self) -> dict[str, list[Any]]:
        """Runs by variant, named by the settings in which runs of one variant differ."""
        return variants(self.runs)


def cohorts(runs: Iterable[Any]) -> list[Cohort]:
    """Complete runs in groups that may be ranked; the one with the most variants first."""
    grouped: dict[tuple[str, tuple[tuple[str, str], ...]], list[Any]] = {}
    for run in runs:
        if run.state == "complete":
            grouped.setdefault((str(run.dataset), question(run)), []).append(run)
    found = [_cohort(dataset, same, members) for (dataset, same), members in grouped.items()]
    return sorted(found, key=lambda one: (-len(one.variants), -len(one.runs), one.dataset))


def _cohort(dataset: str, question: tuple[tuple[str, str], ...], runs: list[Any]) -> Cohort:
    newest: dict[tuple[str, str, str], Any] = {}
    replaced = []
    for run in sorted(runs, key=lambda one: (str(one.created), one.id)):
        key = (str(run.variant), str(run.seed), repr(_trained(run)))
        if key in newest:
            replaced.append(newest[key])
        newest[key] = run
    kept = tuple(sorted(newest.values(), key=lambda one: (str(one.variant), one.seed, one.id)))
    return Cohort(dataset, question, kept, tuple(replaced))


def variants(runs: Iterable[Any]) -> dict[str, list[Any]]:
    """Runs by variant; `name · key=value` where one variant was trained in several ways."""
    by_name: dict[str, list[Any]] = {}
    for run in runs:
        by_name.setdefault(str(run.variant), []).append(run)
    out: dict[str, list[Any]] = {}
    for name, members in by_name.items():
        told_apart = _telling(in_words(differing({run.id: _trained(run) for run in members})))
        for run in members:
            suffix = ", ".join(f"{key}={values[run.id]}" for key, values in told_apart.items())
            out.setdefault(f"{name} · {suffix}" if suffix else name, []).append(run)
    return out


def _telling(columns: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    """Settings without those that part the runs as one with a shorter name does already."""
    kept: dict[tuple[int, ...], str] = {}
    for key in sorted(columns, key=len):
        values = list(columns[key].values())
        kept.setdefault(tuple(values.index(value) for value in values), key)
    return {key: columns[key] for key in columns if key in kept.values()}


def differences(runs: Sequence[Any]) -> pd.DataFrame:
    """The settings in which runs differ: one row per setting, one column per run."""
    settings = {run.id: {"variant": run.variant, "seed": run.seed, **run.settings} for run in runs}
    columns = in_words(differing(settings))
    table = pd.DataFrame.from_dict(columns, orient="index", columns=list(settings), dtype=str)
    return table.rename_axis("setting")


def matching(run: Any, words: str) -> bool:
    """Whether each word is found in a run's id, variant, state, or `setting=value`."""
    text = matchable(run).casefold()
    return all(word in text for word in words.casefold().split())


def matchable(run: Any) -> str:
    """The text of a run that a filter searches."""
    settings = [f"{key}={value}" for key, value in flat(run.settings).items()]
    return " ".join([run.id, run.variant, run.state, f"seed={run.seed}", *settings])


def question(run: Any) -> tuple[tuple[str, str], ...]:
    """The settings that make a run's question, as `(key, value)` pairs."""
    settings = flat(run.settings)
    return tuple(sorted((key, str(value)) for key, value in settings.items() if asks(key)))


def question_in_words(question: Sequence[tuple[str, str]]) -> str:
    """A question as its name and its patch: `patch, square of 16, photos`."""
    settings = {key.removeprefix("patch."): value for key, value in question}
    patch = " of ".join(settings[key] for key in ("shape", "size") if key in settings)
    faint = f"opacity {settings['opacity']}" if settings.get("opacity", "1.0") != "1.0" else ""
    parts = (settings.get("question"), patch, faint, settings.get("data"))
    return ", ".join(part for part in parts if part)


def _trained(run: Any) -> dict[str, str]:
    settings = flat(run.settings)
    return {k: str(v) for k, v in settings.items() if not asks(k) and not incidental(k)}
