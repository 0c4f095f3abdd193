"""Runs as they are written: each file whole or not at all, run.json last.

A run begins as a hidden folder with its run.json inside and is renamed into place, so a run that
exists can always be listed. After that every file is written aside, synced and renamed, and only
then does run.json name it. A file that run.json already names is never overwritten: its successor
gets a new name (`maps/attend.2.safetensors`), run.json is replaced, and the old file goes. So a
kill at any moment leaves the folder as it was before a step or after it, and a complete run can be
added to (`amend_run`) without ever being less than complete.

The folder itself is locked while a process writes; the lock goes with the process, however it
ends. Where a file system cannot lock, the heartbeat of the other process stands in for it.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from attnviz.errors import InputError, RunError
from attnviz.runs.header import (
    STALE_AFTER,
    Document,
    document,
    is_gone,
    now,
    parse,
    plain,
    silence,
    this_writer,
    written,
)
from attnviz.runs.migrations import SCHEMA, upgraded
from attnviz.runs.names import checked, checked_file, checked_id
from attnviz.runs.reading import CURVES, HEADER, SAMPLES, WEIGHTS, Run, open_run, whole_rows
from attnviz.runs.storage import Place, local_path, sync_folder, unwritable, write_whole
from attnviz.runs.tensors import Array, scaled, to_bytes

if TYPE_CHECKING:
    from pandas import DataFrame

try:
    import fcntl
except ImportError:  # Windows: the heartbeat alone guards against a second writer
    fcntl = None  # type: ignore[assignment]  # a module stands here where it exists

_BEAT_APART = 0.25


def start_run(
    root: Place,
    run_id: str,
    *,
    variant: str,
    settings: Mapping[str, Any],
    seed: int | None,
    dataset: str | None = None,
    environment: Mapping[str, Any] | None = None,
) -> RunWriter:
    """Begin a run: its folder appears at once, with the status "running".

    Args:
        root: The folder of runs; made if it is missing.
        run_id: The name of the run's folder.
        variant: The model's name in `attnviz.models`.
        settings: What it takes to do the same again; anything JSON can hold, dataclasses too.
        seed: The seed.
        dataset: The digest that `save_dataset` gave for its test images.
        environment: Versions and device; by default those of this process, without torch's.

    Returns:
        The writer; use it in a `with` block and an exception leaves the run marked as stopped.

    Raises:
        InputError: the id is no plain name, or something in the settings cannot be kept.
        RunError: a run of that id exists, or the folder cannot be written.
    """
    path = local_path(root) / checked_id(run_id)
    content = _first_document(variant, settings, seed, dataset, environment)
    aside, lock = _begun(path, content)
    _into_place(aside, path, lock)
    return RunWriter(path, content, lock)


def save_run(
    path: Place,
    *,
    variant: str,
    settings: Mapping[str, Any],
    seed: int | None,
    samples: DataFrame,
    maps: Mapping[str, Array] | None = None,
    gates: Mapping[str, Array] | None = None,
    rows: Mapping[str, Array] | None = None,
    weights: Mapping[str, Array] | None = None,
    curves: Iterable[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Run:
    """Write a complete run in one go: the folder appears whole or not at all.

    Args:
        path: The run's folder; its name is the run's id.
        variant: The model's name in `attnviz.models`.
        settings: What it takes to do the same again.
        seed: The seed.
        samples: One row per test image.
        maps: Raw maps by name, `(n, h, w)` or `(n, heads, h, w)`.
        gates: Gate values by name, `(n, c)` or `(n, h, w)`.
        rows: Full attention of chosen images by name, `(k, heads, q, keys)`.
        weights: Parameters and buffers by name.
        curves: One row per epoch.
        summary: What was found.
        dataset: The digest that `save_dataset` gave for its test images.
        environment: Versions and device.

    Returns:
        The run, opened.

    Raises:
        InputError: a name or a shape is wrong; nothing is written.
        RunError: a run is already there, or it cannot be written; nothing is left behind.
    """
    target = local_path(path)
    checked_id(target.name)
    content = _first_document(variant, settings, seed, dataset, environment)
    aside, lock = _begun(target, content)
    try:
        writer = RunWriter(aside, content, lock)
        writer.samples(samples)
        _each(writer.maps, maps)
        _each(writer.gates, gates)
        _each(writer.rows, rows)
        if weights is not None:
            writer.weights(weights)
        for row in curves:
            writer.curve(**{str(key): value for key, value in row.items()})
        writer._complete(summary or {})
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)
        raise
    _into_place(aside, target, lock)
    os.close(lock)
    return open_run(target)


def resume_run(path: Place) -> RunWriter:
    """Go on with a run that was stopped or whose process died.

    Curves and files stay; a torn last line of the curves is cut off.

    Raises:
        RunError: it is complete, broken or newer, or another process is writing it.
    """
    folder = local_path(path)
    run = open_run(folder)
    if run.state not in ("running", "stale", "stopped"):
        hint = "; amend_run adds to it" if run.state == "complete" else f" ({run.reason})"
        raise RunError(f"resume {folder}: the run is {run.state}{hint}")
    writer = _taken(folder)
    writer._resume()
    return writer


def amend_run(path: Place) -> RunWriter:
    """Add to a complete run, or replace parts of it, all at once.

    What the writer is given becomes part of the run when it finishes (or its `with` block ends
    without an exception); until then, and if the process dies, the run is as it was.

    Raises:
        RunError: the run is not complete, or another process is writing it.
    """
    folder = local_path(path)
    run = open_run(folder)
    if run.state != "complete":
        raise RunError(f"amend {folder}: the run is {run.state} ({run.reason or 'not finished'})")
    return _taken(folder)


class RunWriter:
    """Writes one run. Made by `start_run`, `resume_run` and `amend_run`, never directly.

    Every method that takes data returns when it is safe on disk, and raises `RunError` naming the
    path if it cannot be written; the run is then as it was before the call.

    Attributes:
        path: The run's folder.
        id: The folder's name.
    """

    def __init__(self, path: Path, content: Document, lock: int) -> None:
        self.path = path
        self.id = path.name
        self._content = content
        self._lock = lock
        self._amends = content["status"] == "complete"
        self._handed_out: set[str] = set()
        self._replaced: set[str] = set()
        self._last_beat = -_BEAT_APART

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock < 0:
            return
        if error is None and self._amends:
            self.finish()
        elif error is None:
            self.stop("ended before it was finished")
        else:
            with suppress(RunError):  # the first error is the one to hear about
                self.stop("interrupted" if kind is KeyboardInterrupt else _said(error))
        self._release()

    def heartbeat(self, **progress: Any) -> None:
        """Say that the run goes on, and how far it is; cheap to call often.

        Args:
            progress: What to show, such as `epoch=3, epochs=50`; merged into what was said before.
        """
        self._needs_open()
        self._content["progress"].update(plain(progress, "progress"))
        if not self._amends and time.monotonic() - self._last_beat >= _BEAT_APART:
            self._commit()

    def curve(self, **row: Any) -> None:
        """Append one row to the curves, normally one per epoch."""
        self._needs_open()
        if self._amends:
            raise InputError(f"amend {self.path}: a complete run's curves do not grow")
        line = written(plain(row, "curve")).replace(b"\n", b"") + b"\n"
        _append(self.path / CURVES, line)
        if self._last_beat >= 0:
            self.heartbeat()

    def keep_curves(self, rows: int) -> None:
        """Keep only the first rows of the curves: those before the checkpoint one resumes from."""
        self._needs_open()
        path = self.path / CURVES
        if path.exists():
            kept = whole_rows(path.read_bytes(), str(path))[:rows]
            lines = [written(row).replace(b"\n", b"") + b"\n" for row in kept]
            write_whole(path, b"".join(lines))

    def maps(self, name: str, array: Array, about: Mapping[str, Any] | None = None) -> None:
        """Keep raw maps `(n, h, w)` or `(n, heads, h, w)` as scaled fp16.

        Args:
            name: The map's name, as in the samples' columns `"<map>/<metric>"`.
            array: Raw values; compute metrics before they are rounded here.
            about: Notes for the reader, such as the layer or the method.
        """
        self._scaled("maps", name, array, (3, 4), 2, about)

    def gates(self, name: str, array: Array, about: Mapping[str, Any] | None = None) -> None:
        """Keep gate values: `(n, c)` of a channel gate, `(n, h, w)` of a spatial one."""
        self._scaled("gates", name, array, (2, 3), np.ndim(array) - 1, about)

    def rows(
        self,
        name: str,
        array: Array,
        images: Sequence[int] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep full attention `(k, heads, q, keys)` for a few chosen images.

        Args:
            name: The layer's name.
            array: The weights.
            images: Which test images these are; by default the first k.
            about: Notes for the reader, such as `query_grid`, `key_grid` and `prefix`.
        """
        chosen = np.arange(len(array)) if images is None else np.asarray(images, dtype=np.int64)
        if chosen.shape != (len(array),):
            raise InputError(f"rows {name!r}: expected {len(array)} images, got {chosen.shape}")
        self._scaled("rows", name, array, (4,), 2, about, images=chosen)

    def samples(self, table: DataFrame) -> None:
        """Keep the table with one row per test image."""
        buffer = io.BytesIO()
        try:
            table.to_parquet(buffer, index=False)
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"samples: expected a table parquet can hold ({error})") from error
        self._keep(SAMPLES, buffer.getvalue(), shape=(len(table), table.shape[1]))

    def weights(self, arrays: Mapping[str, Array]) -> None:
        """Keep the model's parameters and buffers."""
        self._keep(WEIGHTS, to_bytes(arrays))

    def write(self, name: str, content: bytes, about: Mapping[str, Any] | None = None) -> None:
        """Keep any other file, such as a checkpoint; an older one of that name is replaced."""
        self._keep(checked_file(name), content, about=about)

    def file(self, name: str) -> Path:
        """A path in the run to write an extra file to; it is listed when the run finishes.

        The caller writes it in place, so a kill may leave a half; `write` does not.
        """
        self._needs_open()
        path = self.path / checked_file(name)
        if name in self._content["files"]:
            raise InputError(f"file {name!r}: the run already lists it; use write to replace it")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handed_out.add(name)
        return path

    def drop(self, name: str) -> None:
        """Take a file out of the run, such as a checkpoint that is no longer needed."""
        self._needs_open()
        entry = self._content["files"].pop(name, None)
        self._handed_out.discard(name)
        self._replaced.add(entry["at"] if entry and "at" in entry else checked_file(name))
        if not self._amends:
            self._commit()

    def finish(self, summary: Mapping[str, Any] | None = None) -> Run:
        """Make the run complete and let go of it.

        Args:
            summary: What was found; amending, it is merged into what was there.

        Returns:
            The run, opened.
        """
        self._needs_open()
        self._complete(summary or {})
        self._release()
        return open_run(self.path)

    def stop(self, reason: str) -> None:
        """Mark the run as stopped, to be resumed; an amendment is given up."""
        self._needs_open()
        try:
            if self._amends:
                self._give_up()
            else:
                self._content.update(status="stopped", reason=str(reason)[:500])
                self._commit()
        finally:
            self._release()

    def _scaled(
        self,
        room: str,
        name: str,
        array: Array,
        ranks: tuple[int, ...],
        axes: int,
        about: Mapping[str, Any] | None,
        **extra: Array,
    ) -> None:
        checked(f"name of {room}", name)
        array = np.asarray(array)
        if array.ndim not in ranks or array.dtype.kind not in "fiub":
            wanted = " or ".join(map(str, ranks))
            raise InputError(
                f"{room} {name!r}: expected a real array of rank {wanted}, "
                f"got {array.dtype} of shape {array.shape}"
            )
        content = to_bytes({**scaled(array, axes), **extra})
        self._keep(f"{room}/{name}.safetensors", content, array.shape, about)

    def _keep(
        self,
        name: str,
        content: bytes,
        shape: Sequence[int] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._needs_open()
        files = self._content["files"]
        at = self._fresh(name)
        entry: Document = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        entry |= {"at": at} if at != name else {}
        entry |= {"shape": list(shape)} if shape is not None else {}
        entry |= {"about": plain(about, f"about {name}")} if about else {}
        write_whole(self.path / at, content)
        before = files.get(name)
        files[name] = entry
        if before is not None:
            self._replaced.add(before.get("at", name))
        if not self._amends:
            self._commit()

    def _fresh(self, name: str) -> str:
        """A place that run.json does not name, on disk or in this writer's draft."""
        taken = {entry.get("at", key) for key, entry in self._content["files"].items()}
        taken |= self._replaced
        stem, dot, end = name.rpartition(".")
        at, number = name, 1
        while at in taken:
            number += 1
            at = f"{stem}.{number}{dot}{end}" if dot else f"{name}.{number}"
        return at

    def _complete(self, summary: Mapping[str, Any]) -> None:
        new = plain(summary, "summary")
        self._content["summary"] = {**self._content["summary"], **new} if self._amends else new
        for name in sorted(self._handed_out | {CURVES}):
            path = self.path / name
            if path.is_file() and not (self._amends and name == CURVES):
                self._content["files"][name] = _entry_of(path)
        self._content.update(status="complete", reason="")
        self._content.pop("writer", None)
        self._commit()

    def _commit(self) -> None:
        """Replace run.json, then remove what it no longer names."""
        self._content["heartbeat"] = now()
        write_whole(self.path / HEADER, written(self._content))
        self._last_beat = time.monotonic()
        named = {entry.get("at", key) for key, entry in self._content["files"].items()}
        for name in self._replaced - named:
            with suppress(OSError):
                (self.path / name).unlink()
        self._replaced.clear()

    def _give_up(self) -> None:
        kept = document((self.path / HEADER).read_bytes())["files"]
        named = {entry.get("at", key) for key, entry in kept.items()}
        for key, entry in self._content["files"].items():
            if entry.get("at", key) not in named:
                with suppress(OSError):
                    (self.path / entry.get("at", key)).unlink()

    def _resume(self) -> None:
        try:
            self._content.update(status="running", reason="", writer=this_writer())
            self._content["files"].pop(CURVES, None)
            self.keep_curves(rows=1 << 62)
            self._commit()
        except BaseException:
            self._release()
            raise

    def _needs_open(self) -> None:
        if self._lock < 0:
            raise RunError(f"write {self.path}: this writer has finished or stopped")

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def this_environment() -> dict[str, Any]:
    """Versions of Python, attnviz and numpy, and the platform: what the reader may want to know."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("attnviz", "numpy", "torch"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _first_document(
    variant: str,
    settings: Mapping[str, Any],
    seed: int | None,
    dataset: str | None,
    environment: Mapping[str, Any] | None,
) -> Document:
    if dataset is not None:
        checked("dataset", dataset)
    return {
        "schema": SCHEMA,
        "status": "running",
        "reason": "",
        "variant": str(variant),
        "seed": None if seed is None else int(seed),
        "created": now(),
        "heartbeat": now(),
        "writer": this_writer(),
        "dataset": dataset,
        "progress": {},
        "settings": plain(settings, "settings"),
        "environment": plain(environment or this_environment(), "environment"),
        "summary": {},
        "files": {},
    }


def _begun(path: Path, content: Document) -> tuple[Path, int]:
    """A hidden, locked folder beside the run's future place, with its run.json inside."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"write {path}: something is there already; resume it, or choose another id")
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    lock = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        aside.mkdir()
        lock = _locked(aside)
        write_whole(aside / HEADER, written(content))
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if lock >= 0:
            os.close(lock)
        if isinstance(error, RunError) or not isinstance(error, OSError):
            raise
        raise unwritable(path, error) from error
    return aside, lock


def _into_place(aside: Path, path: Path, lock: int) -> None:
    """Rename a whole folder to its name; of two writers exactly one gets it."""
    try:
        aside.rename(path)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)
        if path.exists():
            raise RunError(f"write {path}: another process made it at the same moment") from error
        raise unwritable(path, error) from error
    sync_folder(path.parent)


