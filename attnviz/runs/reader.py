"""Runs as they are read: headers first, arrays on demand.

Listing touches run.json and file sizes, nothing else. A run that cannot be trusted is listed too,
with its state and the reason; what is whole in it can still be read.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from attnviz.definitions import adopt
from attnviz.display import html_of
from attnviz.errors import InputError, RunError, unknown_name
from attnviz.runs.datasets import Dataset, open_dataset
from attnviz.runs.documents import SIZE_LIMIT, NewerError, loaded
from attnviz.runs.faults import Fault, run_faults
from attnviz.runs.header import STATES, THING, File, Header, State, judged, parse
from attnviz.runs.layout import ARRAYS, CURVES, DATASETS, HEADER, LAYOUTS, SAMPLES, WEIGHTS
from attnviz.runs.names import array_file, array_name, is_plain
from attnviz.runs.storage import (
    WHOLE_LIMIT,
    LocalStore,
    MissingFileError,
    Place,
    Sizes,
    Store,
    open_store,
    too_large,
)
from attnviz.runs.tables import read_table
from attnviz.runs.tensors import Array, Indices, from_bytes, open_tensors, restored
from attnviz.text import table

if TYPE_CHECKING:
    from pandas import DataFrame

CURVES_LIMIT = 1 << 28
"""Bytes of the curves that are read."""

_FROM_HEADER = (
    *("variant", "settings", "seed", "summary", "progress", "environment", "dataset"),
    *("created", "heartbeat", "files", "schema", "classes", "thing"),
    *("mean", "std"),
)

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One run: the header is read at once, arrays and tables on demand.

    Attributes:
        id: The name of its folder.
        state: "complete", "running", "stale" (the status is "running", but its process is gone or
            silent), "stopped", "broken" (a file is missing or has the wrong size, or run.json is
            invalid) or "newer" (written under a newer schema than this version's).
        reason: Why it is in that state; empty for complete and running runs.
        variant: Name of its model for `attnviz.models.build_model`.
        settings: What it was started with.
        seed: The seed it was started with.
        summary: Its results; a number that could not be computed is None.
        progress: Progress of the last heartbeat, such as the epoch.
        environment: Versions and device.
        dataset: The digest of its test images (see `test_set`), if it has any.
        created: When it was started (UTC).
        heartbeat: When it last wrote (UTC).
        files: Its files by name, with sizes and checksums.
        schema: The schema of its run.json; None where that could not be read.
        classes: The names of its classes, in the order of their numbers; may be empty.
        thing: What was looked for, such as "lesion".
        mean: What was subtracted from each channel (of pixels from 0 to 1) before the model saw
            it; None where that was not noted.
        std: What each channel was divided by.
        store: Where it lies.
        seen: What the listing that read it saw of its files; None where it was opened alone.
    """

    id: str
    state: State
    reason: str
    store: Store = field(repr=False)
    variant: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)
    progress: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict, repr=False)
    dataset: str | None = None
    created: datetime | None = None
    heartbeat: datetime | None = None
    files: Mapping[str, File] = field(default_factory=dict, repr=False)
    schema: int | None = field(default=None, repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)
    thing: str = field(default=THING, repr=False)
    mean: tuple[float, ...] | None = field(default=None, repr=False)
    std: tuple[float, ...] | None = field(default=None, repr=False)
    seen: Any = field(default=None, repr=False, compare=False)

    @property
    def location(self) -> str:
        """The path or address of its folder, for people."""
        return self.store.where

    @property
    def path(self) -> Path:
        """The path of its folder; `RunError` for a run on a remote store."""
        if not isinstance(self.store, LocalStore):
            raise RunError(f"{self.location}: lies on a remote store and has no local path")
        return self.store.path

    @property
    def root(self) -> Place:
        """The folder of runs that contains it, or its address."""
        if not isinstance(self.store, LocalStore):
            return self.location.rpartition("/")[0]
        path = self.store.path
        return (path if path.name not in ("", "..") else Path(os.path.abspath(path))).parent

    @cached_property
    def map_names(self) -> tuple[str, ...]:
        """The names of its maps."""
        return self._names("maps")

    @cached_property
    def gate_names(self) -> tuple[str, ...]:
        """The names of its gates."""
        return self._names("gates")

    @cached_property
    def row_names(self) -> tuple[str, ...]:
        """The names under which full attention was kept for chosen images."""
        return self._names("rows")

    def maps(self, name: str, indices: Indices | None = None) -> NDArray[np.float32]:
        """Raw maps, `(n, h, w)` or `(n, heads, h, w)`, of all or of the given images.

        A value comes back within `max(2⁻¹¹ |v|, 2⁻²⁵ m)` of what was saved, `m` being the largest
        absolute value of its map; scores were computed before that rounding.

        Raises:
            InputError: there is no map of that name, or an index is out of range.
            RunError: the file is missing or broken; the message names it.
        """
        return self._scaled("maps", name, indices)

    def gates(self, name: str, indices: Indices | None = None) -> NDArray[np.float32]:
        """Gate values, `(n, c)` for a channel gate or `(n, h, w)` for a spatial one; see `maps`."""
        return self._scaled("gates", name, indices)

    def rows(self, name: str, indices: Indices | None = None) -> NDArray[np.float32]:
        """Full attention `(k, heads, q, keys)` of the chosen images; see `row_images`, `maps`.

        Args:
            name: One of `row_names`.
            indices: Which of the chosen images, counted from 0 in the order of `row_images`.
        """
        return self._scaled("rows", name, indices)

    def row_images(self, name: str) -> tuple[int, ...]:
        """Which test images `rows(name)` holds, as indices into the samples."""
        name = self._named("rows", name)
        images = self._at(name, lambda f: open_tensors(self.store, f.at, f.size).rows("images"))
        return tuple(int(image) for image in images)

    def about(self, name: str) -> Mapping[str, Any]:
        """What the writer noted beside a file, such as `"maps/attend"`: grids, layer, method."""
        return self.entry(name).about

    def entry(self, name: str) -> File:
        """The entry of a file: of `"maps/<name of a map>"` or of `"samples.parquet"`.

        Raises:
            InputError: the run has no such file.
        """
        return self._listed(self._file_of(name))

    def listed(self, name: str) -> File | None:
        """The entry of a file, named as for `entry`; None where the run has no such file."""
        try:
            return self.files.get(self._file_of(name))
        except InputError:  # no name of an array
            return None

    def samples(self, columns: Sequence[str] | None = None) -> DataFrame:
        """One row per test image: label, prediction, box, every metric of every map.

        Args:
            columns: Read only these; the whole file is read and checked all the same.

        Raises:
            InputError: there is no such column.
            RunError: the table is missing or broken.
        """
        return read_table(self.read(SAMPLES), f"{self.location}/{SAMPLES}", columns)

    @property
    def layouts(self) -> Mapping[str, Any]:
        """Which token is which place, by record name; empty where that was not kept."""
        if LAYOUTS not in self.files:
            return {}
        try:
            found = loaded(self.read(LAYOUTS))
        except ValueError as error:
            raise RunError(f"read {self.location}/{LAYOUTS}: not JSON") from error
        return found if isinstance(found, dict) else {}

    def curves(self) -> DataFrame:
        """One row per epoch, so far; empty where there are none. A torn last line is left out."""
        from pandas import DataFrame

        return DataFrame(self.curve_rows())

    def curve_rows(self) -> list[dict[str, Any]]:
        """The rows of `curves` as dicts, without pandas."""
        try:
            listed = CURVES in self.files
            content = self.read(CURVES) if listed else self.store.read(CURVES, CURVES_LIMIT)
        except MissingFileError:
            if CURVES in self.files:
                raise
            return []
        return whole_rows(content, f"{self.location}/{CURVES}")

    def test_set(self) -> Dataset:
        """The images that it was tested on.

        Raises:
            RunError: it names none, or they are not beside it.
        """
        if self.dataset is None:
            raise RunError(f"{self.id}: expected the digest of its test images, the run names none")
        return open_dataset(self.root, self.dataset)

    def weights(self) -> dict[str, Array]:
        """The model's parameters and buffers by name."""
        return from_bytes(self.read(WEIGHTS), f"{self.location}/{WEIGHTS}")

    def read(self, name: str) -> bytes:
        """A file's whole content, checked against its size and checksum.

        Raises:
            InputError: the run has no such file.
            RunError: it is missing, or is not what the run wrote.
        """
        return self._at(name, self._checked)

    def verify(self) -> list[Fault]:
        """Every fault of the folder: header, sizes, checksums, and whether each file opens."""
        return run_faults(self)

    def reopened(self) -> Run | None:
        """The same run as it is now; None if its folder was removed."""
        try:
            sizes = self.store.tree()
        except MissingFileError:
            return None
        except RunError:
            sizes = {}
        return _opened(self.store, self.id, sizes, None)

    def _repr_html_(self) -> str:
        return html_of(self)

    def _checked(self, file: File) -> bytes:
        where = f"{self.location}/{file.at}"
        most = CURVES_LIMIT if file.at == CURVES else WHOLE_LIMIT
        if file.size > most:
            raise too_large(where, file.size, most)
        content = self.store.read(file.at, most)
        fault = file.fault_in(len(content), hashlib.sha256(content).hexdigest())
        if fault is not None:
            raise RunError(f"read {self.location}/{file.at}: {fault[1]}")
        return content

    def _at(self, name: str, use: Callable[[File], T]) -> T:
        """Read a file at its listed path, or at its new path if it was replaced meanwhile."""
        file = self._listed(name)
        try:
            return use(file)
        except MissingFileError:
            now = _opened(self.store, self.id, None, None).files.get(name, file)
            if now.at == file.at:
                raise
            return use(now)

    def _names(self, folder: str) -> tuple[str, ...]:
        found = (array_name(folder, name) for name in self.files)
        return tuple(name for name in found if name is not None)

    def _file_of(self, name: str) -> str:
        folder, _, array = name.partition("/")
        return array_file(folder, array) if folder in ARRAYS and name not in self.files else name

    def _listed(self, name: str) -> File:
        if name not in self.files:
            if not self.files:
                raise InputError(f"run {self.id} has no files yet, so none called {name!r}")
            raise unknown_name(f"file of run {self.id}", name, self.files)
        return self.files[name]

    def _named(self, folder: str, name: str) -> str:
        known = self._names(folder)
        if name not in known:
            if not known:
                raise InputError(f"run {self.id} has no {folder}, so none called {name!r}")
            raise unknown_name(f"{folder} of run {self.id}", name, known)
        return array_file(folder, name)

    def _scaled(self, folder: str, name: str, indices: Indices | None) -> NDArray[np.float32]:
        chosen = None if indices is None else list(indices)

        def read(file: File) -> NDArray[np.float32]:
            tensors = open_tensors(self.store, file.at, file.size)
            try:
                return restored(tensors.rows("values", chosen), tensors.rows("scale", chosen))
            except ValueError as error:
                if isinstance(error, InputError):
                    raise
                raise RunError(f"read {self.location}/{file.at}: {error}") from error

        return self._at(self._named(folder, name), read)


