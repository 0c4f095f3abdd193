"""Faults of one run or one set of test images, file by file.

Sizes show truncation, checksums flipped bytes; opening each file shows content that was never
valid; a walk of the folder shows links and other entries that must not be there. Files are hashed
in blocks. A writer may replace a file meanwhile, so one that looks wrong is judged again by the
run's new header before it is reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from attnviz.errors import InputError, RunError
from attnviz.runs.datasets import Dataset
from attnviz.runs.documents import SIZE_LIMIT, is_sealed, loaded
from attnviz.runs.header import File
from attnviz.runs.layout import (
    ARRAYS,
    CURVES,
    DATASET_HEADER,
    DATASETS,
    HEADER,
    LAYOUTS,
    SAMPLES,
    WEIGHTS,
)
from attnviz.runs.names import array_name
from attnviz.runs.storage import MissingFileError, Store

Kind: TypeAlias = Literal[
    "header", "newer", "missing", "size", "checksum", "unreadable", "link", "special"
]

_TRIES = 100


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        where: The id of the run, or `datasets/<digest>`.
        file: The file at fault, relative to that folder.
        kind: "header" (run.json makes no sense), "newer" (schema), "missing", "size", "checksum",
            "unreadable" (it does not open), "link" (a symbolic or hard link, a junction, a mount)
            or "special" (a pipe, socket, device or folder where a file should be).
        detail: What was expected and what was found.
    """

    where: str
    file: str
    kind: Kind
    detail: str

    def __str__(self) -> str:
        return f"{self.where}/{self.file}: {self.detail}"

    def as_dict(self) -> dict[str, str]:
        """The fields, for JSON."""
        return asdict(self)


@runtime_checkable
class Stored(Protocol):
    """Protocol of the run attributes that `run_faults` reads, such as `attnviz.runs.Run`."""

    @property
    def id(self) -> str:
        """The name of its folder."""

    @property
    def state(self) -> str:
        """As it was judged."""

    @property
    def reason(self) -> str:
        """Why."""

    @property
    def schema(self) -> int | None:
        """None where run.json could not be read."""

    @property
    def files(self) -> Mapping[str, File]:
        """Its files."""

    @property
    def store(self) -> Store:
        """Where it lies."""

    def reopened(self) -> Stored | None:
        """The same run as it is now; None if it was removed."""

    def maps(self, name: str, indices: Any = None) -> Any:
        """Read maps."""

    def gates(self, name: str, indices: Any = None) -> Any:
        """Read gates."""

    def rows(self, name: str, indices: Any = None) -> Any:
        """Read rows."""

    def samples(self, columns: Any = None) -> Any:
        """Read the samples."""

    def weights(self) -> Any:
        """Read the parameters."""

    def curve_rows(self) -> Any:
        """Read the curves."""

    def read(self, name: str) -> bytes:
        """Read a file."""


def run_faults(run: Stored) -> list[Fault]:
    """Every fault of one run: of its header, of each file, then of other entries in its folder."""
    if run.state == "newer":
        return [Fault(run.id, HEADER, "newer", run.reason)]
    odd = _odd(run.store, run.id)
    if run.schema is None:
        header = Fault(run.id, HEADER, "header", run.reason.removeprefix(f"{HEADER}: "))
        return odd if any(fault.file == HEADER for fault in odd) else [header, *odd]
    found = [_header_fault(run.store, run.id, HEADER)]
    found += [_settled(run, name, file) for name, file in run.files.items()]
    if CURVES not in run.files:
        found.append(_attempted(run, CURVES, CURVES))
    if not run.store.exists():  # removed meanwhile, with everything in it
        return []
    named = {fault.file for fault in odd}
    return [fault for fault in found if fault is not None and fault.file not in named] + odd