def _taken(folder: Path) -> RunWriter:
    """The writer of an existing run, locked; its header is read again under the lock."""
    lock = _locked(folder)
    try:
        raw = document((folder / HEADER).read_bytes())
        content = upgraded(raw)
        header = parse((folder / HEADER).read_bytes())
        _guard(folder, header)
    except BaseException:
        os.close(lock)
        raise
    for key in ("settings", "environment", "summary", "progress", "files"):
        content[key] = content.get(key) or {}
    return RunWriter(folder, content, lock)


def _guard(folder: Path, header: Any) -> None:
    """Refuse a run whose writer is alive on a machine that this machine's lock does not reach."""
    writer = header.writer
    mine = {**this_writer(), "pid": writer.get("pid")} == writer
    if header.status != "running" or mine or is_gone(writer) or silence(header) > STALE_AFTER:
        return
    raise RunError(
        f"write {folder}: process {writer.get('pid')} on {writer.get('host')} is writing it "
        f"(heartbeat {silence(header):.0f} s ago); stop that one first"
    )


def _locked(folder: Path) -> int:
    """An open handle of the folder that holds its lock; closing it, or dying, lets go."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise RunError(f"write {folder}: another process is writing it; stop that one") from error
    except OSError:  # this file system cannot lock; the heartbeat guards alone
        pass
    return handle


def _sweep(path: Path) -> None:
    """Remove what a killed process left of an earlier attempt at the same run."""
    for left in path.parent.glob(f".{path.name}.*.partial"):
        with suppress(OSError):
            lock = _locked(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def _append(path: Path, line: bytes) -> None:
    """Append one line and sync it; after an error the file is as it was."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        end = os.fstat(handle).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(handle, end)
            raise unwritable(path, error) from error
    finally:
        os.close(handle)


def _entry_of(path: Path) -> Document:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    except OSError as error:
        raise RunError(f"read {path}: {error}") from error


def _each(keep: Any, arrays: Mapping[str, Array] | None) -> None:
    for name, array in (arrays or {}).items():
        keep(name, array)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
