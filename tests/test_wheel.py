"""The wheel: one top-level package, and a dashboard that opens from outside the checkout."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel would put into site-packages."""
    place = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place / "site"


def run_from(installed: Path, folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed), "PWD": str(folder)}


def test_a_wheel_installs_one_package_and_its_licence(installed: Path) -> None:
    names = sorted(path.name for path in installed.iterdir())
    assert names[0] == "attnviz"
    assert [name.endswith(".dist-info") for name in names[1:]] == [True]
    assert (installed / "attnviz" / "py.typed").exists()
    assert not list(installed.rglob("tests"))


def test_the_command_line_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "attnviz", "--help"]
    done = subprocess.run(
        words, cwd=tmp_path, env=run_from(installed, tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "dashboard" in done.stdout


def test_the_dashboard_opens_from_the_wheel_outside_the_checkout(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "attnviz", "dashboard", "runs", "--no-browser"]
    process = subprocess.Popen(
        [*words, "--port", str(port)],
        cwd=tmp_path,
        env=run_from(installed, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert answers(f"http://127.0.0.1:{port}/_stcore/health", process) == b"ok"
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(address: str, process: subprocess.Popen[bytes]) -> bytes:
    """What the server says, once it listens; it is given 90 seconds to start."""
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:
                return bytes(reply.read())
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the dashboard did not answer (exit code {process.poll()})")
