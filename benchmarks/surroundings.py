"""Faults around a writer: disk, permissions, another process, the clock.

Used by `faults.py surroundings`. The tests of `tests/runs/test_faults.py` assert what this prints.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from attnviz.errors import RunError
from attnviz.runs import lifecycle, list_runs, open_run, start_run, verify
from tests.runs.made import everything, make
from tests.runs.test_faults import as_nobody, cut, emptied, full_disk, lengthen, remove

Row = tuple[str, str, str]
HEADER = ("fault", "what was said", "what was left")
BEGUN = {"variant": "mha", "settings": {}, "seed": 0}


def rows() -> Iterator[Row]:
    """Each fault, injected for real into a fresh folder."""
    for fault in (
        disk_full_saving, disk_full_training, disk_full_amending, read_only, two_processes,
        two_makers, clock_backwards, a_tenth_broken,
    ):  # fmt: skip
        with _folder() as root:
            said, left = fault(root)
            yield fault.__name__.replace("_", " "), said.replace(f"{root}/", ""), left


def disk_full_saving(root: Path) -> tuple[str, str]:
    done = full_disk("make(root / 'a', maps={'big': big})", root)
    return _last(done), f"{len(everything(root))} files"


def disk_full_training(root: Path) -> tuple[str, str]:
    done = full_disk(
        "with start_run(root, 'a', variant='mha', settings={}, seed=0) as writer:\n"
        "    writer.curve(epoch=0)\n    writer.maps('big', big)\n", root,
    )  # fmt: skip
    return _last(done), _left(root)


def disk_full_amending(root: Path) -> tuple[str, str]:
    make(root / "a")
    before = everything(root)
    done = full_disk("with amend_run(root / 'a') as writer: writer.maps('big', big)\n", root)
    return _last(done), "every byte as before" if everything(root) == before else "CHANGED"


def read_only(root: Path) -> tuple[str, str]:
    make(root / "a")
    before = everything(root)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = as_nobody("start_run(sys.argv[1], 'b', variant='mha', settings={}, seed=0)", root)
    return _last(done), "every byte as before" if everything(root) == before else "CHANGED"


def two_processes(root: Path) -> tuple[str, str]:
    writer = start_run(root, "a", **BEGUN)
    done = _ran("resume_run(sys.argv[1] + '/a')", root)
    writer.curve(epoch=0)
    writer.finish()
    return _last(done), _left(root)


def two_makers(root: Path) -> tuple[str, str]:
    """Two processes make the same run, twenty times; how often each of them succeeded."""
    code = (
        "try: make(Path(sys.argv[1]) / sys.argv[2]); print('made it')\n"
        "except RunError as error: print(str(error).split(': ')[-1].split(';')[0])"
    )
    said: list[str] = []
    for number in range(20):
        pair = [_child(code, root, number) for _ in range(2)]
        said += [child.communicate()[0].strip() for child in pair]
    made = said.count("made it")
    others = {words for words in said if words != "made it"}
    return f"{made} × made it; {40 - made} × {', '.join(sorted(others))}", _left(root)


def clock_backwards(root: Path) -> tuple[str, str]:
    """A run begun an hour ahead of the clock that goes on with it."""
    real, states = lifecycle.now, []
    ahead = datetime.now(UTC) + timedelta(hours=1)
    lifecycle.now = lambda: ahead.isoformat()
    try:
        writer = start_run(root, "a", **BEGUN)
    finally:
        lifecycle.now = real
    states.append(open_run(root / "a").state)
    writer.maps("m", np.ones((1, 2, 2)))
    states.append(open_run(root / "a").state)
    run = writer.finish()
    ended = "before it began" if run.heartbeat < run.created else "after it began"
    return f"{', '.join(states)}; ended {ended}", _left(root)


def a_tenth_broken(root: Path) -> tuple[str, str]:
    """A thousand runs; every tenth has a file cut, emptied, lengthened or removed."""
    make(root / "0000", gates={}, rows={}, weights=None)
    for number in range(1, 1000):
        shutil.copytree(root / "0000", root / f"{number:04}")
    files = ("run.json", "curves.jsonl", "samples.parquet", "maps/received.safetensors")
    for number in range(0, 1000, 10):
        path = root / f"{number:04}" / files[number // 10 % len(files)]
        (cut, emptied, remove, lengthen)[number // 40 % 4](path)
    start = time.perf_counter()
    found = list_runs(root)
    seconds = time.perf_counter() - start
    named = len({fault.where for fault in verify(root)})
    left = f"{len(found.complete)} complete, {1000 - len(found.complete)} marked, one by one"
    return f"verify names {named} runs; listed in {seconds:.2f} s", left


def _ran(code: str, root: Path) -> subprocess.CompletedProcess[str]:
    child = _child(code, root)
    out, err = child.communicate()
    return subprocess.CompletedProcess([], child.returncode, out, err)


def _child(code: str, root: Path, *words: object) -> subprocess.Popen[str]:
    load = "import sys; from pathlib import Path; from attnviz.errors import RunError\n"
    load += "from attnviz.runs import *; from tests.runs.made import make\n"
    return subprocess.Popen(
        [sys.executable, "-c", load + code, str(root), *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """The message of the error that ended a process."""
    line = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    return line.split("Error: ", 1)[-1]


def _left(root: Path) -> str:
    """States of the runs that are there, and whether every file of theirs is whole."""
    try:
        found = list_runs(root)
    except RunError as error:
        return str(error)
    states = [run.state for run in found]
    counted = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)) or "no run"
    faults = len(verify(root))
    return f"{counted}; {faults or 'no'} faults"


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that another user can walk into."""
    folder = Path(tempfile.mkdtemp(prefix="attnviz-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
