"""The front of the command line: what is imported, what appears, what it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from attnviz.cli import COMMANDS, available, run
from tests.runs.made import make

MODULES = (
    "import sys, json; from attnviz.cli import run; code = run(sys.argv[1:]);"
    "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
)


def imported(*words: str) -> set[str]:
    """The modules that a fresh process has loaded after a command."""
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *words], capture_output=True, text=True, check=True
    )
    code, modules = json.loads(done.stderr)
    assert code == 0, done.stdout
    return set(modules)


@pytest.mark.parametrize("words", [("--help",), ("ls",), ("show",), ("verify",), ("ls", "--help")])
def test_no_command_about_runs_imports_torch(tmp_path: Path, words: tuple[str, ...]) -> None:
    make(tmp_path / "a")
    target = {"ls": str(tmp_path), "verify": str(tmp_path), "show": str(tmp_path / "a")}
    extra = [target[words[0]]] if words[0] in target and len(words) == 1 else []
    modules = imported(*words, *extra)
    heavy = {"torch", "torchvision", "captum", "streamlit", "matplotlib", "scipy", "skimage"}
    assert not heavy & modules
    if words[0] in ("--help", "ls"):
        assert not {"pandas", "pyarrow", "safetensors", "fsspec"} & modules


def test_only_the_chosen_command_is_imported(tmp_path: Path) -> None:
    make(tmp_path / "a")
    commands = {f"attnviz.cli.{name}" for name in COMMANDS}
    assert imported("--help") & commands == set()
    assert imported("ls", str(tmp_path)) & commands == {"attnviz.cli.ls"}
    assert imported("verify", str(tmp_path)) & commands == {"attnviz.cli.verify"}


def test_a_command_whose_module_is_not_there_does_not_appear(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "teleport", "not written yet")
    assert "teleport" not in available()
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert "teleport" not in out
    for name, line in available().items():
        assert f"  {name} " in out
        assert line in out
    assert run(["teleport"]) == 2


def test_every_command_that_appears_can_say_what_it_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {path.stem for path in Path(find_spec("attnviz.cli").origin).parent.glob("*.py")}
    assert set(available()) == names & set(COMMANDS)
    for name in ("ls", "show", "diff", "export", "verify", "migrate", "dashboard"):
        assert run([name, "--help"]) == 0
        assert f"usage: attnviz {name}" in capsys.readouterr().out


def test_the_package_runs_as_a_module_and_knows_its_version() -> None:
    from importlib.metadata import version

    done = subprocess.run(
        [sys.executable, "-m", "attnviz", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"attnviz {version('attnviz')}\n"


def test_importing_attnviz_costs_little_beside_numpy() -> None:
    """A small share of what numpy takes, itself about a tenth of a second."""
    code = (
        "import time; start = time.process_time(); import numpy; middle = time.process_time();"
        "import attnviz; end = time.process_time(); print(middle - start, end - middle)"
    )
    ratios = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        numpy, ours = map(float, done.stdout.split())
        ratios.append(ours / numpy)
    assert min(ratios) < 0.3


def test_output_that_nobody_reads_any_more_is_no_error(tmp_path: Path) -> None:
    make(tmp_path / "a")
    words = [sys.executable, "-u", "-m", "attnviz", "show", str(tmp_path / "a")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 0
