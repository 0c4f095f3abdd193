"""`start_run`: a training's run folder as a context, begun or gone on with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from attnviz.errors import RunError
from attnviz.runs import open_run, resume_run
from attnviz.runs import start_run as begin_run
from attnviz.runs.documents import plain
from attnviz.runs.header import THING
from attnviz.runs.writer import RunWriter


@contextmanager
def start_run(
    path: str | Path,
    *,
    variant: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    thing: str = THING,
) -> Iterator[RunWriter | None]:
    """Keep a run folder during a training.

    At the end of the block the run is complete; an exception leaves it stopped, a kill leaves it as
    it is. The same call goes on with a run that is not complete: its curves and files stay, and
    `Monitor` replaces what belongs to epochs that are trained again.

    In a distributed training only the process of rank 0 writes; in the others the block gets None,
    which `Monitor` accepts.

    Args:
        path: The run's folder; its name is the run's id.
        variant: The model's name in tables; the folder's name if not given.
        seed: Of the training.
        settings: What reproduces it; anything that JSON can hold.
        classes: The names of the classes, in the order of their numbers.
        thing: What is looked for, such as "lesion".

    Yields:
        The run's writer, for `Monitor(data, run=run)`, or None where another process writes.

    Raises:
        RunError: A complete run is there, one of another variant, seed, classes, thing or other
            settings, or one that another process writes; or the folder cannot be written.
    """
    if not is_main():
        yield None
        return
    target = Path(path)
    known = plain(settings or {}, "settings")
    if (target / "run.json").exists():
        own: dict[str, Any] = {"seed": seed}
        if variant is not None:  # the folder's name may have changed since
            own["variant"] = variant
        if classes:  # a Monitor notes those of its data set
            own["classes"] = tuple(classes)
        if thing != THING:
            own["thing"] = thing
        writer = _resumed(target, known, own)
    else:
        writer = begin_run(
            target.parent, target.name, variant=variant or target.name, settings=known, seed=seed,
            classes=classes, thing=thing,
        )  # fmt: skip
    with writer:
        yield writer
        writer.finish()


def is_main() -> bool:
    """Whether this process is the one of rank 0, or the only one.

    Before the processes have met, the variables of torchrun, Lightning and Slurm tell.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    for names in (("RANK",), ("LOCAL_RANK", "NODE_RANK"), ("SLURM_PROCID",)):  # of their launchers
        if names[0] in os.environ:
            return all(os.environ.get(name, "0") == "0" for name in names)
    return True


def _resumed(path: Path, settings: Mapping[str, Any], own: Mapping[str, Any]) -> RunWriter:
    run = open_run(path)
    if run.state == "complete":
        raise RunError(f"start_run: {path} holds a complete run; choose a new folder")
    before = run.settings
    differ = [key for key in sorted({**before, **settings}) if before.get(key) != settings.get(key)]
    differ += [key for key, value in own.items() if getattr(run, key) != value]
    if differ:
        raise RunError(
            f"start_run: {path} was begun with another {', '.join(differ)}; choose a new folder, "
            "or remove this one"
        )
    return resume_run(path)
