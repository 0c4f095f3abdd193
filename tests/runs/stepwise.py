"""Kill a writer at each of its system calls in turn: `python -m tests.runs.stepwise JOB ROOT`.

Killing at random moments leaves it to luck which steps are hit. Here a forked child counts its own
calls to the file system and ends, without any clean-up, in the middle of the n-th: a write gets
half of its bytes out, any other call does not happen. n goes up until the child comes through.
After each death the folder must be in order, and doing the same again must succeed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attnviz.runs import (
    amend_run,
    list_runs,
    migrate_run,
    open_dataset,
    open_run,
    resume_run,
    save_dataset,
    start_run,
)
from tests.runs.made import arrays, edit, make

CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "ftruncate")
DEATH = 137


def save(root: Path) -> None:
    given = arrays()
    make(root / "a", maps={"m": given["maps"]["heads"]}, rows={}, gates={}, weights=None)


def train(root: Path) -> None:
    """A run from start to end; one that is there already is resumed."""
    there = (root / "a").exists()
    if there and open_run(root / "a").state == "complete":
        return  # killed after its last step
    begun = {"variant": "mha", "settings": {}, "seed": 0}
    with resume_run(root / "a") if there else start_run(root, "a", **begun) as writer:
        done = writer.path / "checkpoint.safetensors"
        epoch = int(done.read_text()) if done.exists() else 0
        writer.keep_curves(epoch)
        for number in range(epoch, 2):
            writer.curve(epoch=number, loss=1.0)
            writer.maps("epoch", np.full((2, 2, 2), float(number + 1)))
            writer.write("checkpoint.safetensors", str(number + 1).encode())
        writer.samples(arrays()["samples"])
        writer.drop("checkpoint.safetensors")
        writer.finish({"accuracy": 1.0})


def amend(root: Path) -> None:
    with amend_run(root / "a") as writer:
        writer.maps("received", np.full((6, 2, 2), 2.0))
        writer.samples(pd.DataFrame({"received/iou": [2.0] * 6}))
        writer.maps("gradcam", np.full((6, 2, 2), 2.0))
        writer.finish({"accuracy": 2.0})


def data(root: Path) -> None:
    save_dataset(
        root,
        images=np.zeros((3, 4, 4, 3), dtype=np.uint8),
        masks=np.ones((3, 4, 4), dtype=bool),
        boxes=np.zeros((3, 4), dtype=int),
        labels=np.arange(3),
        info={"source": "test"},
    )


def migrate(root: Path) -> None:
    migrate_run(root / "a")


def nothing(root: Path) -> None:
    """Begin with an empty folder."""


def complete_one(root: Path) -> None:
    make(root / "a", maps={"received": np.ones((6, 2, 2))}, gates={}, rows={}, weights=None,
         samples=pd.DataFrame({"received/iou": [1.0] * 6}), summary={"accuracy": 1.0})  # fmt: skip


def edited_one(root: Path) -> None:
    """A run whose header a person has edited: its checksum is gone."""
    complete_one(root)
    edit(root / "a", variant="renamed")


def check_save(root: Path) -> str:
    found = list_runs(root)
    assert not found.left_out, found.left_out
    return _whole(root) if len(found) else "none"


def check_train(root: Path) -> str:
    found = list_runs(root)
    assert not found.left_out, found.left_out
    if not len(found):
        return "none"
    (run,) = found
    assert run.state in ("stale", "complete"), (run.state, run.reason)
    rows = run.curve_rows()
    assert [row["epoch"] for row in rows] == list(range(len(rows)))
    if run.map_names:
        assert len(np.unique(run.maps("epoch"))) == 1
    assert run.verify() == []
    if run.state == "complete":
        assert len(rows) == 2
        assert run.maps("epoch").max() == 2
    return run.state


def check_amend(root: Path) -> str:
    run = open_run(root / "a")
    assert run.state == "complete", (run.state, run.reason)
    assert run.verify() == []
    version = run.summary["accuracy"]
    assert run.samples()["received/iou"].tolist() == [version] * 6
    assert np.unique(run.maps("received")).tolist() == [version]
    assert ("gradcam" in run.map_names) == (version == 2.0)
    return "new" if version == 2.0 else "old"


def check_data(root: Path) -> str:
    folder = root / "datasets"
    if not folder.exists() or not [p for p in folder.iterdir() if p.name[0] != "."]:
        return "none"
    (found,) = (p.name for p in folder.iterdir() if p.name[0] != ".")
    assert open_dataset(root, found).labels().tolist() == [0, 1, 2]
    return "whole"


def check_migrate(root: Path) -> str:
    run = open_run(root / "a")
    assert (run.state, run.variant) == ("complete", "renamed"), (run.state, run.reason)
    assert run.verify() == []
    return "sealed" if "seal" in json.loads((root / "a" / "run.json").read_text()) else "edited"


def _whole(root: Path) -> str:
    run = open_run(root / "a")
    assert run.state == "complete", (run.state, run.reason)
    assert run.verify() == []
    return "complete"


Step = Callable[[Path], Any]
Job = tuple[Step, Step, Callable[[Path], str], str]
"""What is there before, what is done, what state that left, and the state at the end."""

JOBS: dict[str, Job] = {
    "save": (nothing, save, check_save, "complete"),
    "train": (nothing, train, check_train, "complete"),
    "amend": (complete_one, amend, check_amend, "new"),
    "data": (nothing, data, check_data, "whole"),
    "migrate": (edited_one, migrate, check_migrate, "sealed"),
}


def die_at(step: int) -> None:
    """From now on, end this process in its `step`-th call to the file system."""
    left = [step]

    def mortal(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(DEATH)
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, mortal(name, getattr(os, name)))


def lived(job: Step, root: Path, step: int) -> bool:
    """Do the job in a child that dies at a step; whether it came through."""
    child = os.fork()
    if child == 0:
        die_at(step)
        code = 1
        try:
            job(root)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, DEATH), f"step {step}: exit code {code}"
    return code == 0


def kill_everywhere(name: str, root: Path) -> Counter[str]:
    """Kill a job at each of its steps; how often which state was left behind."""
    before, job, check, end = JOBS[name]
    left: Counter[str] = Counter()
    step, through = 0, False
    while not through:
        step += 1
        home = root / str(step)
        home.mkdir()
        before(home)
        through = lived(job, home, step)
        state = check(home)
        left[state] += 1
        if state != end:
            job(home)
            assert check(home) == end
        # removing what is left needs the next writer; nothing needs it when nothing was left
        stray = [path for path in home.rglob("*.partial") if name != "data"]
        assert len(stray) <= (0 if state != end else 1), stray
        shutil.rmtree(home)
    return left


if __name__ == "__main__":
    # a process that dies takes nothing from the system's memory; only a power cut would
    os.fsync = lambda handle: None
    print(json.dumps(kill_everywhere(sys.argv[1], Path(sys.argv[2]))))
