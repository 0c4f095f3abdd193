"""Comparing score tables: every form they come in, and every fault they may have."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import attnviz
from attnviz.comparison import compare
from attnviz.errors import InputError

PRIMARY = "energy_pointing_game"


def scores(mean: float, images: int = 10, seed: int = 0) -> np.ndarray:
    return mean + np.random.default_rng(seed).normal(0, 0.01, images)


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: {PRIMARY: rows},
        lambda rows: [{PRIMARY: row} for row in rows],
        lambda rows: {seed: {PRIMARY: row} for seed, row in enumerate(rows)},
        lambda rows: {seed: pd.DataFrame({PRIMARY: row}) for seed, row in enumerate(rows)},
        lambda rows: rows,
        lambda rows: list(rows),
        lambda rows: rows.tolist(),
        lambda rows: [{PRIMARY: torch.tensor(row)} for row in rows],
        lambda rows: {PRIMARY: torch.tensor(rows, requires_grad=True)},
        lambda rows: [pd.DataFrame({PRIMARY: row}) for row in rows],
        lambda rows: [torch.tensor(row) for row in rows],
    ],
    ids=[
        *("dict", "dicts", "by seed", "frames by seed", "array", "arrays", "lists", "tensors"),
        *("grad", "frames", "tensor list"),
    ],
)
def test_every_form_gives_the_same_answer(form: Any) -> None:
    a, b = (np.stack([scores(mean, seed=s) for s in range(3)]) for mean in (0.6, 0.4))
    plain = compare({"a": a, "b": b}, resamples=50)
    result = compare({"a": form(a), "b": form(b)}, resamples=50)
    pd.testing.assert_frame_equal(result.table, plain.table)
    assert result.table["seeds"].tolist() == [3, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_one_seed_of_any_float_type(dtype: torch.dtype) -> None:
    row = torch.tensor([0.5, 0.25, 0.75], dtype=dtype)
    result = compare({"a": {PRIMARY: row}, "b": row}, resamples=50)
    assert result.table["mean"].tolist() == [0.5, 0.5]


def test_the_caller_keeps_its_arrays() -> None:
    row = np.array([0.5, np.nan, 0.7])
    before = row.copy()
    compare({"a": row}, resamples=10)
    np.testing.assert_array_equal(row, before)


def test_correct_is_no_metric_but_gives_accuracy_and_the_split() -> None:
    table = {PRIMARY: np.array([0.8, 0.6, 0.1, 0.3]), "correct": np.array([1, 1, 0, 0])}
    result = compare({"a": table}, resamples=10)
    assert result.metrics == [PRIMARY]
    assert result.table["accuracy"].tolist() == [0.5]
    assert result.split[["right", "wrong"]].iloc[0].tolist() == pytest.approx([0.7, 0.2])


def test_what_is_known_of_no_image_is_not_known() -> None:
    nothing = [np.nan] * 10
    table = {"a": {PRIMARY: scores(0.5), "correct": nothing}}
    row = compare(table, resamples=10, baselines={PRIMARY: {"chance": nothing}}).table.iloc[0]
    assert np.isnan([row.accuracy, row.chance]).all()


@pytest.mark.parametrize(
    "baselines",
    [
        {PRIMARY: {"chance": 0.03, "redrawn": [0.7, 0.9]}},
        {"chance": {PRIMARY: 0.03}, "redrawn": {PRIMARY: torch.tensor([0.7, 0.9])}},
    ],
)
def test_baselines_either_way_round(baselines: Any) -> None:
    row = compare({"a": scores(0.5)}, baselines=baselines, resamples=10).table.iloc[0]
    assert row.chance == 0.03
    assert row.redrawn == pytest.approx(0.8)
    assert np.isnan(row.centre)


def test_only_shared_metrics_unless_named() -> None:
    tables = {
        "a": {PRIMARY: scores(0.5), "max_iou": scores(0.4), "x": scores(0.1)},
        "b": {PRIMARY: scores(0.4), "max_iou": scores(0.3)},
    }
    assert compare(tables, resamples=10).metrics == [PRIMARY, "max_iou"]
    assert compare(tables, resamples=10, primary="max_iou").metrics == ["max_iou", PRIMARY]
    assert compare(tables, resamples=10, metrics=[]).metrics == [PRIMARY]
    with pytest.raises(InputError, match="expected 'x' of every variant, got none of b"):
        compare(tables, metrics=["x"])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "at least one variant, got none"),
        ({"a": scores(0.5), "b": scores(0.5, 9)}, "different images: a on 10, b on 9; measure"),
        ({"a": np.zeros((2, 3, 4))}, r"a, energy_pointing_game: .*got \(2, 3, 4\)"),
        ({"a": []}, "a, energy_pointing_game: expected one score per image"),
        (
            {"a": np.array(["high", "low"])},
            "a, energy_pointing_game: expected an array of numbers, got",
        ),
        ({"a": [{PRIMARY: scores(1)}, {}]}, "a: .* got no 'energy_pointing_game' for seed 1"),
        (
            {"a": {PRIMARY: scores(1), "max_iou": scores(1, 9)}},
            r"energy_pointing_game \(1, 10\), max_iou \(1, 9\)",
        ),
        ({"a": {"correct": [1, 0]}}, "a: expected scores, got a table without any"),
        ({"a": {"pixel_auroc": scores(1)}}, "unknown metric 'energy_pointing_game'"),
        (
            {PRIMARY: scores(1), "iou": scores(1), "correct": scores(1)},
            "got one table of energy_pointing_game, iou, correct; give it a name: {'name': scores}",
        ),
    ],
)
def test_what_is_wrong_is_named(tables: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare(tables, resamples=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 1}, "at least 2 resamples, got 1"),
        ({"confidence": 95.0}, "confidence between 0 and 1, got 95"),
        ({"baselines": {PRIMARY: 0.1}}, "expected {metric: {level: value}}, got float"),
        ({"primary": "energy"}, "unknown metric 'energy': did you mean 'energy_pointing_game'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare({"a": {PRIMARY: scores(0.5)}}, **options)


def test_what_is_neither_table_nor_run(unchecked: None) -> None:
    with pytest.raises(InputError, match="runs, or a folder of runs, got int"):
        compare(3)  # type: ignore[arg-type]  # the point of the test


FRESH = """
import sys
import attnviz
{first}
scores = {{"a": [[0.5, 0.6, 0.7]] * 3, "b": [[0.1, 0.2, 0.2]] * 3}}
result = attnviz.compare(scores, resamples=50)
assert result.winner == "a", result
assert "torch" not in sys.modules, "comparing tables imported torch"
assert "matplotlib" not in sys.modules, "comparing tables imported matplotlib"
"""


@pytest.mark.parametrize(
    "first", ["", "import attnviz.comparison", "from attnviz.comparison import rank"]
)
def test_the_front_door_works_whatever_was_imported_first(first: str) -> None:
    code = FRESH.format(first=first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_is_the_front_door_s() -> None:
    assert attnviz.compare({"a": [0.5, 0.6]}, resamples=10).variants == ["a"]


class TestGroups:
    ROWS = np.stack([scores(0.5, seed=s) for s in range(3)])

    @pytest.mark.parametrize(
        "labels",
        [
            ["a", "b"] * 5,
            np.array(["a", "b"] * 5),
            pd.Series(["a", "b"] * 5),
            torch.tensor([0, 1] * 5),
            (3, 7) * 5,
        ],
        ids=["list", "array", "series", "tensor", "tuple"],
    )
    def test_every_form_gives_the_same_answer(self, labels: Any) -> None:
        plain = compare({"a": self.ROWS}, groups=["x", "y"] * 5, resamples=10)
        found = compare({"a": self.ROWS}, groups=labels, resamples=10)
        pd.testing.assert_frame_equal(found.table, plain.table)
        assert found.groups == 2

    def test_a_table_may_bring_them(self) -> None:
        table = {PRIMARY: self.ROWS, "group": ["x", "y"] * 5}
        by_seed = [pd.DataFrame({PRIMARY: row, "group": ["x", "y"] * 5}) for row in self.ROWS]
        plain = compare({"a": self.ROWS}, groups=["x", "y"] * 5, resamples=10)
        for form in (table, by_seed):
            found = compare({"a": form, "b": self.ROWS}, resamples=10)
            assert found.metrics == [PRIMARY]
            assert found.table["low"].iloc[0] == plain.table["low"].iloc[0]

    def test_images_without_a_group_are_their_own(self) -> None:
        alone = compare({"a": self.ROWS}, resamples=10)
        for labels in ([None] * 10, [""] * 10, [float("nan")] * 10, list(range(10))):
            found = compare({"a": self.ROWS}, groups=labels, resamples=10)
            pd.testing.assert_frame_equal(found.table, alone.table)

    def test_one_group_is_said(self) -> None:
        found = compare({"a": self.ROWS}, groups=["coins"] * 10, resamples=10)
        assert any("all images are of one group (coins)" in note for note in found.notes)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["a"] * 9, "expected a group for each of 10 images, got 9"),
            (np.zeros((2, 5)), r"groups with one label per image, got \(2, 5\)"),
        ],
    )
    def test_other_shapes_are_refused(self, labels: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            compare({"a": self.ROWS}, groups=labels)

    def test_variants_must_agree(self) -> None:
        one = {PRIMARY: self.ROWS, "group": ["x", "y"] * 5}
        other = {PRIMARY: self.ROWS, "group": ["x"] * 5 + ["y"] * 5}
        with pytest.raises(InputError, match="same groups of images for all variants, got others"):
            compare({"a": one, "b": other})

    def test_seeds_must_agree(self) -> None:
        seeds = [{PRIMARY: row, "group": ["x", "y"] * 5} for row in self.ROWS]
        seeds[1]["group"] = ["y", "x"] * 5
        with pytest.raises(InputError, match="a: expected the same groups for every seed"):
            compare({"a": seeds})
