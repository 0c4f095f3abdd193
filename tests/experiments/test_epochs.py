"""What is measured after each epoch, also where there is nothing to measure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from attnviz import InputError, open_run
from experiments.running import run_training
from experiments.settings import Settings
from experiments.training import Loader
from tests.experiments.tiny import TINY


def labels(settings: Settings, split: str) -> torch.Tensor:
    loader = Loader(settings, split, torch.device("cpu"))
    return loader.batch(torch.arange(len(loader))).labels


def with_labels(val: int, test: int) -> Settings:
    """Settings of which the only validation and the only test image have a patch, or have none."""
    for seed in range(64):
        settings = dataclasses.replace(TINY, val_images=1, test_images=1, data_seed=seed)
        if (labels(settings, "val") == val).all() and (labels(settings, "test") == test).all():
            return settings
    raise AssertionError("no seed of 64 has these labels")


@pytest.mark.parametrize("val", [0, 1])
def test_validation_without_a_patch_has_no_scores_and_stops_nothing(
    tmp_path: Path, val: int
) -> None:
    settings = dataclasses.replace(with_labels(val, 1), variant="cbam", test_curve=True)
    run = open_run(run_training(settings, tmp_path).path)
    assert run.state == "complete"
    curves = run.curves()
    assert ("val_pointing_game" in curves) is bool(val)
    assert curves["test_loss"].notna().all()
    assert curves["test_loss"].iloc[run.summary["best_epoch"] - 1] == pytest.approx(
        run.summary["loss"], abs=1e-5
    )
    assert "gate_map@0001" in run.map_names


def test_a_test_without_a_patch_begins_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one image with a patch, got none among 1; use more"):
        run_training(with_labels(1, 0), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
