"""One run from its settings to its complete folder: started, resumed, or reused."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from attnviz.errors import AttnvizError, RunError
from attnviz.executors import interruptible, is_cancelled
from attnviz.models import build_model
from attnviz.runs import BusyError, Run, RunWriter, open_run, resume_run, start_run
from experiments.evaluation import EpochScores, environment, keep_test_set, measure_run
from experiments.memory import peak_bytes, restart_peak
from experiments.settings import Settings
from experiments.training import Watcher, device_of, train

_ASK_EVERY = 1.0
_ONE_AT_A_TIME = threading.Lock()
"""torch's random numbers are one stream per process, and a run's result follows from them."""


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        settings: Of the run.
        state: `"done"`, `"reused"`, `"stopped"` or `"failed"`.
        reason: Why it failed or stopped, in one line.
    """

    settings: Settings
    state: str
    reason: str = ""


def run_training(settings: Settings, root: Path, *, resume: bool = True, shown: bool = True) -> Run:
    """Train and measure one run, or return the complete one that is already there.

    Args:
        settings: What to do.
        root: The folder of runs.
        resume: Whether a stopped run of these settings is resumed.
        shown: Whether progress is printed on stderr.

    Returns:
        The complete run.

    Raises:
        InputError: The settings, the data or the device are not right; no run is begun.
        RunError: A run of these settings is there and is broken, running elsewhere, or stopped
            and not to be resumed; or it cannot be written.
    """
    settings = _checked(settings)
    found = _found(root / settings.run_id)
    if found is not None and found.state == "complete":
        return found
    with _writer(settings, root, found, resume=resume) as writer:
        device = device_of(settings)
        restart_peak(device)
        scores = EpochScores(settings, writer) if settings.follow else None
        trained = train(settings, writer, watcher=_cancellable(scores), shown=shown)
        return measure_run(trained, settings, writer, peak=peak_bytes(device))


def try_training(settings: Settings, root: Path) -> Outcome:
    """Run a training of a sweep, silently: a failure is an outcome, and does not stop the others.

    A run that another process is writing is waited for: it is reused once it is complete, and
    resumed once its writer has stopped or died. A task that is submitted twice, or two sweeps over
    the same runs, train nothing twice.
    """
    try:
        with interruptible(), _ONE_AT_A_TIME:
            return Outcome(settings, _made(settings, root))
    except KeyboardInterrupt:
        return Outcome(settings, "stopped", "interrupted")
    except AttnvizError as error:
        return Outcome(settings, "failed", str(error))
    except Exception as error:  # a bug in one variant leaves the others running
        return Outcome(settings, "failed", f"{type(error).__name__}: {error}")


def _made(settings: Settings, root: Path) -> str:
    """Train once no other process writes the run; `"done"`, or `"reused"` if it was complete."""
    while True:
        found = _found(root / settings.run_id)
        if found is not None and found.state == "complete":
            return "reused"
        try:
            run_training(settings, root, shown=False)
        except BusyError:
            if found is not None and found.state == "stale":  # alive, but silent for too long
                raise
            _stop_if_cancelled()
            time.sleep(_ASK_EVERY)
        else:
            return "done"


def _stop_if_cancelled() -> None:
    if is_cancelled():
        raise KeyboardInterrupt


def _cancellable(watcher: Watcher | None) -> Watcher:
    """A watcher that also stops a training whose task was cancelled."""

    def watch(model: nn.Module, epoch: int) -> dict[str, float]:
        _stop_if_cancelled()
        return watcher(model, epoch) if watcher else {}

    return watch


def _checked(settings: Settings) -> Settings:
    """Settings whose model can be built and whose device exists, before anything is written."""
    with torch.device("meta"):
        build_model(settings.variant, **settings.model)
    device_of(settings)
    return settings


def _found(path: Path) -> Run | None:
    return open_run(path) if path.exists() else None


def _writer(settings: Settings, root: Path, found: Run | None, *, resume: bool) -> RunWriter:
    if found is None:
        digest = keep_test_set(root, settings)
        return start_run(
            root,
            settings.run_id,
            variant=settings.variant,
            settings={"factory": f"attnviz:{settings.variant}", **settings.as_dict()},
            seed=settings.seed,
            dataset=digest,
            environment=environment(settings),
            thing="patch",
        )
    if found.state in ("broken", "newer"):
        raise RunError(f"{found.path}: {found.reason}; delete the folder to train it again")
    if found.state in ("stopped", "stale") and not resume:
        raise RunError(f"{found.path}: the run was stopped; add --resume to go on with it")
    return resume_run(found.path)
