"""Presets: every question of the readers is there, can be asked, and has a right answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from attnviz import InputError, list_runs
from attnviz.models import variants
from attnviz.patches import SHAPES
from experiments.__main__ import main
from experiments.presets import ATTENDING, PRESETS, planned
from experiments.questions import ask
from experiments.quickstart import VARIANTS
from experiments.settings import Settings
from tests.experiments.tiny import WORDS


def test_every_shape_has_its_preset() -> None:
    asked = {preset.base.get("shape", "square") for preset in PRESETS.values()}
    assert asked == set(SHAPES)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("quick", [False, True])
def test_a_preset_asks_a_question_whose_answer_can_be_seen(name: str, quick: bool) -> None:
    plan = planned([name], {"seed": 3}, {}, quick=quick)
    assert {settings.seed for settings in plan} == {3}
    settings = plan[0]
    assert settings.side == (48 if quick else 96)
    pixels = torch.full((64, 3, settings.side, settings.side), 90, dtype=torch.uint8)
    asked = ask(pixels, torch.arange(64), settings, seed=1)
    assert 0.25 < asked.labels.mean() < 0.75
    changed = (asked.images - (90 / 127.5 - 1)).abs().amax(1) > 1e-3
    assert changed[asked.masks].all()
    if settings.question == "patch":
        assert torch.equal(changed, asked.masks)


def test_every_preset_is_another_run() -> None:
    names = [name for name in PRESETS if name != "placement"]
    plan = planned(names, {"variant": "cbam"}, {})
    assert len({settings.run_id for settings in plan}) == len(names)


def test_a_question_is_put_to_the_six_variants_if_to_no_others() -> None:
    assert tuple(one.variant for one in planned(["ring"], {}, {})) == VARIANTS
    assert [one.variant for one in planned(["ring"], {}, {"variant": ["se"]})] == ["se"]
    assert {one.variant for one in planned(["placement"], {}, {})} == set(ATTENDING)


@pytest.mark.usefixtures("same_process")
def test_a_sweep_of_presets_runs_each_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", *WORDS, "--preset", "ring,both", "--variants", "cnn", "--epochs", "1"]
    assert main([*words, "--runs", str(tmp_path), "--workers", "1"]) == 0
    found = {(run.settings["question"], run.settings["shape"]) for run in list_runs(tmp_path)}
    assert found == {("patch", "ring"), ("both", "square")}
    assert main([*words[:-4], "--preset", "rong", "--runs", str(tmp_path)]) == 2
    assert "unknown preset 'rong': did you mean 'ring'" in capsys.readouterr().err


def test_what_is_given_goes_before_what_a_preset_says() -> None:
    given = {"shape": "bar", "side": 64, "variant": "mha"}
    assert list(planned(["ring"], given, {}, quick=True)) == [
        Settings(shape="bar", side=64, size=8)
    ]
    moved = planned(["placement"], {"variant": "se"}, {"placement": (0, 3)})
    assert [(one.variant, one.placement) for one in moved] == [("se", 0), ("se", 3)]


def test_axes_turn_within_each_preset() -> None:
    plan = planned(["ring", "both"], {}, {"variant": ["cnn", "mha"], "seed": [0, 1]})
    assert [(one.question, one.variant, one.seed) for one in plan] == [
        (question, variant, seed)
        for question in ("patch", "both")
        for variant in ("cnn", "mha")
        for seed in (0, 1)
    ]


def test_placement_moves_models_that_can_be_moved() -> None:
    plan = planned(["placement"], {}, {})
    assert {one.placement for one in plan} == {0, 1, 2, 3}
    for settings in plan:
        with torch.device("meta"):
            variants()[settings.variant].build(**settings.model)


def test_an_unknown_preset_is_offered_its_nearest_name() -> None:
    with pytest.raises(InputError, match=r"unknown preset 'rng': did you mean 'ring'"):
        planned(["rng"], {}, {})


def test_presets_change_the_question_and_of_the_training_only_its_length() -> None:
    fields = {field.name for field in dataclasses.fields(Settings)}
    for preset in PRESETS.values():
        allowed = {"shape", "opacity", "question", "epochs", "patience"}
        assert set(preset.base) <= allowed <= fields
