"""A run's folder: made aside and renamed into place, and cleared of what killed writers left."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from attnviz.errors import RunError
from attnviz.runs.header import Document, parse, sealed
from attnviz.runs.locking import BusyError, Lock
from attnviz.runs.reader import HEADER
from attnviz.runs.storage import LocalStore, partial_name, sync_folder, unwritable, write_whole

ROOMS = ("maps", "gates", "rows")
_ABANDONED = 3600.0


def begun(path: Path, content: Document) -> tuple[Path, Lock]:
    """A hidden, locked folder beside the run's future place, with its run.json inside."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise (BusyError if (path / HEADER).exists() else RunError)(
            f"write {path}: something is there already; resume_run goes on with a run, "
            "or choose another id"
        )
    aside = path.with_name(partial_name(path.name))
    lock = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        aside.mkdir()
        lock = Lock(aside)
        write_whole(aside / HEADER, sealed(content))
    except BaseException as error:
        removed(aside, lock)
        if isinstance(error, OSError) and not isinstance(error, RunError):
            raise unwritable(path, error) from error
        raise
    return aside, lock


def into_place(aside: Path, path: Path, lock: Lock) -> None:
    """Rename a whole folder to its name; of two writers exactly one gets it."""
    try:
        aside.rename(path)
    except OSError as error:
        removed(aside, lock)
        if path.exists():
            raise BusyError(f"write {path}: another process made it at the same moment") from error
        raise unwritable(path, error) from error
    sync_folder(path.parent)


def removed(aside: Path, lock: Lock | None) -> None:
    """Take a folder that did not come about away again, and let go of it."""
    shutil.rmtree(aside, ignore_errors=True)
    if lock is not None:
        lock.release()


def tidy(folder: Path) -> None:
    """Remove what a killed or failed writer left: halves, and arrays that run.json never named."""
    kept = {file.at for file in parse(LocalStore(folder).read(HEADER)).files.values()}
    held = [path for room in ROOMS for path in folder.glob(f"{room}/*")]
    unnamed = [path for path in held if path.relative_to(folder).as_posix() not in kept]
    for path in [*folder.rglob(".*.partial"), *unnamed]:
        with suppress(OSError):
            path.unlink()


def _sweep(path: Path) -> None:
    """Remove what killed processes left of this run, and of others long ago.

    A younger folder of another run may be one whose process has not locked it yet.
    """
    for left in path.parent.glob(".*.????????.partial"):
        with suppress(OSError):
            mine = left.name[1:].rsplit(".", 2)[0] == path.name
            if mine or time.time() - left.stat().st_mtime > _ABANDONED:
                removed(left, Lock(left))
