"""What several tests of the experiments share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import pytest


class Here(Executor):
    """Runs each task in this process, at once."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps train in this process, on one core: for tests of the training, not of the processes.

    A process of its own may take several threads; here they would stay on for every later test.
    """

    @contextmanager
    def here(*_: object, **__: object) -> Iterator[Executor]:
        yield Here()

    monkeypatch.setattr("experiments.sweep.processes", here)
    monkeypatch.setattr("experiments.sweep.cores", lambda: 1)
