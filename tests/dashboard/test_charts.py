"""The charts, and what stands in for them where they cannot be seen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dashboard import charts
from dashboard.dot_plot import described
from dashboard.palettes import DARK, LIGHT

NAN = float("nan")


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "variant": ["b", "a", "c"], "mean": [0.5, 0.3, NAN], "low": [0.4, NAN, NAN],
            "high": [0.6, NAN, NAN], "chance": [0.03, 0.03, NAN], "redrawn": [0.8, 0.82, NAN],
        }
    )  # fmt: skip


@pytest.fixture
def by_seed() -> pd.DataFrame:
    return pd.DataFrame({"variant": ["b", "b", "a"], "seed": [0, 1, 0], "mean": [0.45, 0.55, 0.3]})


def test_rows_stay_in_the_order_of_the_table(table, by_seed):
    rows = described(table, by_seed, "iou", LIGHT)["rows"]
    assert [row["name"] for row in rows] == ["b", "a", "c"]


def test_what_the_browser_draws_has_room_for_everything(table, by_seed):
    found = described(table, by_seed, "iou", DARK)
    values = [0.6, *by_seed["mean"], *(one["value"] for one in found["levels"])]
    assert found["low"] == 0.0
    assert found["high"] > max(values)
    assert {one["name"]: round(one["value"], 3) for one in found["levels"]} == {
        "chance": 0.03, "mask redrawn": 0.81,
    }  # fmt: skip
    assert found["rows"][0]["seeds"] == [0.45, 0.55]
    assert found["rows"][1]["low"] is None
    assert found["rows"][2] == {
        "name": "c", "mean": None, "low": None, "high": None, "seeds": [],
        "label": "cannot be scored", "words": "c: cannot be scored",
    }  # fmt: skip


def test_negative_scores_are_on_the_axis(table, by_seed):
    table.loc[1, "mean"] = -0.2
    assert described(table, by_seed, "iou", LIGHT)["low"] == -0.2


def test_nothing_scored_is_still_a_plot():
    table = pd.DataFrame({"variant": ["a"], "mean": [NAN], "low": [NAN], "high": [NAN]})
    empty = pd.DataFrame({"variant": [], "seed": [], "mean": []})
    found = described(table, empty, "iou", LIGHT)
    assert found["high"] > found["low"]
    assert "a cannot be scored" in charts.dot_plot_in_words(table, "iou")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 0.88, [0.0, 0.2, 0.4, 0.6, 0.8]),
        (0.0, 0.1, [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (-0.2, 0.75, [-0.2, 0.0, 0.2, 0.4, 0.6]),
        (0.0, 40.0, [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert charts.round_ticks(low, high) == pytest.approx(ticks)


def test_the_words_carry_every_number(table):
    words = charts.dot_plot_in_words(table, "energy_pointing_game")
    for part in ("b 0.500 (95 % CI 0.400 to 0.600)", "chance 0.030", "mask redrawn 0.810"):
        assert part in words


def test_lines_are_told_apart_by_dash_as_well_as_colour():
    data = pd.DataFrame(
        {"variant": ["a", "a", "b", "b"], "epoch": [1, 2, 1, 2], "mean": [1.0, 2.0, 3.0, 4.0]}
    )
    spec = charts.lines(
        data, ink=LIGHT, x="epoch", y="mean", x_title="epoch", y_title="loss", order=["a", "b"]
    ).to_dict()
    encoding = spec["layer"][0]["encoding"]
    assert len({tuple(dash) for dash in encoding["strokeDash"]["scale"]["range"]}) == 2
    assert len(set(encoding["color"]["scale"]["range"])) == 2
    words = charts.lines_in_words(data, x="epoch", y="mean", y_title="loss", name="Loss")
    assert "a from 1.000 at epoch 1 to 2.000 at 2; b from 3.000" in words


@pytest.mark.parametrize("count", [2, 5, 20])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0], ids=["one value", "close", "even"])
def test_labels_of_a_scatter_do_not_cover_each_other(count: int, spread: float):
    dots = 0.3 + spread * np.linspace(0, 1, count)
    dots[-1] = 0.9
    data = pd.DataFrame({"variant": map(str, range(count)), "accuracy": dots, "mean": dots})
    spec = charts.scatter(data, ink=LIGHT, x="accuracy", y="mean", x_title="", y_title="").to_dict()
    rows = spec["datasets"][spec["data"]["name"]]
    heights = np.array([row["label_at"] for row in rows])
    pixels = (spec["height"] - 2 * charts._EDGE) / np.ptp(heights)
    assert np.diff(np.sort(heights)).min() * pixels >= charts._LABEL * (1 - 1e-6)
    assert (heights >= dots).all()
    assert spec["layer"][0]["encoding"]["y2"]["field"] == "label_at"


def test_a_colour_that_comes_again_comes_with_another_dash():
    names = [f"v{i}" for i in range(20)]
    data = pd.DataFrame({"variant": names, "epoch": 1, "mean": 0.5, "low": 0.4, "high": 0.6})
    spec = charts.lines(
        data, ink=LIGHT, x="epoch", y="mean", x_title="", y_title="", order=names, band=True
    ).to_dict()
    assert len(spec["layer"]) == 1  # twenty bands would cover one another
    encoding = spec["layer"][0]["encoding"]
    pairs = zip(
        encoding["color"]["scale"]["range"], encoding["strokeDash"]["scale"]["range"], strict=True
    )
    assert len({(colour, tuple(dash)) for colour, dash in pairs}) == 20


def test_intervals_carry_their_numbers():
    data = pd.DataFrame({"row": ["a", "b"], "mean": [0.1, -0.2], "low": -0.3, "high": 0.2})
    spec = charts.intervals(
        data, ink=DARK, row="row", order=["a", "b"], title="", decimals=2
    ).to_dict()
    drawn = (
        next(iter(spec["datasets"].values()))
        if len(spec["datasets"]) == 1
        else [row for rows in spec["datasets"].values() for row in rows if "label" in row]
    )
    assert [row["label"] for row in drawn] == ["+0.10", "−0.20"]
