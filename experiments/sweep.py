"""Train a grid of settings on all cores or many machines, one process per run.

Runs are submitted through the interface of `concurrent.futures`, which processes and Dask clusters
share. The state of a run lies in its folder: the same command resumes an interrupted sweep, and
progress is read from the folders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from attnviz.errors import RunError
from attnviz.executors import Workers, cores, executor_of, processes
from attnviz.runs import open_run
from experiments.axes import Grid
from experiments.progress_table import ProgressTable
from experiments.running import Outcome, try_training
from experiments.settings import Settings

_LOOK_EVERY = 0.5
_FRUITLESS = 3
"""How often a worker process may die without any run being finished in between."""


def run_all(
    plan: Sequence[Settings], root: Path, *, workers: Workers | None = None
) -> list[Outcome]:
    """Train and measure every settings of a plan; complete runs are reused.

    Args:
        plan: What to run.
        root: The folder of runs; every worker must see it under the same path.
        workers: The executor; by default one process per core, or one per GPU.

    Returns:
        One outcome each, in the plan's order.

    Raises:
        InputError: The workers of a cluster are not there, or do not see the folder.
        RunError: Such a folder cannot be written.
    """
    root, plan = root.absolute(), plan if isinstance(plan, Grid) else Grid(tuple(plan))
    outcomes = {
        one.run_id: Outcome(one, "reused") for one in plan if _state(root, one) == "complete"
    }
    with ProgressTable(plan, root, outcomes) as table:
        todo = _todo(plan, outcomes)
        fruitless = 0
        while todo and fruitless < _FRUITLESS:
            with _executor(workers or Workers(), len(todo), root) as (executor, threads):
                shared = [dataclasses.replace(s, threads=s.threads or threads) for s in todo]
                done = collect(executor, shared, root, table)
            outcomes |= {key: one for key, one in done.items() if one.state != "lost"}
            fruitless = 0 if any(one.state != "lost" for one in done.values()) else fruitless + 1
            lost = _todo(plan, outcomes)
            todo = sorted(lost, key=lambda s: (root / s.run_id).exists())  # suspects come last
    for one in todo:
        reason = f"its process was killed {fruitless} times, perhaps for its memory"
        outcomes[one.run_id] = Outcome(one, "failed", reason)
    return [dataclasses.replace(outcomes[one.run_id], settings=one) for one in plan]


def collect(
    executor: Executor, plan: Sequence[Settings], root: Path, table: ProgressTable
) -> dict[str, Outcome]:
    """Submit runs to an executor and wait, showing progress; outcomes by run id.

    A run is "lost" where its worker process died and took the executor with it.
    """
    outcomes: dict[str, Outcome] = {}
    futures: dict[Future[Outcome], Settings] = {}
    for settings in plan:
        try:
            futures[executor.submit(try_training, settings, root)] = settings
        except BrokenProcessPool:
            outcomes[settings.run_id] = Outcome(settings, "lost")
    pending = set(futures)
    while pending:
        finished, pending = wait(pending, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
        for future in finished:
            outcome = _outcome(future, futures[future], root)
            outcomes[outcome.settings.run_id] = outcome
        table.show(outcomes)
    return outcomes


@contextmanager
def _executor(workers: Workers, most: int, root: Path) -> Iterator[tuple[Executor, int]]:
    """An executor with no more workers than runs, and the threads that each run may use."""
    if workers.scheduler is not None:
        with executor_of(workers, root) as executor:
            yield executor, 0  # what its workers were started with
        return
    gpus = _gpus()
    count = min(workers.local or gpus or cores(), most)
    threads = max(1, cores() // count)
    if workers.dask_local:
        with executor_of(Workers(dask_local=count), root) as executor:
            yield executor, threads
    else:
        with processes(count, gpus=gpus) as executor:
            yield executor, threads


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _todo(plan: Sequence[Settings], outcomes: dict[str, Outcome]) -> list[Settings]:
    return [one for one in plan if one.run_id not in outcomes]


def _state(root: Path, settings: Settings) -> str:
    try:
        return open_run(root / settings.run_id).state
    except RunError:
        return "missing"


def _outcome(future: Future[Outcome], settings: Settings, root: Path) -> Outcome:
    try:
        outcome = future.result()
    except BrokenProcessPool:
        return Outcome(settings, "lost")
    except Exception as error:  # the worker itself died
        reason = (str(error) or "its worker or scheduler went away").partition("\n")[0]
        return Outcome(settings, "failed", f"{type(error).__name__}: {reason}")
    if outcome.state in ("done", "reused") and _state(root, settings) != "complete":
        reason = f"its worker finished it, and {root / settings.run_id} is not complete here"
        return Outcome(settings, "failed", reason)
    return outcome
