"""Cached reading of runs: each file once for all readers and pages.

What is kept is keyed by the file's path, time and size (or its checksum, on a remote store), never
by the array itself: Streamlit hashes only a sample of a large array, and a changed element can
bring back the stale answer. Every cache is bounded, so that three readers cost what one does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attnviz.comparison import Comparison, Group
from attnviz.comparison.board import answer, board, board_metrics
from attnviz.comparison.cohorts import Cohort, cohorts
from attnviz.comparison.from_runs import run_groups
from attnviz.comparison.ranking import rank
from attnviz.errors import AttnvizError, unknown_name
from attnviz.runs import Notes, differing, list_runs, open_dataset, read_notes
from attnviz.runs.datasets import Cut
from attnviz.runs.notes import NOTES
from dashboard import heap
from dashboard.bounded import kept
from dashboard.head_stats import LayerHeads, blocks, map_statistics, means, row_statistics
from dashboard.summaries import cleaned

PATIENCE = 5.0
"""Seconds after which a store that has not answered counts as unreachable."""

GLANCE = 0.25
"""Seconds that a page waits for a newer listing where an earlier one is at hand."""

_FRESH = 2.0  # seconds for which a listing is not read again
_OLD = 30.0  # seconds after which a listing is no longer shown while a newer one is read


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
        groups: The complete runs in groups that may be ranked; see `dashboard.cohorts`.
        by_id: The runs by id.
        state: What changes when a run comes, goes, ends or is replaced, and not by a heartbeat.
    """

    root: str
    runs: tuple[Any, ...]
    problem: str | None = None
    age: float | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    late: bool = False
    groups: tuple[Cohort, ...] = ()
    by_id: Mapping[str, Any] = field(default_factory=dict, repr=False)
    state: int = 0

    def of(self, *states: str) -> list[Any]:
        """The runs in one of some states."""
        return [run for run in self.runs if run.state in states]

    def find(self, run_id: str) -> Any | None:
        """The run of that id, or None."""
        return self.by_id.get(run_id)


@dataclass
class _Kept:
    """The newest listing that worked, for all readers; what is needed to read the next one."""

    listing: Listing | None = None
    at: float = 0.0
    took: float = 0.0
    raw: Mapping[str, Any] = field(default_factory=dict)
    pending: Future[Listing] | None = None
    lock: Any = field(default_factory=Lock)


@st.cache_resource(max_entries=8, show_spinner=False)
def _last_good(root: str) -> _Kept:
    """The newest listing that worked, kept for all readers."""
    return _Kept()


@st.cache_resource(show_spinner=False)
def _reader() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=4, thread_name_prefix="attnviz-list")


def listing(root: str, *, newest: bool = False) -> Listing:
    """The runs under a root.

    A listing that is at hand is shown while a newer one is read, after `GLANCE` seconds of
    waiting; without one at most `PATIENCE` seconds are waited. A store that does not answer leaves
    the last good listing, with its age.

    Args:
        root: The folder or address.
        newest: Wait for a listing that was begun after this call.
    """
    kept = _last_good(root)
    age = time.monotonic() - kept.at if kept.listing else None
    good = replace(kept.listing, age=age) if kept.listing else Listing(root, ())
    if age is not None and age < max(_FRESH, 10 * kept.took) and not newest and _FRESH:
        return good
    patience = GLANCE if age is not None and age < _OLD and not newest else PATIENCE
    try:
        return _asked(kept, root, newest).result(patience)
    except Late:
        if patience == GLANCE:
            return good
        return replace(good, problem=f"no answer within {PATIENCE:g} s", late=True)
    except (AttnvizError, OSError) as error:
        return replace(good, problem=str(error))


def state_of(root: str) -> int:
    """The state of the last listing, without reading another."""
    kept = _last_good(root).listing
    return kept.state if kept else 0


def _asked(kept: _Kept, root: str, newest: bool) -> Future[Listing]:
    """The reading that is under way, or a new one."""
    with kept.lock:
        if kept.pending is None or kept.pending.done() or newest:
            kept.pending = _reader().submit(_read, kept, root)
        return kept.pending


def _read(kept: _Kept, root: str) -> Listing:
    """Read a listing; runs that have not changed are the same objects as before."""
    began = time.monotonic()
    before = kept.listing.by_id if kept.listing else {}
    found = list_runs(root, known=kept.raw)
    runs = tuple(
        before[run.id] if run.id in before and kept.raw.get(run.id) is run
        else replace(run, summary=cleaned(run.summary))
        for run in found
    )  # fmt: skip
    by_id = {run.id: run for run in runs}
    if kept.listing and _complete(runs) == _complete(kept.listing.runs):
        groups = kept.listing.groups
    else:
        groups = tuple(cohorts(runs))
    state = hash((*map(_identity, runs), *found.left_out))
    listing = Listing(
        root, runs, None, 0.0, found.left_out, groups=groups, by_id=by_id, state=state
    )
    kept.raw = {run.id: run for run in found}
    changed = kept.listing is None or kept.listing.state != state
    kept.listing, kept.at = listing, time.monotonic()
    kept.took = kept.at - began
    if changed:
        heap.settle(again=True)
    return listing


