"""Cached reading of runs: each file once for all readers and pages.

What is kept is keyed by the file's path, time and size (or its checksum, on a remote store), never
by the array itself: Streamlit hashes only a sample of a large array, and a changed element can
bring back the stale answer. Every cache is bounded, so that three readers cost what one does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.comparison import Comparison, compare
from attnviz.errors import AttnvizError
from attnviz.runs import list_runs, open_dataset
from dashboard.summaries import cleaned

PATIENCE = 5.0
"""Seconds after which a store that has not answered counts as unreachable."""

_FRESH = 2.0  # seconds for which a listing is not read again


@dataclass(frozen=True)
class Listing:
    """The runs of a folder as they were a moment ago.

    Attributes:
        root: The folder or address.
        runs: All runs, good and bad.
        problem: Why the store did not answer, or None.
        age: Seconds since the listing was read; None where there is none.
        left_out: Folders that are no runs, with the reason.
        late: Whether the problem is that nothing answered in time.
    """

    root: str
    runs: tuple[Any, ...]
    problem: str | None = None
    age: float | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    late: bool = False

    def of(self, *states: str) -> list[Any]:
        """The runs in one of some states."""
        return [run for run in self.runs if run.state in states]

    def find(self, run_id: str) -> Any | None:
        """The run of that id, or None."""
        return next((run for run in self.runs if run.id == run_id), None)


@st.cache_resource(max_entries=8, show_spinner=False)
def _last_good(root: str) -> dict[str, Any]:
    """The newest listing that worked, kept for all readers."""
    return {}


@st.cache_resource(show_spinner=False)
def _reader() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=4, thread_name_prefix="attnviz-list")


def listing(root: str) -> Listing:
    """The runs under a root; at most `PATIENCE` seconds, then the last good listing and its age."""
    kept = _last_good(root)
    age = time.monotonic() - kept["at"] if kept else None
    good = replace(kept["listing"], age=age) if kept else Listing(root, ())
    if age is not None and age < _FRESH:
        return good
    try:
        found = _reader().submit(list_runs, root).result(PATIENCE)
    except Late:
        return replace(good, problem=f"no answer within {PATIENCE:g} s", late=True)
    except (AttnvizError, OSError) as error:
        return replace(good, problem=str(error))
    runs = tuple(replace(run, summary=cleaned(run.summary)) for run in found)
    kept.update(listing=Listing(root, runs, None, 0.0, found.left_out), at=time.monotonic())
    listing: Listing = kept["listing"]
    return listing


def stamp(run: Any, *names: str) -> tuple[Any, ...]:
    """Cache key of a run's files: path, time and size of each.

    Args:
        run: The run.
        names: Names of files, or `maps/<name>`, of the run; `run.json` where none is given.
    """
    seen: list[Any] = [run.location]
    for name in names or ("run.json",):
        try:
            listed = run.entry(name)
        except AttnvizError:
            listed = None
        at = listed.at if listed else name
        try:
            found = os.stat(os.path.join(run.location, at))
            seen += [at, found.st_mtime_ns, found.st_size]
        except (OSError, ValueError):
            seen += [at, listed.sha256 if listed else None, str(run.created)]
    return tuple(seen)


def samples(run: Any) -> pd.DataFrame:
    """A run's table of images, without boxes where it has none; shared, so not to be written to."""
    return _samples(stamp(run, "samples.parquet"), run)


@st.cache_resource(max_entries=64, show_spinner=False)
def _samples(key: tuple[Any, ...], _run: Any) -> pd.DataFrame:
    table = _run.samples()
    missing = dict.fromkeys((side for side in ("x0", "y0", "x1", "y1") if side not in table), 0)
    return table.assign(**missing) if missing else table


def maps(run: Any, name: str, indices: Sequence[int]) -> np.ndarray:
    """One map of some images, `(n, h, w)`: the mean over heads where it has heads."""
    found = head_maps(run, name, indices)
    return found.mean(axis=1) if found.ndim == 4 else found


def head_maps(run: Any, name: str, indices: Sequence[int]) -> np.ndarray:
    """One map of some images as it was stored: `(n, h, w)` or `(n, heads, h, w)`."""
    where = tuple(int(i) for i in indices)
    return _maps(stamp(run, f"maps/{name}"), run, name, where)


@st.cache_resource(max_entries=96, show_spinner=False)
def _maps(key: tuple[Any, ...], _run: Any, name: str, where: tuple[int, ...]) -> np.ndarray:
    return _run.maps(name, list(where))


def all_maps(run: Any, name: str) -> np.ndarray:
    """One map of all images it was kept of, `(n, h, w)`; for the few pinned in training."""
    found = _all_maps(stamp(run, f"maps/{name}"), run, name)
    return found.mean(axis=1) if found.ndim == 4 else found


@st.cache_resource(max_entries=512, show_spinner=False)
def _all_maps(key: tuple[Any, ...], _run: Any, name: str) -> np.ndarray:
    return _run.maps(name)


def curves(run: Any) -> pd.DataFrame:
    """A run's curves, read anew while it grows."""
    return _curves(stamp(run, "curves.jsonl"), run)


@st.cache_resource(max_entries=256, show_spinner=False)
def _curves(key: tuple[Any, ...], _run: Any) -> pd.DataFrame:
    return _run.curves()


@dataclass(frozen=True)
class Pictures:
    """Test images with the masks and boxes of their objects, all at one size.

    Images of several sizes are stretched to one (`Dataset.together`); one alone has its own.

    Attributes:
        images: `(n, h, w, 3)` uint8.
        masks: `(n, h, w)` bool.
        boxes: `(n, 4)`, `x0 y0 x1 y1` with x1 and y1 outside.
    """

    images: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray

    def box(self, place: int = 0) -> tuple[int, ...] | None:
        """The box of one of these images; None where it has none."""
        return tuple(int(v) for v in self.boxes[place]) if self.masks[place].any() else None


def pictures(root: str, digest: str, indices: Sequence[int]) -> Pictures:
    """Some of the test images that a digest names."""
    return _pictures(root, digest, tuple(int(i) for i in indices))


@st.cache_resource(max_entries=64, show_spinner=False)
def _pictures(root: str, digest: str, where: tuple[int, ...]) -> Pictures:
    held = open_dataset(root, digest)
    return Pictures(*held.together(where))


@st.cache_resource(max_entries=8, show_spinner=False)
def dataset_info(root: str, digest: str) -> Mapping[str, Any]:
    """The metadata of a data set: source, split, photographs."""
    return dict(open_dataset(root, digest).info)


def comparison(groups: Mapping[str, Sequence[Any]], metric: str) -> Comparison:
    """The runs ranked by one metric.

    Raises:
        InputError: They were measured on different images or for different questions.
        RunError: A file of one of them cannot be read.
    """
    key = tuple(
        (name, *(stamp(run, "run.json", "samples.parquet") for run in runs))
        for name, runs in groups.items()
    )
    return _comparison(key, metric, {name: list(runs) for name, runs in groups.items()})


@st.cache_resource(max_entries=32, show_spinner="Comparing the variants …")
def _comparison(key: tuple[Any, ...], metric: str, _groups: dict[str, list[Any]]) -> Comparison:
    return compare(_groups, primary=metric, metrics=[metric])