@dataclass(frozen=True)
class RunList(Sequence[Run]):
    """The runs of a folder, good and bad, in the order of their ids.

    Attributes:
        runs: The runs.
        where: The folder that was listed.
        left_out: Folders that are no runs, by name, with the reason.
        alone: Whether the folder is itself a run, the only one in the list.
    """

    runs: tuple[Run, ...]
    where: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False

    @property
    def complete(self) -> RunList:
        """Only those that are whole, and so can be compared."""
        return self.of("complete")

    def of(self, *states: State) -> RunList:
        """Only those in one of these states."""
        for state in states:
            if state not in STATES:
                raise unknown_name("state", state, STATES)
        return replace(self, runs=tuple(run for run in self.runs if run.state in states))

    def named(self, run_id: str) -> Run:
        """The run with this id, or an error that names the nearest."""
        for run in self.runs:
            if run.id == run_id:
                return run
        raise unknown_name("run", run_id, (run.id for run in self.runs))

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> RunList: ...
    def __getitem__(self, index: int | slice) -> Run | RunList:
        if isinstance(index, slice):
            return replace(self, runs=self.runs[index])
        return self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def _repr_html_(self) -> str:
        return html_of(self)

    def __str__(self) -> str:
        counts = Counter(run.state for run in self.runs)
        states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        first = f"{self.where}: {len(self)} runs" + (f" ({states})" if states else "")
        if not self.runs:
            return first
        rows = ((run.id, run.state, run.reason or run.variant) for run in self.runs)
        return f"{first}\n{table(('id', 'state', 'variant'), rows, empty='')}"


