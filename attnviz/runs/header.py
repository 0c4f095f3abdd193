"""run.json: the header of a run, checked field by field.

The file is written last and replaced whole, so what it lists is there. A reader checks every field
before using it: a folder may come from an untrusted source, a newer attnviz or a broken disk. The
state is derived by the reader, since a writer that died cannot write it.

Clocks may be wrong: a heartbeat from the future counts as fresh, and the only difference taken is
that of the reader's own clock and the heartbeat.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from attnviz.definitions import renamed_levels
from attnviz.errors import InputError, RunError
from attnviz.runs.documents import Document, document
from attnviz.runs.layout import HEADER
from attnviz.runs.names import is_plain, is_relative

State: TypeAlias = Literal["complete", "running", "stale", "stopped", "broken", "newer"]

STATES: tuple[State, ...] = ("complete", "running", "stale", "stopped", "broken", "newer")
STALE_AFTER = 300.0
"""Seconds without a heartbeat after which a run with the status "running" is stale."""

THING = "object"
"""Name of the object where a run has none."""

_STATUSES = ("running", "stopped", "complete")


@dataclass(frozen=True)
class File:
    """One file of a run, as run.json lists it.

    Attributes:
        size: Its bytes, counted.
        sha256: Its checksum in hex.
        at: Where it lies in the folder; differs from its name after it was replaced.
        shape: The shape of its array, where it holds one.
        about: What the writer noted beside it.
    """

    size: int
    sha256: str
    at: str
    shape: tuple[int, ...] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def fault_in(self, size: int, sha256: str) -> tuple[Literal["size", "checksum"], str] | None:
        """In what a content differs from the one that was written, if it does."""
        if size != self.size:
            return "size", f"expected {self.size} bytes, got {size}"
        if sha256 != self.sha256:
            return "checksum", "its sha256 is not the one in run.json (a byte changed)"
        return None


@dataclass(frozen=True)
class Header:
    """The content of run.json, checked."""

    schema: int
    status: str
    reason: str
    variant: str
    seed: int | None
    settings: Document
    environment: Document
    summary: Document
    progress: Document
    dataset: str | None
    created: datetime | None
    heartbeat: datetime | None
    writer: Document
    classes: tuple[str, ...]
    thing: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    files: dict[str, File]


def parse(content: bytes) -> Header:
    """Check the content of run.json.

    Raises:
        NewerError: its schema is newer than this version's.
        RunError: it is not JSON or a field is invalid; the message names the field.
    """
    return _header(document(content, HEADER))


def upgraded(found: Document) -> Document:
    """A document with the names of earlier versions replaced by those of this one."""
    summary = found.get("summary")
    return found | {"summary": renamed_levels(summary)} if isinstance(summary, dict) else found


def channels(name: str, values: Sequence[float] | None) -> list[float] | None:
    """The mean or standard deviation of each of three channels, checked.

    Raises:
        InputError: they are not three finite numbers, or a standard deviation is not positive.
    """
    if values is None:
        return None
    numbers = [float(value) for value in values]
    good = (
        len(numbers) == 3
        and all(map(math.isfinite, numbers))
        and (name == "mean" or min(numbers) > 0)
    )
    if not good:
        raise InputError(f"{name}: expected three numbers, one for each channel, got {values!r}")
    return numbers


def three(values: Any) -> tuple[float, ...] | None:
    """Three numbers out of a header, None where there are none; `ValueError` for others."""
    if values is None:
        return None
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3:
        raise ValueError("expected three numbers")
    return numbers


def now() -> str:
    """This moment in UTC, as it is written into run.json."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def this_writer() -> Document:
    """The process that is writing: host, process id, and the namespace in which that id counts."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "namespace": _namespace()}


def judged(header: Header) -> tuple[State, str]:
    """The state of a run and the reason for it, derived from run.json and the clock."""
    if header.status == "complete":
        return "complete", ""
    if header.status == "stopped":
        return "stopped", header.reason or "stopped"
    if is_gone(header.writer):
        return "stale", f"the process that wrote it ({header.writer['pid']}) is gone"
    age = silence(header)
    if age > STALE_AFTER:
        return "stale", f"no heartbeat for {_duration(age)}"
    return "running", ""


def silence(header: Header) -> float:
    """Seconds since the last heartbeat; infinite without one, never negative."""
    if header.heartbeat is None:
        return math.inf
    return max(time.time() - header.heartbeat.timestamp(), 0.0)


def is_gone(writer: Mapping[str, Any]) -> bool:
    """Whether the writer is known to be dead; False on other hosts and process namespaces."""
    pid = writer.get("pid")
    here = writer.get("host") == socket.gethostname() and writer.get("namespace") == _namespace()
    if not here or not isinstance(pid, int) or not 0 < pid < 2**31 or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _unreaped(pid)


def _unreaped(pid: int) -> bool:
    """Whether a process has ended and its parent has not reaped it; signals still reach it.

    In a container without an init that may last until the container ends.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return stat.rpartition(")")[2].split()[:1] == ["Z"]


