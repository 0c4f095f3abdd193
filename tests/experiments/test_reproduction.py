"""The tutorial's protocol: what it fixes, and that its numbers stand beside ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnviz import open_run
from experiments.__main__ import main
from experiments.reproduction import PUBLISHED, protocol, report
from experiments.running import run_training
from tests.experiments.test_data import write_stl10

TINY = (  # noqa: SIM905 - reads as it would be typed
    "--side 32 --size 8 --images 32 --epochs 2 --batch 8 --precision fp32 --device cpu --faithful 0"
).split()


def test_the_protocol_is_the_published_one_unless_something_is_said() -> None:
    plan = protocol("stl10", path="somewhere")
    assert [one.variant for one in plan] == list(PUBLISHED)
    for settings in plan:
        assert (settings.train_images, settings.test_images, settings.epochs) == (4000, 1000, 50)
        assert (settings.lr, settings.schedule, settings.patience) == (1e-4, "constant", 50)
        assert (settings.places, settings.redraw) == ("batch", False)
        assert settings.averaging == 0
    smaller = protocol("photos", images=40, epochs=3, places="image")[0]
    assert (smaller.train_images, smaller.val_images, smaller.test_images) == (40, 10, 10)
    assert (smaller.epochs, smaller.patience, smaller.places) == (3, 3, "image")


@pytest.mark.usefixtures("same_process")
def test_published_losses_stand_beside_ours_and_the_leak_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "--data", "photos", *TINY, "--runs", str(tmp_path), "--workers", "1"]
    assert main(command) == 0
    page = capsys.readouterr().out
    lines = page.splitlines()
    for name, loss in PUBLISHED.items():
        row = next(line for line in lines if line.startswith(f"{name} ")).split()
        assert row[1] == f"{loss:.4f}"
        run = open_run(next(tmp_path.glob(f"{name}-s0-*")))
        losses = run.curves()["test_loss"]
        assert row[2] == f"{losses.min():.4f}"
        assert int(row[3]) == int(losses.idxmin()) + 1
        assert row[4] == f"{run.summary['loss']:.4f}"
        assert run.summary["loss"] == pytest.approx(losses[run.summary["best_epoch"] - 1], abs=1e-5)
    assert "32 / 8 images of photos, 2 epochs, Adam 0.0001, batch 8" in page
    assert "The published losses are of STL-10, ours of photos. Smaller than published" in page
    assert "The split: shared-places: 100% of the test's patches" in page


def test_missing_images_are_one_line_that_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([], ["--path", str(tmp_path / "nothing")]):
        assert main(["reproduce", *TINY, *words, "--runs", str(tmp_path / "runs")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "download stl10_binary.tar.gz" in error
    assert not (tmp_path / "runs").exists()


def test_of_stl10_itself_only_what_is_smaller_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stl10(tmp_path, monkeypatch, train=20, test=6)
    plan = protocol("stl10", path=str(tmp_path), images=16, epochs=1, side=32, size=8, batch=8,
                    precision="fp32", device="cpu")[:1]  # fmt: skip
    run_training(plan[0], tmp_path / "runs")
    page = report(tmp_path / "runs", plan)
    assert "16 / 4 images of stl10, 1 epoch, Adam" in page
    assert "STL-10, ours" not in page
    assert "Smaller than published: 4,000 images and 50 epochs there." in page
