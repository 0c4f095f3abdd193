"""A pool of local processes with orderly shutdown on Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

_interrupted = threading.Event()
"""Set in a worker process after an interrupt: it starts no further task from its queue."""


@contextmanager
def processes(workers: int, *, gpus: int = 0) -> Iterator[Executor]:
    """Open a pool of local processes; on an interrupt, each receives SIGINT as from a terminal.

    Args:
        workers: How many.
        gpus: Number of GPUs to assign in turn, one per process; 0 assigns none.
    """
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for number in range(workers):
        places.put(number % gpus if gpus else None)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(places,))
    others = set(multiprocessing.active_children())
    with environment(TQDM_DISABLE="1"):  # workers print no progress bars
        try:
            yield pool
        except KeyboardInterrupt:
            for child in set(multiprocessing.active_children()) - others:
                with suppress(ProcessLookupError, TypeError):
                    os.kill(child.pid, signal.SIGINT)  # type: ignore[arg-type]  # suppressed
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT within a task of `processes`, once, and for later tasks.

    In a thread, where signals do not arrive, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _interrupted.is_set():
        raise KeyboardInterrupt
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables for processes started within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _begin(places: Any) -> None:
    """Initialise a worker: interrupt handler and GPU assignment."""
    signal.signal(signal.SIGINT, lambda *_: _interrupted.set())
    place = places.get()
    if place is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place] if visible else str(place)


def _interrupt(number: int, frame: Any) -> None:
    _interrupted.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run is being put in order; once is enough
    raise KeyboardInterrupt
