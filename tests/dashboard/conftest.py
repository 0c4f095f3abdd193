"""Run folders, a server and a browser, each made once for all tests of the dashboard."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
APP = REPOSITORY / "dashboard" / "app.py"


@pytest.fixture(scope="session")
def good_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six variants, two seeds each, on the same 64 images; seed 0 with weights."""
    return _made_runs().good_runs(tmp_path_factory.mktemp("good"), model=True)


@pytest.fixture(scope="session")
def bad_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good runs beside every kind of bad one."""
    return _made_runs().bad_runs(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="session")
def browsed_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs that the browser sees: good ones, one in training, one with a hostile name."""
    made_runs = _made_runs()
    root = made_runs.good_runs(tmp_path_factory.mktemp("browsed"), seeds=1, model=True)
    made_runs.lasting_training(root, "mha-9")
    made_runs.hostile_run(root)
    return root


@pytest.fixture(scope="session")
def address(browsed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one server, started from another folder as a user's would be."""
    log = tmp_path_factory.mktemp("server") / "log"
    port = _free_port()
    words = [
        *(sys.executable, "-m", "streamlit", "run", str(APP)),
        *("--server.port", str(port), "--", str(browsed_root)),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "ATTNVIZ_RUNS"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            words, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        yield _answering(f"http://localhost:{port}", server, log)
    finally:
        server.terminate()
        server.wait()


def _made_runs() -> ModuleType:
    """Imported late: the run-time checks come before attnviz, and this file may be read first."""
    return importlib.import_module("tests.dashboard.made_runs")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answering(address: str, server: subprocess.Popen[bytes], log: Path) -> str:
    """The address, once the server answers there."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=10) as answer:
                if answer.status == 200:
                    return address
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the server did not start:\n{log.read_text(errors='replace')}")
