"""Verification of a folder of runs and of the test images beside them."""

from __future__ import annotations

from attnviz.errors import InputError, RunError
from attnviz.runs.datasets import list_datasets, open_dataset
from attnviz.runs.faults import Fault, dataset_faults, detail_of, run_faults
from attnviz.runs.layout import (
    ARRAYS,
    CURVES,
    DATASET_HEADER,
    DATASETS,
    HEADER,
    LAYOUTS,
    SAMPLES,
    WEIGHTS,
)
from attnviz.runs.reader import list_runs
from attnviz.runs.storage import MissingFileError, Place, open_store

_TRACES = (CURVES, SAMPLES, WEIGHTS, LAYOUTS, *ARRAYS)


def verify(root: Place) -> list[Fault]:
    """Every fault of a folder of runs (or of one run) and of the test images beside them.

    Every byte is read once. Runs that are stopped or stale are no faults.

    Raises:
        RunError: there is no such folder.
    """
    runs = list_runs(root)
    home = runs[0].root if runs.alone else root
    found = [fault for run in runs for fault in run_faults(run)]
    for name, reason in runs.left_out.items():
        found += _left_out(root, name, reason)
    known = list_datasets(home)
    wanted = {run.dataset for run in runs if run.dataset}
    digests = sorted(wanted) if runs.alone else sorted(wanted | set(known))
    return found + [fault for digest in digests for fault in _dataset_faults(home, digest)]


def _dataset_faults(home: Place, digest: str) -> list[Fault]:
    where = f"{DATASETS}/{digest}"
    try:
        return dataset_faults(open_dataset(home, digest))
    except MissingFileError:
        return [Fault(where, DATASET_HEADER, "missing", "no such file")]
    except (RunError, InputError) as error:
        return [Fault(where, DATASET_HEADER, "header", detail_of(error))]


def _left_out(root: Place, name: str, reason: str) -> list[Fault]:
    """The fault of a folder that is no run, where it seems to have been one, or cannot be read."""
    try:
        files = open_store(root).below(name).tree()
    except RunError:
        return [Fault(name, HEADER, "unreadable", reason)]
    if HEADER in files or not any(file.split("/", 1)[0] in _TRACES for file in files):
        return []
    detail = "no such file, yet other files of a run are there"
    return [Fault(name, HEADER, "missing", detail)]
