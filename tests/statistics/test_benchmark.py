"""The simulation behind docs/intervals.md, in its quick form, and that it asks the library."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from attnviz.comparison import compare

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "intervals.py"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_rates_keep_within_loose_bounds(script: dict) -> None:
    for world in script["worlds"]():
        row = script["measured"](world, 3, 6, 40)
        assert row.coverage >= (0.88 if world.bell or world.hits else 0.5), row
        assert row.false_winner <= 0.05, row
        assert row.some_clear <= 0.15, row


def test_one_training_is_covered_and_names_nobody(script: dict) -> None:
    for world in script["worlds"]():
        row = script["measured"](world, 1, 2, 60)
        assert row.coverage >= 0.88, row
        assert row.false_winner == row.some_clear == 0


def test_a_great_difference_is_found(script: dict) -> None:
    (world,) = (one for one in script["worlds"]() if one.name == "Gaussian")
    assert script["measured"](world, 10, 2, 40).power == 1


def test_its_verdict_is_that_of_compare(script: dict) -> None:
    (world,) = (one for one in script["worlds"]() if one.name == "Gaussian")
    told = set()
    for k in range(12):
        study = world.draw(np.random.default_rng(k), 2, 3, k % 2 == 1)
        found = script["verdict"](study.scores, None)
        tables = {str(v): {"score": rows} for v, rows in enumerate(study.scores)}
        winner = compare(tables, primary="score").winner
        assert winner == (None if found.winner is None else str(found.winner))
        told.add(winner)
    assert told == {None, "0"}
