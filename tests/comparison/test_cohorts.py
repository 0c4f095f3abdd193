"""Which runs may stand side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from attnviz.comparison import cohorts


@dataclass
class FakeRun:
    id: str
    variant: str = "mha"
    seed: int = 0
    state: str = "complete"
    dataset: str = "d1"
    settings: dict[str, Any] = field(default_factory=lambda: {"size": 16, "lr": 0.1})
    created: int = 0


class TestCohorts:
    def test_only_complete_runs_on_the_same_images_with_the_same_question_are_together(self):
        runs = [
            FakeRun("a"),
            FakeRun("b", variant="cnn"),
            FakeRun("c", dataset="d2"),
            FakeRun("d", state="running"),
            FakeRun("e", settings={"size": 8, "lr": 0.1}),
        ]
        found = cohorts.cohorts(runs)
        assert [[run.id for run in one.runs] for one in found] == [["b", "a"], ["e"], ["c"]]

    def test_another_learning_rate_is_another_variant_of_the_same_name(self):
        slow = {"size": 16, "lr": 0.01}
        runs = [FakeRun("a"), FakeRun("b", seed=1, settings=slow), FakeRun("c", variant="cnn")]
        (cohort,) = cohorts.cohorts(runs)
        names = {name: [run.id for run in group] for name, group in cohort.variants.items()}
        assert names == {"cnn": ["c"], "mha · lr=0.1": ["a"], "mha · lr=0.01": ["b"]}

    def test_settings_that_part_the_runs_alike_are_told_once(self):
        slow = {"size": 16, "lr": 0.01, "schedule": {"lr": 0.01}}
        fast = {"size": 16, "lr": 0.1, "schedule": {"lr": 0.2}}
        runs = [FakeRun("a", settings=fast), FakeRun("b", settings=slow)]
        assert list(cohorts.variants(runs)) == ["mha · lr=0.1", "mha · lr=0.01"]

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"question": "patch", "size": 8, "shape": "ring"}, "patch, ring of 8"),
            ({"size": 16, "opacity": 0.5, "data": "photos"}, "16, opacity 0.5, photos"),
            ({"patch": {"shape": "disc", "size": 4, "opacity": 1.0}}, "disc of 4"),
            ({"lr": 0.1}, ""),
        ],
    )
    def test_a_question_is_said_in_words(self, settings, said):
        assert cohorts.question_in_words(cohorts.question(FakeRun("a", settings=settings))) == said

    def test_of_two_runs_of_one_seed_the_newer_counts(self):
        (cohort,) = cohorts.cohorts([FakeRun("old", created=1), FakeRun("new", created=2)])
        assert [run.id for run in cohort.runs] == ["new"]
        assert [run.id for run in cohort.replaced] == ["old"]

    def test_differences_name_only_what_differs(self):
        runs = [FakeRun("a"), FakeRun("b", seed=3, settings={"size": 16, "lr": 0.2, "new": 1})]
        table = cohorts.differences(runs)
        assert list(table.index) == ["seed", "lr", "new"]
        assert list(table.loc["new"]) == ["(none)", "1"]

    def test_a_filter_looks_into_settings_and_needs_every_word(self):
        run = FakeRun("run-7", settings={"lr": 0.1, "patch": {"size": 16}})
        assert cohorts.matching(run, "MHA patch.size=16")
        assert not cohorts.matching(run, "mha patch.size=8")
        assert cohorts.matching(run, "")
