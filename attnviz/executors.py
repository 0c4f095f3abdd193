"""Who does the work: processes of this machine, or a Dask cluster, behind one interface.

Both are executors of `concurrent.futures`, so that what hands out work knows nothing of either.
Dask is the optional extra `attnviz[dask]`; it sends pickles, so use it in a network you trust.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import multiprocessing
import os
import platform
import signal
import socket
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from attnviz.errors import InputError, RunError

CONNECT_WITHIN = 10.0
"""Seconds in which a scheduler answers, or is taken to be away."""

WORKERS_WITHIN = 30.0
"""Seconds in which a scheduler has its first worker."""

SEEN_WITHIN = 10.0
"""Seconds in which a network folder shows a new file."""

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""Environment of a worker. Dask's own has each freed tensor go back to the system at once, and
asked for again: a quarter of a small training goes into page faults."""

_ABANDONED = 3600.0

_PACKAGES = ("attnviz", "torch", "numpy", "distributed")

_interrupted = threading.Event()
"""Set in a worker process that was told to end: it takes up nothing that is still in its queue."""

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """Who does the work; at most one of the three is given.

    Attributes:
        processes: So many of this machine.
        scheduler: The address of a Dask scheduler, whose workers do it.
        dask_local: So many Dask workers, started for the purpose on this machine.
    """

    processes: int | None = None
    scheduler: str | None = None
    dask_local: int | None = None

    @property
    def local(self) -> int | None:
        """How many there are, if they are all on this machine."""
        return self.processes or self.dask_local

    @property
    def given(self) -> bool:
        """Whether anybody was asked for."""
        return any((self.processes, self.scheduler, self.dask_local))


def add_workers(parser: argparse.ArgumentParser, *, default: str) -> None:
    """The flags `--workers`, `--scheduler` and `--dask-local`, of which one may be given.

    Args:
        parser: What they are added to.
        default: What happens without any, for the help.
    """
    group = parser.add_argument_group("workers").add_mutually_exclusive_group()
    group.add_argument(
        "--workers", type=positive, metavar="N", help=f"processes at once (default: {default})"
    )
    group.add_argument(
        "--scheduler", metavar="ADDRESS", help="a Dask scheduler, such as tcp://host:8786"
    )
    group.add_argument(
        "--dask-local", type=positive, metavar="N", help="Dask workers on this machine"
    )


def chosen_workers(args: argparse.Namespace) -> Workers:
    """What the flags of `add_workers` say."""
    return Workers(args.workers, args.scheduler, args.dask_local)


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(
    function: Callable[[Any], T],
    parts: Sequence[Any],
    executor: Executor | None,
    *,
    label: str,
    shown: bool | None = None,
) -> list[T]:
    """A function of each part, in the parts' order, by an executor or, without one, right here.

    Args:
        function: Picklable by name, or a `functools.partial` of such a one.
        parts: What it is called with, one after the other.
        executor: Who calls it; None is this process.
        label: Of the progress bar on stderr.
        shown: Whether there is a bar; None is on a terminal only.

    Raises:
        RunError: A process died; a Dask worker that dies is replaced by another.
    """
    from tqdm import tqdm

    each = partial(_interruptibly, function)
    results = map(function, parts) if executor is None else executor.map(each, parts)
    disable = None if shown is None else not shown
    try:
        return list(tqdm(results, total=len(parts), desc=label, leave=False, disable=disable))
    except BrokenProcessPool as error:
        raise RunError(
            f"{label}: a worker process was killed, perhaps for its memory; use fewer --workers"
        ) from error


@contextmanager
def executor_of(workers: Workers, *shared: Path) -> Iterator[Executor]:
    """An executor that ends with the block; interrupted, its tasks are asked to stop.

    Args:
        workers: Who does the work; one of the three is given.
        shared: The folders that all workers must see, which is checked.

    Raises:
        InputError: The cluster is not there, has no workers, other versions of what matters or
            several threads a worker, or does not see the folder; or Dask is not installed.
    """
    if workers.processes:
        with processes(workers.processes) as pool:
            yield pool
        return
    with _client(workers) as client:
        _agree_on_versions(client)
        _take_one_at_a_time(client)
        for folder in shared:
            with in_sight(folder) as sign:
                _all_see(client, sign)
        pool = client.get_executor(pure=False)
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False)  # cancels what was handed out
            raise


