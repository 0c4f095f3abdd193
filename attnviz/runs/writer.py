"""Writer of runs: each file atomically, run.json last.

A run begins as a hidden folder with its run.json inside and is renamed into place, so a run that
exists can always be listed. After that every file is written aside, synced and renamed, and only
then does run.json name it. A file that run.json already names is never overwritten: its successor
gets a new name (`maps/attend.2.safetensors`), run.json is replaced, and the old file goes. So a
kill at any moment leaves the folder as it was before a step or after it, and a complete run can be
added to (`amend_run`) without ever being less than complete.

The folder itself is locked while a process writes; the lock goes with the process, however it
ends. Where a file system cannot lock, the heartbeat of the other process stands in for it. A folder
that was deleted, moved or begun anew under its writer is noticed before each write.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from attnviz.definitions import added
from attnviz.errors import InputError, RunError
from attnviz.runs.documents import Document, plain, sealed, written
from attnviz.runs.entries import OutsideError, inside
from attnviz.runs.header import now, this_writer
from attnviz.runs.layout import ARRAYS, CURVES, HEADER, LAYOUTS, SAMPLES, WEIGHTS
from attnviz.runs.locking import Lock
from attnviz.runs.names import array_file, array_name, checked, checked_file
from attnviz.runs.reader import CURVES_LIMIT, Run, open_run, whole_rows
from attnviz.runs.records import kept_of
from attnviz.runs.staging import tidy
from attnviz.runs.storage import LocalStore, unwritable, write_all, write_inside
from attnviz.runs.tensors import Array, scaled, to_bytes
from attnviz.runs.words import WORDS, check_words

if TYPE_CHECKING:
    from pandas import DataFrame

_BEAT_APART = 0.25
_KEPT = (HEADER, CURVES, SAMPLES, WEIGHTS, LAYOUTS, *ARRAYS)


class RunWriter:
    """Writes one run. Made by `start_run`, `resume_run` and `amend_run`, never directly.

    Every method that takes data returns when it is safe on disk, and raises `RunError` naming the
    path if it cannot be written; the run is then as it was before the call.

    Attributes:
        path: The run's folder.
        id: The folder's name.
    """

    def __init__(self, path: Path, content: Document, lock: Lock, *, unseen: bool = False) -> None:
        self.path = path
        self.id = path.name
        self._content = content
        self._lock = lock
        self._amends = content["status"] == "complete"
        self._at_once = self._amends or unseen  # run.json waits for the end
        self._handed_out: set[str] = set()
        self._replaced: set[str] = set()
        self._last_beat = -_BEAT_APART
        self._last: list[Callable[[], Mapping[str, Any] | None]] = []

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._lock.held:
            return
        if not self._lock.is_of(self.path):
            self._lock.release()
            if error is None:
                raise self._replaced_folder()
            return
        if error is None and self._amends:
            self.finish()
        elif error is None:
            self.stop("ended before it was finished")
        else:
            with suppress(RunError):  # the first error is reported
                self.stop("interrupted" if kind is KeyboardInterrupt else _said(error))

    def heartbeat(self, **progress: Any) -> None:
        """Record a heartbeat and the progress; cheap to call often.

        At most four times a second anything is written; progress in between waits for the next.

        Args:
            progress: What to show, such as `epoch=3, epochs=50`; merged into earlier progress.
        """
        self._needs_open()
        self._content["progress"] = self._content["progress"] | plain(progress, "progress")
        if not self._at_once and time.monotonic() - self._last_beat >= _BEAT_APART:
            self._commit()

    def describe(
        self,
        *,
        summary: Mapping[str, Any] | None = None,
        dataset: str | None = None,
        thing: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Update the run's description while it is running; None leaves a field as it is.

        Args:
            summary: What was found so far, merged into the summary.
            dataset: The digest that `save_dataset` gave for its images.
            thing: What is looked for.
            classes: The names of the classes, in the order of their numbers.
        """
        self._needs_open()
        if dataset is not None:
            checked("dataset", dataset)
        given = {
            "summary": summary and self.summary | plain(summary, "summary"),
            "dataset": dataset,
            "thing": thing,
            "classes": classes and list(classes),
        }
        changes = {key: value for key, value in given.items() if value}
        if self._at_once:
            self._content = self._content | changes
        else:
            self._commit(**changes)

    @property
    def summary(self) -> dict[str, Any]:
        """What was found so far."""
        return dict(self._content["summary"])

    def before_finish(self, last: Callable[[], Mapping[str, Any] | None]) -> None:
        """Call a function before the run is finished; what it returns joins the summary."""
        self._last.append(last)

    def curve(self, **row: Any) -> None:
        """Append one row to the curves, normally one per epoch; a heartbeat too."""
        self._needs_open()
        if self._amends:
            raise InputError(f"amend {self.path}: a complete run's curves do not grow")
        _append(self.path, CURVES, _line(plain(row, "curve")))
        self.heartbeat()

    def keep_curves(self, rows: int) -> None:
        """Keep only the first rows of the curves: those before the checkpoint one resumes from."""
        self._needs_open()
        if rows < 0:
            raise InputError(f"keep_curves: expected 0 rows or more, got {rows}")
        self._trim(rows)

    def rewind(self, epoch: int) -> None:
        """Drop an epoch and all later ones, which are trained again.

        Their rows of the curves go, and the maps that are kept by epoch under `<map>@<epoch>`.
        """
        self._needs_open()
        if os.path.lexists(self.path / CURVES):
            content = LocalStore(self.path).read(CURVES, CURVES_LIMIT)
            rows = whole_rows(content, f"{self.path / CURVES}")
            earlier = [row for row in rows if not _is_from(row.get("epoch"), epoch)]
            if len(earlier) < len(rows):
                write_inside(self.path, CURVES, b"".join(map(_line, earlier)))
        for file in list(self._content["files"]):
            stem, _, number = (array_name("maps", file) or "").rpartition("@")
            if stem and number.isdecimal() and int(number) >= epoch:
                self.drop(file)

    def maps(self, name: str, array: Array, about: Mapping[str, Any] | None = None) -> None:
        """Keep raw maps `(n, h, w)` or `(n, heads, h, w)` as scaled fp16.

        Maps of volumes are `(n, d, h, w)` or `(n, heads, d, h, w)`: those of a run whose test
        images are volumes.

        Args:
            name: The map's name, as in the samples' columns `"<map>/<metric>"`.
            array: Raw values; compute metrics before they are rounded here.
            about: Notes for the reader, such as the layer or the method. Of maps of words,
                `(n, words, h, w)`, `words` holds the text of each: one list for all images, or a
                list for each; images with fewer words than the others leave their last maps out.

        Raises:
            InputError: A name or shape is wrong, or there are other words than maps.
        """
        if about is not None and WORDS in about:
            check_words(name, about[WORDS], np.shape(array))
        self._scaled("maps", name, array, (3, 4, 5), 2, about)

    def gates(self, name: str, array: Array, about: Mapping[str, Any] | None = None) -> None:
        """Keep gate values: `(n, c)` by channel, `(n, h, w)` by place, `(n, c, h, w)` by both."""
        self._scaled("gates", name, array, (2, 3, 4), max(np.ndim(array) - 1, 1), about)

    def rows(
        self,
        name: str,
        array: Array,
        images: Iterable[SupportsIndex] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep full attention `(k, heads, q, keys)` for a few chosen images.

        Args:
            name: The layer's name.
            array: The weights.
            images: Which test images these are; by default the first k.
            about: Notes for the reader. How tokens lie: `query_grid` and `key_grid` `[h, w]` with
                `prefix`, how many tokens lead; or `query_places` and `key_places`, each a `grid`
                and a `cell` for each token (−1 for none). Where one side is words, `key_words` or
                `query_words` with the text of each.
        """
        count = len(array)
        chosen = np.fromiter(range(count) if images is None else images, dtype=np.int64)
        if chosen.shape != (count,):
            raise InputError(f"rows {name!r}: expected {count} images, got {len(chosen)}")
        self._scaled("rows", name, array, (4,), 2, about, images=chosen)

    def record(self, record: Any) -> None:
        """Keep a record of a watch under its own name; one without values is passed over."""
        kept = kept_of(record)
        if kept is None:
            return
        if kept.folder == "gates":
            self.gates(kept.name, kept.values, about=kept.about)
        else:
            self.rows(kept.name, kept.values, kept.images, about=kept.about)

    def samples(self, table: DataFrame) -> None:
        """Keep the table with one row per test image; for its columns see `save_run`."""
        buffer = io.BytesIO()
        try:
            table.to_parquet(buffer, index=False)
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"samples: expected a table parquet can hold ({error})") from error
        self._keep(SAMPLES, buffer.getvalue(), shape=table.shape)

    def layouts(self, layouts: Mapping[str, Any]) -> None:
        """Keep which token is which place, by the name of the record.

        Args:
            layouts: Name → what JSON can hold, such as `{"queries": places, "keys": places}`,
                with `grid` (its sides), `cell` (for each token the number of its cell, −1 for
                none) and `role` (for each token what it is).
        """
        kept = plain(layouts, "layouts")
        for name, layout in kept.items():
            if not isinstance(layout, dict):
                raise InputError(
                    f"layouts[{name!r}]: expected a grid, cells and roles by name, got "
                    f"{type(layout).__name__}"
                )
        self._keep(LAYOUTS, written(kept, indent=None))

    def weights(self, arrays: Mapping[str, Array]) -> None:
        """Keep the model's parameters and buffers."""
        self._keep(WEIGHTS, to_bytes(arrays))

    def write(self, name: str, content: bytes) -> Path:
        """Keep any other file, such as a checkpoint, whole; it is listed when the run finishes.

        Args:
            name: Plain names joined by `/`.
            content: All of it; what was there under that name is replaced.

        Returns:
            Its path: `path / name` while the run is running.
        """
        if self._amends:
            self._keep(self._own(name), content)
            return self.path / str(self._content["files"][name].get("at", name))
        path = self.file(name)
        write_inside(self.path, name, content)
        return path

    def file(self, name: str) -> Path:
        """A path in the run to write an extra file to; it is listed when the run finishes.

        The caller writes it in place, so a kill may leave a half of it; `write` does not.
        """
        self._needs_open()
        if self._own(name) in self._content["files"]:
            raise InputError(f"file {name!r}: the run already lists it; use write to replace it")
        path = _inside(self.path, name, make=True)
        self._handed_out.add(name)
        return path

    def drop(self, name: str) -> None:
        """Take a file out of the run, such as a checkpoint that is no longer needed."""
        self._needs_open()
        files = dict(self._content["files"])
        entry = files.pop(checked_file(name), {})
        self._handed_out.discard(name)
        self._replaced.add(entry.get("at", name))
        self._change(files)

    def finish(self, summary: Mapping[str, Any] | None = None) -> Run:
        """Mark the run as complete and release it.

        Args:
            summary: What was found; by default, and amending, what was there stays, and what is
                new is merged into it.

        Returns:
            The run, opened.
        """
        self._needs_open()
        found: dict[str, Any] = {}
        for last in self._last:
            found |= last() or {}
        self._complete({**found, **(summary or {})})
        self._lock.release()
        return open_run(self.path)

    def stop(self, reason: str) -> None:
        """Mark the run as stopped, to be resumed; an amendment is given up."""
        self._needs_open()
        try:
            if self._amends:
                tidy(self.path)
            else:
                self._commit(status="stopped", reason=str(reason)[:500])
        finally:
            self._lock.release()

    def _scaled(
        self,
        folder: str,
        name: str,
        array: Array,
        ranks: tuple[int, ...],
        axes: int,
        about: Mapping[str, Any] | None,
        **extra: Array,
    ) -> None:
        file = array_file(folder, name)
        array = np.asarray(array)
        if array.ndim not in ranks or array.dtype.kind not in "fiub":
            wanted = " or ".join(map(str, ranks))
            raise InputError(
                f"{folder} {name!r}: expected a real array of rank {wanted}, "
                f"got {array.dtype} of shape {array.shape}"
            )
        content = to_bytes({**scaled(array, axes), **extra})
        self._keep(file, content, array.shape, about)

    def _keep(
        self,
        name: str,
        content: bytes,
        shape: tuple[int, ...] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a file where none is named yet, and then name it."""
        self._needs_open()
        files = self._content["files"]
        at = self._fresh(name)
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        entry |= {"at": at} if at != name else {}
        entry |= {"shape": list(shape)} if shape is not None else {}
        entry |= {"about": plain(about, f"about {name}")} if about else {}
        write_inside(self.path, at, content)
        if name in files:
            self._replaced.add(files[name].get("at", name))
        try:
            self._change({**files, name: entry})
        except BaseException:
            with suppress(OSError):
                (self.path / at).unlink()
            raise

    def _own(self, name: str) -> str:
        """A name that the caller may choose: none of those that the writer keeps itself."""
        if checked_file(name).split("/", 1)[0] in _KEPT:
            raise InputError(f"file {name!r}: the writer keeps that one itself")
        return name

    def _fresh(self, name: str) -> str:
        """A place that neither run.json nor this writer's draft names.

        Names that differ in case alone are one file on some file systems.
        """
        taken = {at.casefold() for at in _named(self._content["files"]) | self._replaced}
        stem, dot, end = name.rpartition(".")
        at, number = name, 1
        while at.casefold() in taken:
            number += 1
            at = f"{stem}.{number}{dot}{end}" if dot else f"{name}.{number}"
        return at

    def _change(self, files: Document) -> None:
        """Take a new list of files: now, or at the end."""
        if self._at_once:
            self._content = {**self._content, "files": files}
        else:
            self._commit(files=files)

    def _complete(self, summary: Mapping[str, Any] | None) -> None:
        files = dict(self._content["files"])
        pending = self._handed_out if self._amends else self._handed_out | {CURVES}
        for name in sorted(pending):
            if os.path.lexists(self.path / name):
                files[name] = _entry_of(self.path, name)
        merged = self._content["summary"] | plain(summary or {}, "summary")
        if own := added():  # metrics from outside the package: readers know them by this
            merged["definitions"] = {**_mapping(merged.get("definitions")), **plain(own, "summary")}
        self._commit(status="complete", reason="", files=files, summary=merged)

    def _commit(self, **changes: Any) -> None:
        """Replace run.json, then remove what it no longer names."""
        content = {**self._content, **changes, "heartbeat": now()}
        write_inside(self.path, HEADER, sealed(content))
        self._content = content
        self._last_beat = time.monotonic()
        for name in self._replaced - _named(content["files"]):
            with suppress(OSError):
                inside(self.path, name).unlink()
        self._replaced.clear()

    def _resume(self) -> None:
        self._trim(None)
        files = {k: v for k, v in self._content["files"].items() if k != CURVES}
        self._commit(status="running", reason="", writer=this_writer(), files=files)

    def _trim(self, rows: int | None) -> None:
        if os.path.lexists(self.path / CURVES):
            content = LocalStore(self.path).read(CURVES, CURVES_LIMIT)
            kept = whole_rows(content, f"{self.path / CURVES}")[:rows]
            write_inside(self.path, CURVES, b"".join(map(_line, kept)))

    def _needs_open(self) -> None:
        if not self._lock.held:
            raise RunError(
                f"write {self.path}: this writer has finished or stopped, or is of another process"
            )
        if not self._lock.is_of(self.path):
            raise self._replaced_folder()

    def _replaced_folder(self) -> RunError:
        return RunError(
            f"write {self.path}: the folder was removed, moved or begun anew since this writer "
            "opened it; nothing more is written"
        )


def _inside(folder: Path, name: str, *, make: bool = False) -> Path:
    """See `entries.inside`; every failure is a `RunError` that begins with "write"."""
    try:
        return inside(folder, name, make=make)
    except OutsideError as error:
        raise OutsideError(f"write {error}") from error
    except OSError as error:
        raise unwritable(folder / name, error) from error


def _append(folder: Path, name: str, line: bytes) -> None:
    """Append one line and sync it; after an error the file is as it was.

    A file with a second name elsewhere is made one of the run's own first.
    """
    path = _inside(folder, name)
    try:
        if path.exists() and path.stat().st_nlink > 1:
            write_inside(folder, name, path.read_bytes())
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        end = os.fstat(handle).st_size
        try:
            write_all(handle, line)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(handle, end)
            raise unwritable(path, error) from error
    finally:
        os.close(handle)


def _is_from(number: Any, epoch: int) -> bool:
    return isinstance(number, int | float) and number >= epoch


def _line(row: Document) -> bytes:
    return written(row, indent=None)


def _named(files: Document) -> set[str]:
    return {entry.get("at", name) for name, entry in files.items()}


def _entry_of(folder: Path, name: str) -> Document:
    """Size and checksum of a file that the caller wrote; made safe, and as readable as ours."""
    path, digest = _inside(folder, name), hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
            os.fsync(file.fileno())
            found = os.fstat(file.fileno())
        if found.st_nlink == 1:  # safetensors leaves 0600 behind
            ours = stat.S_IMODE((folder / HEADER).stat().st_mode)
            path.chmod(stat.S_IMODE(found.st_mode) | ours)
        return {"bytes": found.st_size, "sha256": digest.hexdigest()}
    except OSError as error:
        raise unwritable(path, error) from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
