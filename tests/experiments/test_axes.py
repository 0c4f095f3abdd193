"""Grids: every combination that can be, once, and a word on those that cannot."""

from __future__ import annotations

import argparse

import pytest

from attnviz import InputError
from experiments.axes import SINGLE, add_axes, chosen_axes, grid, joined
from experiments.settings import Settings, chosen

BASE = Settings(side=32, size=8)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_axes(parser)
    return parser.parse_args(words)


def test_a_grid_turns_its_last_axis_fastest() -> None:
    plan = grid(BASE, {"variant": ["cnn", "mha"], "seed": [0, 1]})
    assert [(s.variant, s.seed) for s in plan] == [("cnn", 0), ("cnn", 1), ("mha", 0), ("mha", 1)]
    assert plan.axes == ()
    assert plan.notes == ()


def test_a_variant_without_placement_runs_once_and_that_is_said_once() -> None:
    axes = {"variant": ["cnn", "mha"], "shape": ["ring", "bar"], "placement": [0, 3]}
    plan = grid(BASE, axes)
    assert [plan.label(s) for s in plan] == [
        ("cnn", "–", "ring"), ("cnn", "–", "bar"),
        ("mha", "0", "ring"), ("mha", "3", "ring"), ("mha", "0", "bar"), ("mha", "3", "bar"),
    ]  # fmt: skip
    assert plan.axes == ("placement", "shape")
    assert plan.notes == ("cnn takes no placement: it runs without",)


def test_grids_are_joined_and_what_tells_their_runs_apart_is_found() -> None:
    one = grid(BASE, {"seed": [0, 1]})
    other = grid(Settings(side=32, size=8, question="both"), {"seed": [0]})
    plan = joined([one, other, one])
    assert [(s.seed, s.question) for s in plan] == [(0, "patch"), (1, "patch"), (0, "both")]
    assert plan.axes == ("question",)


def test_settings_that_exclude_each_other_are_left_out_and_named() -> None:
    plan = grid(BASE, {"side": [32, 64], "size": [8, 48]})
    assert [(s.side, s.size) for s in plan] == [(32, 8), (64, 8), (64, 48)]
    assert plan.notes == ("left out: --size: expected at most the image's side of 32, got 48",)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"variant": ["cnn", "mhaa"]}, "unknown variant 'mhaa': did you mean 'mha'"),
        ({"shape": ["rnig"]}, "unknown patch shape 'rnig': did you mean 'ring'"),
        ({"size": [48, 64]}, "expected at most the image's side of 32, got 48"),
        ({"variant": ["mha"], "placement": []}, "at least one value for each axis"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(axes: dict[str, list[object]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        grid(BASE, axes)


def test_words_become_axes_and_the_rest_stays() -> None:
    args = parsed(
        *("--variants", "cnn, mha", "--seeds", "3", "--patch", "ring,bar", "--lr", "1e-3,2e-3"),
        *("--placement", "none,0", "--redraw", "yes,no", "--epochs", "4", "--threads", "2"),
    )
    assert chosen_axes(args) == {
        "variant": ["cnn", "mha"], "placement": [None, 0], "shape": ["ring", "bar"],
        "redraw": [True, False], "epochs": [4], "lr": [1e-3, 2e-3], "seed": [0, 1, 2],
    }  # fmt: skip
    assert next(iter(chosen_axes(args))) == "variant"
    assert list(chosen_axes(args))[-1] == "seed"
    assert chosen(args, SINGLE) == {"threads": 2}


@pytest.mark.parametrize(("words", "seeds"), [("1", [0]), ("3,7", [3, 7]), ("4,", [4])])
def test_seeds_are_a_number_or_a_list(words: str, seeds: list[int]) -> None:
    assert chosen_axes(parsed("--seeds", words)) == {"seed": seeds}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "expected 1 or more seeds, got '0'"),
        (["--seeds", "a"], "expected whole numbers, got 'a'"),
        (["--placement", "x"], "expected a whole number, got 'x'"),
        (["--lr", "fast"], "expected a number, got 'fast'"),
        (["--redraw", "maybe"], "expected yes or no, got 'maybe'"),
        (["--question", "patch,boht"], "expected one of patch, both, larger, got 'boht'"),
    ],
)
def test_a_value_that_is_none_is_named(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
