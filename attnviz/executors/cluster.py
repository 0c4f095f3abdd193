"""A Dask cluster as an executor.

Workers may join and leave. Those present at the start are checked for fitness; each that joins
later checks itself before its first task, and an unfit worker's task is resubmitted to another.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from attnviz.errors import InputError, RunError
from attnviz.executors.fitness import SEEN_WITHIN, in_sight, unfit, versions
from attnviz.executors.pool import environment
from attnviz.executors.workers import Workers

CONNECT_WITHIN = 10.0
"""Timeout of a connection to the scheduler, in seconds."""

WORKERS_WITHIN = 30.0
"""Timeout for the scheduler's first worker, in seconds."""

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""Environment of a worker. Dask's default returns each freed tensor to the system at once: page
faults then take a quarter of the time of a small training."""

_fit: set[tuple[Path, ...]] = set()
"""In a worker: the marker files that its fitness check has found."""

T = TypeVar("T")


def is_cancelled() -> bool:
    """Whether this code runs in a Dask task that was cancelled.

    A thread cannot be stopped from outside, so long tasks poll this function.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return False
    try:
        worker = distributed.get_worker()
        task = worker.state.tasks.get(worker.get_current_task())
    except (ValueError, AttributeError):  # no worker, no task
        return False
    return task is None or task.state == "cancelled"


@contextmanager
def crew(workers: Workers, *shared: Path) -> Iterator[Executor]:
    """The fit workers of a cluster; see `attnviz.executors.executor_of`."""
    with _client(workers) as client, ExitStack() as stack:
        signs = tuple(stack.enter_context(in_sight(folder)).absolute() for folder in shared)
        _refuse_unfit(client, signs)
        pool = _Crew(client, signs)
        try:
            yield pool
        except BaseException:
            pool.shutdown()  # cancels the submitted tasks
            raise


@contextmanager
def _client(workers: Workers) -> Iterator[Any]:
    distributed = _distributed()
    silent = {**KEEP_MEMORY, "TQDM_DISABLE": "1"}
    with environment(**silent), _cluster(distributed, workers) as address:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
                client = distributed.Client(
                    address, timeout=CONNECT_WITHIN, set_as_default=False, name="attnviz"
                )
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"--scheduler: no Dask scheduler answered at {workers.scheduler} within "
                f"{CONNECT_WITHIN:.0f} s; start one with `dask scheduler` ({_first_line(error)})"
            ) from error
        with client:
            try:
                client.wait_for_workers(1, timeout=WORKERS_WITHIN)
            except TimeoutError as error:
                raise InputError(
                    f"--scheduler: {workers.scheduler} has no workers; start some with "
                    f"`python -m dask worker {workers.scheduler} --nthreads 1`"
                ) from error
            yield client


@contextmanager
def _cluster(distributed: Any, workers: Workers) -> Iterator[Any]:
    """The address of a scheduler, or a new cluster on this machine."""
    if workers.scheduler is not None:
        yield workers.scheduler
        return
    with _ignoring_interrupts():  # only the main process handles Ctrl-C
        cluster = distributed.LocalCluster(
            n_workers=workers.dask_local,
            threads_per_worker=1,
            processes=True,
            memory_limit=None,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
    with cluster:
        yield cluster


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise InputError(
            "Dask is not installed: expected the package distributed; "
            "pip install 'attnviz[dask]', or use --workers"
        ) from error


class _Crew(Executor):
    """An executor on a Dask cluster that resubmits the tasks of unfit workers."""

    def __init__(self, client: Any, signs: tuple[Path, ...]) -> None:
        self._client = client
        self._check = partial(_if_fit, versions(), signs, SEEN_WITHIN)
        self._handed_out: set[Any] = set()
        self._unfit: set[str] = set()

    def submit(self, function: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        answer: Future[T] = Future()
        self._hand_out(answer, partial(function, *args, **options))
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._client.cancel(list(self._handed_out))

    def _hand_out(self, answer: Future[T], task: Callable[[], T], **where: Any) -> None:
        handed = self._client.submit(self._check, task, pure=False, **where)
        self._handed_out.add(handed)
        handed.add_done_callback(lambda done: self._take_back(answer, task, done))

    def _take_back(self, answer: Future[T], task: Callable[[], T], done: Any) -> None:
        """Set a task's result or resubmit it to another worker; runs in Dask's callback thread."""
        self._handed_out.discard(done)
        try:
            if done.cancelled():
                answer.cancel()
            found: Any = None if done.cancelled() else done.result()
            others = self._others(found) if isinstance(found, _Unfit) else []
            if others:
                self._hand_out(answer, task, workers=others, allow_other_workers=True)
            elif answer.set_running_or_notify_cancel():
                if isinstance(found, _Unfit):
                    raise RunError(f"no worker is left that can do it: {found}")
                answer.set_result(found)
        except BaseException as error:
            with suppress(InvalidStateError):  # the future was cancelled
                answer.set_exception(error)

    def _others(self, found: _Unfit) -> list[str]:
        if found.worker not in self._unfit:
            logging.getLogger(__name__).warning("%s; its work goes to others", found)
        self._unfit.add(found.worker)
        return [address for address in self._client.nthreads() if address not in self._unfit]


@dataclass(frozen=True)
class _Unfit:
    """The result of a task on an unfit worker."""

    worker: str
    complaint: str

    def __str__(self) -> str:
        return f"the worker {self.worker} {self.complaint}"


def _if_fit(
    wanted: Mapping[str, str], signs: tuple[Path, ...], within: float, task: Callable[[], T]
) -> T | _Unfit:
    """Run the task if this worker is fit."""
    if signs not in _fit:
        complaint = unfit(wanted, signs, within)
        if complaint:
            return _Unfit(importlib.import_module("distributed").get_worker().address, complaint)
        _fit.add(signs)
    return task()


def _refuse_unfit(client: Any, signs: tuple[Path, ...]) -> None:
    """Refuse workers of several threads: torch's random numbers are one stream per process."""
    for address, complaint in _run_on_workers(
        client, unfit, versions(), signs, SEEN_WITHIN
    ).items():
        if complaint:
            raise InputError(f"--scheduler: {_Unfit(address, complaint)}")
    for address, threads in client.nthreads().items():
        if threads != 1:
            raise InputError(
                f"--scheduler: expected workers of one thread each, {address} has {threads}; "
                "start it with --nthreads 1 (and --nworkers for several)"
            )


def _run_on_workers(client: Any, function: Callable[..., Any], *args: Any) -> Mapping[str, Any]:
    """Run a function on each worker; the results by worker."""
    try:
        answers: Mapping[str, Any] = client.run(function, *args)
    except Exception as error:
        raise InputError(
            f"--scheduler: a worker cannot run {function.__module__}: {_first_line(error)}; "
            "start workers in an environment that has attnviz, of the same version"
        ) from error
    return answers


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
