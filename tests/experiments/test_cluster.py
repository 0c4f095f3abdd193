"""Sweeps over a Dask cluster: a real scheduler, worker processes, and one of them killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

from attnviz import InputError, RunError, list_runs, open_run
from attnviz.executors import Workers, executor_of
from attnviz.executors import cluster as clusters
from attnviz.executors.fitness import sees
from experiments.__main__ import main
from tests.cluster import cluster, worker
from tests.experiments.test_sweep import epoch, killer, pid_of, started, until
from tests.experiments.tiny import TINY, WORDS

distributed = pytest.importorskip(
    "distributed", reason="Dask is an extra: pip install 'attnviz[dask]'"
)

GRID = ("--variants", "cnn", "--seeds", "2", "--epochs", "12")
RUNS = [dataclasses.replace(TINY, variant="cnn", seed=seed, epochs=12) for seed in range(2)]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cluster(tmp_path_factory.mktemp("dask")) as address:
        yield address


def table(text: str) -> list[str]:
    """What a sweep printed, without the seconds."""
    first, *others = text.splitlines()
    assert first.endswith("seconds")
    return [line.rpartition(" ")[0] if line.startswith("cnn  ") else line for line in others]


def test_a_killed_worker_changes_nothing(
    scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    assert main(["sweep", *WORDS, *GRID, "--scheduler", scheduler, "--out", str(calm)]) == 0
    expected = capsys.readouterr().out
    with killer(rough, RUNS[0]) as killed:
        assert main(["sweep", *WORDS, *GRID, "--scheduler", scheduler, "--out", str(rough)]) == 0
    assert table(capsys.readouterr().out) == table(expected)
    assert pid_of(rough / RUNS[0].run_id) != killed[0]
    assert [run.state for run in list_runs(rough)] == ["complete"] * 2
    assert not list(rough.rglob(".*"))
    for settings in RUNS:
        one, other = (open_run(root / settings.run_id) for root in (calm, rough))
        assert other.verify() == []
        assert_frame_equal(one.samples(), other.samples())
        assert_frame_equal(*(run.curves().drop(columns="seconds") for run in (one, other)))
        weights = one.weights(), other.weights()
        assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_interrupted_sweep_stops_its_runs_and_goes_on(scheduler: str, tmp_path: Path) -> None:
    words = ("--variants", "cnn", "--epochs", "400", "--scheduler", scheduler)
    run = dataclasses.replace(TINY, variant="cnn", epochs=400, patience=99)
    with started(tmp_path, *words) as process:
        until(lambda: epoch(tmp_path, run) > 0, process)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
        assert process.returncode == 130, error
        assert "Traceback" not in error
        while open_run(tmp_path / run.run_id).state == "running":
            time.sleep(0.05)  # its worker hears of it at the end of the epoch
    stopped = open_run(tmp_path / run.run_id)
    assert (stopped.state, stopped.reason) == ("stopped", "interrupted")
    assert len(stopped.curve_rows()) < 400


def test_a_cluster_of_our_own_is_one_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "--variants", "cnn", "--epochs", "1"]
    assert main(["sweep", *words, "--dask-local", "2", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["cnn", "done"]
    assert [run.state for run in list_runs(tmp_path)] == ["complete"]


def refused(address: str, folder: Path, message: str) -> None:
    with (
        pytest.raises(InputError, match=message),
        executor_of(Workers(scheduler=address), folder),
    ):
        pass


def test_a_scheduler_that_is_away_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clusters, "CONNECT_WITHIN", 0.5)
    words = [*WORDS, "--scheduler", "tcp://127.0.0.1:9", "--out", str(tmp_path)]
    assert main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert "no Dask scheduler answered at tcp://127.0.0.1:9 within" in error
    assert "start one with `dask scheduler`" in error
    assert error.count("\n") == 1
    assert not list_runs(tmp_path)


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    refused("nonsense://x", tmp_path, r"no Dask scheduler answered at nonsense://x")


def test_other_versions_are_refused(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.python_version_tuple", lambda: ("2", "7", "0"))
    found = ".".join(map(str, sys.version_info[:2]))
    refused(scheduler, tmp_path, rf"has python {found} instead of 2\.7; install the same versions")


def test_a_worker_that_does_not_see_the_folder_is_named(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "SEEN_WITHIN", 0.2)
    touch = Path.touch
    elsewhere = tmp_path / "mounted elsewhere"
    monkeypatch.setattr(Path, "touch", lambda self: touch(elsewhere))
    left, younger = tmp_path / ".0123abcd.seen", tmp_path / ".4567abcd.seen"
    for sign in (left, younger):
        sign.write_text("")
    os.utime(left, (0, 0))
    refused(scheduler, tmp_path, rf"does not see the folder {tmp_path} that runs go to; use one")
    assert (left.exists(), younger.exists()) == (False, True)
    assert sees(tmp_path / "nothing", 0).endswith("under the same path")
    assert sees(elsewhere, 0) == ""


ELSEWHERE = """
from pathlib import Path
exists = Path.exists
Path.exists = lambda path, **how: path.suffix != ".seen" and exists(path, **how)
"""
"""A machine that has not mounted the shared folder, as far as a worker can tell."""


def where(seconds: float) -> str:
    from distributed import get_worker

    time.sleep(seconds)
    return str(get_worker().address)


def test_a_worker_that_joins_late_and_does_not_see_the_folder_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clusters, "SEEN_WITHIN", 0.2)
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text(ELSEWHERE)
    runs, preload = tmp_path / "runs", ("--preload", str(elsewhere))
    with cluster(tmp_path, workers=0) as address, ExitStack() as stack:
        fit = stack.enter_context(worker(address, tmp_path))
        executor = stack.enter_context(executor_of(Workers(scheduler=address), runs))
        (first,) = executor.map(where, [0])
        blind = stack.enter_context(worker(address, tmp_path, *preload))
        with distributed.Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=600)
            (late,) = set(client.nthreads()) - {first}
            assert set(executor.map(where, [0.1] * 8)) == {first}
            said = f"the worker {late} on {socket.gethostname()} does not see the folder {runs} "
            assert [line.startswith(said) for line in caplog.messages] == [True]
            fit.terminate()
            fit.wait()
            with pytest.raises(RunError, match=f"no worker is left that can do it: {said}"):
                executor.submit(where, 0).result(600)
        assert blind.poll() is None
    assert not list(runs.iterdir())


def test_workers_of_several_threads_and_none_at_all_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "WORKERS_WITHIN", 0.2)
    options = {"processes": False, "dashboard_address": ":0", "protocol": "tcp"}
    with distributed.LocalCluster(n_workers=0, threads_per_worker=2, **options) as cluster:
        address = cluster.scheduler_address
        refused(address, tmp_path, r"has no workers; start some with `python -m dask worker")
        cluster.scale(1)
        monkeypatch.undo()
        refused(address, tmp_path, r"expected workers of one thread each, tcp.* has 2; start it")


def test_without_dask_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused("tcp://127.0.0.1:9", tmp_path, r"pip install 'attnviz\[dask\]', or use --workers")


def test_workers_keep_the_memory_that_they_ask_for_again(tmp_path: Path) -> None:
    wanted = clusters.KEEP_MEMORY
    with executor_of(Workers(dask_local=1), tmp_path) as executor:
        assert list(executor.map(os.getenv, wanted)) == list(wanted.values())
    assert not list(tmp_path.iterdir())
    assert not set(wanted) & set(os.environ)