def _header(found: Document) -> Header:
    status = _field(found, "status", str, "")
    if status not in _STATUSES:
        raise RunError(f"run.json: 'status' should be one of {', '.join(_STATUSES)}")
    seed = found.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise RunError("run.json: 'seed' should be a whole number")
    dataset = found.get("dataset")
    if dataset is not None and not (is_plain(dataset)):
        raise RunError("run.json: 'dataset' should be a digest")
    texts = {key: _field(found, key, str, "") for key in ("variant", "reason")}
    objects = ("settings", "environment", "summary", "progress", "writer")
    return Header(
        schema=found["schema"],
        status=status,
        seed=seed,
        dataset=dataset,
        created=_moment(found, "created"),
        heartbeat=_moment(found, "heartbeat"),
        classes=_classes(found),
        mean=_scale(found, "mean"),
        std=_scale(found, "std"),
        thing=_field(found, "thing", str, THING) or THING,
        files={k: entry_of(k, v) for k, v in _field(found, "files", dict, {}).items()},
        **texts,
        **{key: _field(found, key, dict, {}) for key in objects if key != "summary"},
        summary=renamed_levels(_field(found, "summary", dict, {})),
    )


def _scale(found: Document, key: str) -> tuple[float, ...] | None:
    try:
        return three(found.get(key))
    except (TypeError, ValueError) as error:
        raise RunError(f"run.json: {key!r} should be three numbers") from error


def _classes(found: Document) -> tuple[str, ...]:
    names = _field(found, "classes", list, [])
    if not all(isinstance(name, str) for name in names):
        raise RunError("run.json: 'classes' should be a list of names")
    return tuple(names)


def _field(found: Document, key: str, kind: type, default: Any) -> Any:
    value = found.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        wanted = "text" if kind is str else "a list" if kind is list else "an object"
        raise RunError(f"run.json: {key!r} should be {wanted}, got {type(value).__name__}")
    return value


def _moment(found: Document, key: str) -> datetime | None:
    text = _field(found, key, str, None)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        moment.timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise RunError(f"run.json: {key!r} should be an ISO 8601 time") from error
    return moment


def entry_of(name: str, value: Any) -> File:
    """A file's entry in a header, checked.

    Raises:
        RunError: it is invalid, or its path leads outside the run.
    """
    if not is_relative(name):
        raise RunError(f"run.json: lists a file outside the run, {name[:80]!r}")
    entry: Document = value if isinstance(value, dict) else {}
    size, shape = entry.get("bytes"), entry.get("shape")
    digest, at, about = entry.get("sha256"), entry.get("at", name), entry.get("about", {})
    good = isinstance(about, dict) and is_relative(at)
    sizes: list[Any] = [size, *shape] if isinstance(shape, list) else [size]
    if (
        not isinstance(digest, str)
        or not good
        or not isinstance(shape, list | None)
        or not all(map(_is_size, sizes))
    ):
        raise RunError(f"run.json: the entry of {name!r} makes no sense")
    return File(sizes[0], digest, at, None if shape is None else tuple(sizes[1:]), about)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _duration(seconds: float) -> str:
    if math.isinf(seconds):
        return "as long as it exists"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@cache
def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
