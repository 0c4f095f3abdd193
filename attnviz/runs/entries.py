"""Entries of a local folder, and checks against links and mounts.

Below a run's folder only regular files and folders of the same file system tree count. A symbolic
link, a junction or a mount would lead elsewhere: it is neither read through nor written through
nor removed. The folder itself is named by the user and may be reached through a link.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from attnviz.errors import RunError

MountPoints: TypeAlias = tuple[str, ...] | None
_Mounts: TypeAlias = frozenset[str] | None
What: TypeAlias = Literal["file", "folder", "link", "special", "unreadable"]


class OutsideError(RunError):
    """A path inside a run is a link, a mount or no regular file."""


@dataclass(frozen=True)
class Entry:
    """One thing below a folder.

    Attributes:
        name: Its path below the folder, `/`-separated.
        what: "file", "folder", "link" (a symbolic link, junction or mount), "special" (a pipe,
            a socket, a device) or "unreadable".
        detail: What it is, in words, where it is neither file nor folder.
        size: Its bytes, of a file.
        names: How many hard links it has, of a file.
    """

    name: str
    what: What
    detail: str = ""
    size: int = 0
    names: int = 1


def mount_points() -> MountPoints:
    """Where anything is mounted on this machine; None where the system does not list it."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return tuple(_unescaped(line.split(" ")[4]) for line in file)
    except (OSError, IndexError):
        return None


def walk(
    root: Path, *, depth: int, hidden: bool = False, points: MountPoints = ()
) -> Iterator[Entry]:
    """Everything a few levels below a folder; links and mounts are named and not entered.

    Args:
        root: The folder.
        depth: How many levels.
        hidden: With the entries whose names begin with a dot.
        points: `mount_points()`, where it has just been read.

    Raises:
        OSError: the folder itself cannot be read; a sub-folder that cannot is an entry.
    """
    mounts = _mounts_below(root, points or mount_points())
    yield from _walk(root, "", depth, hidden, mounts)


def inside(root: Path, name: str, *, make: bool = False) -> Path:
    """The path of a file below a folder, after a check that nothing on the way leads elsewhere.

    Args:
        root: The folder.
        name: A `/`-separated path below it, of a regular file or of nothing yet.
        make: Make the folders on the way.

    Raises:
        OutsideError: a part of it is a link, a junction or a mount, or the last is no regular
            file.
        OSError: a folder on the way cannot be made.
    """
    mounts, parts = _mounts_below(root, mount_points()), name.split("/")
    for count in range(1, len(parts) + 1):
        part = "/".join(parts[:count])
        path, last = root / part, count == len(parts)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            if make and not last:
                os.mkdir(path)
            continue
        except NotADirectoryError:
            continue  # a file stands where a folder should; opening reports it
        wrong = _wrong(path, part, found, mounts)
        if wrong is None and last and not stat.S_ISREG(found.st_mode):
            wrong = "a folder, expected a file"
        if wrong is not None:
            raise OutsideError(f"{root / part}: is {wrong}")
    return root / name


def remove_tree(folder: Path) -> None:
    """Remove a folder of our own making, if it is one: no link, and nothing is mounted below it."""
    if not _is_link(folder) and all(entry.what != "link" for entry in walk(folder, depth=8)):
        shutil.rmtree(folder, ignore_errors=True)


def _walk(root: Path, prefix: str, depth: int, hidden: bool, mounts: _Mounts) -> Iterator[Entry]:
    with os.scandir(root / prefix if prefix else root) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith(".") and not hidden:
            continue
        name = prefix + entry.name
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # it was removed meanwhile
            continue
        except OSError as error:
            yield Entry(name, "unreadable", _cause(error))
            continue
        wrong = _wrong(Path(entry.path), name, status, mounts)
        if wrong is not None:
            yield Entry(name, "link" if "follow" in wrong else "special", wrong)
        elif stat.S_ISREG(status.st_mode):
            yield Entry(name, "file", size=status.st_size, names=max(status.st_nlink, 1))
        else:
            yield Entry(name, "folder")
            if depth > 1:
                try:
                    yield from _walk(root, f"{name}/", depth - 1, hidden, mounts)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    yield Entry(name, "unreadable", _cause(error))


def _wrong(path: Path, name: str, found: os.stat_result, mounts: _Mounts) -> str | None:
    """What an entry is, where it is neither a regular file nor a folder of this tree."""
    unfollowed = "; links and mounts inside a run are not followed"
    mode = found.st_mode
    if stat.S_ISLNK(mode):
        return f"a symbolic link{unfollowed}"
    if _is_junction(path):
        return f"a junction{unfollowed}"
    if os.path.ismount(path) if mounts is None else name in mounts:
        return f"a mount{unfollowed}"
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    kinds = {stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    kind = next((said for test, said in kinds.items() if test(mode)), "a device")
    return f"{kind}, expected a file"


def _is_link(path: Path) -> bool:
    return path.is_symlink() or _is_junction(path)


def _is_junction(path: Path) -> bool:
    """Whether this is a reparse point of Windows that leads elsewhere."""
    if os.name != "nt":
        return False
    with suppress(OSError):
        return bool(getattr(os.lstat(path), "st_reparse_tag", 0))
    return False


def _mounts_below(root: Path, points: MountPoints) -> _Mounts:
    """The names below a folder at which something is mounted."""
    if points is None:
        return None
    start = os.path.realpath(root).rstrip("/") + "/"
    return frozenset(point[len(start) :] for point in points if point.startswith(start))


def _unescaped(point: str) -> str:
    """A mount point as a path; the kernel writes blanks and backslashes in octal."""
    for code in ("040", "011", "012", "134"):
        point = point.replace(f"\\{code}", chr(int(code, 8)))
    return point


def _cause(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
