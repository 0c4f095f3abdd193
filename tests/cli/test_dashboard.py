"""`attnviz dashboard`: found in the checkout and in the wheel, served to this machine alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest

from attnviz.cli import dashboard, run
from attnviz.errors import UnsupportedError
from tests.runs.made import make

ROOT = Path(__file__).parents[2]


def options(**changes: object) -> Namespace:
    given = {"runs": "runs", "port": 8501, "host": "127.0.0.1", "no_browser": True,
             "allow_host": [], "model": None, "setting": [], "allow_changes": False}  # fmt: skip
    return Namespace(**(given | changes))


def test_it_is_bound_to_this_machine_and_told_where_the_runs_are() -> None:
    words, environment = dashboard.command(dashboard.app(), options(runs="s3://bucket/runs"))
    assert words[1:4] == ["-m", "streamlit", "run"]
    assert words[words.index("--server.address") + 1] == "127.0.0.1"
    assert environment["ATTNVIZ_RUNS"] == "s3://bucket/runs"
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(dashboard.app().parents[1])


def test_a_model_and_the_right_to_change_runs_come_from_the_command_line_alone() -> None:
    _, environment = dashboard.command(dashboard.app(), options())
    assert environment["ATTNVIZ_CHANGES"] == "1"
    assert "ATTNVIZ_MODEL" not in environment
    given = options(host="0.0.0.0", model="mine.net:build", setting=["classes=3"])
    _, environment = dashboard.command(dashboard.app(), given)
    assert environment["ATTNVIZ_CHANGES"] == "0"  # others reach it
    found = json.loads(environment["ATTNVIZ_MODEL"])
    assert found == {"factory": "mine.net:build", "settings": {"classes": 3}}
    assert os.getcwd() in environment["PYTHONPATH"].split(os.pathsep)
    _, environment = dashboard.command(dashboard.app(), options(host="::", allow_changes=True))
    assert environment["ATTNVIZ_CHANGES"] == "1"


def told(words: list[str], option: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == option]


def test_it_answers_to_the_names_of_this_machine_and_to_its_own_pages_alone() -> None:
    words, _ = dashboard.command(dashboard.app(), options())
    assert told(words, "--server.allowedHosts") == ["localhost", "127.0.0.1", "::1"]
    assert told(words, "--server.enableCORS") == ["true"]
    assert told(words, "--server.enableXsrfProtection") == ["true"]
    words, _ = dashboard.command(dashboard.app(), options(allow_host=["runs.example"]))
    assert told(words, "--server.allowedHosts")[-1] == "runs.example"
    words, _ = dashboard.command(dashboard.app(), options(host="10.0.0.7"))
    assert told(words, "--server.allowedHosts")[-1] == "10.0.0.7"
    names = dashboard.allowed_hosts("0.0.0.0", ["runs.example"])
    assert socket.gethostname() in names
    assert "0.0.0.0" not in names
    assert "*" not in names
    assert names[-1] == "runs.example"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7"])
def test_where_others_can_reach_it_it_says_that_there_is_no_log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    begun: list[list[str]] = []
    monkeypatch.setattr(dashboard.os, "execve", lambda path, words, env: begun.append(words))
    monkeypatch.setattr(
        dashboard.subprocess, "run", lambda words, env: subprocess.CompletedProcess(words, 0)
    )
    run(["dashboard", str(tmp_path), "--host", host, "--no-browser"])
    said = capsys.readouterr().err
    assert "everyone who reaches port 8501 can read these runs" in said
    assert "there is no log-in" in said
    run(["dashboard", str(tmp_path), "--no-browser"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ([], "127.0.0.1:8501"),
        (["--host", "::1", "--port", "8600"], "[::1]:8600"),
        (["--host", "0.0.0.0"], "localhost:8501"),
    ],
)
def test_it_prints_where_it_is_and_nothing_of_streamlit_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], where: str,
) -> None:  # fmt: skip
    begun: list[list[str]] = []
    monkeypatch.setattr(dashboard.os, "execve", lambda path, words, env: begun.append(words))
    monkeypatch.setattr(
        dashboard.subprocess, "run", lambda words, env: subprocess.CompletedProcess(words, 0)
    )
    run(["dashboard", str(tmp_path), *words])
    said = capsys.readouterr().out
    assert said == f"attnviz: the dashboard is at http://{where}; Ctrl-C stops it\n"
    assert told(begun[0], "--logger.hideWelcomeMessage") == ["true"]  # its card on the page too


def test_without_streamlit_it_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    assert run(["dashboard", str(tmp_path)]) == 2
    said = "attnviz: dashboard: expected streamlit to be installed; pip install streamlit\n"
    assert capsys.readouterr().err == said


def test_in_the_checkout_the_pages_lie_beside_the_package() -> None:
    assert dashboard.app() == ROOT / "dashboard" / "app.py"


def test_in_the_wheel_they_lie_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "attnviz"
    monkeypatch.setattr(dashboard, "_PACKAGE", package)
    with pytest.raises(UnsupportedError, match="its pages are not installed"):
        dashboard.app()
    (tmp_path / "site-packages" / "dashboard").mkdir(parents=True)
    (tmp_path / "site-packages" / "dashboard" / "app.py").touch()  # somebody else's
    shutil.copytree(ROOT / "dashboard", package / "app" / "dashboard")
    assert dashboard.app() == package / "app" / "dashboard" / "app.py"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "dashboard: no folder 'none'; `attnviz demo` shows finished runs"),
        ([".", "--port", "70000"], "--port: expected at most 65535, got 70000"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["dashboard", *words]) == 2
    assert message in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serves(words: list[str], home: Path, **environment: str) -> None:
    """Start it, wait until it answers, interrupt it as Ctrl-C does, and see it end well."""
    port = free_port()
    with subprocess.Popen(
        [*words, "--port", str(port), "--no-browser"],
        cwd=home,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        try:
            assert answer(child, f"http://127.0.0.1:{port}/_stcore/health") == b"ok"
            own = f"127.0.0.1:{port}"
            assert handshake(port, own, f"http://{own}") == 101
            assert handshake(port, f"localhost:{port}", f"http://localhost:{port}") == 101
            assert handshake(port, "evil.example", "http://evil.example") == 403
            assert handshake(port, f"evil.example:{port}", f"http://evil.example:{port}") == 403
            assert handshake(port, own, "http://evil.example") == 403
        finally:
            os.killpg(child.pid, signal.SIGINT)
        assert child.wait() == 0


def answer(child: subprocess.Popen[bytes], address: str) -> bytes:
    while True:
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        try:
            with urllib.request.urlopen(address, timeout=1) as page:
                content: bytes = page.read()
                return content
        except OSError:
            time.sleep(0.1)


def handshake(port: int, host: str, origin: str) -> int:
    """The status of the answer to a browser that wants the runs over a WebSocket."""
    lines = (
        "GET /_stcore/stream HTTP/1.1", f"Host: {host}", f"Origin: {origin}", "Upgrade: websocket",
        "Connection: Upgrade", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", "",
    )  # fmt: skip
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall("\r\n".join(lines).encode())
        return int(line.recv(64).split()[1])


def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    make(tmp_path / "runs" / "a")
    serves([sys.executable, "-m", "attnviz", "dashboard", "runs"], tmp_path)


def test_the_wheel_brings_one_package_and_serves_from_outside_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs hatchling to build the wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size <= 6e6
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    names = {path.name for path in site.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"attnviz"}
    assert (site / "attnviz" / "py.typed").is_file()
    shipped, made = (
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (site / "attnviz" / "app" / "demo", ROOT / "demo")
    )
    assert shipped == made
    code = (
        "from attnviz.cli import dashboard as d; from argparse import Namespace as N; import os\n"
        "given = N(runs='r', port=1, host='h', no_browser=True, allow_host=[],\n"
        "          allow_changes=False, model=None, setting=[])\n"
        "words, env = d.command(d.app(), given)\n"
        "print(d.app()); print(env['PYTHONPATH'].split(os.pathsep)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    room = site / "attnviz" / "app"
    assert done.stdout.splitlines() == [str(room / "dashboard" / "app.py"), str(room)]
    make(tmp_path / "runs" / "a")
    words = [sys.executable, "-m", "attnviz", "dashboard", "runs"]
    serves(words, tmp_path, PYTHONPATH=str(site))
