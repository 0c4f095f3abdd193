"""Where runs lie: a local folder, or any store that fsspec knows (`s3://…`, `memory://…`).

A `Store` is the little that a reader needs: what is there and how large, whole files, parts of
files. Listing costs two requests on a remote store however many runs there are (one listing of
the tree, one concurrent fetch of all headers), and a few maps cost two more. Writing is local:
rename is what makes a folder appear whole, and object stores have none.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, TypeVar, runtime_checkable

from attnviz.errors import InputError, RunError

Place: TypeAlias = str | os.PathLike[str]
Span: TypeAlias = tuple[int, int]
Sizes: TypeAlias = dict[str, int]

T = TypeVar("T")

_DEPTH = 4


class MissingFileError(RunError):
    """A file that was asked for is not there."""


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

    def catalogue(self, marker: str) -> dict[str, Sizes]:
        """The `tree` of each sub-folder that holds a file called `marker`.

        A sub-folder without it is there too, empty; under `""` stand the files of this folder.
        """

    def read(self, name: str) -> bytes:
        """A whole file; raises `RunError` that names it."""

    def read_many(self, names: Sequence[str]) -> dict[str, bytes | RunError]:
        """Whole files, together; each is its bytes or the error that came instead."""

    def ranges(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        """Parts `[start, stop)` of a file; what lies beyond its end is left out."""


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
        return self._looking(lambda: dict(_walk(self.path, "", _DEPTH)))

    def catalogue(self, marker: str) -> dict[str, Sizes]:
        """The trees of the sub-folders; those without the marker are not entered."""
        return self._looking(lambda: _catalogue(self.path, marker))

    def read(self, name: str) -> bytes:
        """A whole file."""
        with _Reading(self.path / name) as file:
            return file.read()

    def read_many(self, names: Sequence[str]) -> dict[str, bytes | RunError]:
        """Whole files, one after the other."""
        return {name: _attempt(self.read, name) for name in names}

    def ranges(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        """Parts of a file, opened once."""
        with _Reading(self.path / name) as file:
            size = os.fstat(file.fileno()).st_size
            return [_part(file, start, min(stop, size)) for start, stop in spans]

    def _looking(self, look: Callable[[], T]) -> T:
        try:
            return look()
        except (OSError, ValueError) as error:
            raise RunError(f"list {self.path}: {cause_of(error)}") from error


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
            raise RunError(f"list {self.where}: no such file or folder")
        start = len(self.path) + 1
        sizes = {path[start:]: int(entry.get("size") or 0) for path, entry in found.items()}
        return {name: size for name, size in sizes.items() if not _hidden(name)}

    def catalogue(self, marker: str) -> dict[str, Sizes]:
        """The trees of the sub-folders, from one listing of everything."""
        folders: dict[str, Sizes] = {"": {}}
        for name, size in self.tree().items():
            folder, _, rest = name.rpartition("/") if "/" not in name else name.partition("/")
            folders.setdefault(folder, {})[rest] = size
        return {
            folder: sizes if marker in sizes or not folder else {}
            for folder, sizes in folders.items()
        }

    def read(self, name: str) -> bytes:
        """A whole file: one request."""
        path = f"{self.path}/{name}"
        return bytes(self._ask("read", lambda: self.filesystem.cat_file(path), name))

    def read_many(self, names: Sequence[str]) -> dict[str, bytes | RunError]:
        """Whole files, asked for together; file systems that can fetch them at the same time."""
        if not names:
            return {}
        paths = [f"{self.path}/{name}" for name in names]
        got = self._ask("read", lambda: self.filesystem.cat(paths, on_error="return"))
        return {
            name: self._answer(name, got.get(path)) for name, path in zip(names, paths, strict=True)
        }

    def ranges(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        """Parts of a file, asked for together."""
        paths = [f"{self.path}/{name}"] * len(spans)
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        parts = self._ask("read", lambda: self.filesystem.cat_ranges(paths, starts, stops), name)
        return [bytes(part) for part in parts]

    def _answer(self, name: str, content: object) -> bytes | RunError:
        if isinstance(content, bytes):
            return content
        return RunError(f"read {self.where}/{name}: {cause_of(content)}")

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


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file so that no reader ever meets a half: write aside, fsync, rename.

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
    """Make the renames in a folder survive a power cut, where the system can."""
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
    """What went wrong, in the system's words, without the path that the caller names."""
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _Reading:
    """Opens a regular file, and turns whatever goes wrong into a `RunError` that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> BinaryIO:
        try:
            if not self.path.is_file():  # a named pipe would keep the reader waiting for ever
                raise MissingFileError(f"read {self.path}: no such file or folder")
            self.file = self.path.open("rb")
        except (OSError, ValueError) as error:
            raise self._named(error) from error
        return self.file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, OSError):
            raise self._named(error) from error

    def _named(self, error: Exception) -> RunError:
        if isinstance(error, RunError):
            return error
        kind = MissingFileError if isinstance(error, FileNotFoundError) else RunError
        return kind(f"read {self.path}: {cause_of(error)}")


def _write_through(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # the umask decides
    try:
        write_all(handle, content)
    finally:
        os.close(handle)


def _catalogue(root: Path, marker: str) -> dict[str, Sizes]:
    folders: dict[str, Sizes] = {"": {}}
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                held = os.path.isfile(os.path.join(entry.path, marker))
                folders[entry.name] = dict(_walk(Path(entry.path), "", _DEPTH)) if held else {}
            elif entry.is_file():
                folders[""][entry.name] = entry.stat().st_size
    return folders


def _walk(folder: Path, prefix: str, depth: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            with suppress(FileNotFoundError):  # it went away while we looked
                if entry.is_file():
                    found.append((prefix + entry.name, entry.stat().st_size))
                elif depth > 1 and entry.is_dir():
                    found += _walk(Path(entry.path), f"{prefix}{entry.name}/", depth - 1)
    return found


def _part(file: BinaryIO, start: int, stop: int) -> bytes:
    if stop <= start:
        return b""
    file.seek(start)
    return file.read(stop - start)


def _attempt(read: Callable[[str], bytes], name: str) -> bytes | RunError:
    try:
        return read(name)
    except RunError as error:
        return error


def _hidden(name: str) -> bool:
    return not name or any(part.startswith(".") for part in name.split("/"))