def open_run(path: Place) -> Run:
    """Open one run by its folder, in whatever state it is.

    Args:
        path: The folder, or its address on a remote store.

    Raises:
        RunError: there is no such folder, or it holds no run.json.
    """
    store = open_store(path)
    sizes = store.tree()
    if HEADER not in sizes:
        found = store.why_missing(HEADER)
        if found != "missing":
            raise RunError(f"open {store.where}: {HEADER}: {found}")
        raise RunError(f"open {store.where}: no run here (expected a {HEADER})")
    return _opened(store, store.name, sizes, None)


def list_runs(root: Place, *, known: Mapping[str, Run] | None = None) -> RunList:
    """The runs of a folder by their headers; opens no array.

    Args:
        root: The folder of runs, or of a single run, or the address of one on a remote store.
        known: Runs of an earlier listing of the same folder, by id: a complete one whose files
            have not changed since is taken from there, and its header is not read again.

    Raises:
        RunError: there is no such folder, or it cannot be listed.
    """
    store = open_store(root)
    found = store.catalogue(HEADER)
    here = found.pop("")
    if not isinstance(here, RunError) and HEADER in here:
        return RunList((open_run(root),), store.where, alone=True)
    found.pop(DATASETS, None)
    folders: dict[str, Sizes] = {}
    left_out: dict[str, str] = {}
    for name, sizes in sorted(found.items()):
        if reason := _no_run(name, sizes):
            left_out[name] = reason
        elif not isinstance(sizes, RunError):
            folders[name] = sizes
    seen = {name: _sight(store.below(name), sizes) for name, sizes in folders.items()}
    kept = {
        name: run
        for name, run in (known or {}).items()
        if run.state == "complete" and run.seen is not None and run.seen == seen.get(name)
    }
    contents = store.read_each([name for name in folders if name not in kept], HEADER, SIZE_LIMIT)
    runs = (
        kept[name]
        if name in kept
        else replace(_opened(store.below(name), name, sizes, contents[name]), seen=seen[name])
        for name, sizes in folders.items()
    )
    return RunList(tuple(runs), store.where, left_out)


