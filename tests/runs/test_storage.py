"""The same code on a local folder and on a remote store, and what it costs in requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnviz.errors import RunError
from attnviz.runs import list_runs, open_dataset, open_run, save_dataset, verify
from attnviz.runs.storage import LocalStore, open_store, write_whole
from tests.runs.made import edit, make

fsspec = pytest.importorskip("fsspec", reason="needs attnviz[remote]")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(4):
        make(tmp_path / "runs" / f"run-{number}", seed=number)
    edit(tmp_path / "runs" / "run-3", schema=99)
    (tmp_path / "runs" / "run-2" / "samples.parquet").write_bytes(b"short")
    save_dataset(
        tmp_path / "runs",
        images=np.zeros((3, 4, 4, 3), np.uint8),
        masks=np.zeros((3, 4, 4), bool),
        boxes=np.zeros((3, 4), int),
        labels=np.arange(3),
        info={},
    )
    return tmp_path / "runs"


@pytest.fixture
def memory(root: Path) -> Iterator[str]:
    store = fsspec.filesystem("memory")
    store.put(f"{root}/", "/bucket/runs/", recursive=True)
    yield "memory://bucket/runs"
    store.rm("/bucket", recursive=True)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each request is made of the memory store."""
    from fsspec.implementations.memory import MemoryFileSystem

    counts: Counter[str] = Counter()
    for name in ("find", "cat", "cat_file", "cat_ranges", "exists", "ls", "info"):
        real = getattr(MemoryFileSystem, name)

        def counted(self: Any, *args: Any, name: str = name, real: Any = real, **kw: Any) -> Any:
            if not counts["inside"]:
                counts[name] += 1
            counts["inside"] += 1
            try:
                return real(self, *args, **kw)
            finally:
                counts["inside"] -= 1

        monkeypatch.setattr(MemoryFileSystem, name, counted)
    return counts


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_remote_store_reads_as_the_folder_it_was_copied_from(
    root: Path, memory: str, scheme: str
) -> None:
    address = memory if scheme == "memory" else f"file://{root}"
    here, there = list_runs(root), list_runs(address)
    assert [(r.id, r.state, r.reason) for r in there] == [(r.id, r.state, r.reason) for r in here]
    assert here.named("run-2").state == "broken"
    assert there.named("run-3").state == "newer"
    mine, theirs = here[0], there[0]
    assert (mine.files, mine.settings) == (theirs.files, theirs.settings)
    np.testing.assert_array_equal(mine.maps("heads", [4, 1]), theirs.maps("heads", [4, 1]))
    np.testing.assert_array_equal(mine.gates("channel"), theirs.gates("channel"))
    assert mine.samples().equals(theirs.samples())
    assert mine.curves().equals(theirs.curves())
    assert mine.weights().keys() == theirs.weights().keys()
    assert [str(f) for f in verify(address)] == [str(f) for f in verify(root)]
    one = open_run(f"{address}/run-1/")
    assert (one.id, one.state, one.location) == ("run-1", "complete", f"{address}/run-1")
    digest = next(p.name for p in (root / "datasets").iterdir())
    assert open_dataset(address, digest).labels().tolist() == [0, 1, 2]
    with pytest.raises(RunError, match="lies on a remote store and has no local path"):
        one.path  # noqa: B018 - reading it raises


def test_listing_costs_two_requests_however_many_runs(memory: str, requests: Counter[str]) -> None:
    found = list_runs(memory)
    assert len(found) == 4
    assert +requests == {"find": 1, "cat_ranges": 1}


def test_a_few_maps_of_a_large_file_cost_two_requests(
    tmp_path: Path, requests: Counter[str]
) -> None:
    maps = np.random.default_rng(0).random((5000, 8, 8), dtype=np.float32)
    make(tmp_path / "a", maps={"large": maps})
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/large/", recursive=True)
    run = open_run("memory://large/a")
    requests.clear()
    got = run.maps("large", [4000, 17, 18])
    np.testing.assert_allclose(got, maps[[4000, 17, 18]], atol=2**-11)
    assert +requests == {"cat_ranges": 2}
    fsspec.filesystem("memory").rm("/large", recursive=True)


def test_a_table_costs_one_request(memory: str, requests: Counter[str]) -> None:
    run = open_run(f"{memory}/run-0")
    requests.clear()
    run.samples()
    assert +requests == {"cat_file": 1}


