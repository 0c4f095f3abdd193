"""Renaming and deleting whole runs, each with a way back.

A deleted run is moved, whole, to the hidden folder `.deleted` beside the others, under a name of
its own; nothing is erased. A run that is being written is left alone, and so are links.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from attnviz.errors import RunError
from attnviz.runs.layout import HEADER
from attnviz.runs.locking import Lock
from attnviz.runs.names import checked_id
from attnviz.runs.storage import Place, local_path, sync_folder, unwritable

DELETED = ".deleted"
"""The folder that holds deleted runs."""


def rename_run(root: Place, run_id: str, new_id: str) -> None:
    """Give a run another id: the name of its folder.

    Raises:
        InputError: The new id is no valid name.
        RunError: There is no such run, it is being written, or the new id is taken.
    """
    folder = local_path(root)
    _move(folder / checked_id(run_id), folder / checked_id(new_id))


def delete_run(root: Place, run_id: str) -> str:
    """Move a run to the deleted ones; returns the token for `restore_run`.

    Raises:
        RunError: There is no such run, it is being written, or it cannot be moved.
    """
    folder = local_path(root)
    token = f"{checked_id(run_id)}~{secrets.token_hex(4)}"
    bin_ = folder / DELETED
    if bin_.is_symlink():
        raise RunError(f"delete {folder / run_id}: {bin_} is a link; links are not followed")
    _move(folder / run_id, bin_ / token)
    return token


def restore_run(root: Place, token: str) -> str:
    """Bring a deleted run back under its id, which is returned.

    Raises:
        RunError: It is no longer among the deleted ones, or its id is taken.
    """
    folder = local_path(root)
    run_id, _, mark = token.rpartition("~")
    if not mark.isalnum():
        raise RunError(f"restore: {token[:80]!r} names no deleted run")
    _move(folder / DELETED / f"{checked_id(run_id)}~{mark}", folder / run_id)
    return run_id


def _move(source: Path, target: Path) -> None:
    """Rename a run's folder; never onto something that is there."""
    if source.is_symlink() or not (source / HEADER).is_file():
        raise RunError(f"move {source}: no run here, or a link, which is not followed")
    lock = Lock(source)
    try:
        target.parent.mkdir(exist_ok=True)
        if os.path.lexists(target):
            raise RunError(f"move {source} to {target}: something is there already")
        source.rename(target)
    except OSError as error:
        if isinstance(error, RunError):
            raise
        raise unwritable(target, error) from error
    finally:
        lock.release()
    sync_folder(source.parent)
