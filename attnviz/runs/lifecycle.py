"""Create a run's writer: start, save in one call, resume, amend, migrate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnviz.errors import InputError, RunError, unknown_name
from attnviz.runs.documents import SIZE_LIMIT, Document, document, is_sealed, plain
from attnviz.runs.header import THING, channels, now, parse, this_writer, upgraded
from attnviz.runs.layout import HEADER, SCHEMA
from attnviz.runs.locking import Lock, refuse_if_written_elsewhere
from attnviz.runs.names import array_file, checked, checked_id
from attnviz.runs.reader import Run, open_run
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
    classes: Sequence[str] = (),
    thing: str = THING,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> RunWriter:
    """Begin a run: its folder appears at once, with the status "running".

    Args:
        root: The folder of runs; made if it is missing.
        run_id: The name of the run's folder.
        variant: The model's name in `attnviz.models`.
        settings: Settings that reproduce the run; anything JSON can hold.
        seed: The seed.
        dataset: The digest that `save_dataset` gave for its test images.
        environment: Versions and device; by default `this_environment()`.
        classes: The names of the classes, in the order of their numbers.
        thing: What is looked for, in one or two words: "lesion", "bird".
        mean: By what the model's input is normalised, for each channel, of pixels from 0 to 1.
        std: The same.

    Returns:
        The writer; use it in a `with` block and an exception leaves the run marked as stopped.

    Raises:
        InputError: the id is no plain name, or something in the settings cannot be kept.
        RunError: a run of that id exists, or the folder cannot be written.
    """
    path = local_path(root) / checked_id(run_id)
    content = _first_document(variant, settings, seed, dataset, environment)
    content |= _meaning(classes, thing, mean, std)
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
    records: Iterable[Any] = (),
    layouts: Mapping[str, Any] | None = None,
    about: Mapping[str, Mapping[str, Any]] | None = None,
    curves: Iterable[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    environment: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    thing: str = THING,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Run:
    """Write a complete run atomically.

    Args:
        path: The run's folder; its name is the run's id.
        variant: The model's name in `attnviz.models`.
        settings: Settings that reproduce the run.
        seed: The seed.
        samples: One row per test image. Columns with a meaning: `label` (class number),
            `predicted`, `probabilities` (a list per image), `group` (photograph, patient),
            `x0 y0 x1 y1` (the box), `<map>/<metric>`.
        maps: Raw maps by name, `(n, h, w)` or `(n, heads, h, w)`; of volumes with `d` before `h`.
        gates: Gate values by name, `(n, c)` or `(n, h, w)`.
        rows: Full attention of chosen images by name, `(k, heads, q, keys)`.
        weights: Parameters and buffers by name.
        records: Records of a watch as they are, such as `seen.values()`: attention is kept as
            rows, gates as gates, under the records' names.
        layouts: Which token is which place, by record name; see `RunWriter.layouts`.
        about: Notes beside arrays, by `"maps/<name>"`, `"gates/<name>"` or `"rows/<name>"`: the
            words of a map or of rows, how the tokens of rows lie; see `RunWriter.maps` and
            `RunWriter.rows`.
        curves: One row per epoch.
        summary: What was found.
        dataset: The digest that `save_dataset` gave for its test images.
        environment: Versions and device; by default `this_environment()`.
        classes: The names of the classes, in the order of their numbers.
        thing: What is looked for, in one or two words: "lesion", "bird".
        mean: By what the model's input is normalised, for each channel, of pixels from 0 to 1.
        std: The same.

    Returns:
        The run, opened.

    Raises:
        InputError: a name or a shape is wrong; nothing is written.
        RunError: a run is already there, or it cannot be written; nothing is left behind.
    """
    target = local_path(path)
    checked_id(target.name)
    content = _first_document(variant, settings, seed, dataset, environment)
    content |= _meaning(classes, thing, mean, std)
    for folder, arrays in (("maps", maps), ("gates", gates), ("rows", rows)):
        for name in arrays or {}:
            array_file(folder, name)  # every name, before anything is written
    _check_notes(about or {}, maps=maps, gates=gates, rows=rows)
    aside, lock = begun(target, content)
    try:
        writer = RunWriter(aside, content, lock, unseen=True)
        writer.samples(samples)
        notes = about or {}
        for name, array in (maps or {}).items():
            writer.maps(name, array, notes.get(f"maps/{name}"))
        for name, array in (gates or {}).items():
            writer.gates(name, array, notes.get(f"gates/{name}"))
        for name, array in (rows or {}).items():
            writer.rows(name, array, about=notes.get(f"rows/{name}"))
        for record in records:
            writer.record(record)
        if layouts is not None:
            writer.layouts(layouts)
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


def _check_notes(notes: Mapping[str, Any], **given: Mapping[str, Array] | None) -> None:
    """An `InputError` for notes beside arrays that are not there."""
    there = [f"{folder}/{name}" for folder, arrays in given.items() for name in arrays or {}]
    for name in notes:
        if name not in there:
            raise unknown_name("array of about", name, there)


def resume_run(path: Place) -> RunWriter:
    """Continue a run that was stopped or whose process ended.

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

    Data given to the writer become part of the run when it finishes (or its `with` block ends
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
    """Write a run's header anew where it is of an earlier form, or was edited by hand.

    Names of earlier versions that a reader still accepts (the level `ceiling`, now `redrawn`) are
    replaced, and a header whose checksum does not fit its content, or has none, is sealed.

    Returns:
        Whether there was anything to do.

    Raises:
        RunError: it is broken or newer, or another process is writing it.
    """
    folder = local_path(path)
    run = open_run(folder)
    if run.state in ("broken", "newer"):
        raise RunError(f"migrate {folder}: the run is {run.state} ({run.reason})")
    raw = LocalStore(folder).read(HEADER, SIZE_LIMIT)
    found = document(raw, HEADER)
    if upgraded(found) == found and "seal" in found and is_sealed(raw):
        return False
    writer = _taken(folder)
    try:
        writer._commit()
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


def _meaning(
    classes: Sequence[str],
    thing: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Document:
    """Classes, object name and normalisation of a run."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"classes: expected a list of names, got {classes!r:.80}")
    if not isinstance(thing, str) or not thing.strip():
        raise InputError(f"thing: expected a word, got {thing!r:.80}")
    return {
        "classes": list(classes),
        "thing": thing,
        "mean": channels("mean", mean),
        "std": channels("std", std),
    }


def _taken(folder: Path) -> RunWriter:
    """The writer of an existing run, locked; its header is read again under the lock."""
    lock = Lock(folder)
    try:
        raw = LocalStore(folder).read(HEADER, SIZE_LIMIT)
        refuse_if_written_elsewhere(folder, parse(raw))
        tidy(folder)
        content = upgraded(document(raw, HEADER))
    except BaseException:
        lock.release()
        raise
    for key in ("settings", "environment", "summary", "progress", "files"):
        content[key] = content.get(key) or {}
    return RunWriter(folder, content, lock)
