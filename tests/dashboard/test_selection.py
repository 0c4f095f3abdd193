"""Which runs, which images, in which order; and what the address may ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dashboard import selection
from dashboard.selection import Choice


@dataclass
class FakeRun:
    id: str
    variant: str = "mha"
    seed: int = 0
    state: str = "complete"
    dataset: str = "d1"
    settings: dict[str, Any] = field(default_factory=lambda: {"size": 16, "lr": 0.1})
    created: int = 0


def samples(n: int = 6) -> pd.DataFrame:
    patched = np.arange(n) % 2 == 0
    return pd.DataFrame(
        {
            "index": np.arange(n),
            "correct": [True, True, False, True, True, False][:n],
            "x0": 0,
            "y0": 0,
            "x1": np.where(patched, np.arange(n) + 8, 0),
            "y1": np.where(patched, 8, 0),
            "a/energy": np.where(patched, np.linspace(0.9, 0.4, n), np.nan),
            "a/agreement_ssim": 0.5,
            "b.c/energy": 0.2,
        }
    )


class TestTheAddress:
    def test_a_missing_parameter_is_the_default_without_a_complaint(self):
        assert selection.one_of({}, "order", ["worst", "best"], "worst") == ("worst", None)
        assert selection.whole({}, "image", 0, 9, 3) == (3, None)
        assert selection.share({}, "tau", 0.4) == (0.4, None)
        assert selection.several({}, "runs", ["a"]) == ([], None)

    def test_a_good_value_is_taken(self):
        assert selection.one_of({"order": "best"}, "order", ["worst", "best"], "worst")[0] == "best"
        assert selection.whole({"image": "9"}, "image", 0, 9, 3) == (9, None)
        assert selection.share({"tau": "1"}, "tau", 0.4) == (1.0, None)
        assert selection.several({"runs": "b,a,b"}, "runs", ["a", "b"]) == (["b", "a"], None)

    @pytest.mark.parametrize("bad", ["10", "-1", "2.5", "nan", "", "1e2", "٣x", "9" * 400])
    def test_a_bad_number_is_said_and_not_taken(self, bad):
        value, complaint = selection.whole({"image": bad}, "image", 0, 9, 3)
        assert value == 3
        assert "from 0 to 9" in complaint
        assert "Shown instead: 3" in complaint

    @pytest.mark.parametrize("bad", ["1.01", "-0.1", "nan", "inf", "x", ""])
    def test_a_bad_share_is_said_and_not_taken(self, bad):
        value, complaint = selection.share({"tau": bad}, "tau", 0.4)
        assert value == 0.4
        assert "from 0 to 1" in complaint

    def test_an_unknown_word_names_those_that_exist(self):
        value, complaint = selection.one_of({"order": "worse"}, "order", ["worst", "best"], "worst")
        assert value == "worst"
        assert "`worse`" in complaint
        assert "worst, best" in complaint

    def test_unknown_ids_are_named_and_the_known_ones_stay(self):
        found, complaint = selection.several({"runs": "a,zz,b,../x"}, "runs", ["a", "b"])
        assert found == ["a", "b"]
        assert "`zz`" in complaint
        assert "`../x`" in complaint

    def test_quoting_cannot_be_left(self):
        assert "`" not in selection.quoted("a` **b** `c")[1:-1]
        assert selection.quoted("x" * 1000).endswith("…`")
        assert "\n" not in selection.quoted("a\nb")

    @pytest.mark.parametrize(
        "text", ["<b>", "[x](y)", "$a$", ":red[x]", "*a*", "#a", "a_b_c", "\\"]
    )
    def test_every_mark_is_escaped(self, text):
        marks = set("\\`*_{}[]()<>#$:")
        out = selection.plain(text)
        bare = [c for i, c in enumerate(out) if c in marks - {"\\"} and out[i - 1] != "\\"]
        assert not bare
        assert out.replace("\\", "") == text.replace("\\", "")


class TestCohorts:
    def test_only_complete_runs_on_the_same_images_with_the_same_question_are_together(self):
        runs = [
            FakeRun("a"),
            FakeRun("b", variant="cnn"),
            FakeRun("c", dataset="d2"),
            FakeRun("d", state="running"),
            FakeRun("e", settings={"size": 8, "lr": 0.1}),
        ]
        found = selection.cohorts(runs)
        assert [[run.id for run in one.runs] for one in found] == [["b", "a"], ["e"], ["c"]]

    def test_another_learning_rate_is_another_variant_of_the_same_name(self):
        slow = {"size": 16, "lr": 0.01}
        runs = [FakeRun("a"), FakeRun("b", seed=1, settings=slow), FakeRun("c", variant="cnn")]
        (cohort,) = selection.cohorts(runs)
        names = {name: [run.id for run in group] for name, group in cohort.variants.items()}
        assert names == {"cnn": ["c"], "mha · lr=0.1": ["a"], "mha · lr=0.01": ["b"]}

    def test_settings_that_part_the_runs_alike_are_told_once(self):
        slow = {"size": 16, "lr": 0.01, "schedule": {"lr": 0.01}}
        fast = {"size": 16, "lr": 0.1, "schedule": {"lr": 0.2}}
        runs = [FakeRun("a", settings=fast), FakeRun("b", settings=slow)]
        assert list(selection.variants(runs)) == ["mha · lr=0.1", "mha · lr=0.01"]

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
        assert selection.asked_in_words(selection.question(FakeRun("a", settings=settings))) == said

    def test_of_two_runs_of_one_seed_the_newer_counts(self):
        (cohort,) = selection.cohorts([FakeRun("old", created=1), FakeRun("new", created=2)])
        assert [run.id for run in cohort.runs] == ["new"]
        assert [run.id for run in cohort.replaced] == ["old"]

    def test_differences_name_only_what_differs(self):
        runs = [FakeRun("a"), FakeRun("b", seed=3, settings={"size": 16, "lr": 0.2, "new": 1})]
        table = selection.differences(runs)
        assert list(table.index) == ["seed", "lr", "new"]
        assert list(table.loc["new"]) == ["(none)", "1"]

    def test_a_filter_looks_into_settings_and_needs_every_word(self):
        run = FakeRun("run-7", settings={"lr": 0.1, "patch": {"size": 16}})
        assert selection.matching(run, "MHA patch.size=16")
        assert not selection.matching(run, "mha patch.size=8")
        assert selection.matching(run, "")


class TestOrders:
    def test_worst_first_and_what_cannot_be_scored_last(self):
        table = samples()
        values = selection.scores(table, "a", "energy")
        assert list(selection.in_order(table, values, Choice("worst"))) == [4, 2, 0, 1, 3, 5]
        assert list(selection.in_order(table, values, Choice("best"))) == [0, 2, 4, 1, 3, 5]

    def test_worst_is_the_highest_where_less_is_better(self):
        table = samples()
        values = selection.scores(table, "a", "energy")
        found = selection.in_order(table, values, Choice("worst"), metric="deletion_auc")
        assert list(found)[:3] == [0, 2, 4]

    def test_disagreement_is_the_range_of_the_variants_means(self):
        a, b = np.array([0.1, 0.5, np.nan]), np.array([0.2, 0.9, 0.3])
        c = np.array([0.3, 0.7, 0.3])
        found = selection.spread({"one": [a, b], "two": [c]})
        assert found[0] == pytest.approx(0.15)
        assert found[1] == pytest.approx(0.0)
        assert found[2] == pytest.approx(0.0)
        alone = selection.spread({"one": [a], "two": [np.array([np.nan, 0.5, np.nan])]})
        assert np.isnan(alone[[0, 2]]).all()
        order = selection.in_order(
            samples(3), a, Choice("disagreement"), disagreement=np.array([0.1, np.nan, 0.4])
        )
        assert list(order) == [2, 0, 1]

    def test_filters_keep_the_order(self):
        table = samples()
        values = selection.scores(table, "a", "energy")
        wrong = selection.in_order(table, values, Choice("worst", outcome="wrong"))
        assert list(wrong) == [2, 5]
        sized = selection.in_order(table, values, Choice("number", size=12))
        assert list(sized) == [4]

    def test_an_unknown_column_is_nan_everywhere(self):
        assert np.isnan(selection.scores(samples(), "a", "nothing")).all()

    def test_pages_cover_everything_once(self):
        where = np.arange(100)
        parts = [selection.page_of(where, page) for page in range(selection.pages(100))]
        assert [len(part) for part in parts] == [48, 48, 4]
        assert list(np.concatenate(parts)) == list(where)
        assert selection.pages(0) == 1

    def test_neighbours_end_at_the_ends(self):
        where = np.array([4, 2, 0])
        assert selection.neighbours(where, 4) == (None, 2)
        assert selection.neighbours(where, 0) == (2, None)
        assert selection.neighbours(where, 5) == (None, None)


class TestMaps:
    def test_names_come_from_the_columns(self):
        assert selection.map_names(samples()) == ["a", "b.c"]
        assert selection.metric_names(samples(), "a") == ["energy"]
        assert selection.agreement_names(samples(), "a") == ["ssim"]

    @pytest.mark.parametrize(
        ("summary", "expected"),
        [({"map": "b.c"}, "b.c"), ({"map": "gone"}, "a"), ({}, "a")],
    )
    def test_the_primary_map_is_the_summarys_if_it_has_scores(self, summary, expected):
        run = type("R", (), {"summary": summary})()
        assert selection.primary_map(run, samples()) == expected

    @pytest.mark.parametrize("kept", [{}, {"b": 0.1}, {"a": 7.0}, {"a": -0.1}])
    def test_a_threshold_that_makes_no_sense_is_one_half(self, kept):
        run = type("R", (), {"summary": {"threshold": kept}})()
        assert selection.threshold_of(run, "a") == 0.5
        run.summary = {"threshold": {"a": 0.31}}
        assert selection.threshold_of(run, "a") == 0.31
