"""Runs as they are read: headers first, arrays on demand.

Listing touches run.json and file sizes, nothing else. A run that cannot be trusted is listed too,
with its state and the reason; what is whole in it can still be read.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from attnviz.errors import InputError, RunError, unknown_name
from attnviz.runs import checking
from attnviz.runs.header import STATES, File, Header, NewerError, State, judged, parse
from attnviz.runs.storage import LocalStore, Place, Store, open_store
from attnviz.runs.tensors import Array, from_bytes, open_tensors, restored

if TYPE_CHECKING:
    from pandas import DataFrame

HEADER = "run.json"
CURVES = "curves.jsonl"
SAMPLES = "samples.parquet"
WEIGHTS = "model.safetensors"
DATASETS = "datasets"


@dataclass(frozen=True)
class Run:
    """One run: its header at once, its arrays and tables when asked for.

    Attributes:
        id: The name of its folder.
        state: "complete", "running", "stale" (says it is running, but nobody is), "stopped",
            "broken" (a file is missing, has the wrong size, or run.json makes no sense) or
            "newer" (written under a schema that this version does not know).
        reason: Why it is in that state; empty for complete and running runs.
        variant: The name under which `attnviz.models.build_model` knows its model.
        settings: What it was started with.
        seed: The seed it was started with.
        summary: What it found; a number that could not be computed is None.
        progress: What the last heartbeat said, such as the epoch.
        environment: Versions and device.
        dataset: The digest of its test images (see `open_dataset`), if it has any.
        created: When it was started (UTC).
        heartbeat: When it last wrote (UTC).
        files: Its files by name, with sizes and checksums.
        store: Where it lies.
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
    def map_names(self) -> tuple[str, ...]:
        """The names of its maps."""
        return self._names("maps")

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The names of its gates."""
        return self._names("gates")

    @property
    def row_names(self) -> tuple[str, ...]:
        """The names under which full attention was kept for chosen images."""
        return self._names("rows")

    def maps(self, name: str, indices: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Raw maps, `(n, h, w)` or `(n, heads, h, w)`, of all images or of those asked for.

        A value comes back within `max(2⁻¹¹ |v|, 2⁻²⁵ m)` of what was saved, `m` being the largest
        absolute value of its map; scores were computed before that rounding.

        Raises:
            InputError: there is no map of that name, or an index is out of range.
            RunError: the file is missing or broken; the message names it.
        """
        return self._scaled("maps", name, indices)

    def gates(self, name: str, indices: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Gate values, `(n, c)` for a channel gate or `(n, h, w)` for a spatial one; see `maps`."""
        return self._scaled("gates", name, indices)

    def rows(self, name: str, indices: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Full attention `(k, heads, q, keys)` of the chosen images; see `row_images`, `maps`.

        Args:
            name: One of `row_names`.
            indices: Which of the chosen images, counted from 0 in the order of `row_images`.
        """
        return self._scaled("rows", name, indices)

    def row_images(self, name: str) -> tuple[int, ...]:
        """Which test images `rows(name)` holds, as indices into the samples."""
        file = self._named("rows", name)
        return tuple(int(i) for i in open_tensors(self.store, file.at).rows("images"))

    def about(self, name: str) -> Mapping[str, Any]:
        """What the writer noted beside a file, such as `"maps/attend"`: grids, layer, method."""
        return self._listed(self._file_of(name)).about

    def samples(self, columns: Sequence[str] | None = None) -> DataFrame:
        """One row per test image: label, prediction, box, every metric of every map.

        Args:
            columns: Read only these; the whole file is read and checked all the same.

        Raises:
            InputError: there is no such column.
            RunError: the table is missing or broken.
        """
        return _table(self.read(SAMPLES), f"{self.location}/{SAMPLES}", columns)

    def curves(self) -> DataFrame:
        """One row per epoch, so far; empty where there are none. A torn last line is left out."""
        from pandas import DataFrame

        return DataFrame(self.curve_rows())

    def curve_rows(self) -> list[dict[str, Any]]:
        """The rows of `curves` as dicts, without pandas."""
        if self.state in ("running", "stale", "stopped") and CURVES not in self.files:
            try:
                content = self.store.read(CURVES)
            except RunError:
                return []
        elif CURVES in self.files:
            content = self.read(CURVES)
        else:
            return []
        return whole_rows(content, f"{self.location}/{CURVES}")

    def weights(self) -> dict[str, Array]:
        """The model's parameters and buffers by name."""
        return from_bytes(self.read(WEIGHTS), f"{self.location}/{WEIGHTS}")

    def read(self, name: str) -> bytes:
        """A file's whole content, checked against its size and checksum.

        Raises:
            InputError: the run has no such file.
            RunError: it is missing, or is not what the run wrote.
        """
        file = self._listed(name)
        content = self.store.read(file.at)
        fault = checking.differs(content, file)
        if fault:
            raise RunError(f"read {self.location}/{file.at}: {fault}")
        return content

    def verify(self) -> list[checking.Fault]:
        """Every fault of the folder: state, sizes, checksums, and whether each file opens."""
        return checking.faults(self)

    def _names(self, room: str) -> tuple[str, ...]:
        start, end = f"{room}/", ".safetensors"
        return tuple(
            name[len(start) : -len(end)]
            for name in self.files
            if name.startswith(start) and name.endswith(end)
        )

    def _file_of(self, name: str) -> str:
        return name if name in self.files else f"{name}.safetensors"

    def _listed(self, name: str) -> File:
        if name not in self.files:
            raise unknown_name(f"file of run {self.id}", name, self.files)
        return self.files[name]

    def _named(self, room: str, name: str) -> File:
        known = self._names(room)
        if name not in known:
            if not known:
                raise InputError(f"run {self.id} has no {room}, so none called {name!r}")
            raise unknown_name(f"{room[:-1]} of run {self.id}", name, known)
        return self.files[f"{room}/{name}.safetensors"]

    def _scaled(self, room: str, name: str, indices: Sequence[int] | None) -> NDArray[np.float32]:
        file = open_tensors(self.store, self._named(room, name).at)
        return restored(file.rows("values", indices), file.rows("scale", indices))


@dataclass(frozen=True)
class RunList(Sequence[Run]):
    """The runs of a folder, good and bad, in the order of their ids.

    Attributes:
        runs: The runs.
        where: The folder they lie in.
        left_out: Folders that are no runs, by name, with the reason.
    """

    runs: tuple[Run, ...]
    where: str
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> RunList:
        """Only those that are whole, and so can be compared."""
        return self.of("complete")

    def of(self, *states: State) -> RunList:
        """Only those in one of these states."""
        for state in states:
            if state not in STATES:
                raise unknown_name("state", state, STATES)
        return RunList(tuple(r for r in self.runs if r.state in states), self.where, self.left_out)

    def named(self, run_id: str) -> Run:
        """The run with this id, or an error that offers the nearest."""
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
            return RunList(self.runs[index], self.where, self.left_out)
        return self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __str__(self) -> str:
        counts = Counter(run.state for run in self.runs)
        states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        lines = [f"{self.where}: {len(self)} runs" + (f" ({states})" if states else "")]
        width = max((len(run.id) for run in self.runs), default=0)
        lines += [f"  {r.id:<{width}}  {r.state:<8}  {r.reason or r.variant}" for r in self.runs]
        return "\n".join(lines)


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
        raise RunError(f"open {store.where}: no run here (expected a run.json)")
    return _opened(store, store.where.rstrip("/").rsplit("/", 1)[-1], sizes, None)


def list_runs(root: Place) -> RunList:
    """The runs of a folder by their headers; opens no array.

    Args:
        root: The folder of runs, or of a single run, or the address of one on a remote store.

    Raises:
        RunError: there is no such folder, or it cannot be listed.
    """
    store = open_store(root)
    tree = store.tree()
    if HEADER in tree:
        return RunList((open_run(root),), store.where)
    folders = _by_folder(tree)
    if isinstance(store, LocalStore):
        folders.update({name: {} for name in _empty_folders(store.path, folders)})
    folders.pop(DATASETS, None)
    names = sorted(name for name, sizes in folders.items() if HEADER in sizes)
    contents = store.read_many([f"{name}/{HEADER}" for name in names])
    runs = (
        _opened(store.below(name), name, folders[name], contents[f"{name}/{HEADER}"])
        for name in names
    )
    left_out = {name: f"no {HEADER}" for name in sorted(folders) if HEADER not in folders[name]}
    return RunList(tuple(runs), store.where, left_out)


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
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("expected an object")
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline after it: the writer was cut off
                break
            raise RunError(f"read {where}: line {number} is not a JSON object") from error
        rows.append(row)
    return rows


def _opened(
    store: Store, run_id: str, sizes: Mapping[str, int], content: bytes | RunError | None
) -> Run:
    """Judge a run by its header; a writer that finished meanwhile is not called stale."""
    try:
        header = parse(_content(store, content))
        state, reason = judged(header)
        if state == "stale" and isinstance(store, LocalStore):
            again = parse(store.read(HEADER))
            if again != header:
                header, sizes = again, store.tree()
                state, reason = judged(header)
    except NewerError as error:
        return Run(run_id, "newer", str(error), store)
    except RunError as error:
        return Run(run_id, "broken", str(error).removeprefix("read "), store)
    fault = _first_fault(header, sizes)
    if fault and state != "running":
        state, reason = "broken", fault
    return _run(run_id, state, reason, store, header)


def _run(run_id: str, state: State, reason: str, store: Store, header: Header) -> Run:
    return Run(
        id=run_id,
        state=state,
        reason=reason,
        store=store,
        variant=header.variant,
        settings=header.settings,
        seed=header.seed,
        summary=header.summary,
        progress=header.progress,
        environment=header.environment,
        dataset=header.dataset,
        created=header.created,
        heartbeat=header.heartbeat,
        files=header.files,
    )


def _content(store: Store, content: bytes | RunError | None) -> bytes:
    if content is None:
        return store.read(HEADER)
    if isinstance(content, RunError):
        raise content
    return content


def _first_fault(header: Header, sizes: Mapping[str, int]) -> str:
    for file in header.files.values():
        if file.at not in sizes:
            return f"{file.at}: missing"
        if sizes[file.at] != file.bytes:
            return f"{file.at}: expected {file.bytes} bytes, got {sizes[file.at]}"
    return ""


def _by_folder(tree: Mapping[str, int]) -> dict[str, dict[str, int]]:
    folders: dict[str, dict[str, int]] = {}
    for name, size in tree.items():
        folder, _, rest = name.partition("/")
        if rest:
            folders.setdefault(folder, {})[rest] = size
    return folders


def _empty_folders(root: Path, known: Iterable[str]) -> list[str]:
    try:
        names = [p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except OSError:
        return []
    return [name for name in names if name not in known]


def _table(content: bytes, where: str, columns: Sequence[str] | None) -> DataFrame:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = io.BytesIO(content)
    try:
        known = pq.read_schema(source).names
        for column in columns or ():
            if column not in known:
                raise unknown_name("column", column, known)
        frame: DataFrame = pd.read_parquet(
            source, columns=None if columns is None else list(columns)
        )
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise RunError(f"read {where}: not a whole parquet file") from error
    return frame
