"""Listing: headers first, good and bad, no array and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from attnviz.errors import InputError, RunError
from attnviz.runs import RunList, list_runs, open_run, start_run
from attnviz.runs.storage import LocalStore
from tests.runs.made import arrays, edit, make


def test_good_and_bad_runs_are_listed_in_the_order_of_their_ids(tmp_path: Path) -> None:
    make(tmp_path / "c")
    make(tmp_path / "a")
    edit(tmp_path / "a", schema=99)
    start_run(tmp_path, "b", variant="mha", settings={}, seed=0).stop("ctrl-c")
    (tmp_path / "datasets" / "0123").mkdir(parents=True)
    (tmp_path / "figures").mkdir()
    (tmp_path / "notes.txt").write_text("not a run")
    (tmp_path / ".hidden").mkdir()
    found = list_runs(tmp_path)
    assert [(run.id, run.state) for run in found] == [
        ("a", "newer"), ("b", "stopped"), ("c", "complete"),
    ]  # fmt: skip
    assert [run.id for run in found.complete] == ["c"]
    assert [run.id for run in found.of("newer", "stopped")] == ["a", "b"]
    assert found.left_out == {"figures": "no run.json"}
    assert found.named("b").reason == "ctrl-c"
    assert [run.id for run in found[1:]] == ["b", "c"]
    assert isinstance(found[1:], RunList)
    with pytest.raises(InputError, match=r"unknown run 'd': .*expected one of a, b, c"):
        found.named("d")
    assert str(found).splitlines() == [
        f"{tmp_path}: 3 runs (1 complete, 1 stopped, 1 newer)",
        "id  state     variant",
        "a   newer     written by a newer attnviz (99 > 1)",
        "b   stopped   ctrl-c",
        "c   complete  mha",
    ]


def test_a_list_prints_what_a_stranger_wrote_without_obeying_it(tmp_path: Path) -> None:
    make(tmp_path / "a", variant="\x1b[2J\nmha")
    assert str(list_runs(tmp_path)).endswith("\\x1b[2J\\nmha")


def test_an_unknown_state_is_answered_by_the_known_ones(tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(InputError, match=r"unknown state 'finished': .*expected one of broken, c"):
        list_runs(tmp_path).of("finished")


def test_a_single_run_is_a_list_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a")
    assert [run.id for run in list_runs(tmp_path / "a")] == ["a"]
    assert list_runs(tmp_path / "a").alone
    monkeypatch.chdir(tmp_path / "a")
    assert open_run(".").id == "a"
    assert open_run(Path("../a/")).id == "a"


def test_no_folder_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    assert len(list_runs(tmp_path)) == 0
    with pytest.raises(RunError, match=rf"^list {tmp_path}/none: no such file or folder$"):
        list_runs(tmp_path / "none")
    with pytest.raises(RunError, match=r"no run here \(expected a run.json\)"):
        open_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="not a directory"):
        list_runs(tmp_path / "file")


def test_a_folder_with_an_odd_name_is_left_out(tmp_path: Path) -> None:
    for name in ("<script>", "a\x1b[31m", "ü"):
        make(tmp_path / "good").path.rename(tmp_path / name)
    found = list_runs(tmp_path)
    assert len(found) == 0
    assert set(found.left_out) == {"<script>", "a\x1b[31m", "ü"}


def test_a_named_pipe_in_place_of_a_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    make(tmp_path / "a")
    for name in ("run.json", "samples.parquet"):
        (tmp_path / "a" / name).unlink()
        os.mkfifo(tmp_path / "a" / name)
        found = list_runs(tmp_path)
        assert not found.complete
        (tmp_path / "a" / name).unlink()
        make(tmp_path / "b").path.joinpath(name).rename(tmp_path / "a" / name)
        (tmp_path / "b").rename(tmp_path / f"{name}-rest")


def test_a_run_that_finishes_while_it_is_listed_is_not_called_stale_or_broken(
    tmp_path: Path,
) -> None:
    """The header is read, then the writer finishes and ends, then the header is judged."""
    make(tmp_path / "a")
    after = (tmp_path / "a" / "run.json").read_bytes()
    for before in (
        {"status": "running", "heartbeat": "2020-01-01T00:00:00Z", "writer": {}},
        {"files": {"maps/gone.safetensors": {"bytes": 1, "sha256": "0"}}},
    ):
        old = json.dumps(json.loads(after) | before).encode()
        from attnviz.runs.reader import _opened

        run = _opened(LocalStore(tmp_path / "a"), "a", None, old)
        assert run.state == "complete"


def test_listing_opens_no_array_no_table_and_imports_no_torch(tmp_path: Path) -> None:
    for number in range(5):
        make(tmp_path / f"run-{number}")
    code = """
import sys, builtins
opened = []
def hook(event, args):
    if event == "open" and isinstance(args[0], str):
        opened.append(args[0])
sys.addaudithook(hook)
from attnviz.runs import list_runs
found = list_runs(sys.argv[1])
assert len(found.complete) == 5, found
names = {p.rsplit("/", 1)[-1] for p in opened if p.startswith(sys.argv[1])}
assert names == {"run.json"}, names
heavy = {"torch", "pandas", "pyarrow", "safetensors", "fsspec", "streamlit"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_reading_everything_imports_no_torch(tmp_path: Path) -> None:
    make(tmp_path / "a")
    code = """
import sys
from attnviz.runs import open_run
run = open_run(sys.argv[1] + "/a")
run.maps("heads", [1]); run.samples(); run.weights(); run.curves(); run.rows("attend")
assert run.verify() == []
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_one_map_of_many_reads_its_own_bytes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = np.random.default_rng(0).random((20_000, 16, 16), dtype=np.float32)
    run = make(tmp_path / "a", maps={"large": maps}, samples=arrays()["samples"])
    asked: list[int] = []
    real = LocalStore.ranges

    def counted(self: LocalStore, name: str, spans: list[tuple[int, int]]) -> list[bytes]:
        parts = real(self, name, spans)
        asked.append(sum(map(len, parts)))
        return parts

    monkeypatch.setattr(LocalStore, "ranges", counted)
    one = run.maps("large", [12_345])
    np.testing.assert_allclose(one[0], maps[12_345], atol=2**-11)
    assert sum(asked) < run.files["maps/large.safetensors"].size / 100
