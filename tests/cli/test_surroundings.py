"""The command line where something of the usual surroundings is missing: right exit codes, no
traceback."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.made import make

ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("home") / "runs"
    make(root / "a")
    make(root / "b", seed=1, variant="größe")
    return root


def shell(line: str, runs: Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `attnviz` is ours and `RUNS` the folder of runs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RUNS": str(runs)}
    for name, value in changes.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    start = f'attnviz() {{ "{sys.executable}" -m attnviz "$@"; }}; set -o pipefail; '
    words = ["bash", "-c", start + line]
    return subprocess.run(words, env=environment, capture_output=True, text=True, errors="replace")


@posix
@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("attnviz show $RUNS/a | head -1", 0, ""),
        ("exec >&-; attnviz --version", 0, ""),
        ("exec >&-; attnviz verify $RUNS", 0, ""),
        ("exec >&- 2>&- <&-; attnviz show $RUNS/a", 0, ""),
        ("exec >&-; attnviz show $RUNS/none", 2, "attnviz: list "),
        ("exec >&- 2>&- <&-; attnviz show $RUNS/none", 2, ""),
    ],
)
def test_a_closed_output_is_one_that_is_thrown_away(
    runs: Path, line: str, code: int, error: str
) -> None:
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    done = shell(line, runs)
    assert (done.returncode, done.stderr[: len(error) or 99]) == (code, error)
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["--help", "ls $RUNS", "export $RUNS"])
def test_an_output_that_is_full_is_said_in_one_line(runs: Path, words: str) -> None:
    done = shell(f"attnviz {words} > /dev/full", runs)
    assert done.returncode == 2
    assert done.stderr == "attnviz: write standard output: no space left on device\n"
    assert shell(f"attnviz {words} > /dev/full 2> /dev/full", runs).returncode == 2


@posix
@pytest.mark.parametrize(
    "changes",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_every_encoding_of_the_output_is_written_to(runs: Path, changes: dict[str, str]) -> None:
    done = shell("attnviz --help && attnviz ls $RUNS && attnviz ls none", runs, **changes)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Exit codes" in done.stdout
    assert "complete" in done.stdout
    if changes.get("PYTHONIOENCODING") == "ascii":
        assert "gr\\xf6\\xdfe" in done.stdout


@posix
@pytest.mark.parametrize("option", ["-O", "-OO", "-W error", "-I -B"])
def test_every_way_to_start_python_is_the_same(runs: Path, option: str) -> None:
    start = f'import sys; sys.path.insert(0, "{ROOT}"); import runpy; '
    start += 'sys.argv = ["attnviz", *sys.argv[1:]]; '
    start += 'runpy.run_module("attnviz", run_name="__main__", alter_sys=True)'
    python = f"\"{sys.executable}\" {option} -c '{start}'"
    for words in ("--help", "ls $RUNS", "show $RUNS/a", "verify $RUNS", "diff $RUNS/a $RUNS/b",
                  "export $RUNS --json"):  # fmt: skip
        done = shell(f"{python} {words}", runs)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert done.stdout
    done = shell(f"{python} show none", runs)
    assert (done.returncode, done.stderr) == (2, "attnviz: list none: no such file or folder\n")


@posix
def test_neither_home_nor_temporary_folder_is_needed(runs: Path, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    for changes in (
        {"HOME": None, "TMPDIR": None, "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None},
        {"HOME": nowhere, "TMPDIR": nowhere, "TEMP": nowhere, "TMP": nowhere},
        {"HOME": "/dev/null", "TMPDIR": "/dev/null"},
    ):
        line = "attnviz verify $RUNS && attnviz compare $RUNS --figure x.png; echo $?"
        done = shell(f"cd {tmp_path}; {line}", runs, **changes)
        assert "2 runs, all well" in done.stdout
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "nowhere").exists()


@posix
def test_a_package_that_may_not_be_written_to_works(runs: Path) -> None:
    """Python would keep its compiled files beside it."""
    done = shell("attnviz ls $RUNS", runs, PYTHONPYCACHEPREFIX="/proc/nowhere")
    assert (done.returncode, done.stderr) == (0, "")


@posix
@pytest.mark.parametrize(
    "words",
    [
        "export $RUNS --out {long}.csv",
        "export $RUNS --out {deep}.csv",
        "compare $RUNS --figure {long}.png",
        "report $RUNS --out {long}.html",
        "watch attnviz:mha --out {deep}",
        "ls {long}",
        "show {deep}",
        "verify {long}",
        "dashboard {long}",
        "watch attnviz:mha --size 1000000",
        "watch attnviz:mha --images {long}",
        "watch attnviz:mha --weights {long}.pt",
    ],
)
def test_what_is_too_long_or_too_large_is_refused_in_one_line(runs: Path, words: str) -> None:
    long, deep = "x" * 300, "/".join(["x" * 200] * 30)
    done = shell(f"attnviz {words.format(long=long, deep=deep)}", runs)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "unexpected" not in done.stderr


SWEEP = """
import json, os, signal, sys

def child(step, words, out):
    left = [step]
    def trace(frame, event, argument):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return trace
    os.dup2(out, 1); os.dup2(out, 2)
    sys.argv = ['attnviz', *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    from attnviz.__main__ import main
    sys.settrace(trace)
    code = main()
    sys.settrace(None)
    if not step:
        print('events', -left[0])
    sys.stdout.flush()
    os._exit(code)

def after(step, words):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(step, words, write)
    os.close(write)
    said = b''
    while part := os.read(read, 1 << 16):
        said += part
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode()

steps, words = json.loads(sys.argv[1]), sys.argv[2:]
code, said = after(0, words)
assert code == 0, said
events = int(said.split()[-1])
print(json.dumps([after(max(150, int(share * events) - 9), words) for share in steps]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("words", [["ls"], ["verify"], ["export", "--json"]])
def test_an_interrupt_at_any_moment_ends_in_one_line_at_most(runs: Path, words: list[str]) -> None:
    rng = random.Random(len(words[0]))
    steps = [rng.random() ** 2 for _ in range(8)] + [1 - rng.random() / 50 for _ in range(4)]
    line = [sys.executable, "-c", SWEEP, json.dumps(steps), words[0], str(runs), *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for code, said in json.loads(done.stdout):
        assert code in (130, -signal.SIGINT), said
        assert "Traceback" not in said
        assert "Exception ignored" not in said
        assert code != 130 or said.endswith("attnviz: interrupted\n") or "interrupted" not in said
    assert not list(runs.rglob(".*"))
