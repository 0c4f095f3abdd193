"""One writer per run: a folder lock, or the heartbeat where locks do not work.

The lock is the system's own (`flock` on the folder itself): no lock file is left behind, and a
process that dies in any way loses it. A forked child, such as a DataLoader's worker, does not
inherit it. It does not reach every network file system, nor another machine on some; there a run
with a fresh heartbeat counts as in use.

The lock also detects whether the folder at the run's path is still the one that was locked: while
it is held open, its inode cannot be given to another.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from attnviz.errors import RunError
from attnviz.runs.header import STALE_AFTER, Header, is_gone, silence, this_writer

try:
    import fcntl
except ImportError:  # Windows: the heartbeat alone guards against a second writer
    fcntl = None  # type: ignore[assignment]  # a module stands here where it exists


class BusyError(RunError):
    """Another process is writing the run; it may end or die, so trying again later can succeed."""


class Lock:
    """A folder's lock, acquired on construction; released on request, deletion or process exit.

    In a forked child it is not held, and releasing it there leaves the parent's alone.

    Raises:
        BusyError: another writer holds it.
        OSError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self._handle, self._owner = -1, -1
        handle = os.open(folder if fcntl is not None else os.devnull, os.O_RDONLY)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise BusyError(
                f"write {folder}: another process is writing it; stop that one"
            ) from error
        except OSError:  # this file system cannot lock; the heartbeat guards alone
            pass
        self._handle, self._owner = handle, os.getpid()
        _held.add(self)

    def __del__(self) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether it has not been released."""
        return self._handle >= 0

    def is_of(self, folder: Path) -> bool:
        """Whether the folder at this path is the one that was locked, not another begun since."""
        if fcntl is None:
            return folder.is_dir()
        try:
            return os.path.samestat(os.stat(folder), os.fstat(self._handle))
        except OSError:
            return False

    def release(self) -> None:
        """Release the lock; repeated calls do nothing."""
        handle, self._handle = self._handle, -1
        if handle < 0:
            return
        if fcntl is not None and self._owner == os.getpid():
            with suppress(OSError):  # a child process may hold a copy of the handle
                fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


_held: WeakSet[Lock] = WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def refuse_if_written_elsewhere(folder: Path, header: Header) -> None:
    """Refuse a run whose writer is alive on a machine that this machine's lock does not reach.

    Raises:
        BusyError: its heartbeat is fresh and comes from another machine.
    """
    writer = header.writer
    ours = this_writer() | {"pid": writer.get("pid")} == writer
    if header.status != "running" or ours or is_gone(writer) or silence(header) > STALE_AFTER:
        return
    raise BusyError(
        f"write {folder}: process {writer.get('pid')} on {writer.get('host')} is writing it "
        f"(heartbeat {silence(header):.0f} s ago); stop it, or wait until it has been silent for "
        f"{STALE_AFTER:.0f} s"
    )