def _sight(store: Store, sizes: Sizes) -> Any:
    """What tells that a run's files are those of an earlier look; None on a remote store.

    A header is replaced whole by another file, which has another number or time.
    """
    if not isinstance(store, LocalStore):
        return None
    try:
        found = os.stat(store.path / HEADER)
    except OSError:
        return None
    return store.where, found.st_ino, found.st_mtime_ns, dict(sizes)


def whole_rows(content: bytes, where: str) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that was torn while being written is left out.

    Raises:
        RunError: a line before the last makes no sense.
    """
    rows: list[dict[str, Any]] = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = loaded(line)
            if not isinstance(row, dict):
                raise ValueError("expected an object")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the writer was cut off
                break
            raise RunError(f"read {where}: line {number} is not a JSON object") from error
        rows.append(row)
    return rows


def _opened(
    store: Store, run_id: str, sizes: Sizes | None, content: bytes | RunError | None
) -> Run:
    """Judge a run by its header and sizes.

    A writer may finish, or replace a file, between the two being read; so what looks wrong on a
    local disk is looked at once more before it is called so.
    """
    run, seen = _judged(store, run_id, sizes, content)
    if run.state in ("stale", "broken") and isinstance(store, LocalStore):
        for _ in range(3):
            again, header = _judged(store, run_id, None, None)
            if header == seen:
                return again
            run, seen = again, header
    return run


def _judged(
    store: Store, run_id: str, sizes: Sizes | None, content: bytes | RunError | None
) -> tuple[Run, Header | None]:
    header = None
    try:
        header = parse(_content(store, content))
        state, reason = judged(header)
        fault = _first_fault(header, store.tree() if sizes is None else sizes, store)
    except NewerError as error:
        return Run(run_id, "newer", str(error), store), None
    except RunError as error:
        return Run(run_id, "broken", _inside(str(error), store), store), None
    if fault:
        state, reason = "broken", fault
    adopt(header.summary.get("definitions"))
    known = {name: getattr(header, name) for name in _FROM_HEADER}
    return Run(run_id, state, reason, store, **known), header


def _no_run(name: str, sizes: Sizes | RunError) -> str:
    if isinstance(sizes, RunError):
        return str(sizes).rpartition(": ")[2]
    if not sizes:
        return f"no {HEADER}"
    return "" if is_plain(name) else "its name has characters that a run's name does not have"


def _content(store: Store, content: bytes | RunError | None) -> bytes:
    if content is None:
        return store.read(HEADER, SIZE_LIMIT)
    if isinstance(content, RunError):
        raise content
    return content


def _inside(message: str, store: Store) -> str:
    """A message with the run's own path left out, since the run is named beside it."""
    return message.removeprefix("read ").removeprefix("list ").replace(f"{store.where}/", "")


def _first_fault(header: Header, sizes: Mapping[str, int], store: Store) -> str:
    for file in header.files.values():
        if file.at not in sizes:
            return f"{file.at}: {store.why_missing(file.at)}"
        if sizes[file.at] != file.size:
            return f"{file.at}: expected {file.size} bytes, got {sizes[file.at]}"
    return ""
