"""A split that leaks is noticed, and its run says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from attnviz.diagnosis import diagnose_run
from experiments import leaks, training
from experiments.leaks import split_findings
from experiments.quickstart import show
from experiments.running import run_training
from experiments.settings import Settings

TINY = Settings(
    variant="cnn", side=32, size=8, train_images=64, val_images=8, test_images=32, batch=8,
    epochs=1, precision="fp32", device="cpu",
)  # fmt: skip


def test_our_own_split_is_clean() -> None:
    assert not split_findings(TINY)


def test_places_drawn_as_published_are_a_leak_and_the_run_and_the_quickstart_say_so(
    tmp_path: Path,
) -> None:
    published = dataclasses.replace(TINY, places="batch")
    found = split_findings(published)
    assert found.codes == ("shared-places",)
    assert found[0].evidence["share"] == 1
    run = run_training(published, tmp_path)
    assert "shared-places" in {one["code"] for one in run.summary["findings"]}
    assert "shared-places" in diagnose_run(run).codes
    assert "The split: warning shared-places: 100% of the test" in show(tmp_path, [run.id])


def test_a_test_image_that_was_trained_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    load = training.load_images

    def leaky(settings: Settings, split: str) -> np.ndarray:
        images = load(settings, split)
        if split == "test":
            images[3] = load(settings, "train")[40]
        return images

    monkeypatch.setattr(training, "load_images", leaky)
    found = split_findings(TINY)
    assert found.codes == ("shared-photographs",)
    assert found[0].evidence["images"] == 1


def test_a_photograph_of_both_splits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = {"train": ["motorcycle"] * 64, "test": ["coffee", "motorcycle"] * 16}
    monkeypatch.setattr(leaks, "groups", lambda settings, split: scenes[split])
    found = split_findings(TINY)
    assert found.codes == ("shared-photographs",)
    assert found[0].evidence["images"] == 16
