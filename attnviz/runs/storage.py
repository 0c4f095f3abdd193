"""Storage of runs: a local folder, or any store that fsspec supports (`s3://…`, `memory://…`).

A `Store` is the interface that a reader needs: listing with sizes, whole files, parts of files.
Listing costs two requests on a remote store however many runs there are (one listing of the tree,
one concurrent fetch of all headers), and a few maps cost two more. A file that is read whole is
refused by its size before memory is taken. Writing is local: rename is what makes a folder appear
whole, and object stores have none.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, TypeVar, runtime_checkable

from attnviz.errors import InputError, RunError
from attnviz.runs.entries import (
    Entry,
    MountPoints,
    OutsideError,
    inside,
    mount_points,
    walk,
)

Place: TypeAlias = str | os.PathLike[str]
Span: TypeAlias = tuple[int, int]
Sizes: TypeAlias = dict[str, int]
Catalogue: TypeAlias = "dict[str, Sizes | RunError]"

T = TypeVar("T")

WHOLE_LIMIT = 1 << 32
"""Bytes of a file that is read whole, unless its reader gives another limit."""

DEPTH = 4
"""Levels of a run's folder."""

_BLOCK = 1 << 20
_REMOTE_BLOCK = 1 << 26


class MissingFileError(RunError):
    """A requested file does not exist."""


