"""The command line of `experiments`, across the process boundary where that matters."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from attnviz import list_runs, open_run
from attnviz.cli.worker_arguments import chosen_workers
from attnviz.executors import Workers
from experiments.__main__ import _parser, main
from experiments.axes import SINGLE, chosen_axes, grid
from experiments.quickstart import PICTURE, VARIANTS
from experiments.settings import Settings, chosen

TINY = (  # noqa: SIM905 - reads as it would be typed
    "--side 32 --size 8 --train-images 16 --val-images 8 --test-images 12 --batch 8 --epochs 1 "
    "--precision fp32 --device cpu --faithful 0"
).split()


@pytest.mark.usefixtures("same_process")
def test_a_quickstart_trains_all_variants_and_a_second_one_reuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quickstart", *TINY, "--runs", str(tmp_path), "--workers", "2"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    rows = [line.split()[0] for line in first.splitlines()[2:8]]
    assert tuple(rows) == VARIANTS
    assert "One training each (seed 0), 12 crops of 9 test photographs" in first
    assert all(f"\n  {variant}: " in first for variant in VARIANTS)
    assert f"attnviz dashboard {tmp_path}" in first
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    created = [run.created for run in list_runs(tmp_path)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert [run.created for run in list_runs(tmp_path)] == created


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--variant", "mhaa"], "unknown variant 'mhaa': did you mean 'mha'?"),
        (["train", "--size", "97"], "--size: expected at most the image's side of 96, got 97"),
        (["quickstart", "--size", "-1"], "--size: expected 1 or more, got -1"),
        (["train", "--data", "folder", "--path", "nowhere"], "expected a folder of images"),
        (["train", "--data", "stl10", "--path", "nowhere"], "download stl10_binary"),
        (["train", "--side", "32", "--size", "32"], "--size: expected a patch that leaves some of"),
        (["train", "--shape", "sqare"], "unknown patch shape 'sqare': did you mean 'square'?"),
    ],
)
def test_a_mistake_is_one_line_and_code_2_and_leaves_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    root = tmp_path / "runs"
    assert main([*arguments, "--runs", str(root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not root.exists() or not list_runs(root)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "{file}"], "expected a folder, got the file '{file}'"),
        (["--out", "{file}/runs"], "expected folders above '{file}/runs'"),
        (["--out", ""], "expected a path, got an empty word"),
        (["--preset", ","], "argument --preset: expected 1 or more names, got ','"),
        (["--workers", "0"], "argument --workers: expected 1 or more, got 0"),
        (["--workers", "1.5"], "argument --workers: expected a whole number, got '1.5'"),
        (["--seeds", "0"], "argument --seeds: expected 1 or more seeds, got '0'"),
    ],
)
def test_a_flag_is_checked_before_the_work_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    file = tmp_path / "file"
    file.write_text("a file where a folder should be")
    assert main(["sweep", *TINY, *(word.format(file=file) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("experiments: ")
    assert message.format(file=file) in error
    assert error.count("\n") == 1
    assert file.read_text() == "a file where a folder should be"


@pytest.mark.parametrize("debug", [False, True])
def test_what_nobody_foresaw_is_one_line_and_a_traceback_on_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    debug: bool,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError("no room\nfor it")

    monkeypatch.setattr("experiments.running.run_training", fails)
    words = ["train", *TINY, "--runs", str(tmp_path), *(["--debug"] if debug else [])]
    if debug:
        with pytest.raises(MemoryError):
            main(words)
        return
    assert main(words) == 2
    said = (
        "experiments: unexpected MemoryError: no room\\nfor it; --debug shows where it came from\n"
    )
    assert capsys.readouterr().err == said


def test_too_few_validation_images_begin_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("train", 16), ("val", 7), ("test", 12)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32)).save(tmp_path / "photos" / split / f"{number}.png")
    source = ["--data", "folder", "--path", str(tmp_path / "photos")]
    assert main(["train", *TINY, *source, "--runs", str(tmp_path / "runs")]) == 2
    assert "expected at least 8 images for the val split" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_training_that_diverged_has_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--variant", "cnn", "--lr", "1e30", "--val-images", "1", "--runs", str(tmp_path)]
    assert main(["train", *TINY, *words]) == 0
    row = capsys.readouterr().out.splitlines()[2].split()
    assert row[:2] == ["cnn", "layer_gradcam"]
    assert row[3] == "–"
    (run,) = list_runs(tmp_path).complete
    assert run.summary["loss"] is None


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "experiments", "train", *TINY, "--epochs", "500",
             "--runs", str(tmp_path), "--variant", "cnn"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    settings = Settings(side=32, size=8, train_images=16, val_images=8, test_images=12, batch=8,
                        epochs=500, precision="fp32", device="cpu", faithful=0,
                        variant="cnn")  # fmt: skip
    curves = tmp_path / settings.run_id / "curves.jsonl"
    while process.poll() is None and not curves.exists():
        time.sleep(0.05)  # the first epoch ends when it ends
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "goes on from here" in error
    assert "Traceback" not in error
    run = open_run(tmp_path / settings.run_id)
    assert run.state == "stopped"
    assert 1 <= len(run.curve_rows()) < 500


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert {"quickstart", "train", "sweep"} <= set(capsys.readouterr().out.split())


def test_the_commands_of_the_cluster_page_are_understood() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    text = "\n".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    understood = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[2:5] == ["python", "-m", "experiments"]:
            args = _parser().parse_args(words[5:])
            assert grid(Settings(**chosen(args, SINGLE)), chosen_axes(args))
        elif words[2:3] == ["attnviz"]:
            parser = argparse.ArgumentParser()
            import_module(f"attnviz.cli.{words[3]}").arguments(parser)
            args = parser.parse_args(words[4:])
        elif words[:1] == ["export"] or words[2:5] == ["python", "-m", "dask"]:
            continue  # tests.cluster starts these
        else:
            assert not words, line
            continue
        understood.append(chosen_workers(args))
    assert understood == [
        Workers(),
        Workers(scheduler="tcp://10.0.0.1:8786"),
        Workers(processes=4),
        Workers(scheduler="tcp://10.0.0.1:8786"),
    ]
