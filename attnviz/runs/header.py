"""run.json: what a run says about itself, read without trusting a byte of it.

The file is written last and replaced whole, so what it lists is there. A reader checks every field
before using it: a folder may come from a stranger, from a newer attnviz or from a broken disk. The
state is the reader's judgement: a writer that died cannot say so.

Clocks lie: a heartbeat from the future counts as fresh, and nothing is subtracted but the
heartbeat from the reader's own clock.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePath
from typing import Any, Literal, TypeAlias

import numpy as np

from attnviz.definitions import renamed_levels
from attnviz.errors import InputError, RunError
from attnviz.runs.migrations import SCHEMA, upgraded
from attnviz.runs.names import is_relative

State: TypeAlias = Literal["complete", "running", "stale", "stopped", "broken", "newer"]
Document: TypeAlias = dict[str, Any]

STATES: tuple[State, ...] = ("complete", "running", "stale", "stopped", "broken", "newer")
STALE_AFTER = 300.0
"""Seconds without a heartbeat after which a run that says it is running is called stale."""

Kind: TypeAlias = Literal[
    "header", "newer", "missing", "size", "checksum", "unreadable", "unchecked"
]

_SIZE_LIMIT = 1 << 26
_STATUSES = ("running", "stopped", "complete")


class NewerError(RunError):
    """A folder was written under a schema that this version does not know."""


@dataclass(frozen=True)
class File:
    """One file of a run, as run.json lists it.

    Attributes:
        size: Its bytes, counted.
        sha256: Its checksum in hex; None only in runs of schema 0.
        at: Where it lies in the folder; differs from its name after it was replaced.
        shape: The shape of its array, where it holds one.
        about: What the writer noted beside it.
    """

    size: int
    sha256: str | None
    at: str
    shape: tuple[int, ...] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def fault_in(self, content: bytes) -> tuple[Kind, str] | None:
        """In what a content differs from the one that was written, if it does."""
        if len(content) != self.size:
            return "size", f"expected {self.size} bytes, got {len(content)}"
        if self.sha256 is not None and hashlib.sha256(content).hexdigest() != self.sha256:
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
    files: dict[str, File]


def parse(content: bytes) -> Header:
    """Check the content of run.json.

    Raises:
        NewerError: its schema is newer than this version's.
        RunError: it is not JSON or a field is not what it should be; the message says which.
    """
    found = document(content)
    return dataclasses.replace(_header(upgraded(found)), schema=found["schema"])


def document(content: bytes, name: str = "run.json") -> Document:
    """The JSON object in a header file, with its schema known but its fields not yet checked.

    Args:
        content: The file's bytes.
        name: The file's name, for the message.

    Raises:
        NewerError: its schema is newer than this version's.
        RunError: it is no JSON object, or has no schema number.
    """
    if len(content) > _SIZE_LIMIT:
        raise RunError(f"{name}: {len(content)} bytes are too many for a header")
    try:
        found = json.loads(content, parse_constant=lambda _: None)  # NaN is no JSON
    except (ValueError, RecursionError) as error:
        raise RunError(f"{name}: not JSON (truncated or corrupt)") from error
    if not isinstance(found, dict):
        raise RunError(f"{name}: expected an object, got {type(found).__name__}")
    schema = found.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 0:
        raise RunError(f"{name}: 'schema' should be a whole number")
    if schema > SCHEMA:
        raise NewerError(f"written by a newer attnviz ({_short(schema)} > {SCHEMA})")
    return found


def written(content: Mapping[str, Any], indent: int | None = 1) -> bytes:
    """A document as the content of a file: strict JSON, keys in the order given."""
    return (json.dumps(content, indent=indent, allow_nan=False) + "\n").encode()


def sealed(content: Mapping[str, Any]) -> bytes:
    """A document as the content of run.json, with a checksum of itself."""
    head = {"schema": content["schema"], "seal": _seal(content)}
    return written(head | {key: value for key, value in content.items() if key != "seal"})


def is_sealed(content: bytes) -> bool:
    """Whether a run.json is as it was written; one that never had a seal is taken to be."""
    found = json.loads(content, parse_constant=lambda _: None)
    return "seal" not in found or found["seal"] == _seal(found)


def plain(value: Any, where: str) -> Any:
    """A value as JSON can hold it: numpy and dataclasses unpacked, NaN and infinity as null.

    Args:
        value: What a caller wants to keep: settings, a summary, an environment.
        where: The name of it, for the message.

    Raises:
        InputError: something in it cannot be kept, such as a tensor or a function.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(items)]
    raise InputError(f"{where}: expected numbers, text, lists or dicts, got {type(value).__name__}")


def now() -> str:
    """This moment in UTC, as it is written into run.json."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def this_writer() -> Document:
    """The process that is writing: host, process id, and the namespace in which that id counts."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "namespace": _namespace()}


def judged(header: Header) -> tuple[State, str]:
    """The state of a run and the reason for it, as far as run.json and the clock tell."""
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
    """Whether the writing process is known to be dead: only if it ran where we can look."""
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
    """Whether a process has ended and nobody has asked how; it still answers to signals.

    In a container without an init that may last until the container ends.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return stat.rpartition(")")[2].split()[:1] == ["Z"]


def _seal(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _header(found: Document) -> Header:
    status = _field(found, "status", str, "")
    if status not in _STATUSES:
        raise RunError(f"run.json: 'status' should be one of {', '.join(_STATUSES)}")
    seed = found.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise RunError("run.json: 'seed' should be a whole number")
    dataset = found.get("dataset")
    if dataset is not None and not (is_relative(dataset) and "/" not in dataset):
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
        files={k: _file(k, v) for k, v in _field(found, "files", dict, {}).items()},
        **texts,
        **{key: _field(found, key, dict, {}) for key in objects if key != "summary"},
        summary=renamed_levels(_field(found, "summary", dict, {})),
    )


def _field(found: Document, key: str, kind: type, default: Any) -> Any:
    value = found.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        wanted = "text" if kind is str else "an object"
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


def _file(name: str, value: Any) -> File:
    if not is_relative(name):
        raise RunError(f"run.json: lists a file outside the run, {name[:80]!r}")
    entry: Document = value if isinstance(value, dict) else {}
    size, shape = entry.get("bytes"), entry.get("shape")
    digest, at, about = entry.get("sha256"), entry.get("at", name), entry.get("about", {})
    good = isinstance(digest, str | None) and isinstance(about, dict) and is_relative(at)
    sizes: list[Any] = [size, *shape] if isinstance(shape, list) else [size]
    if not good or not isinstance(shape, list | None) or not all(map(_is_size, sizes)):
        raise RunError(f"run.json: the entry of {name!r} makes no sense")
    return File(sizes[0], digest, at, None if shape is None else tuple(sizes[1:]), about)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**12 else "a very large number"


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