@contextmanager
def processes(workers: int, *, gpus: int = 0) -> Iterator[Executor]:
    """Processes of this machine; interrupted, each is sent SIGINT as if from its own terminal.

    Args:
        workers: How many.
        gpus: Over how many GPUs they are dealt out, one to a process; 0 leaves them as they are.
    """
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for number in range(workers):
        places.put(number % gpus if gpus else None)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(places,))
    others = set(multiprocessing.active_children())
    with _environment(TQDM_DISABLE="1"):  # workers draw no bars of their own
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
    """Within a task of `processes`: SIGINT raises KeyboardInterrupt, once, and for what comes next.

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


def is_cancelled() -> bool:
    """Whether this code runs in a Dask task that nobody waits for any more.

    A thread cannot be stopped from outside: long tasks ask now and then.
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
def in_sight(folder: Path) -> Iterator[Path]:
    """A file in a folder, by which a worker knows that it sees the same folder.

    Raises:
        RunError: Nothing can be written there.
    """
    sign = folder / f".{uuid.uuid4().hex[:8]}.seen"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".????????.seen"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink(missing_ok=True)
        sign.touch()
    except OSError as error:
        raise RunError(f"write {folder}: {error.strerror or error}") from error
    try:
        yield sign
    finally:
        with suppress(OSError):
            sign.unlink()


def sees(sign: Path, within: float = SEEN_WITHIN) -> str:
    """Empty if this process sees the file of `in_sight`, else what is wrong, in a sentence."""
    end = time.monotonic() + within
    while not sign.exists():
        if time.monotonic() > end:
            return (
                f"{socket.gethostname()} does not see the folder {sign.parent} that runs go to; "
                "use one that all workers share, under the same path"
            )
        time.sleep(0.1)
    return ""


def versions() -> dict[str, str]:
    """What must be the same on all workers, or numbers and formats may not be."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@contextmanager
def _client(workers: Workers) -> Iterator[Any]:
    distributed = _distributed()
    silent = {**KEEP_MEMORY, "TQDM_DISABLE": "1"}
    with _environment(**silent), _cluster(distributed, workers) as address:
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
    """The address of a scheduler, or a cluster of our own on this machine."""
    if workers.scheduler is not None:
        yield workers.scheduler
        return
    with _ignoring_interrupts():  # Ctrl-C is for us alone; we tell them
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


def _agree_on_versions(client: Any) -> None:
    """Refuse workers whose numbers or formats may not be ours."""
    ours = versions()
    for address, theirs in _asked(client, versions).items():
        other = [
            f"{name} {theirs.get(name, '(none)')} instead of {wanted}"
            for name, wanted in ours.items()
            if theirs.get(name) != wanted
        ]
        if other:
            raise InputError(
                f"--scheduler: the worker {address} has {', '.join(other)}; "
                "install the same versions everywhere"
            )


def _take_one_at_a_time(client: Any) -> None:
    """Refuse workers of several threads: torch's random numbers are one stream per process."""
    for address, threads in client.nthreads().items():
        if threads != 1:
            raise InputError(
                f"--scheduler: expected workers of one thread each, {address} has {threads}; "
                "start it with --nthreads 1 (and --nworkers for several)"
            )


def _all_see(client: Any, sign: Path) -> None:
    for address, complaint in _asked(client, sees, sign.absolute(), SEEN_WITHIN).items():
        if complaint:
            raise InputError(f"--scheduler: the worker {address} on {complaint}")


def _asked(client: Any, function: Callable[..., Any], *args: Any) -> Mapping[str, Any]:
    """What a function says on each worker."""
    try:
        answers: Mapping[str, Any] = client.run(function, *args)
    except Exception as error:
        raise InputError(
            f"--scheduler: a worker cannot run {function.__module__}: {_first_line(error)}; "
            "start workers in an environment that has attnviz, of the same version"
        ) from error
    return answers


def _begin(places: Any) -> None:
    """A worker notes Ctrl-C, and keeps to its GPU."""
    signal.signal(signal.SIGINT, lambda *_: _interrupted.set())
    place = places.get()
    if place is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place] if visible else str(place)


def _interruptibly(function: Callable[[Any], T], part: Any) -> T:
    with interruptible():
        return function(part)


def _interrupt(number: int, frame: Any) -> None:
    _interrupted.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run is being put in order; once is enough
    raise KeyboardInterrupt


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


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