@runtime_checkable
class Store(Protocol):
    """A folder one can read from; names are relative and `/`-separated."""

    @property
    def where(self) -> str:
        """The folder's path or address, for messages."""

    @property
    def name(self) -> str:
        """The folder's own name, the last part of its path."""

    def below(self, folder: str) -> Store:
        """The store of a sub-folder."""

    def tree(self) -> Sizes:
        """Every regular file a few levels down, with its size; hidden ones are left out."""

    def catalogue(self, marker: str) -> Catalogue:
        """The `tree` of each sub-folder that holds a file called `marker`.

        A sub-folder without it is there too, empty, and one that cannot be listed as the error
        that came instead; under `""` stand the files of this folder.
        """

    def read(self, name: str, most: int = WHOLE_LIMIT) -> bytes:
        """A whole file; raises `RunError` that names it, too if it has more than `most` bytes."""

    def read_each(
        self, folders: Sequence[str], name: str, most: int
    ) -> dict[str, bytes | RunError]:
        """The file of one name of several sub-folders: its bytes, or the error instead."""

    def blocks(self, name: str) -> Iterator[bytes]:
        """A whole file, block by block."""

    def ranges(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        """Parts `[start, stop)` of a file, clipped to its end."""

    def exists(self) -> bool:
        """Whether the folder is there."""

    def odd(self) -> list[Entry]:
        """Entries not allowed in a run's folder: links, hard links, mounts, pipes, sockets."""

    def why_missing(self, name: str) -> str:
        """Why `tree` does not list a file that should be there."""


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine's file system; see `Store`."""

    path: Path

    @property
    def where(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's own name, also where the path was given as `.`."""
        return self.path.resolve().name

    def below(self, folder: str) -> LocalStore:
        """The store of a sub-folder."""
        return LocalStore(self.path / folder)

    def tree(self) -> Sizes:
        """Every regular file, with its size."""
        return self._looking(lambda: _sizes(self.path, mount_points()))

    def catalogue(self, marker: str) -> Catalogue:
        """The trees of the sub-folders; those without the marker are not entered."""
        return self._looking(lambda: _catalogue(self.path, marker))

    def read(self, name: str, most: int = WHOLE_LIMIT) -> bytes:
        """A whole file."""
        with _Reading(self.path, name) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise too_large(f"{self.where}/{name}", size, most)
            return file.read(size)

    def read_each(
        self, folders: Sequence[str], name: str, most: int
    ) -> dict[str, bytes | RunError]:
        """The files of the sub-folders, one after the other."""
        return {folder: _attempt(self.below(folder).read, name, most) for folder in folders}

    def blocks(self, name: str) -> Iterator[bytes]:
        """A whole file, block by block."""
        with _Reading(self.path, name) as file:
            while block := file.read(_BLOCK):
                yield block

    def ranges(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        """Parts of a file, opened once."""
        with _Reading(self.path, name) as file:
            size = os.fstat(file.fileno()).st_size
            return [_part(file, start, min(stop, size)) for start, stop in spans]

    def exists(self) -> bool:
        """Whether the folder is there."""
        return self.path.is_dir()

    def odd(self) -> list[Entry]:
        """Entries that are neither folders nor regular files with one name; hidden ones too."""
        found = self._looking(lambda: list(walk(self.path, depth=DEPTH + 1, hidden=True)))
        return [entry for entry in found if entry.what not in ("file", "folder")] + [
            Entry(
                entry.name,
                "link",
                f"a hard link: {entry.names} names share its content, and so a change",
            )
            for entry in found
            if entry.what == "file" and entry.names > 1
        ]

    def why_missing(self, name: str) -> str:
        """Describe the entry in place of the file."""
        try:
            inside(self.path, name)
        except OutsideError as error:
            return str(error).removeprefix(f"{self.path}/{name}: ").removeprefix(f"{self.path}/")
        except OSError as error:
            return cause_of(error)
        return "missing"

    def _looking(self, look: Callable[[], T]) -> T:
        try:
            return look()
        except (OSError, ValueError) as error:
            kind = MissingFileError if isinstance(error, FileNotFoundError) else RunError
            raise kind(f"list {self.path}: {cause_of(error)}") from error


@dataclass(frozen=True)
class RemoteStore:
    """A folder of any file system that fsspec can reach; see `Store`."""

    filesystem: Any
    path: str
    where: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.path.rsplit("/", 1)[-1]

    def below(self, folder: str) -> RemoteStore:
        """The store of a sub-folder."""
        return RemoteStore(self.filesystem, f"{self.path}/{folder}", f"{self.where}/{folder}")

    def tree(self) -> Sizes:
        """Every file with its size: one request, and one more where there is none."""
        found = self._ask("list", lambda: self.filesystem.find(self.path, detail=True))
        if not found and not self._ask("list", lambda: self.filesystem.exists(self.path)):
            raise MissingFileError(f"list {self.where}: no such file or folder")
        start = len(self.path) + 1
        sizes = {path[start:]: int(entry.get("size") or 0) for path, entry in found.items()}
        return {name: size for name, size in sizes.items() if not _hidden(name)}

    def catalogue(self, marker: str) -> Catalogue:
        """The trees of the sub-folders, from one listing of everything."""
        folders: dict[str, Sizes] = {"": {}}
        for name, size in self.tree().items():
            folder, _, rest = name.rpartition("/") if "/" not in name else name.partition("/")
            folders.setdefault(folder, {})[rest] = size
        return {
            folder: sizes if marker in sizes or not folder else {}
            for folder, sizes in folders.items()
        }

    def read(self, name: str, most: int = WHOLE_LIMIT) -> bytes:
        """A whole file: one request, for one byte more than it may have."""
        path = f"{self.path}/{name}"
        ask = self.filesystem.cat_file
        content = bytes(self._ask("read", lambda: ask(path, start=0, end=most + 1), name))
        if len(content) > most:
            raise too_large(f"{self.where}/{name}", len(content), most)
        return content

    def read_each(
        self, folders: Sequence[str], name: str, most: int
    ) -> dict[str, bytes | RunError]:
        """The files, requested together; file systems that can fetch them concurrently."""
        if not folders:
            return {}
        paths = [f"{self.path}/{folder}/{name}" for folder in folders]
        starts, ends = [0] * len(paths), [most + 1] * len(paths)
        got = self._ranges(paths, starts, ends, "")
        return {
            folder: self._answer(f"{folder}/{name}", content, most)
            for folder, content in zip(folders, got, strict=True)
        }

    def blocks(self, name: str) -> Iterator[bytes]:
        """A whole file, in a request for every 64 MB."""
        path, ask = f"{self.path}/{name}", self.filesystem.cat_file
        size = int(self._ask("read", lambda: self.filesystem.info(path), name).get("size") or 0)
        for start in range(0, size, _REMOTE_BLOCK):
            end = min(start + _REMOTE_BLOCK, size)
            yield bytes(self._ask("read", partial(ask, path, start=start, end=end), name))

    def ranges(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        """Parts of a file, requested together."""
        paths = [f"{self.path}/{name}"] * len(spans)
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        parts = [self._answer(name, part) for part in self._ranges(paths, starts, stops, name)]
        for part in parts:
            if isinstance(part, RunError):
                raise part
        return [part for part in parts if isinstance(part, bytes)]

    def exists(self) -> bool:
        """Whether anything exists below the address."""
        return bool(self._ask("list", lambda: self.filesystem.exists(self.path)))

    def odd(self) -> list[Entry]:
        """Nothing: an object store has files only."""
        return []

    def why_missing(self, name: str) -> str:
        """A missing object has no further reason."""
        return "missing"

    def _ranges(
        self, paths: list[str], starts: list[int], stops: list[int], name: str
    ) -> list[object]:
        """Parts of files; for one that failed, the error."""
        ask = partial(self.filesystem.cat_ranges, paths, starts, stops, on_error="return")
        return list(self._ask("read", ask, name))

    def _answer(self, name: str, content: object, most: int = WHOLE_LIMIT) -> bytes | RunError:
        if isinstance(content, bytes | bytearray | memoryview):
            if len(content) > most:
                return too_large(f"{self.where}/{name}", len(content), most)
            return bytes(content)
        kind = MissingFileError if isinstance(content, FileNotFoundError) else RunError
        return kind(f"read {self.where}/{name}: {cause_of(content)}")

    def _ask(self, what: str, question: Callable[[], Any], name: str = "") -> Any:
        try:
            return question()
        except FileNotFoundError as error:
            place = f"{self.where}/{name}".rstrip("/")
            raise MissingFileError(f"{what} {place}: no such file or folder") from error
        except Exception as error:  # each backend of fsspec raises its own kinds
            place = f"{self.where}/{name}".rstrip("/")
            raise RunError(f"{what} {place}: {cause_of(error)}") from error


def open_store(place: Place) -> Store:
    """The store at a path or at an address with a scheme.

    Args:
        place: A local path, or an address such as `"s3://bucket/runs"` (needs `attnviz[remote]`).

    Raises:
        RunError: The place is empty, or fsspec or the backend for this scheme is not installed.
    """
    text = os.fspath(place)
    if not text:
        raise RunError("open '': expected a folder or an address, got an empty word")
    if "://" not in text:
        return LocalStore(Path(text))
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise RunError(f"open {text}: needs fsspec; pip install 'attnviz[remote]'") from error
    try:
        filesystem, path = url_to_fs(text)  # type: ignore[no-untyped-call]  # fsspec has no types
    except Exception as error:  # a backend may fail in its own way at once
        raise RunError(f"open {text}: {cause_of(error)}") from error
    return RemoteStore(filesystem, path.rstrip("/"), text.rstrip("/"))


def local_path(place: Place) -> Path:
    """The path of a local folder to write into; an address with a scheme is refused."""
    text = os.fspath(place)
    if "://" in text:
        raise InputError(f"write {text}: runs are written to a local folder, then copied there")
    if "\0" in text:
        raise InputError(f"write {text!r}: a path has no null character")
    return Path(text)


def write_inside(folder: Path, name: str, content: bytes) -> None:
    """Replace a file below a run's folder, see `write_whole`; no link on the way is followed.

    Raises:
        RunError: it cannot be written, or a part of its path is a link or no regular file.
    """
    try:
        path = inside(folder, name, make=True)
    except OutsideError as error:
        raise OutsideError(f"write {error}") from error
    except OSError as error:
        raise unwritable(folder / name, error) from error
    write_whole(path, content)


def too_large(where: str, size: int, most: int) -> RunError:
    """The error for a file that is not read because of its size."""
    return RunError(f"read {where}: expected at most {most} bytes, got {size}")


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file atomically: write to a temporary file, fsync, rename.

    Raises:
        RunError: it cannot be written (disk full, read-only, no such folder); the message names
            the path, the file is as it was, and nothing is left beside it.
    """
    aside = path.with_name(partial_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_through(aside, content)
        aside.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink()
    sync_folder(path.parent)


def partial_name(name: str) -> str:
    """A hidden name, not yet taken, for something that is still being written."""
    return f".{name[:120]}.{secrets.token_hex(4)}.partial"


def sync_folder(path: Path) -> None:
    """Sync a folder, so that renames in it survive a power cut, where the system can."""
    with suppress(OSError):  # some file systems cannot sync a folder; the rename stands
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_all(handle: int, content: bytes) -> None:
    """Write every byte and sync; the system may take fewer at a time than it is given."""
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]
    os.fsync(handle)


def unwritable(path: Path, error: OSError) -> RunError:
    """The error for a file or folder that could not be written, naming it."""
    return RunError(f"write {path}: {cause_of(error)}")


def cause_of(error: object) -> str:
    """The system's error message, without the path that the caller names."""
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _Reading:
    """Opens a regular file, and turns whatever goes wrong into a `RunError` that names it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.path = folder / name

    def __enter__(self) -> BinaryIO:
        try:
            self.file = open(_descriptor(inside(self.folder, self.name)), "rb")
        except (OSError, ValueError) as error:
            raise self._named(error) from error
        return self.file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, OSError):
            raise self._named(error) from error

    def _named(self, error: Exception) -> RunError:
        if isinstance(error, OutsideError):
            return OutsideError(f"read {error}")
        if isinstance(error, RunError):
            return error
        kind = MissingFileError if isinstance(error, FileNotFoundError) else RunError
        return kind(f"read {self.path}: {cause_of(error)}")


def _descriptor(path: Path) -> int:
    """A regular file, opened; neither a link nor a pipe put there in between is waited for."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OutsideError(f"{path}: is no regular file")
    return handle


def _write_through(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # the umask decides
    try:
        write_all(handle, content)
    finally:
        os.close(handle)


def _catalogue(root: Path, marker: str) -> Catalogue:
    folders: Catalogue = {}
    files: Sizes = {}
    points = mount_points()
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    held = os.path.lexists(os.path.join(entry.path, marker))
                    folders[entry.name] = _sizes(Path(entry.path), points) if held else {}
                    if not held:
                        os.scandir(entry.path).close()  # raises where the folder is not readable
                elif entry.is_file():
                    files[entry.name] = entry.stat().st_size
            except OSError as error:  # a link onto itself, a folder that may not be read
                folders[entry.name] = RunError(f"list {entry.path}: {cause_of(error)}")
    return {"": files, **folders}


def _sizes(folder: Path, points: MountPoints) -> Sizes:
    found = walk(folder, depth=DEPTH, points=points)
    return {entry.name: entry.size for entry in found if entry.what == "file"}


def _part(file: BinaryIO, start: int, stop: int) -> bytes:
    if stop <= start:
        return b""
    file.seek(start)
    return file.read(stop - start)


def _attempt(read: Callable[[str, int], bytes], name: str, most: int) -> bytes | RunError:
    try:
        return read(name, most)
    except RunError as error:
        return error


def _hidden(name: str) -> bool:
    return not name or any(part.startswith(".") for part in name.split("/"))
