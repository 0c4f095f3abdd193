"""Training: it learns, it can be interrupted, and it goes on to the same result."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

from attnviz import InputError, RunError, open_run
from attnviz.runs import Run, RunWriter, start_run
from experiments import checkpoints, training
from experiments.data.photos import photo_scenes
from experiments.running import run_training, try_training
from experiments.settings import Settings
from experiments.training import learning_rate

TINY = Settings(
    variant="mha", side=32, size=8, train_images=16, val_images=8, test_images=12, batch=8,
    epochs=3, precision="fp32", device="cpu", faithful=0,
)  # fmt: skip


def same(one: Run, other: Run) -> None:
    weights = one.weights(), other.weights()
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert_frame_equal(one.samples(), other.samples())
    curves = [run.curves().drop(columns="seconds") for run in (one, other)]
    assert_frame_equal(*curves)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_training(TINY, tmp_path_factory.mktemp("runs"))


def test_a_run_holds_all_that_was_measured(unbroken: Run) -> None:
    assert unbroken.state == "complete"
    assert unbroken.verify() == []
    table = unbroken.samples()
    assert len(table) == 12
    assert {"label", "logit", "correct", "x0", "received/energy_pointing_game"} <= set(table)
    patched = table["label"] == 1
    assert table["received/pointing_game"].notna().equals(patched)
    assert unbroken.maps("received").shape == (12, 8, 8)
    assert unbroken.maps("received.heads").shape == (12, 4, 8, 8)
    assert unbroken.rows("received").shape == (12, 4, 64, 64)
    assert "layer_gradcam" in unbroken.map_names
    assert list(unbroken.curves()["epoch"]) == [1, 2, 3]
    energy = unbroken.summary["metrics"]["received"]["energy_pointing_game"]
    assert energy["valid"] == patched.sum()
    assert 0 < energy["chance"] < energy["redrawn"] <= 1


def test_a_run_names_the_photograph_of_every_crop(unbroken: Run) -> None:
    assert unbroken.samples()["group"].tolist() == photo_scenes("test", 12)
    told = unbroken.test_set().info["photographs"]
    assert set(told["test"]) == set(photo_scenes("test", 12))
    assert not set(told["test"]) & (set(told["train"]) | set(told["val"]))


def test_a_finished_run_is_reused(unbroken: Run) -> None:
    again = run_training(TINY, unbroken.path.parent)
    assert again.created == unbroken.created
    assert try_training(TINY, unbroken.path.parent).state == "reused"


def interrupted_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = training._epoch
    done = []

    def epoch(*args: object) -> dict[str, float]:
        if len(done) == epochs:
            raise KeyboardInterrupt
        done.append(1)
        return whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_epoch", epoch)


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_an_interrupted_run_goes_on_to_the_same_result(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    with monkeypatch.context() as patch:
        interrupted_after(epochs, patch)
        with pytest.raises(KeyboardInterrupt):
            run_training(TINY, tmp_path)
    stopped = open_run(tmp_path / TINY.run_id)
    assert stopped.state == "stopped"
    assert len(stopped.curve_rows()) == epochs
    with pytest.raises(RunError, match=r"the run was stopped; add --resume"):
        run_training(TINY, tmp_path, resume=False)
    torch.manual_seed(99)  # whatever happened in between
    same(run_training(TINY, tmp_path), unbroken)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    writer = start_run(tmp_path, TINY.run_id, variant="mha", settings=TINY.as_dict(), seed=0)
    other = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(other.parameters())
    progress = checkpoints.TrainingState()
    content = checkpoints.to_bytes(other, other, other.state_dict(), optimizer, progress)
    writer.write(checkpoints.FILE, content)
    writer.stop("interrupted")
    with pytest.raises(RunError, match=r"expected a checkpoint of this model.*delete the run"):
        run_training(TINY, tmp_path)


def test_the_running_mean_of_the_weights_is_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[torch.Tensor] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam, *args: object, **kwargs: object) -> object:
        done = step(self, *args, **kwargs)  # type: ignore[arg-type]
        passed.append(self.param_groups[0]["params"][0].detach().clone())
        return done

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    settings = dataclasses.replace(TINY, variant="cnn", epochs=1, averaging=0.5)
    kept = run_training(settings, tmp_path).weights()["features.conv1.weight"]
    first, second = passed
    np.testing.assert_allclose(kept, (0.5 * first + 0.5 * second).numpy(), rtol=1e-6)


def test_a_long_epoch_tells_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []
    heartbeat = RunWriter.heartbeat

    def counted(writer: RunWriter, **progress: object) -> None:
        beats.append(len(progress))
        heartbeat(writer, **progress)

    monkeypatch.setattr(RunWriter, "heartbeat", counted)
    monkeypatch.setattr(training, "BEAT_EVERY", 0.0)
    run_training(dataclasses.replace(TINY, variant="cnn", epochs=2), tmp_path)
    assert beats[:3] == [0, 0, 0]  # two steps, and the curves' own
    assert beats[3] > 2  # the epoch's
    assert len(beats) == 8


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, variant="cnn", epochs=8, patience=1, lr=3.0)
    run = run_training(settings, tmp_path)
    losses = run.curves()["val_loss"]
    assert len(losses) == run.summary["epochs"] < 8
    assert run.summary["best_epoch"] == int(losses.idxmin()) + 1


def test_one_cycle_rises_and_falls() -> None:
    rates = [learning_rate(TINY, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(TINY.lr / 25)
    assert max(rates) == pytest.approx(TINY.lr)
    assert rates.index(max(rates)) == 30
    assert rates[-1] < TINY.lr / 500
    constant = dataclasses.replace(TINY, schedule="constant")
    assert learning_rate(constant, 7, 100) == TINY.lr


def test_wrong_settings_begin_no_run(tmp_path: Path) -> None:
    for wrong, message in (
        (dataclasses.replace(TINY, variant="mhaa"), "did you mean 'mha'"),
        (dataclasses.replace(TINY, variant="vit", placement=1), "does not take .*'placement'"),
        (dataclasses.replace(TINY, placement=4), "expected a placement from 0 to 3, got 4"),
        (
            dataclasses.replace(TINY, device="cuda:77"),
            "a device that is there, got 'cuda:77'",
        ),
        (dataclasses.replace(TINY, data="folder"), "expected its folder with --path"),
    ):
        with pytest.raises(InputError, match=message):
            run_training(wrong, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