def test_a_remote_store_that_fails_is_a_run_error_with_its_address(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    run = open_run(f"{memory}/run-0")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Access Denied")

    for name in ("find", "cat_file", "cat_ranges"):
        monkeypatch.setattr(MemoryFileSystem, name, refuse)
    with pytest.raises(RunError, match=r"^list memory://bucket/runs: access denied$"):
        list_runs(memory)
    with pytest.raises(RunError, match=r"^read memory://bucket/runs/run-0/samples.parquet: access"):
        run.samples()
    with pytest.raises(RunError, match=r"maps/heads.safetensors: access denied$"):
        run.maps("heads")


def test_a_header_that_vanishes_between_listing_and_reading_is_a_broken_run(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    real = MemoryFileSystem.cat_ranges

    def late(self: Any, paths: list[str], *args: Any, **kwargs: Any) -> Any:
        self.rm(paths[0])
        return real(self, paths, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", late)
    run = list_runs(memory)[0]
    assert (run.state, run.reason) == ("broken", "run.json: no such file or folder")


@pytest.mark.parametrize("name", ["maps/heads.safetensors", "samples.parquet", "run.json"])
def test_a_file_that_vanishes_between_two_requests_is_a_run_error(memory: str, name: str) -> None:
    runs = list_runs(memory)
    run = runs.named("run-0")
    fsspec.filesystem("memory").rm(f"/bucket/runs/run-0/{name}")
    reads = {
        "maps/heads.safetensors": lambda: run.maps("heads"),
        "samples.parquet": run.samples,
        "run.json": lambda: open_run(f"{memory}/run-0"),
    }
    with pytest.raises(RunError, match=r"no such file or folder|no run here"):
        reads[name]()
    assert any(name in str(fault) for fault in verify(memory)) or name == "run.json"
    assert list_runs(memory).named("run-1").state == "complete"


@pytest.mark.parametrize("error", [TimeoutError("timed out"), ConnectionError("lost"), KeyError(3)])
def test_whatever_a_backend_returns_in_place_of_bytes_is_a_run_error(
    memory: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    run = open_run(f"{memory}/run-0")
    monkeypatch.setattr(
        MemoryFileSystem, "cat_ranges", lambda self, paths, *args, **kw: [error] * len(paths)
    )
    with pytest.raises(RunError, match=rf"maps/heads\.safetensors: {type(error).__name__}"):
        run.maps("heads")
    assert {found.state for found in list_runs(memory)} == {"broken"}


def test_a_remote_header_of_gigabytes_is_not_fetched_whole(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    asked: list[int] = []

    def endless(self: Any, path: str, start: int = 0, end: int | None = None, **kw: Any) -> bytes:
        assert end is not None
        asked.append(end - start)
        return b" " * (end - start)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", endless)
    run = list_runs(memory).named("run-0")
    assert run.state == "broken"
    assert run.reason == f"run.json: expected at most {1 << 24} bytes, got {(1 << 24) + 1}"
    assert max(asked) == (1 << 24) + 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://nowhere", r"^list memory://nowhere: no such file or folder$"),
        ("gopher://x/runs", r"^open gopher://x/runs: ValueError: Protocol not known: gopher"),
    ],
)
def test_an_address_that_leads_nowhere_says_so(address: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        list_runs(address)


def test_without_fsspec_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(RunError, match=r"needs fsspec; pip install 'attnviz\[remote\]'$"):
        open_store("s3://bucket/runs")


def test_a_file_is_replaced_whole_while_it_is_being_read(tmp_path: Path) -> None:
    """Whatever moment a reader comes, it meets the old content or the new one."""
    import threading

    path, sizes = tmp_path / "x", set()
    write_whole(path, b"a" * 100_000)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            sizes.add((len(content := path.read_bytes()), len(set(content))))

    reader = threading.Thread(target=read)
    reader.start()
    for letter in b"bcdefgh" * 8:
        write_whole(path, bytes([letter]) * 100_000)
    stop.set()
    reader.join()
    assert sizes == {(100_000, 1)}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_tree_leaves_out_hidden_files_and_ends(tmp_path: Path) -> None:
    deep = tmp_path / "1/2/3/4/5/6"
    deep.mkdir(parents=True)
    (deep / "far").touch()
    (tmp_path / "1" / "near").write_bytes(b"12")
    (tmp_path / ".hidden").touch()
    (tmp_path / "1" / "loop").symlink_to(tmp_path)
    tree = LocalStore(tmp_path).tree()
    assert tree["1/near"] == 2
    assert not any("far" in name or "hidden" in name for name in tree)
