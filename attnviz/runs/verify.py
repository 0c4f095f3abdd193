"""What is wrong with run folders, file by file.

Sizes notice truncation; only the checksum notices a flipped byte; opening each file notices that
what was written was never right.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from attnviz.errors import InputError, RunError
from attnviz.runs.datasets import FOLDER, Dataset, list_datasets, open_dataset
from attnviz.runs.header import File, Kind, is_sealed
from attnviz.runs.reader import CURVES, HEADER, SAMPLES, WEIGHTS, Run, list_runs
from attnviz.runs.storage import MissingFileError, Place, Store, open_store

_TRACES = (CURVES, SAMPLES, WEIGHTS, "maps", "gates", "rows")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        where: The id of the run, or `datasets/<digest>`.
        file: The file at fault, relative to that folder.
        kind: "header" (run.json makes no sense), "newer" (schema), "missing", "size", "checksum",
            "unreadable" (it does not open) or "unchecked" (of a schema without checksums).
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


def verify(root: Place) -> list[Fault]:
    """Every fault of a folder of runs (or of one run) and of the test images beside them.

    Every byte is read once. Runs that are stopped or stale are no faults.

    Raises:
        RunError: there is no such folder.
    """
    runs = list_runs(root)
    home = runs[0].root if runs.alone else root
    found = [fault for run in runs for fault in run_faults(run)]
    found += [_without_header(name) for name in runs.left_out if _was_run(root, name)]
    known = list_datasets(home)
    wanted = {run.dataset for run in runs if run.dataset}
    digests = sorted(wanted) if runs.alone else sorted(wanted | set(known))
    return found + [fault for digest in digests for fault in _dataset_faults(home, digest)]


def run_faults(run: Run) -> list[Fault]:
    """Every fault of one run: its header's, then each file's."""
    if run.state == "newer":
        return [Fault(run.id, HEADER, "newer", run.reason)]
    if run.schema is None:
        return [Fault(run.id, HEADER, "header", run.reason.removeprefix(f"{HEADER}: "))]
    found = [_header_fault(run.store, run.id, HEADER)]
    found += [_file_fault(run, name, file) for name, file in run.files.items()]
    if CURVES not in run.files:
        found.append(_attempted(run, CURVES, CURVES))
    return [fault for fault in found if fault is not None]


def dataset_faults(dataset: Dataset) -> list[Fault]:
    """What is wrong with the file of some test images, if anything."""
    where, name = f"{FOLDER}/{dataset.digest}", dataset.file.at
    header = _header_fault(dataset.store, where, "dataset.json")
    fault = _content_fault(dataset.store, where, dataset.file)
    if fault is None:
        try:
            dataset.labels()
        except RunError as error:
            fault = Fault(where, name, "unreadable", _end(error))
    return [each for each in (header, fault) if each is not None]


def _dataset_faults(home: Place, digest: str) -> list[Fault]:
    try:
        return dataset_faults(open_dataset(home, digest))
    except MissingFileError:
        return [Fault(f"{FOLDER}/{digest}", "dataset.json", "missing", "no such file")]
    except (RunError, InputError) as error:
        return [Fault(f"{FOLDER}/{digest}", "dataset.json", "header", _end(error))]


def _header_fault(store: Store, where: str, name: str) -> Fault | None:
    try:
        if is_sealed(store.read(name)):
            return None
    except (RunError, ValueError):  # it was readable a moment ago: somebody is writing
        return None
    detail = "is not as it was written (a byte changed, or it was edited by hand)"
    return Fault(where, name, "checksum", detail)


def _file_fault(run: Run, name: str, file: File) -> Fault | None:
    fault = _content_fault(run.store, run.id, file)
    if fault is not None:
        return fault
    if file.sha256 is None:
        return Fault(run.id, file.at, "unchecked", "has no checksum; attnviz migrate adds it")
    return _attempted(run, name, file.at)


def _content_fault(store: Store, where: str, file: File) -> Fault | None:
    try:
        found = file.fault_in(store.read(file.at))
    except MissingFileError:
        return Fault(where, file.at, "missing", "no such file")
    except RunError as error:
        return Fault(where, file.at, "unreadable", _end(error))
    return None if found is None else Fault(where, file.at, *found)


def _attempted(run: Run, name: str, at: str) -> Fault | None:
    """The fault of a file that is what was written but does not open."""
    room, _, rest = name.rpartition("/")
    readers = {"maps": run.maps, "gates": run.gates, "rows": run.rows}
    try:
        if room in readers:
            readers[room](rest.removesuffix(".safetensors"), ())
        elif name == SAMPLES:
            run.samples(())
        elif name == WEIGHTS:
            run.weights()
        elif name == CURVES:
            run.curve_rows()
    except (RunError, InputError) as error:
        return Fault(run.id, at, "unreadable", _end(error))
    return None


def _was_run(root: Place, name: str) -> bool:
    files = open_store(root).below(name).tree()
    return any(file.split("/", 1)[0] in _TRACES for file in files)


def _without_header(name: str) -> Fault:
    return Fault(name, HEADER, "missing", "no such file, yet other files of a run are there")


def _end(error: Exception) -> str:
    """A message without the path in front, which the fault names itself."""
    return str(error).rsplit(": ", 1)[-1]
