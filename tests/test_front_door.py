"""`import attnviz as av` is typed: a right script passes a strict type checker, a wrong one not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import attnviz

ROOT = Path(__file__).parent.parent
RIGHT = """
from pathlib import Path

import torch

import attnviz as av

model = torch.nn.Linear(1, 1)
with av.watch(model) as seen:
    model(torch.zeros(1, 1))
record: av.Record = seen[next(iter(seen))]
maps: torch.Tensor = av.received(record)
print(av.localization(maps, maps > 0), av.__version__.upper())
state: str = av.list_runs(Path("runs"))[0].state
seed: int | None = av.open_run("runs/a").seed
for batch, one in av.stream(model, [torch.zeros(1, 1)], reduce=None):
    print(batch, one.attention)
try:
    print(av.compare("runs").sentence)
except av.AttnvizError as error:
    print(error)
"""
WRONG = {
    "av.no_such_function(3)": "attr-defined",
    'av.watch("no model")': "arg-type",
    "av.watch(model, nonsense=True)": "call-arg",
    'state: int = av.open_run("a").state': "assignment",
    "av.open_run(3)": "arg-type",
    "av.received(3)": "arg-type",
    'av.inject_patch("no images", size=8)': "arg-type",
    "seen.no_such_attribute": "attr-defined",
}


def test_a_script_of_ones_own_is_checked_against_the_installed_package(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy")
    (tmp_path / "right.py").write_text(RIGHT)
    start = "import torch\n\nimport attnviz as av\n\nmodel = torch.nn.Linear(1, 1)\n"
    start += "with av.watch(model) as seen:\n    pass\n"
    lines = [*WRONG]
    (tmp_path / "wrong.py").write_text(start + "\n".join(lines) + "\n")
    words = [sys.executable, "-m", "mypy", "--strict", "right.py", "wrong.py"]
    words += ["--config-file", str(ROOT / "pyproject.toml")]  # so that what `mypy` left is valid
    words += ["--cache-dir", str(ROOT / ".mypy_cache")]  # here too, and torch is not read again
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert "right.py" not in done.stdout, done.stdout
    first = start.count("\n") + 1
    for number, line in enumerate(lines, first):
        told = [said for said in done.stdout.splitlines() if said.startswith(f"wrong.py:{number}:")]
        assert any(f"[{WRONG[line]}]" in said for said in told), (line, done.stdout)


def test_every_public_name_is_one_line_of_the_stub() -> None:
    stub = Path(str(attnviz.__file__)).with_suffix(".pyi").read_text()
    lines = [line for line in stub.splitlines() if line.startswith("from ")]
    packages = [line.split()[3] for line in lines if line.split()[1] == "attnviz"]
    names = [line.split()[5] for line in lines]
    assert sorted(set(names) - set(packages)) == attnviz.__all__
    assert len(set(names)) == len(names)
    for line in lines:
        _, home, _, name, _, alias = line.split()
        assert name == alias
        assert getattr(attnviz, name).__name__.rpartition(".")[2] == name
        assert home.startswith("attnviz")
    with pytest.raises(AttributeError, match=r"module 'attnviz' has no attribute 'no_such_name'"):
        attnviz.no_such_name  # noqa: B018 - reading it raises
    assert {*attnviz.__all__, "__version__"} == set(dir(attnviz))
