"""Writers, readers and children at the same time."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attnviz.errors import RunError
from attnviz.runs import RunWriter, amend_run, list_runs, open_run, resume_run, start_run, verify
from attnviz.runs.locking import BusyError
from tests.runs.made import everything, make

ROOT = Path(__file__).parents[2]
BEGUN = {"variant": "mha", "settings": {}, "seed": 0}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Child:
    """A forked process that does something, then waits until it is let go."""

    def __init__(self, work: Callable[[], object] = lambda: None) -> None:
        ready, self.done = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                work()
                os.write(ready[1], b".")
                os.read(self.done[0], 1)
                code = 0
            finally:
                os._exit(code)
        os.close(ready[1])
        assert os.read(ready[0], 1) == b"."
        os.close(ready[0])

    def end(self) -> int:
        os.write(self.done[1], b".")
        for handle in self.done:
            os.close(handle)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@needs_fork
@pytest.mark.parametrize("end", ["finish", "stop", "forgotten"])
def test_a_forked_child_does_not_keep_the_lock_of_a_writer(tmp_path: Path, end: str) -> None:
    make(tmp_path / "a")
    writer: RunWriter | None = amend_run(tmp_path / "a")
    child = Child()
    with pytest.raises(BusyError):
        amend_run(tmp_path / "a")  # the parent holds it still
    assert writer is not None
    if end == "finish":
        writer.finish()
    elif end == "stop":
        writer.stop("")
    else:
        writer = None
        gc.collect()
    amend_run(tmp_path / "a").stop("")
    assert child.end() == 0


@needs_fork
def test_what_a_child_does_with_its_parents_writer_leaves_the_parents_alone(
    tmp_path: Path,
) -> None:
    writer = start_run(tmp_path, "a", **BEGUN)
    writer.curve(epoch=0)
    before = everything(tmp_path)

    def meddle() -> None:
        with pytest.raises(RunError, match="or is of another process"):
            writer.curve(epoch=1)
        with pytest.raises(RunError, match="or is of another process"):
            writer.finish()
        writer.__exit__(None, None, None)
        writer._lock.release()

    child = Child(meddle)
    assert child.end() == 0
    assert everything(tmp_path) == before
    with pytest.raises(BusyError):
        resume_run(tmp_path / "a")
    writer.curve(epoch=1)
    assert writer.finish().state == "complete"


@needs_fork
def test_a_pool_that_was_forked_while_a_run_was_written_does_not_keep_it(tmp_path: Path) -> None:
    writer = start_run(tmp_path, "a", **BEGUN)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
        writer.finish()
        amend_run(tmp_path / "a").stop("")


@pytest.mark.parametrize("after", ["removed", "moved", "anew", "saved", "a file", "a link"])
@pytest.mark.parametrize("amends", [False, True])
def test_a_folder_that_is_no_longer_the_writers_is_noticed_and_left_alone(
    tmp_path: Path, after: str, amends: bool
) -> None:
    path = tmp_path / "runs" / "a"
    if amends:
        make(path)
        writer = amend_run(path)
    else:
        writer = start_run(path.parent, "a", **BEGUN)
        writer.curve(epoch=0)
    if after == "moved":
        path.rename(tmp_path / "elsewhere")
    else:
        shutil.rmtree(path)
    second = None
    if after == "anew":
        second = start_run(path.parent, "a", variant="new", settings={}, seed=1)
    elif after == "saved":
        make(path, variant="new")
    elif after == "a file":
        path.write_text("mine")
    elif after == "a link":
        make(tmp_path / "other")
        path.symlink_to(tmp_path / "other")
    before = everything(tmp_path)
    for attempt in (
        lambda: writer.heartbeat(epoch=3),
        lambda: writer.maps("m", np.ones((1, 2, 2))),
        lambda: writer.write("x", b""),
        lambda: writer.file("y"),
        lambda: writer.keep_curves(0),
        lambda: writer.drop("curves.jsonl"),
        lambda: writer.finish({"accuracy": 1.0}),
        lambda: writer.stop("done"),
    ):
        with pytest.raises(RunError, match=r"removed, moved or begun anew since this writer"):
            attempt()
    with pytest.raises(RunError, match="begun anew"):
        writer.__exit__(None, None, None)
    assert everything(tmp_path) == before
    if second is not None:
        assert second.finish().variant == "new"


def test_the_error_of_a_with_block_is_heard_though_the_folder_is_gone(tmp_path: Path) -> None:
    def work() -> None:
        with start_run(tmp_path, "a", **BEGUN) as writer:
            shutil.rmtree(writer.path)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert list(tmp_path.iterdir()) == []


def read_beside(path: Path) -> np.ndarray:
    """A map of a run that is amended meanwhile; a file that was replaced is looked up again."""
    for _ in range(1000):
        try:
            return open_run(path).maps("m")
        except RunError:
            continue
    raise AssertionError("no reading in a thousand met a whole map")


def test_verify_beside_a_writer_that_amends_and_trains_finds_nothing(tmp_path: Path) -> None:
    """Whatever moment it comes, with another process replacing files as fast as it can."""
    make(tmp_path / "a", maps={"m": np.ones((6, 8, 8))})
    code = (
        "import sys, time; import numpy as np; from attnviz.runs import *\n"
        "root, n = sys.argv[1], 0; print('begun', flush=True)\n"
        "writer = start_run(root, 'b', variant='m', settings={}, seed=0)\n"
        "while True:\n"
        "    n += 1\n"
        "    with amend_run(root + '/a') as one:\n"
        "        one.maps('m', np.full((6, 8, 8), float(n)))\n"
        "    writer.maps('m', np.full((6, 8, 8), float(n))); writer.curve(epoch=n)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            found = [verify(tmp_path) for _ in range(60)]
            states = {run.id: run.state for run in list_runs(tmp_path)}
            values = [np.unique(read_beside(tmp_path / "a")).size for _ in range(60)]
        finally:
            child.kill()
    assert [faults for faults in found if faults] == []
    assert states == {"a": "complete", "b": "running"}
    assert set(values) == {1}


def test_verify_beside_a_writer_still_names_what_is_wrong(tmp_path: Path) -> None:
    make(tmp_path / "a", maps={"m": np.ones((6, 8, 8))})
    content = bytearray((tmp_path / "a" / "samples.parquet").read_bytes())
    content[9] ^= 1
    (tmp_path / "a" / "samples.parquet").write_bytes(content)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with amend_run(tmp_path / "a") as writer:
                writer.maps("m", np.full((6, 8, 8), float(number)))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        found = [[f.file for f in verify(tmp_path)] for _ in range(10)]
    finally:
        stop.set()
        thread.join()
    assert all(faults == ["samples.parquet"] for faults in found), found


def test_a_run_that_is_removed_while_it_is_verified_has_no_faults(tmp_path: Path) -> None:
    run, other = make(tmp_path / "a"), make(tmp_path / "b")
    shutil.rmtree(run.path)
    assert run.verify() == []
    (other.path / "run.json").unlink()
    assert [(f.file, f.kind) for f in other.verify()] == [("run.json", "missing")]
