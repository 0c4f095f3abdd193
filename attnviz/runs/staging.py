"""Staging of run folders: creation, renaming into place, and cleanup after killed writers."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

from attnviz.errors import RunError
from attnviz.runs.documents import SIZE_LIMIT, Document, sealed
from attnviz.runs.entries import remove_tree, walk
from attnviz.runs.header import parse
from attnviz.runs.layout import ARRAYS, HEADER
from attnviz.runs.locking import BusyError, Lock
from attnviz.runs.storage import (
    DEPTH,
    LocalStore,
    partial_name,
    sync_folder,
    unwritable,
    write_whole,
)

_ABANDONED = 3600.0
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial")


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
        sweep(path.parent, path.name)
        aside.mkdir()
        lock = Lock(aside)
        write_whole(aside / HEADER, sealed(content))
    except BaseException as error:
        taken = isinstance(error, FileNotFoundError) and path.parent.is_dir()
        removed(aside, lock)
        if taken:  # swept by another process that makes the same run, before it was locked
            raise _made_elsewhere(path) from error
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
            raise _made_elsewhere(path) from error
        raise unwritable(path, error) from error
    sync_folder(path.parent)


def _made_elsewhere(path: Path) -> BusyError:
    return BusyError(f"write {path}: another process made it at the same moment")


def removed(aside: Path, lock: Lock | None) -> None:
    """Remove an unfinished folder and release its lock."""
    with suppress(OSError):
        remove_tree(aside)
    if lock is not None:
        lock.release()


def tidy(folder: Path) -> None:
    """Remove what a killed or failed writer left: halves, and arrays that run.json never named.

    Only regular files go; a link, a mount and what lies behind them are left alone.
    """
    kept = {file.at for file in parse(LocalStore(folder).read(HEADER, SIZE_LIMIT)).files.values()}
    for entry in walk(folder, depth=DEPTH, hidden=True):
        above, _, name = entry.name.rpartition("/")
        unnamed = above in ARRAYS and entry.name not in kept
        if entry.what == "file" and (unnamed or _PARTIAL.fullmatch(name)):
            with suppress(OSError):
                (folder / entry.name).unlink()


def sweep(folder: Path, name: str) -> None:
    """Remove what killed processes left of a run or of test images, and of others long ago.

    A younger folder of another run may be one whose process has not locked it yet.
    """
    for left in folder.glob(".*.partial"):
        ours = _PARTIAL.fullmatch(left.name)
        if ours is None or left.is_symlink():
            continue
        with suppress(OSError):
            if ours[1] == name or time.time() - left.stat().st_mtime > _ABANDONED:
                removed(left, Lock(left))
