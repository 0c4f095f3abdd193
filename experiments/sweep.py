"""Many runs: a grid of settings, on all cores, each run on its own.

Work is handed out through the interface of `concurrent.futures`, so that processes on this machine
and a Dask cluster are the same to everything here. What a run has done lies in its folder: a sweep
that was interrupted is continued by the same command, and progress is read from there too.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from attnviz.errors import RunError
from attnviz.runs import open_run
from experiments.running import Outcome, try_training
from experiments.settings import Settings

_LOOK_EVERY = 0.5


def grid(base: Settings, axes: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Every combination of the axes' values, in the order of the axes; later ones turn fastest."""
    return [
        dataclasses.replace(base, **dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
    ]


def run_all(plan: Sequence[Settings], root: Path, *, workers: int | None = None) -> list[Outcome]:
    """Train and measure every settings of a plan; complete runs are reused.

    Args:
        plan: What to run.
        root: The folder of runs.
        workers: Processes at once; None takes one per core, or one in all where there is a GPU.

    Returns:
        One outcome each, in the plan's order.
    """
    workers = min(workers or default_workers(), len(plan))
    if workers <= 1:
        return [try_training(settings, root) for settings in plan]
    threads = max(1, cores() // workers)
    shared = [dataclasses.replace(one, threads=one.threads or threads) for one in plan]
    with processes(workers) as executor:
        return collect(executor, shared, root)


def collect(executor: Executor, plan: Sequence[Settings], root: Path) -> list[Outcome]:
    """Hand a plan to an executor and wait, showing the epochs done over all runs."""
    futures = {executor.submit(_try_interruptibly, settings, root): settings for settings in plan}
    outcomes: dict[str, Outcome] = {}
    pending: set[Future[Outcome]] = set(futures)
    with tqdm(
        total=sum(s.epochs for s in plan), desc="all runs", unit="epoch", disable=None
    ) as bar:
        while pending:
            finished, pending = wait(pending, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
            for future in finished:
                settings = futures[future]
                outcomes[settings.run_id] = _outcome(future, settings)
            if not bar.disable:
                bar.n = _epochs_done(plan, root, outcomes)
                bar.set_postfix(runs=f"{len(outcomes)}/{len(plan)}")
    return [outcomes[settings.run_id] for settings in plan]


def default_workers() -> int:
    """One process per core, or one in all where a GPU does the work."""
    import torch

    return 1 if torch.cuda.is_available() else cores()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """Worker processes that end, and mark their runs as stopped, when this one is interrupted."""
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_wait)
    with _environment(TQDM_DISABLE="1"):  # workers draw no bars of their own
        try:
            yield executor
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _wait() -> None:
    """An idle worker sleeps through Ctrl-C; its parent tells it when to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _try_interruptibly(settings: Settings, root: Path) -> Outcome:
    """As `try_training`; Ctrl-C stops the run and leaves it to be taken up again."""
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return try_training(settings, root)
    except KeyboardInterrupt:
        return Outcome(settings, "stopped", "interrupted")
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _outcome(future: Future[Outcome], settings: Settings) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # the worker itself died
        return Outcome(settings, "failed", f"{type(error).__name__}: {error}")


def _epochs_done(plan: Sequence[Settings], root: Path, outcomes: Mapping[str, Outcome]) -> int:
    done = 0
    for settings in plan:
        if settings.run_id in outcomes:
            done += settings.epochs
            continue
        try:
            done += int(open_run(root / settings.run_id).progress.get("epoch", 0))
        except RunError:
            continue
    return done