def _identity(run: Any) -> tuple[Any, ...]:
    """What changes with a run's results, and not with its heartbeat."""
    changed = run.seen[2] if run.seen and run.state == "complete" else str(run.created)
    return run.id, run.state, changed


def _complete(runs: Sequence[Any]) -> list[int]:
    return [id(run) for run in runs if run.state == "complete"]


@st.cache_resource(max_entries=4, show_spinner=False)
def _differing(key: tuple[str, int], _listing: Listing) -> tuple[str, ...]:
    found = differing({run.id: run.settings for run in _listing.runs if run.state == "complete"})
    return tuple(sorted(key for key in found if key != "seed"))


def settings_that_differ(listing: Listing) -> tuple[str, ...]:
    """The settings in which the complete runs of a folder differ."""
    return _differing((listing.root, listing.state), listing)


def notes(root: str) -> Notes:
    """The tags, notes and views of a folder, as they are now.

    Raises:
        RunError: They cannot be read.
    """
    try:
        found = os.stat(os.path.join(root, NOTES))
    except (OSError, ValueError):
        return read_notes(root) if "://" in root else NO_NOTES
    return _notes((root, found.st_ino, found.st_mtime_ns), root)


@st.cache_resource(max_entries=8, show_spinner=False)
def _notes(key: tuple[Any, ...], root: str) -> Notes:
    return read_notes(root)


NO_NOTES = Notes()


def stamp(run: Any, *names: str) -> tuple[Any, ...]:
    """Cache key of a run's files: path, time and size of each.

    Args:
        run: The run.
        names: Names of files, or `maps/<name>`, of the run; `run.json` where none is given.
    """
    seen: list[Any] = [run.location]
    for name in names or ("run.json",):
        listed = run.listed(name)
        at = listed.at if listed else name
        try:
            found = os.stat(os.path.join(run.location, at))
            seen += [at, found.st_mtime_ns, found.st_size]
        except (OSError, ValueError):
            seen += [at, listed.sha256 if listed else None, str(run.created)]
    return tuple(seen)


def samples(run: Any) -> pd.DataFrame:
    """A run's table of images, without boxes where it has none; shared, so not to be written to."""
    table = _samples(stamp(run, "samples.parquet"), run)
    missing = dict.fromkeys((side for side in ("x0", "y0", "x1", "y1") if side not in table), 0)
    return table.assign(**missing) if missing else table


@kept(128)
def _samples(key: tuple[Any, ...], run: Any) -> pd.DataFrame:
    return run.samples()


def maps(run: Any, name: str, indices: Sequence[int], cut: Cut) -> np.ndarray:
    """One map of some images, `(n, h, w)`: the mean over heads where it has heads.

    Args:
        run: The run.
        name: The map.
        indices: The images.
        cut: The images as they are shown: of a volume's map the part over its slice.
    """
    found = head_maps(run, name, indices, cut)
    return found.mean(axis=1) if found.ndim == 4 else found


def head_maps(run: Any, name: str, indices: Sequence[int], cut: Cut) -> np.ndarray:
    """One map of some images as it was stored: `(n, h, w)` or `(n, heads, h, w)`; see `maps`."""
    where = tuple(int(i) for i in indices)
    return cut.of(_maps((*stamp(run, f"maps/{name}"), where), run, name, where))


@kept(96)
def _maps(key: tuple[Any, ...], run: Any, name: str, where: tuple[int, ...]) -> np.ndarray:
    return run.maps(name, list(where))


def all_maps(run: Any, name: str, cut: Cut) -> np.ndarray:
    """One map of all images it was kept of, `(n, h, w)`; for the few pinned in training."""
    found = cut.of(_all_maps(stamp(run, f"maps/{name}"), run, name))
    return found.mean(axis=1) if found.ndim == 4 else found


@kept(512)
def _all_maps(key: tuple[Any, ...], run: Any, name: str) -> np.ndarray:
    return run.maps(name)


def head_statistics(run: Any, layer: LayerHeads) -> dict[str, np.ndarray]:
    """What the heads of a layer do, over all images that were kept; see `head_stats.STATISTICS`.

    Raises:
        RunError: Maps, rows or test images cannot be read.
    """
    names = [f"maps/{layer.stored}"] if layer.stored else []
    names += [f"rows/{layer.rows}"] if layer.rows else []
    return _head_statistics(stamp(run, *names), run, layer.map, layer)


@st.cache_resource(max_entries=512, show_spinner=False)
def _head_statistics(
    key: tuple[Any, ...], _run: Any, name: str, _layer: LayerHeads
) -> dict[str, np.ndarray]:
    sums: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    if _layer.stored:
        count = (_run.entry(f"maps/{_layer.stored}").shape or (0,))[0]
        held = open_dataset(_run.root, str(_run.dataset))
        for where in blocks(count):
            cut = held.cut(where)  # of a volume the slice with most of its object
            found = map_statistics(cut.of(_run.maps(_layer.stored, where)), cut.masks)
            for statistic, part in found.items():
                sums.setdefault(statistic, []).append(part)
    if _layer.rows:
        count = (_run.entry(f"rows/{_layer.rows}").shape or (0,))[0]
        about = _run.about(f"rows/{_layer.rows}")
        for place in range(count):
            for statistic, part in row_statistics(_run.rows(_layer.rows, [place]), about).items():
                sums.setdefault(statistic, []).append(part)
    return {statistic: means(parts) for statistic, parts in sums.items()}