def dataset_faults(dataset: Dataset) -> list[Fault]:
    """What is wrong with the file of some test images, if anything."""
    where = f"{DATASETS}/{dataset.digest}"
    header = _header_fault(dataset.store, where, DATASET_HEADER)
    fault = _content_fault(dataset.store, where, dataset.file)
    if fault is None:
        try:
            dataset.check()
        except RunError as error:
            fault = Fault(where, dataset.file.at, "unreadable", _end(error))
    return [each for each in (header, fault, *_odd(dataset.store, where)) if each is not None]


def detail_of(error: Exception) -> str:
    """A message without the path in front, which the fault names itself."""
    return _end(error)


def _odd(store: Store, where: str) -> list[Fault]:
    """Links, pipes, mounts and the like below a folder."""
    try:
        entries = store.odd()
    except RunError as error:
        return [Fault(where, ".", "unreadable", _end(error))]
    return [
        Fault(where, entry.name, "link" if entry.what == "link" else
              "special" if entry.what == "special" else "unreadable", entry.detail)
        for entry in entries
    ]  # fmt: skip


def _header_fault(store: Store, where: str, name: str) -> Fault | None:
    try:
        if is_sealed(store.read(name, SIZE_LIMIT)):
            return None
    except MissingFileError:
        return Fault(where, name, "missing", "no such file")
    except (RunError, ValueError):  # replaced by a writer at this moment
        return None
    detail = "is not as it was written (a byte changed, or it was edited by hand)"
    return Fault(where, name, "checksum", detail)


def _settled(run: Stored, name: str, file: File) -> Fault | None:
    """The fault of a file that is there twice, with the header naming the same file in between.

    A writer that replaces the file meanwhile gives it another name, and the header another entry.
    """
    before: Fault | None = None
    for _ in range(_TRIES):
        fault = _file_fault(run, name, file)
        if fault is None or fault == before:
            break
        now = run.reopened()
        entry = None if now is None else now.files.get(name)
        if now is None or entry is None:
            return fault if now is not None and now.schema is None else None
        before = fault if entry == file else None
        run, file = now, entry
    return fault


def _file_fault(run: Stored, name: str, file: File) -> Fault | None:
    fault = _content_fault(run.store, run.id, file)
    return _attempted(run, name, file.at) if fault is None else fault


def _content_fault(store: Store, where: str, file: File) -> Fault | None:
    digest, size = hashlib.sha256(), 0
    try:
        for block in store.blocks(file.at):
            digest.update(block)
            size += len(block)
            if size > file.size:
                break
    except MissingFileError:
        detail = store.why_missing(file.at)
        kind: Kind = "missing" if detail == "missing" else "special"
        return Fault(where, file.at, kind, "no such file" if kind == "missing" else detail)
    except RunError as error:
        detail = store.why_missing(file.at)
        if detail != "missing":
            return Fault(where, file.at, "special", detail)
        return Fault(where, file.at, "unreadable", _end(error))
    found = file.fault_in(size, digest.hexdigest())
    return None if found is None else Fault(where, file.at, *found)


def _attempted(run: Stored, name: str, at: str) -> Fault | None:
    """The fault of a file that is what was written but does not open."""
    try:
        _opener(run, name)()
    except (RunError, InputError) as error:
        return Fault(run.id, at, "unreadable", _end(error))
    return None


def _opener(run: Stored, name: str) -> Callable[[], Any]:
    readers = {"maps": run.maps, "gates": run.gates, "rows": run.rows}
    for folder in ARRAYS:
        array = array_name(folder, name)
        if array is not None:
            read = readers[folder]
            return lambda: read(array, ())
    others: dict[str, Callable[[], Any]] = {
        SAMPLES: lambda: run.samples(()),
        WEIGHTS: run.weights,
        CURVES: run.curve_rows,
        LAYOUTS: lambda: _object(run.read(LAYOUTS)),
    }
    return others.get(name, lambda: None)


def _object(content: bytes) -> None:
    try:
        found = loaded(content)
    except ValueError as error:
        raise RunError("not JSON") from error
    if not isinstance(found, dict):
        raise RunError(f"expected an object, got {type(found).__name__}")


def _end(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1]
