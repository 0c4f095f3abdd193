"""Which images, in which order, by which map."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dashboard import selection
from dashboard.selection import Choice


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