def curves(run: Any) -> pd.DataFrame:
    """A run's curves, read anew while it grows."""
    return _curves(stamp(run, "curves.jsonl"), run)


@kept(256)
def _curves(key: tuple[Any, ...], run: Any) -> pd.DataFrame:
    return run.curves()


def pictures(root: str, digest: str, indices: Sequence[int], at: int | None = None) -> Cut:
    """Some of the test images that a digest names, at one size; shared, so not to be written to.

    Images of several sizes are stretched to one; one alone has its own. Of volumes and videos one
    slice or frame of each is shown; see `Dataset.cut`.
    """
    return _pictures((root, digest, tuple(int(i) for i in indices), at))


@kept(64)
def _pictures(key: tuple[str, str, tuple[int, ...], int | None]) -> Cut:
    root, digest, where, at = key
    return open_dataset(root, digest).cut(where, at)


def depth(root: str, digest: str) -> int | None:
    """How many slices or frames the test images have; None of plain images."""
    return _depth((root, digest))


def depth_of(run: Any) -> int | None:
    """The same of a run's test images; None also where they cannot be read."""
    try:
        return depth(str(run.root), str(run.dataset))
    except (AttnvizError, OSError):
        return None


@kept(8)
def _depth(key: tuple[str, str]) -> int | None:
    return open_dataset(*key).depth


@st.cache_resource(max_entries=8, show_spinner=False)
def dataset_info(root: str, digest: str) -> Mapping[str, Any]:
    """The metadata of a data set: source, split, photographs."""
    return dict(open_dataset(root, digest).info)


INTERVALS = 1.0
"""Seconds that a page waits for intervals before it shows means without them."""


@dataclass(frozen=True)
class Ranking:
    """Variants ranked by one metric.

    Attributes:
        comparison: Means with intervals, differences, caveats.
        board: The variants by several metrics, as of `attnviz.comparison.board`.
        answer: Both in words.
    """

    comparison: Comparison
    board: pd.DataFrame
    answer: str


@dataclass
class Job:
    """A ranking that is computed in the background.

    Attributes:
        total: How many runs are read.
        done: How many have been.
        future: The ranking.
    """

    total: int
    done: int = 0
    future: Future[Ranking] | None = None

    def result(self, patience: float) -> Ranking | None:
        """The ranking; None while it is being computed.

        Raises:
            InputError: The runs were measured on different images or for different questions.
            RunError: A file of one of them cannot be read.
        """
        assert self.future is not None, "started by comparisons"
        try:
            return self.future.result(patience)
        except Late:
            return None


def comparisons(groups: Mapping[str, Sequence[Any]], metrics: Sequence[str]) -> list[Job]:
    """The runs ranked by each of some metrics, computed in the background, once for all readers."""
    key = tuple(
        (name, *(stamp(run, "run.json", "samples.parquet") for run in runs))
        for name, runs in groups.items()
    )
    return [_job((key, metric), groups) for metric in metrics]


@kept(64)
def _job(key: tuple[Any, str], groups: Mapping[str, Sequence[Any]]) -> Job:
    job = Job(sum(map(len, groups.values())))
    job.future = _ranker().submit(_ranked, job, *key, {n: list(r) for n, r in groups.items()})
    return job


@st.cache_resource(show_spinner=False)
def _ranker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=2, thread_name_prefix="attnviz-rank")


def _ranked(job: Job, key: Any, metric: str, groups: dict[str, list[Any]]) -> Ranking:
    """Rank variants by one metric; their scores by all metrics are kept for the next one."""
    found, notes = _measured(key, job, groups)
    job.done = job.total
    known = [name for name in found[0].values if all(name in one.values for one in found)]
    if metric not in known:
        raise unknown_name("metric", metric, known)
    mine = [replace(one, values={metric: one.values[metric]}) for one in found]
    ranking = rank(mine, primary=metric, resamples=10_000, confidence=0.95, seed=0, notes=notes)
    beside = board(found, board_metrics(known, metric))
    return Ranking(ranking, beside, answer(ranking, beside))


@kept(4)
def _measured(key: Any, job: Job, groups: dict[str, list[Any]]) -> tuple[list[Group], list[str]]:
    return run_groups({name: [_Counted(run, job) for run in runs] for name, runs in groups.items()})


class _Counted:
    """A run that counts when its table has been read."""

    def __init__(self, run: Any, job: Job) -> None:
        self._run, self._job = run, job

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def samples(self) -> pd.DataFrame:
        """The run's table, from the cache that the pages share."""
        try:
            return _samples(stamp(self._run, "samples.parquet"), self._run)
        finally:
            self._job.done += 1
