"""Rankings of a sweep: one for each question, named as one would ask it."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from experiments.axes import Grid
from experiments.presets import PRESETS, asked, planned
from experiments.ranking import METRICS, _scored, questions, rankings
from experiments.running import try_training
from experiments.settings import Settings
from tests.experiments.tiny import TINY

RESULTS = Path(__file__).parents[2] / "docs" / "write_results.py"


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "placement"])
@pytest.mark.parametrize("quick", [False, True])
def test_a_presets_question_has_its_name(name: str, quick: bool) -> None:
    assert asked(planned([name], {}, {}, quick=quick)[0]) == name


def test_what_no_preset_asks_is_said_in_settings() -> None:
    assert asked(Settings(opacity=0.5)) == "question patch, shape square, opacity 0.5"


def test_each_question_holds_its_own_variants_and_seeds() -> None:
    plan = planned(
        ["square", "low_contrast", "both"], {}, {"variant": ["cnn", "mha"], "seed": [0, 1]}
    )
    found = questions(plan)
    assert list(found) == ["square", "low_contrast", "both"]
    for variants in found.values():
        assert {name: [one.seed for one in runs] for name, runs in variants.items()} == {
            "cnn": [0, 1],
            "mha": [0, 1],
        }
    assert {one.opacity for runs in found["low_contrast"].values() for one in runs} == {0.25}


def test_only_what_differs_within_a_question_is_in_a_name() -> None:
    lr = {"variant": ["mha"], "lr": [0.1, 0.2]}
    assert {q: list(v) for q, v in questions(planned(["ring"], {}, lr)).items()} == {
        "": ["mha lr 0.1", "mha lr 0.2"]
    }
    sizes = {"variant": ["mha"], "size": [8, 16], "shape": ["ring", "square"]}
    assert list(questions(planned(["square"], {}, sizes))) == [
        "ring, size 8", "square, size 8", "ring, size 16", "square, size 16",
    ]  # fmt: skip


def test_runs_that_failed_are_not_ranked_and_the_page_tells_questions_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = dataclasses.replace(TINY, epochs=1, faithful=1, test_images=8)
    plan = [
        dataclasses.replace(base, variant=variant, seed=seed, opacity=opacity)
        for opacity in (1.0, 0.25)
        for variant in ("cnn", "cbam")
        for seed in (0, 1)
    ]
    outcomes = [try_training(one, tmp_path / "runs") for one in plan]
    last = dataclasses.replace(outcomes[-1], state="failed")
    compared = rankings(Grid(tuple(plan)), tmp_path / "runs", [*outcomes[:-1], last])
    assert list(compared) == ["square", "low_contrast"]
    assert "2 seeds" in repr(compared["square"])
    assert set(compared["low_contrast"].table["variant"]) == {"cnn", "cbam"}

    script = runpy.run_path(str(RESULTS))
    monkeypatch.setitem(script["main"].__globals__, "RESULTS", tmp_path / "results")
    script["main"]([str(tmp_path / "runs")])
    page = (tmp_path / "results" / "tables.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## square", "## low_contrast",
    ]  # fmt: skip
    assert page.startswith("# Tables\n\nTested on crops of 8 photographs. 8 runs on ")
    scores = pd.read_csv(tmp_path / "results" / "scores.csv")
    assert set(scores["question"]) == {"square", "low_contrast"}
    for name in ("square", "low_contrast", "overview"):
        assert (tmp_path / "results" / f"{name}.png").stat().st_size > 1000
    knockouts = [line for line in page.splitlines() if line.startswith("| `cnn` |")]
    assert len(knockouts) == 2
    assert all(line.split("|")[6].strip() == "–" for line in knockouts)


def test_a_metric_that_one_run_lacks_is_left_out_of_a_ranking() -> None:
    whole, flat = (
        SimpleNamespace(summary={"map": "received", "metrics": {"received": dict.fromkeys(names)}})
        for names in (METRICS, METRICS[:2])
    )
    assert _scored([[whole], [whole]]) == list(METRICS)
    assert _scored([[whole, flat], [whole]]) == list(METRICS[:2])
