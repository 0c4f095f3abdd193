"""Real work for `faults.py` to interrupt: a small network trained, measured and attributed.

Every job runs in a forked child, for autograd does not survive a fork once it has run; so that
children die at their work and not at their imports, the parent loads what the first one loaded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path

import torch

from attnviz import cli
from attnviz.runs import Run, list_runs
from experiments.running import run_training
from experiments.settings import Settings
from tests.runs.stepwise import Job, Step, nothing

SMALL = Settings(
    variant="mha", side=32, size=8, train_images=16, val_images=8, test_images=12, batch=8,
    epochs=3, precision="fp32", device="cpu",
)  # fmt: skip


def real_jobs(root: Path) -> dict[str, Job]:
    """What can be killed; each is first done undisturbed, to compare with."""
    torch.set_num_threads(1)
    trained = _done(_train, nothing, root / "trained")

    def with_a_run(home: Path) -> None:
        shutil.copytree(trained, home, dirs_exist_ok=True)

    def checked(after: Path, before: Path | None) -> Job:
        def check(home: Path) -> str:
            found = list_runs(home)
            assert not found.left_out, found.left_out
            if not len(found):
                assert before is None, "the run is gone"
                return "none"
            (run,) = found
            assert run.state in ("complete", "stale"), (run.state, run.reason)
            assert run.verify() == [], run.verify()
            if run.state == "stale":
                assert before is None, "a complete run is no longer complete"
                return "resumable"
            for name, whole in (("complete", after), ("as before", before)):
                if whole is not None and _same(run, list_runs(whole)[0]):
                    return name
            raise AssertionError("neither what it was nor what it would have been")

        return check

    jobs: dict[str, Job] = {"train": (nothing, _train, checked(trained, None), "complete")}
    for name, words in WORDS.items():
        step = _command(words)
        after = _done(step, with_a_run, root / f"{name}-undisturbed")
        jobs[name] = (with_a_run, step, checked(after, trained), "complete")
    return jobs


WORDS = {
    "measure": ("measure", "--faithfulness", "--knockout", "--images", "4"),
    "attribute": ("attribute", "--method", "saliency", "--replace"),
}


def _train(home: Path) -> None:
    with _unheard():
        run_training(SMALL, home)


def _command(words: tuple[str, ...]) -> Step:
    def step(home: Path) -> None:
        with _unheard():
            assert cli.run([words[0], str(home), *words[1:]]) == 0

    return step


def _done(step: Step, before: Step, home: Path) -> Path:
    """Do a job in a child of its own, and load here what it had to load there."""
    home.mkdir()
    before(home)
    loaded = home.with_suffix(".modules")
    if (child := os.fork()) == 0:
        step(home)
        loaded.write_text("\n".join(sys.modules))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for name in loaded.read_text().splitlines():
        if name.partition(".")[0] not in ("__main__", "__mp_main__"):
            with contextlib.suppress(Exception):
                import_module(name)
    return home


def _same(one: Run, other: Run) -> bool:
    """Whether two runs hold the same, but for the seconds that they took."""
    skipped = ("curves.jsonl", "run.json")
    files = [
        {name: file.sha256 for name, file in run.files.items() if name not in skipped}
        for run in (one, other)
    ]
    curves = [run.curves().drop(columns="seconds") for run in (one, other)]
    return files[0] == files[1] and curves[0].equals(curves[1])


@contextlib.contextmanager
def _unheard():
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), \
            contextlib.redirect_stderr(nowhere):  # fmt: skip
        yield
