"""A run folder appears whole, grows whole, and has one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from attnviz.errors import InputError, RunError
from attnviz.runs import amend_run, list_runs, open_run, resume_run, save_run, start_run
from attnviz.runs.tensors import restored, scaled
from tests.runs.made import N, arrays, edit, everything, make

BEGUN = {"variant": "mha", "settings": {"lr": 0.1}, "seed": 3}


def test_everything_that_is_saved_comes_back(tmp_path: Path) -> None:
    run, given = make(tmp_path / "a", dataset="0123"), arrays()
    assert (run.id, run.state, run.reason, run.variant, run.seed) == ("a", "complete", "", "mha", 0)
    assert run.settings == {"patch": {"size": 16}, "epochs": 3}
    assert run.summary["metrics"]["received"]["iou"]["high"] == 0.6
    assert run.dataset == "0123"
    assert set(run.environment) >= {"python", "platform", "attnviz", "numpy"}
    assert run.map_names == ("received", "heads")
    assert run.gate_names == ("channel", "spatial")
    assert run.row_names == ("attend",)
    for name, array in given["maps"].items():
        np.testing.assert_array_equal(run.maps(name), restored(**scaled(array, 2)))
        assert run.maps(name).dtype == np.float32
    np.testing.assert_allclose(run.gates("channel"), given["gates"]["channel"], rtol=2**-10)
    np.testing.assert_allclose(run.gates("spatial"), given["gates"]["spatial"], rtol=2**-10)
    np.testing.assert_allclose(run.rows("attend"), given["rows"]["attend"], atol=2**-14)
    assert run.row_images("attend") == (0, 1)
    np.testing.assert_array_equal(run.weights()["conv.weight"], given["weights"]["conv.weight"])
    pd.testing.assert_frame_equal(run.samples(), given["samples"])
    assert run.samples(["label"]).columns.tolist() == ["label"]
    pd.testing.assert_frame_equal(run.curves(), pd.DataFrame(given["curves"]))
    assert run.files["maps/heads.safetensors"].shape == (N, 2, 4, 4)
    assert run.verify() == []


def test_maps_of_chosen_images_come_in_the_order_asked_for(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    whole = run.maps("heads")
    for chosen in ([4, 1, 1], [], range(2, 5), np.array([0, 5])):
        np.testing.assert_array_equal(run.maps("heads", chosen), whole[list(chosen)])
    np.testing.assert_array_equal(run.rows("attend", [1]), run.rows("attend")[1:])


def test_every_array_that_is_read_can_be_written_to(tmp_path: Path) -> None:
    """A read-only one would be warned of by torch, and shared by all who read it."""
    run = make(tmp_path / "a")
    found = [
        run.maps("heads"),
        run.gates("channel", [1]),
        run.rows("attend"),
        *run.weights().values(),
    ]
    assert all(array.flags.writeable for array in found)


def test_what_a_run_does_not_have_is_answered_by_what_it_has(tmp_path: Path) -> None:
    run = make(tmp_path / "a", gates={})
    with pytest.raises(InputError, match=r"unknown maps of run a 'recieved': did you mean 'rec"):
        run.maps("recieved")
    with pytest.raises(InputError, match=r"run a has no gates, so none called 'channel'"):
        run.gates("channel")
    with pytest.raises(InputError, match=r"unknown column 'labels': did you mean 'label'"):
        run.samples(["labels"])
    with pytest.raises(InputError, match=r"unknown file of run a 'model'"):
        run.read("model")
    with pytest.raises(InputError, match=r"expected indices from 0 to 5, got \[6\]"):
        run.maps("heads", [6])


def test_a_run_without_extras_says_so_by_being_empty(tmp_path: Path) -> None:
    run = save_run(tmp_path / "a", samples=pd.DataFrame({"index": [0]}), **BEGUN)
    assert (run.map_names, run.gate_names, run.row_names) == ((), (), ())
    assert run.curves().empty
    with pytest.raises(InputError, match="unknown file of run a"):
        run.weights()


def test_notes_beside_maps_and_rows_are_kept(tmp_path: Path) -> None:
    with start_run(tmp_path, "a", **BEGUN) as writer:
        writer.maps("m", np.ones((2, 3, 3)), about={"layer": "attend", "method": "received"})
        writer.rows("r", np.ones((2, 1, 9, 9)), images=[7, 3], about={"query_grid": (3, 3)})
        run = writer.finish()
    assert run.about("maps/m") == {"layer": "attend", "method": "received"}
    assert run.about("rows/r") == {"query_grid": [3, 3]}
    assert run.row_images("r") == (7, 3)


@pytest.mark.parametrize(
    ("room", "shape", "wanted"),
    [("maps", (2, 2), "rank 3 or 4"), ("gates", (2,), "rank 2 or 3"), ("rows", (2, 2), "rank 4")],
)
def test_an_array_of_the_wrong_rank_or_type_is_refused(
    tmp_path: Path, room: str, shape: tuple[int, ...], wanted: str
) -> None:
    with start_run(tmp_path, "a", **BEGUN) as writer:
        before = everything(tmp_path)
        with pytest.raises(InputError, match=rf"^{room} 'x': expected a real array of {wanted}"):
            getattr(writer, room)("x", np.ones(shape))
        with pytest.raises(InputError, match=rf"^{room} 'x': expected a real array"):
            getattr(writer, room)("x", np.full((1, 1, 1, 1), 1j))
        assert everything(tmp_path) == before
        with pytest.raises(InputError, match="rows 'x': expected 2 images, got 3"):
            writer.rows("x", np.ones((2, 1, 4, 4)), images=[1, 2, 3])


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="maps 'bad'"):
        make(tmp_path / "runs" / "a", maps={"good": np.ones((1, 2, 2)), "bad": np.ones(3)})
    with pytest.raises(InputError, match=r"settings\.f: expected numbers, text"):
        make(tmp_path / "runs" / "a", settings={"f": make})
    with pytest.raises(InputError, match=r"samples: expected a table parquet can hold"):
        make(tmp_path / "runs" / "a", samples=pd.DataFrame({"x": [object()]}))
    assert everything(tmp_path) == {}
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_existing_run_is_never_written_over(tmp_path: Path) -> None:
    make(tmp_path / "a")
    before = everything(tmp_path)
    for again in (
        lambda: make(tmp_path / "a", seed=1),
        lambda: start_run(tmp_path, "a", **BEGUN),
    ):
        with pytest.raises(RunError, match=r"a: something is there already; resume_run goes on"):
            again()
    assert everything(tmp_path) == before


def test_a_run_is_listed_from_its_first_moment_and_its_curves_grow(tmp_path: Path) -> None:
    with start_run(tmp_path, "a", **BEGUN) as writer:
        (run,) = list_runs(tmp_path)
        assert (run.state, run.variant, run.files) == ("running", "mha", {})
        assert run.curves().empty
        for epoch in range(3):
            writer.curve(epoch=epoch, loss=np.float32(0.5), nan=float("nan"))
            assert open_run(writer.path).curves()["epoch"].tolist() == list(range(epoch + 1))
        writer.maps("m", np.ones((1, 2, 2)))
        assert open_run(writer.path).maps("m").shape == (1, 2, 2)
        run = writer.finish({"accuracy": np.float64(0.9), "loss": float("nan")})
    assert run.state == "complete"
    assert run.summary == {"accuracy": 0.9, "loss": None}
    assert run.curves()["loss"].tolist() == [0.5] * 3
    assert "curves.jsonl" in run.files
    assert run.verify() == []


def test_progress_shows_and_what_came_too_fast_is_not_lost(tmp_path: Path) -> None:
    writer = start_run(tmp_path, "a", **BEGUN)
    for step in range(1000):
        writer.heartbeat(step=step)
    shown = open_run(writer.path).progress["step"]
    assert 0 <= shown <= 999
    writer.stop("enough")
    assert open_run(writer.path).progress == {"step": 999}


def test_a_heartbeat_that_is_not_due_touches_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = start_run(tmp_path, "a", **BEGUN)
    writer.heartbeat(step=1)
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    before = (writer.path / "run.json").stat().st_mtime_ns
    writer.heartbeat(step=2)
    assert (writer.path / "run.json").stat().st_mtime_ns == before
    monkeypatch.setattr(time, "monotonic", lambda: clock + 1)
    writer.heartbeat(step=3)
    assert open_run(writer.path).progress == {"step": 3}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(KeyboardInterrupt(), "interrupted"), (ValueError("loss is nan"), "ValueError: loss is nan"),
     (MemoryError(), "MemoryError")],
)  # fmt: skip
def test_an_exception_leaves_a_run_stopped_with_its_reason(
    tmp_path: Path, error: BaseException, reason: str
) -> None:
    def train() -> None:
        with start_run(tmp_path, "a", **BEGUN) as writer:
            writer.curve(epoch=0)
            raise error

    with pytest.raises(type(error)):
        train()
    run = open_run(tmp_path / "a")
    assert (run.state, run.reason) == ("stopped", reason)
    assert len(run.curves()) == 1


def test_a_block_that_forgets_to_finish_leaves_a_stopped_run(tmp_path: Path) -> None:
    with start_run(tmp_path, "a", **BEGUN):
        pass
    assert open_run(tmp_path / "a").reason == "ended before it was finished"


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with start_run(tmp_path, "a", **BEGUN) as writer:
        writer.curve(epoch=0)
        writer.curve(epoch=1)
        writer.maps("m", np.ones((1, 2, 2)))
        writer.write("checkpoint.safetensors", b"one")
        writer.stop("ctrl-c")
    with resume_run(tmp_path / "a") as writer:
        assert open_run(writer.path).state == "running"
        assert (writer.path / "checkpoint.safetensors").read_bytes() == b"one"
        writer.keep_curves(1)
        writer.curve(epoch=1, again=True)
        writer.write("checkpoint.safetensors", b"two")
        run = writer.finish({"accuracy": 1})
    assert run.curves()["again"].tolist()[1] is True
    assert run.map_names == ("m",)
    assert run.read("checkpoint.safetensors") == b"two"
    assert run.verify() == []


def test_a_torn_last_line_is_not_read_and_is_cut_off_on_resuming(tmp_path: Path) -> None:
    with start_run(tmp_path, "a", **BEGUN) as writer:
        writer.curve(epoch=0)
        writer.stop("")
    curves = tmp_path / "a" / "curves.jsonl"
    for torn in (b'{"epoch": 1, "lo', b'{"epoch": 1', b"\xff", b"1"):
        curves.write_bytes(b'{"epoch": 0}\n' + torn)
        assert open_run(tmp_path / "a").curves()["epoch"].tolist() == [0]
    with resume_run(tmp_path / "a") as writer:
        writer.curve(epoch=1)
        run = writer.finish()
    assert run.curves()["epoch"].tolist() == [0, 1]


def test_a_line_torn_in_the_middle_is_a_fault(tmp_path: Path) -> None:
    with start_run(tmp_path, "a", **BEGUN) as writer:
        writer.curve(epoch=0)
        writer.stop("")
    (tmp_path / "a" / "curves.jsonl").write_bytes(b'{"epoch": 0}\n{"epo\n{"epoch": 2}\n')
    run = open_run(tmp_path / "a")
    with pytest.raises(RunError, match=r"curves\.jsonl: line 2 is not a JSON object"):
        run.curves()
    assert [(f.file, f.kind) for f in run.verify()] == [("curves.jsonl", "unreadable")]


@pytest.mark.parametrize(
    ("change", "message"),
    [({}, r"resume .*a: the run is complete; amend_run adds to it"),
     ({"schema": 99}, r"resume .*a: the run is newer \(written by a newer attnviz"),
     ({"files": 1}, r"resume .*a: the run is broken \(run.json: 'files' should be")],
)  # fmt: skip
def test_only_an_unfinished_run_is_resumed(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    make(tmp_path / "a")
    edit(tmp_path / "a", **change)
    before = everything(tmp_path)
    with pytest.raises(RunError, match=message):
        resume_run(tmp_path / "a")
    assert everything(tmp_path) == before


def test_a_complete_run_takes_more_maps_and_columns(tmp_path: Path) -> None:
    make(tmp_path / "a")
    old = open_run(tmp_path / "a")
    with amend_run(tmp_path / "a") as writer:
        writer.maps("gradcam", np.ones((N, 2, 2)))
        writer.samples(old.samples().assign(extra=1))
        assert everything(tmp_path / "a")["run.json"] == (old.path / "run.json").read_bytes()
        assert open_run(tmp_path / "a").map_names == ("received", "heads")
        writer.finish({"extra": True})
    run = open_run(tmp_path / "a")
    assert run.state == "complete"
    assert run.map_names == ("received", "heads", "gradcam")
    assert run.samples()["extra"].tolist() == [1] * N
    assert run.summary == {**old.summary, "extra": True}
    assert run.curves().equals(old.curves())
    assert run.verify() == []
    names = set(everything(tmp_path / "a"))
    assert names == {file.at for file in run.files.values()} | {"run.json"}


def test_a_reader_from_before_an_amendment_reads_what_came_after(tmp_path: Path) -> None:
    old = make(tmp_path / "a")
    for value in (2, 3):
        with amend_run(tmp_path / "a") as writer:
            writer.maps("received", np.full((N, 2, 2), value))
            writer.maps("received", np.full((N, 4, 4), value))
    assert np.unique(old.maps("received", [1])).tolist() == [3]
    assert old.maps("received").shape == (N, 4, 4)
    assert old.samples().shape == (N, 3)


def test_an_amendment_that_fails_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    make(tmp_path / "a")
    before = everything(tmp_path)

    def amend() -> None:
        with amend_run(tmp_path / "a") as writer:
            writer.maps("received", np.zeros((N, 2, 2)))
            writer.maps("new", np.zeros((N, 2, 2)))
            writer.samples(pd.DataFrame({"x": [1]}))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        amend()
    after = everything(tmp_path)
    assert {name: after[name] for name in before} == before
    assert [name for name in after if name.startswith("a/maps")] == [
        name for name in before if name.startswith("a/maps")
    ]
    with amend_run(tmp_path / "a") as writer:
        writer.stop("changed my mind")
    assert {name: everything(tmp_path)[name] for name in before} == before
    with amend_run(tmp_path / "a") as writer, pytest.raises(InputError, match="do not grow"):
        writer.curve(epoch=9)


def test_what_a_newer_writer_noted_survives_an_amendment(tmp_path: Path) -> None:
    make(tmp_path / "a")
    edit(tmp_path / "a", note_of_a_later_version={"kept": True})
    with amend_run(tmp_path / "a") as writer:
        writer.maps("new", np.zeros((N, 2, 2)))
    assert json.loads((tmp_path / "a" / "run.json").read_text())["note_of_a_later_version"]


def test_only_a_complete_run_is_amended(tmp_path: Path) -> None:
    start_run(tmp_path, "a", **BEGUN).stop("ctrl-c")
    with pytest.raises(RunError, match=r"amend .*a: the run is stopped \(ctrl-c\)"):
        amend_run(tmp_path / "a")
    with pytest.raises(RunError, match=r"no such file or folder"):
        amend_run(tmp_path / "b")


def test_an_extra_file_is_listed_at_the_end_and_as_readable_as_the_rest(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with start_run(tmp_path, "a", **BEGUN) as writer:
            save_file({"x": np.zeros(3)}, writer.file("extra/state.safetensors"))
            os.chmod(writer.path / "extra/state.safetensors", 0o600)
            writer.maps("m", np.ones((1, 2, 2)))
            run = writer.finish()
        modes = {path.stat().st_mode & 0o777 for path in run.path.rglob("*") if path.is_file()}
        folders = {path.stat().st_mode & 0o777 for path in [run.path, *run.path.glob("*/")]}
    finally:
        os.umask(before)
    assert modes == {0o644}
    assert 0o755 in folders
    assert run.files["extra/state.safetensors"].size > 0
    assert run.verify() == []


def test_a_dropped_file_is_gone(tmp_path: Path) -> None:
    with start_run(tmp_path, "a", **BEGUN) as writer:
        writer.write("checkpoint.bin", b"x")
        writer.maps("m", np.ones((1, 2, 2)))
        writer.drop("checkpoint.bin")
        writer.drop("maps/m.safetensors")
        run = writer.finish()
    assert set(run.files) == set()
    assert sorted(everything(run.path)) == ["run.json"]


def test_a_writer_that_has_finished_writes_no_more(tmp_path: Path) -> None:
    writer = start_run(tmp_path, "a", **BEGUN)
    writer.finish()
    for late in (
        lambda: writer.curve(epoch=1),
        lambda: writer.heartbeat(),
        lambda: writer.maps("m", np.ones((1, 2, 2))),
        lambda: writer.finish(),
        lambda: writer.stop("x"),
        lambda: writer.file("x"),
    ):
        with pytest.raises(RunError, match="this writer has finished or stopped"):
            late()


def test_a_second_writer_in_this_process_is_refused(tmp_path: Path) -> None:
    writer = start_run(tmp_path, "a", **BEGUN)
    with pytest.raises(RunError, match=r"a: another process is writing it; stop that one"):
        resume_run(tmp_path / "a")
    writer.finish()
    with (
        amend_run(tmp_path / "a"),
        pytest.raises(RunError, match="another process is writing it"),
    ):
        amend_run(tmp_path / "a")
    with amend_run(tmp_path / "a"):
        pass


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    code = (
        "import sys; from attnviz.runs import start_run;"
        "w = start_run(sys.argv[1], 'a', variant='mha', settings={}, seed=0);"
        "print('begun', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=-1, stdout=-1, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        with pytest.raises(RunError, match="another process is writing it"):
            resume_run(tmp_path / "a")
        with pytest.raises(RunError, match="something is there already"):
            start_run(tmp_path, "a", **BEGUN)
        child.kill()
    with resume_run(tmp_path / "a") as writer:
        assert writer.finish().state == "complete"


def test_a_live_run_of_another_machine_is_left_to_it(tmp_path: Path) -> None:
    start_run(tmp_path, "a", **BEGUN)  # forgotten at once, and its lock with it
    edit(tmp_path / "a", writer={"host": "node-7", "pid": 12, "namespace": 1})
    with pytest.raises(
        RunError,
        match=r"a: process 12 on node-7 is writing it \(heartbeat \d+ s ago\); stop it, or wait",
    ):
        resume_run(tmp_path / "a")
    edit(tmp_path / "a", heartbeat="2020-01-01T00:00:00+00:00")
    with resume_run(tmp_path / "a") as writer:
        writer.finish()


def test_of_many_processes_that_start_one_run_exactly_one_gets_it(tmp_path: Path) -> None:
    code = (
        "import sys; from attnviz.runs import start_run; from attnviz.errors import RunError\n"
        "sys.stdin.readline()\n"
        "try: w = start_run(sys.argv[1], 'a', variant='mha', settings={}, seed=0)\n"
        "except RunError as error: print('refused', error)\n"
        "else: print('begun')\n"
        "sys.stdout.flush(); sys.stdin.readline()"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    crowd = [subprocess.Popen(words, stdin=-1, stdout=-1, text=True) for _ in range(6)]
    for child in crowd:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.stdout.readline() for child in crowd if child.stdout is not None]
    for child in crowd:
        child.communicate("end\n")
    assert sorted(answer.split()[0] for answer in answers) == ["begun", *["refused"] * 5]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_address_is_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"runs are written to a local folder, then copied there"):
        start_run("memory://runs", "a", **BEGUN)
    with pytest.raises(InputError, match="a path has no null character"):
        start_run("a\0b", "a", **BEGUN)
