"""Sweeps over processes: failures, deaths, interruptions, and going on."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attnviz import list_runs, open_run
from attnviz.errors import RunError
from attnviz.executors import Workers, processes
from attnviz.runs import start_run
from experiments.__main__ import main
from experiments.axes import grid
from experiments.progress_table import ProgressTable
from experiments.running import Outcome, try_training
from experiments.settings import Settings
from experiments.sweep import run_all
from tests.experiments.dying import killed
from tests.experiments.tiny import TINY, WORDS


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process does."""
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def epoch(root: Path, settings: Settings) -> int:
    """How many epochs a run's last heartbeat told of."""
    try:
        return int(open_run(root / settings.run_id).progress.get("epoch", 0))
    except RunError:
        return 0


def started(root: Path, *words: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    command = [sys.executable, "-m", "experiments", "sweep", *WORDS, "--out", str(root), *words]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.usefixtures("same_process")
def test_a_sweep_survives_a_failing_run_and_keeps_the_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / dataclasses.replace(TINY, variant="mha", epochs=1).run_id
    in_the_way.mkdir()
    (in_the_way / "run.json").write_text("no header")
    words = [*WORDS, "--variants", "cnn,mha,cbam", "--epochs", "1", "--out", str(tmp_path)]
    assert main(["sweep", *words, "--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [
        ["cnn", "done"], ["mha", "failed"], ["cbam", "done"],
    ]  # fmt: skip
    assert f"{in_the_way.name} failed: {in_the_way}: run.json: not JSON" in err
    assert "energy pointing game on" in out
    assert {run.variant for run in list_runs(tmp_path).complete} == {"cnn", "cbam"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("same_process")
def test_a_sweep_that_goes_on_leaves_what_a_run_links_to_alone(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, variant="cnn", epochs=1)
    home, thesis = tmp_path / "runs", tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.safetensors").write_text("years of work")
    begun = start_run(home, settings.run_id, variant="cnn", settings=settings.as_dict(), seed=0)
    (begun.path / "gates").symlink_to(thesis)
    begun.stop("interrupted")
    (home / ".0.0123abcd.partial").symlink_to(thesis)
    words = [*WORDS, "--variants", "cnn", "--epochs", "1", "--out", str(home)]
    assert main(["sweep", *words, "--workers", "1"]) == 0
    assert (thesis / "chapter.safetensors").read_text() == "years of work"
    assert list(thesis.iterdir()) == [thesis / "chapter.safetensors"]
    assert [(f.file, f.kind) for f in open_run(begun.path).verify()] == [("gates", "link")]


@pytest.mark.usefixtures("same_process")
def test_a_complete_sweep_needs_no_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", *WORDS, "--variants", "cnn", "--epochs", "1", "--patch", "ring,bar"]
    words += ["--out", str(tmp_path)]
    assert main([*words, "--workers", "1"]) == 0
    first = capsys.readouterr().out
    assert first.count("energy pointing game on") == 2
    assert {"ring", "bar"} <= set(first.splitlines())
    created = [run.created for run in list_runs(tmp_path)]
    assert main([*words, "--scheduler", "tcp://127.0.0.1:9"]) == 0  # nobody asks who is there
    assert capsys.readouterr().out == first
    assert [run.created for run in list_runs(tmp_path)] == created


def test_an_interrupted_sweep_goes_on_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--variants", "cnn", "--seeds", "2", "--epochs", "16", "--workers", "1")
    runs = [dataclasses.replace(TINY, variant="cnn", seed=seed, epochs=16) for seed in (0, 1)]
    with started(tmp_path, *words) as process:
        until(lambda: epoch(tmp_path, runs[0]) > 0, process)
        process.send_signal(signal.SIGINT)  # to the process alone, not to its children
        _, error = process.communicate()
    assert process.returncode == 130, error
    assert "the same command goes on from here" in error
    assert "Traceback" not in error
    run = open_run(tmp_path / runs[0].run_id)
    assert (run.state, run.reason) == ("stopped", "interrupted")
    assert not (tmp_path / runs[1].run_id).exists()
    before = len(run.curve_rows())
    assert main(["sweep", *WORDS, *words, "--out", str(tmp_path)]) == 0
    out, error = capsys.readouterr()
    assert all(line.startswith("all runs: ") for line in error.splitlines())
    assert "2 done" in out
    ended = open_run(tmp_path / runs[0].run_id)
    assert ended.created == run.created
    assert 0 < before < len(ended.curve_rows()) == 16


def test_a_killed_process_is_replaced_and_its_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [dataclasses.replace(TINY, variant="cnn", seed=seed, epochs=16) for seed in (0, 1)]
    words = ["--variants", "cnn", "--seeds", "2", "--epochs", "16", "--workers", "1"]
    with killer(tmp_path, runs[0]) as killed:
        assert main(["sweep", *WORDS, *words, "--out", str(tmp_path)]) == 0
    assert "2 done" in capsys.readouterr().out
    ended = open_run(tmp_path / runs[0].run_id)
    assert pid_of(ended.path) != killed[0]
    assert list(ended.curves()["epoch"]) == list(range(1, 17))


@contextmanager
def killer(root: Path, settings: Settings) -> Iterator[list[int]]:
    """Kills the process that writes a run once it has told of an epoch; notes which that was."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not epoch(root, settings):
            if over.wait(0.01):
                return
        killed.append(pid_of(root / settings.run_id))
        os.kill(killed[0], signal.SIGKILL)

    hand = threading.Thread(target=kill)
    hand.start()
    try:
        yield killed
    finally:
        over.set()
        hand.join()
    assert killed, "nothing to kill was seen"


def pid_of(path: Path) -> int:
    """The process that writes a run, as run.json tells it."""
    found = re.search(r'"pid": (\d+)', (path / "run.json").read_text())
    assert found is not None
    return int(found[1])


def test_a_run_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    quick = dataclasses.replace(TINY, variant="cnn", epochs=1)
    writer = start_run(tmp_path, quick.run_id, variant="cnn", settings=quick.as_dict(), seed=0)
    with processes(1) as executor:
        executor.submit(Outcome, quick, "imported").result()  # its process can begin at once
        future = executor.submit(try_training, quick, tmp_path)
        with pytest.raises(TimeoutError):
            future.result(timeout=0.5)
        writer.stop("let go")
        assert future.result().state == "done"
    assert open_run(tmp_path / quick.run_id).state == "complete"


def test_a_process_sees_the_gpu_that_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with processes(1, gpus=2) as executor:
        assert executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == "4"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_table_is_redrawn_in_place_and_gone_at_the_end(tmp_path: Path) -> None:
    plan = grid(dataclasses.replace(TINY, epochs=4), {"variant": ["cnn", "mha"], "seed": [0, 1]})
    terminal = Terminal()
    first = plan[0]
    with ProgressTable(plan, tmp_path, {}, terminal) as board:
        assert "cnn      2 waiting  0/8" in terminal.getvalue()
        writer = start_run(tmp_path, first.run_id, variant="cnn", settings=first.as_dict(), seed=0)
        writer.heartbeat(epoch=3, val_accuracy=0.75, val_energy_pointing_game=0.5, seconds=7.2)
        board.show({plan[2].run_id: Outcome(plan[2], "failed", "why")})
        drawn = terminal.getvalue().rpartition("\x1b[4F\x1b[J")[2].splitlines()
    assert " ".join(drawn[1].split()) == "cnn 1 running, 1 waiting 3/8 0.750 0.500 – 7"
    assert drawn[2].split()[1:5] == ["1", "failed,", "1", "waiting"]
    assert " 7/16 [" in drawn[3]
    assert "1 failed, 1 running, 2 wa" in drawn[3]
    assert terminal.getvalue().endswith("\x1b[4F\x1b[J")
    writer.stop("end of the test")


def test_a_table_longer_than_the_terminal_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("COLUMNS", "60")
    plan = grid(TINY, {"variant": ["cnn", "mha"], "lr": [n / 100 for n in range(1, 21)]})
    terminal = Terminal()
    with ProgressTable(plan, tmp_path, {}, terminal):
        drawn = terminal.getvalue().splitlines()
    assert len(drawn) == 8
    assert drawn[-2] == "… 35 rows more"
    assert max(map(len, drawn)) < 60


def test_without_a_terminal_a_line_says_how_far_all_runs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("attnviz.progress.EVERY", 0.0)
    plan = grid(dataclasses.replace(TINY, epochs=4), {"variant": ["cnn", "mha"]})
    with ProgressTable(plan, tmp_path, {}) as table:
        writer = start_run(tmp_path, plan[0].run_id, variant="cnn", settings={}, seed=0)
        writer.heartbeat(epoch=3)
        table.show({})
        table.show({plan[1].run_id: Outcome(plan[1], "failed", "why")})
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert told.splitlines()[0].startswith("all runs: 0 of 8 epochs")
    assert "all runs: 3 of 8 epochs, 0:0" in told
    assert "left, runs 1 running, 1 waiting" in told
    assert told.splitlines()[-1].startswith("all runs: 7 of 8 epochs in 0:0")
    writer.stop("end of the test")


def test_a_run_of_a_sweep_is_silent_and_a_training_alone_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("attnviz.progress.EVERY", 0.0)
    short = dataclasses.replace(TINY, variant="cnn", epochs=1)
    assert try_training(short, tmp_path / "sweep").state == "done"
    assert capsys.readouterr().err == ""
    assert main(["train", *WORDS, "--variant", "cnn", "--runs", str(tmp_path / "alone")]) == 0
    told = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"cnn-s0-\w+: 1 of 4 steps, 0:0\d so far.* loss 0\.\d+, accur.*", told[0])
    assert re.fullmatch(r"cnn-s0-\w+: 4 of 4 steps in 0:\d\d", told[-1])


def test_a_process_that_dies_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.sweep.try_training", killed)
    monkeypatch.setattr("experiments.sweep._FRUITLESS", 2)
    plan = grid(dataclasses.replace(TINY, epochs=1), {"variant": ["cnn"]})
    (outcome,) = run_all(plan, tmp_path, workers=Workers(processes=1))
    assert outcome.state == "failed"
    assert outcome.reason == "its process was killed 2 times, perhaps for its memory"
