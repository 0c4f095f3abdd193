"""How a run comes to be written: begun, saved in one go, taken up again, added to, migrated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnviz.errors import RunError
from attnviz.runs.header import Document, document, now, parse, plain, this_writer
from attnviz.runs.locking import Lock, refuse_if_written_elsewhere
from attnviz.runs.migrations import SCHEMA, upgraded
from attnviz.runs.names import checked, checked_id
from attnviz.runs.reader import HEADER, Run, open_run
from attnviz.runs.staging import begun, into_place, removed, tidy
from attnviz.runs.storage import LocalStore, Place, local_path
from attnviz.runs.tensors import Array
from attnviz.runs.writer import RunWriter

if TYPE_CHECKING:
    from pandas import DataFrame


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
        settings: What it takes to do the same again; anything JSON can hold.
        seed: The seed.
        dataset: The digest that `save_dataset` gave for its test images.
        environment: Versions and device; by default `this_environment()`.

    Returns:
        The writer; use it in a `with` block and an exception leaves the run marked as stopped.

    Raises:
        InputError: the id is no plain name, or something in the settings cannot be kept.
        RunError: a run of that id exists, or the folder cannot be written.
    """
    path = local_path(root) / checked_id(run_id)
    content = _first_document(variant, settings, seed, dataset, environment)
    aside, lock = begun(path, content)
    into_place(aside, path, lock)
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
        environment: Versions and device; by default `this_environment()`.

    Returns:
        The run, opened.

    Raises:
        InputError: a name or a shape is wrong; nothing is written.
        RunError: a run is already there, or it cannot be written; nothing is left behind.
    """
    target = local_path(path)
    checked_id(target.name)
    content = _first_document(variant, settings, seed, dataset, environment)
    aside, lock = begun(target, content)
    try:
        writer = RunWriter(aside, content, lock, unseen=True)
        writer.samples(samples)
        for keep, arrays in ((writer.maps, maps), (writer.gates, gates), (writer.rows, rows)):
            for name, array in (arrays or {}).items():
                keep(name, array)
        if weights is not None:
            writer.weights(weights)
        for row in curves:
            writer.curve(**{str(key): value for key, value in row.items()})
        writer._complete(summary)
    except BaseException:
        removed(aside, lock)
        raise
    into_place(aside, target, lock)
    lock.release()
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
    try:
        writer._resume()
    except BaseException:
        writer._lock.release()
        raise
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


def migrate_run(path: Place) -> bool:
    """Write an older run's header anew under the present schema, with checksums.

    Returns:
        Whether there was anything to do.

    Raises:
        RunError: it is broken or newer, or another process is writing it.
    """
    folder = local_path(path)
    run = open_run(folder)
    if run.state in ("broken", "newer"):
        raise RunError(f"migrate {folder}: the run is {run.state} ({run.reason})")
    if run.schema == SCHEMA and all(file.sha256 for file in run.files.values()):
        return False
    writer = _taken(folder)
    try:
        writer._add_checksums()
    finally:
        writer._lock.release()
    return True


def this_environment() -> dict[str, Any]:
    """Versions of Python, attnviz, numpy and torch, and the platform."""
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


def _taken(folder: Path) -> RunWriter:
    """The writer of an existing run, locked; its header is read again under the lock."""
    lock = Lock(folder)
    try:
        raw = LocalStore(folder).read(HEADER)
        refuse_if_written_elsewhere(folder, parse(raw))
        tidy(folder)
        content = upgraded(document(raw))
    except BaseException:
        lock.release()
        raise
    for key in ("settings", "environment", "summary", "progress", "files"):
        content[key] = content.get(key) or {}
    return RunWriter(folder, content, lock)
