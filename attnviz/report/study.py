"""The content of a report: runs, ranking or the reason for none, test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from attnviz.comparison import Comparison, compare
from attnviz.comparison.board import board, board_metrics
from attnviz.comparison.cohorts import cohorts, question_in_words
from attnviz.comparison.from_runs import (
    by_seed,
    map_of,
    none_complete,
    patched,
    run_groups,
    samples_of,
)
from attnviz.comparison.groups import thing_of
from attnviz.comparison.inputs import Source, by_variant, open_runs
from attnviz.errors import AttnvizError, InputError
from attnviz.report.amounts import AMOUNTS, Amount
from attnviz.runs.datasets import Cut


@dataclass(frozen=True)
class Study:
    """Runs of a comparison.

    Attributes:
        runs: All of them, whole or not.
        variants: Variant → its complete runs, in the order of their seeds.
        comparison: The ranking, or None where they may not be ranked.
        refusal: The reason why they may not, empty where they may.
        primary: The metric that ranks.
        map_name: The map that is scored, None for each run's primary map.
        board: The variants by several metrics; None where they may not be ranked.
        amount: How much is shown.
        name: The question in words, where a page has several.
    """

    runs: tuple[Any, ...]
    variants: Mapping[str, Sequence[Any]]
    comparison: Comparison | None
    refusal: str
    primary: str
    map_name: str | None
    board: pd.DataFrame | None = None
    amount: Amount = AMOUNTS[0]
    name: str = ""

    @property
    def drawn(self) -> list[str]:
        """The variants of which pictures are shown: the best in rank."""
        return self.order[: self.amount.variants]

    @property
    def order(self) -> list[str]:
        """The variants, first in rank first; by name where there is no rank."""
        return sorted(self.variants) if self.comparison is None else self.comparison.variants

    @property
    def thing(self) -> str:
        """What the runs look for, such as "lesion"."""
        return thing_of(self.complete)

    @property
    def question(self) -> str:
        """The page's question."""
        return f"Which variant looks at the {self.thing}?"

    @property
    def complete(self) -> list[Any]:
        """The complete runs."""
        return [run for runs in self.variants.values() for run in runs]

    def first(self, variant: str) -> Sample:
        """The samples of the variant's first seed."""
        return self._samples[variant]

    @cached_property
    def _samples(self) -> dict[str, Sample]:
        return {
            variant: Sample(runs[0], self.primary, self.map_name)
            for variant, runs in self.variants.items()
        }


@dataclass(frozen=True)
class Sample:
    """One run's test images, maps and scores, read on demand."""

    run: Any
    primary: str
    requested: str | None

    @cached_property
    def table(self) -> Any:
        """One row per test image."""
        return samples_of(self.run)

    @cached_property
    def map(self) -> str:
        """The name of the map that is shown and scored."""
        return map_of(self.run, self.table, self.requested)

    @cached_property
    def scores(self) -> np.ndarray:
        """The primary score of each test image, NaN where it has none or no object."""
        column = f"{self.map}/{self.primary}"
        if column not in self.table:
            raise InputError(f"run {self.run.id} has no {self.primary!r} of the map {self.map!r}")
        scores = self.table[column].to_numpy(np.float64, na_value=np.nan)
        return np.where(patched(self.table), scores, np.nan)

    @cached_property
    def dataset(self) -> Any:
        """The test images stored beside the run."""
        return self.run.test_set()

    def cuts(self, indices: Sequence[int]) -> list[Cut]:
        """Some images, each at its own size; of a volume the slice with most of its object."""
        return [self.dataset.cut([index]) for index in indices]

    def maps(self, indices: Sequence[int], cuts: Sequence[Cut]) -> list[np.ndarray]:
        """The raw map (h, w) of each of some images; where there are heads, their mean."""
        found = np.asarray(self.run.maps(self.map, indices))
        maps = [cut.of(found[k : k + 1])[0] for k, cut in enumerate(cuts)]
        return [one.mean(0) if one.ndim == 3 else one for one in maps]


def studies_of(source: Source, *, primary: str, map_name: str | None) -> list[Study]:
    """The runs of a page: one study per question and test images, the largest first.

    Runs given by variant are one study as they are. Runs of one variant that were trained in
    several ways are variants of their own, named by what differs, as on the dashboard.

    Raises:
        InputError: There is no complete run among them.
        RunError: There is no such folder.
    """
    if isinstance(source, Mapping):
        return [study_of(source, primary=primary, map_name=map_name)]
    runs = open_runs(source)
    found = cohorts(runs)
    plain = {*by_variant(run for run in runs if run.state == "complete")}
    if not found or (len(found) == 1 and {*found[0].variants} == plain):
        return [study_of(runs, primary=primary, map_name=map_name)]
    studies = [study_of(one.variants, primary=primary, map_name=map_name) for one in found]
    shown = {id(run) for study in studies for run in study.runs}
    rest = tuple(run for run in runs if id(run) not in shown)
    names = [f"{question_in_words(one.question) or one.dataset[:10]}" for one in found]
    named = [
        name if names.count(name) == 1 else f"{name} · {one.dataset[:10]}"
        for name, one in zip(names, found, strict=True)
    ]
    studies = [replace(study, name=name) for study, name in zip(studies, named, strict=True)]
    return [replace(studies[0], runs=(*studies[0].runs, *rest)), *studies[1:]]


def study_of(source: Source, *, primary: str, map_name: str | None) -> Study:
    """Open runs and rank them, if they may be ranked.

    Raises:
        InputError: There is no complete run among them.
        RunError: There is no such folder.
    """
    if isinstance(source, Mapping):
        grouped = {str(name): open_runs(entry) for name, entry in source.items()}
    else:
        grouped = by_variant(open_runs(source))
    runs = tuple(run for group in grouped.values() for run in group)
    kept = {
        variant: by_seed(run for run in group if run.state == "complete")
        for variant, group in grouped.items()
    }
    kept = {variant: group for variant, group in kept.items() if group}
    if not kept:
        raise none_complete("report: ", runs)
    comparison, refusal, table = None, "", None
    try:
        comparison = compare(grouped, primary=primary, map_name=map_name)
        groups, _ = run_groups(kept, map_name)
        table = board(groups, board_metrics(comparison.metrics, primary))
    except AttnvizError as error:
        refusal = str(error)
    return Study(runs, kept, comparison, refusal, primary, map_name, table)
