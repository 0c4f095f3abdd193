"""What a run kept of its way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from attnviz.runs import open_run
from dashboard.epochs import epoch_maps, found_at, seed_bands
from tests.dashboard import made_runs


def test_bands_span_the_seeds_that_reached_an_epoch():
    one = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1.0]})
    two = pd.DataFrame({"epoch": [1, 2], "loss": [5.0, np.nan]})
    bands = seed_bands({"mha": [one, two], "cnn": [pd.DataFrame({"epoch": [1]})]}, "loss")
    assert list(bands["mean"]) == [4.0, 2.0, 1.0]
    assert list(bands["low"]) == [3.0, 2.0, 1.0]
    assert list(bands["high"]) == [5.0, 2.0, 1.0]
    assert list(bands["seeds"]) == [2, 1, 1]


def test_no_seed_with_that_curve_gives_an_empty_table():
    assert seed_bands({"mha": [pd.DataFrame({"epoch": [1]})]}, "loss").empty


@pytest.mark.parametrize(
    ("values", "chance", "epoch"),
    [
        ([0.03, 0.1, 0.4, 0.5, 0.6], 0.03, 3),
        ([0.5, 0.6, 0.55], 0.03, 1),  # there from the beginning
        ([0.03, 0.5, 0.1, 0.5], 0.03, 4),  # it was lost again in between
        ([0.03, 0.04, 0.03], 0.03, None),  # never more than chance
        ([0.1, 0.15, 0.3], None, 2),
        ([0.1, 0.15, 0.19], None, None),
        ([np.nan, np.nan], 0.03, None),
        ([], 0.03, None),
    ],
)
def test_found_is_the_epoch_from_which_half_of_the_last_value_is_kept(values, chance, epoch):
    able = np.full(len(values), 0.95)
    assert found_at(np.arange(1, len(values) + 1), np.array(values), able, chance) == epoch


def test_a_map_of_a_network_that_guesses_is_not_found():
    epochs, values = np.arange(1, 5), np.array([0.3, 0.3, 0.3, 0.3])
    assert found_at(epochs, values, np.full(4, 0.5), 0.03) is None
    assert found_at(epochs, values, np.array([0.5, 0.52, 0.9, 0.95]), 0.03) == 3
    assert found_at(epochs, values, np.array([0.9, 0.9, 0.9, 0.8]), 0.03, guess=0.75) is None


def test_maps_by_epoch_are_found_while_the_run_is_running(tmp_path: Path):
    made_runs.dataset(tmp_path, 8)
    writer = made_runs.training_run(tmp_path, "t", epochs=3)
    run = open_run(tmp_path / "t")
    assert run.state == "running"
    assert [(one.epoch, one.images) for one in epoch_maps(run)] == [
        (epoch, (0, 2, 4, 6)) for epoch in (1, 2, 3)
    ]
    writer.stop("enough")


def test_a_run_without_them_has_none(good_root: Path):
    assert epoch_maps(open_run(good_root / "mha-0")) == []
