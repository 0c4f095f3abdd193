"""One run from its settings to its complete folder: begun, taken up again, or already there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from attnviz.errors import AttnvizError, RunError
from attnviz.models import build_model
from attnviz.runs import Run, RunWriter, open_run, resume_run, start_run
from experiments.evaluation import environment, keep_test_set, measure_run
from experiments.following import Follower
from experiments.settings import Settings
from experiments.training import device_of, train


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


def run_training(settings: Settings, root: Path, *, resume: bool = True) -> Run:
    """Train and measure one run, or give back the complete one that is already there.

    Args:
        settings: What to do.
        root: The folder of runs.
        resume: Whether a stopped run of these settings is taken up again.

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
        follower = Follower(settings, writer, device_of(settings)) if settings.follow else None
        trained = train(settings, writer, watcher=follower)
        return measure_run(trained, settings, writer)


def try_training(settings: Settings, root: Path) -> Outcome:
    """As `run_training`, for a sweep: a failure is an outcome, and does not stop the others."""
    try:
        found = _found(root / settings.run_id)
        reused = found is not None and found.state == "complete"
        run_training(settings, root)
    except AttnvizError as error:
        return Outcome(settings, "failed", str(error))
    except Exception as error:  # a bug in one variant leaves the others running
        return Outcome(settings, "failed", f"{type(error).__name__}: {error}")
    return Outcome(settings, "reused" if reused else "done")


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
            settings=settings.as_dict(),
            seed=settings.seed,
            dataset=digest,
            environment=environment(device_of(settings)),
        )
    if found.state in ("broken", "newer"):
        raise RunError(f"{found.path}: {found.reason}; delete the folder to train it again")
    if found.state in ("stopped", "stale") and not resume:
        raise RunError(f"{found.path}: the run was stopped; add --resume to go on with it")
    return resume_run(found.path)
