"""Where runs lie: a local folder, or any store that fsspec knows (`s3://…`, `memory://…`).

A `Store` is the little that a reader needs: what is there and how large, whole files, parts of
files. Listing costs two requests on a remote store however many runs there are (one listing of
the tree, one concurrent fetch of all headers), and a few maps cost two more. Writing is local:
rename is what makes a folder appear whole, and object stores have none.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from attnviz.errors import InputError, RunError

Place: TypeAlias = "str | os.PathLike[str]"
Span: TypeAlias = tuple[int, int]


class Store(Protocol):
    """A folder one can read from; names are relative and `/`-separated."""

    @property
    def where(self) -> str:
        """The folder's path or address, for messages."""

    def below(self, folder: str) -> Store:
        """The store of a sub-folder."""

    def tree(self) -> dict[str, int]:
        """Every regular file up to three levels down, with its size; hidden ones are left out."""

    def read(self, name: str) -> bytes:
        """A whole file; raises `RunError` that names it."""

    def read_many(self, names: Sequence[str]) -> dict[str, bytes | RunError]:
        """Whole files, together; each is its bytes or the error that came instead."""

    def ranges(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        """Parts `[start, stop)` of a file; a part beyond its end is shorter or empty."""


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine's file system."""

    path: Path

    @property
    def where(self) -> str:
        return str(self.path)

    def below(self, folder: str) -> LocalStore:
        return LocalStore(self.path / folder)

    def tree(self) -> dict[str, int]:
        found: dict[str, int] = {}
        try:
            _walk(self.path, "", 3, found)
        except OSError as error:
            raise RunError(f"list {self.where}: {_cause(error)}") from error
        return found

    def read(self, name: str) -> bytes:
        path = self.path / name
        try:
            if not path.is_file():  # a named pipe would keep the reader waiting for ever
                raise RunError(f"read {path}: no such file")
            return path.read_bytes()
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def read_many(self, names: Sequence[str]) -> dict[str, bytes | RunError]:
        return {name: _attempt(self.read, name) for name in names}

    def ranges(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        path = self.path / name
        try:
            with path.open("rb") as file:
                return [_part(file, start, stop) for start, stop in spans]
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error


@dataclass(frozen=True)
class RemoteStore:
    """A folder of any file system that fsspec can reach."""

    filesystem: Any
    path: str
    protocol: str

    @property
    def where(self) -> str:
        return f"{self.protocol}://{self.path.lstrip('/')}"

    def below(self, folder: str) -> RemoteStore:
        return RemoteStore(self.filesystem, f"{self.path}/{folder}", self.protocol)

    def tree(self) -> dict[str, int]:
        found = self._ask("list", "", lambda: self.filesystem.find(self.path, detail=True))
        start = len(self.path.rstrip("/")) + 1
        sizes = {path[start:]: int(entry.get("size") or 0) for path, entry in found.items()}
        return {name: size for name, size in sizes.items() if not _hidden(name)}

    def read(self, name: str) -> bytes:
        path = f"{self.path}/{name}"
        return bytes(self._ask("read", name, lambda: self.filesystem.cat_file(path)))

    def read_many(self, names: Sequence[str]) -> dict[str, bytes | RunError]:
        if not names:
            return {}
        paths = {f"{self.path}/{name}": name for name in names}
        got = self._ask("read", "", lambda: self.filesystem.cat(list(paths), on_error="return"))
        if isinstance(got, bytes):  # some file systems answer one path with bare bytes
            return {names[0]: got}
        answers = {_tail(path, paths): content for path, content in got.items()}
        return {name: self._answer(name, answers.get(name)) for name in names}

    def ranges(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        paths = [f"{self.path}/{name}"] * len(spans)
        starts, stops = [a for a, _ in spans], [b for _, b in spans]
        return [
            bytes(part)
            for part in self._ask(
                "read", name, lambda: self.filesystem.cat_ranges(paths, starts, stops)
            )
        ]

    def _answer(self, name: str, content: object) -> bytes | RunError:
        if isinstance(content, bytes):
            return content
        return RunError(f"read {self.where}/{name}: {_cause(content)}")

    def _ask(self, what: str, name: str, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:  # each fsspec backend raises its own kinds
            place = f"{self.where}/{name}".rstrip("/")
            raise RunError(f"{what} {place}: {_cause(error)}") from error


def open_store(place: Place) -> Store:
    """The store at a path or at an address with a scheme.

    Args:
        place: A local path, or an address such as `"s3://bucket/runs"` (needs `attnviz[remote]`).

    Raises:
        RunError: fsspec or the backend for this scheme is not installed.
    """
    text = os.fspath(place)
    if "://" not in text:
        return LocalStore(Path(text))
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise RunError(f"open {text}: needs fsspec; pip install 'attnviz[remote]'") from error
    try:
        filesystem, path = url_to_fs(text)
    except (ImportError, ValueError, OSError) as error:
        raise RunError(f"open {text}: {_cause(error)}") from error
    return RemoteStore(filesystem, path.rstrip("/"), text.split("://", 1)[0])


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
    aside = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_through(aside, content)
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink()


def sync_folder(path: Path) -> None:
    """Make the renames in a folder survive a power cut, where the system can."""
    with suppress(OSError):  # some file systems cannot sync a folder; the rename stands
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unwritable(path: Path, error: OSError) -> RunError:
    """The error for a file or folder that could not be written, naming it."""
    return RunError(f"write {path}: {_cause(error)}")


def _write_through(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # the umask decides
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _walk(folder: Path, prefix: str, depth: int, found: dict[str, int]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            with suppress(OSError):  # it went away while we looked, or we may not look
                if entry.is_dir():
                    if depth > 1:
                        _walk(Path(entry.path), f"{prefix}{entry.name}/", depth - 1, found)
                elif entry.is_file():
                    found[prefix + entry.name] = entry.stat().st_size


def _part(file: Any, start: int, stop: int) -> bytes:
    file.seek(start)
    part: bytes = file.read(max(stop - start, 0))
    return part


def _attempt(read: Callable[[str], bytes], name: str) -> bytes | RunError:
    try:
        return read(name)
    except RunError as error:
        return error


def _hidden(name: str) -> bool:
    return not name or any(part.startswith(".") for part in name.split("/"))


def _tail(path: str, paths: Mapping[str, str]) -> str:
    return paths.get(path) or paths.get("/" + path.lstrip("/")) or paths.get(path.lstrip("/"), path)


def _unreadable(path: Path, error: Exception) -> RunError:
    return error if isinstance(error, RunError) else RunError(f"read {path}: {_cause(error)}")


def _cause(error: object) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def spans_of(rows: Iterable[int], start: int, stride: int) -> list[tuple[Span, int]]:
    """Byte spans of rows, neighbours joined: `((start, stop), number of rows)` in the order given.

    Args:
        rows: Row numbers, in the order in which they are wanted.
        start: Where row 0 begins.
        stride: Bytes of a row.
    """
    spans: list[tuple[Span, int]] = []
    for row in rows:
        begin = start + row * stride
        if spans and spans[-1][0][1] == begin:
            (first, _), count = spans[-1]
            spans[-1] = ((first, begin + stride), count + 1)
        else:
            spans.append(((begin, begin + stride), 1))
    return spans
