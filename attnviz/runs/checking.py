"""What is wrong with a run folder, file by file.

Sizes notice truncation; only the checksum notices a flipped byte; opening each file notices that
what was written was never right.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from attnviz.errors import InputError, RunError
from attnviz.runs.header import File

if TYPE_CHECKING:
    from attnviz.runs.reading import Run

Kind = Literal["header", "newer", "missing", "size", "checksum", "unreadable", "unchecked"]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        run: The id of the run, or `datasets/<digest>`.
        file: The file at fault, relative to the run.
        kind: "header" (run.json), "newer" (schema), "missing", "size", "checksum", "unreadable"
            (it does not open) or "unchecked" (its run is of a schema without checksums).
        detail: What was expected and what was found.
    """

    run: str
    file: str
    kind: Kind
    detail: str

    def __str__(self) -> str:
        return f"{self.run}/{self.file}: {self.detail}"

    def as_dict(self) -> dict[str, str]:
        """The fields, for JSON."""
        return asdict(self)


def differs(content: bytes, file: File) -> str:
    """What distinguishes a content from what was written: `""` if nothing does."""
    if len(content) != file.bytes:
        return f"expected {file.bytes} bytes, got {len(content)}"
    if file.sha256 is not None and hashlib.sha256(content).hexdigest() != file.sha256:
        return "sha256 differs from the one in run.json (a byte changed)"
    return ""


def faults(run: Run) -> list[Fault]:
    """Every fault of a run: its header's, then each file's."""
    if run.state == "newer":
        return [Fault(run.id, "run.json", "newer", run.reason)]
    if run.state == "broken" and not run.files and not run.variant:
        return [Fault(run.id, "run.json", "header", run.reason)]
    found = [fault for name, file in run.files.items() if (fault := _of_file(run, name, file))]
    return found + _of_curves(run)


def _of_file(run: Run, name: str, file: File) -> Fault | None:
    try:
        content = run.store.read(file.at)
    except RunError as error:
        kind: Kind = "missing" if "no such file" in str(error) else "unreadable"
        return Fault(run.id, file.at, kind, str(error).rsplit(": ", 1)[-1])
    detail = differs(content, file)
    if detail:
        return Fault(run.id, file.at, "size" if "bytes" in detail else "checksum", detail)
    if file.sha256 is None:
        return Fault(run.id, file.at, "unchecked", "has no checksum; attnviz migrate adds it")
    return _of_content(run, name, file)


def _of_content(run: Run, name: str, file: File) -> Fault | None:
    room, _, rest = name.rpartition("/")
    try:
        if room in ("maps", "gates", "rows"):
            read = {"maps": run.maps, "gates": run.gates, "rows": run.rows}[room]
            read(rest.removesuffix(".safetensors"), ())
        elif name == "samples.parquet":
            run.samples(())
        elif name == "model.safetensors":
            run.weights()
    except (RunError, InputError) as error:
        return Fault(run.id, file.at, "unreadable", str(error).rsplit(": ", 1)[-1])
    return None


def _of_curves(run: Run) -> list[Fault]:
    try:
        run.curve_rows()
    except RunError as error:
        if "line" in str(error):
            return [Fault(run.id, "curves.jsonl", "unreadable", str(error).rsplit(": ", 1)[-1])]
    return []
