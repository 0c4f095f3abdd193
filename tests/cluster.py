"""A real Dask cluster on loopback: a scheduler and worker processes, as one would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from attnviz.executors.cluster import KEEP_MEMORY


@contextmanager
def cluster(folder: Path, workers: int = 2) -> Iterator[str]:
    """The address of a scheduler with so many workers of one thread."""
    told = folder / "scheduler.json"
    with ExitStack() as stack:
        scheduler = stack.enter_context(
            _dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(told))
        )
        while not told.exists():
            assert scheduler.poll() is None, "the scheduler ended before it told its address"
            time.sleep(0.05)
        address = str(json.loads(told.read_text())["address"])
        for _ in range(workers):
            stack.enter_context(worker(address, folder))
        if workers:
            _joined(address, workers)
        yield address


def _joined(address: str, workers: int) -> None:
    """Wait until the workers are there: a busy machine starts them later than a command waits."""
    from distributed import Client

    with Client(address, timeout=600, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=600)


def worker(
    address: str, folder: Path, *words: str
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A worker of one thread; nobody starts it again when it dies."""
    flags = ("--nthreads", "1", "--no-nanny", "--local-directory", str(folder))
    return _dask("worker", address, *flags, *words)


@contextmanager
def _dask(kind: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "dask", kind, "--no-dashboard", *words]
    environment = {**os.environ, **KEEP_MEMORY, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
