"""Injected faults: what is left afterwards is complete, resumable or clearly marked."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attnviz.errors import RunError
from attnviz.runs import (
    amend_run,
    list_runs,
    open_run,
    resume_run,
    save_dataset,
    start_run,
    verify,
)
from attnviz.runs.locking import Lock
from tests.runs.made import edit, everything, make
from tests.runs.stepwise import JOBS

ROOT = Path(__file__).parents[2]
BEGUN = {"variant": "mha", "settings": {}, "seed": 0}
FILES = (
    *("run.json", "curves.jsonl", "samples.parquet", "model.safetensors"),
    *("maps/received.safetensors", "gates/channel.safetensors", "rows/attend.safetensors"),
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.parametrize("job", JOBS)
def test_a_writer_killed_in_any_of_its_system_calls_leaves_order(job: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.runs.stepwise", job, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tally = json.loads(done.stdout)
    assert sum(tally.values()) > 10
    assert tally[JOBS[job][3]] >= 1


def test_a_writer_killed_at_random_moments_leaves_a_run_that_can_be_resumed(
    tmp_path: Path,
) -> None:
    """A true SIGKILL, a few times over the same run, until it is complete."""
    code = (
        "import sys; from pathlib import Path; from tests.runs.stepwise import train\n"
        "print('begun', flush=True); train(Path(sys.argv[1]))"
    )
    rng = random.Random(0)
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=-1
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.random() * 0.05)
            child.send_signal(signal.SIGKILL)
        for run in list_runs(tmp_path):
            assert run.state in ("stale", "complete"), run.reason
            assert run.verify() == []
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, stdout=-1)
    (run,) = list_runs(tmp_path)
    assert (run.state, len(run.curves())) == ("complete", 2)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, emptied, flip, lengthen, remove])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_rest_can_be_read(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    damage(tmp_path / "a" / name)
    found = list_runs(tmp_path)
    assert found.named("b").state == "complete"
    faults = [fault for fault in verify(tmp_path) if fault.where == "a"]
    if name == "run.json":
        kinds = {remove: ("missing",), flip: ("checksum", "header")}.get(damage, ("header",))
        assert faults[0].file == "run.json"
        assert faults[0].kind in kinds
        if damage is remove:
            assert found.left_out == {"a": "no run.json"}
        elif damage is not flip:
            assert found.named("a").state == "broken"
        return
    assert [fault.file for fault in faults] == [name]
    kind = {remove: "missing", flip: "checksum"}.get(damage, "size")
    assert faults[0].kind == kind
    run = found.named("a")
    assert run.state == ("complete" if damage is flip else "broken")  # listing reads no content
    if damage is not flip:
        assert run.reason.startswith(f"{name}: ")
    readable = {
        "curves.jsonl": run.curves,
        "samples.parquet": run.samples,
        "model.safetensors": run.weights,
        "maps/received.safetensors": lambda: run.maps("received"),
        "gates/channel.safetensors": lambda: run.gates("channel"),
        "rows/attend.safetensors": lambda: run.rows("attend"),
    }
    for other, read in readable.items():
        if other != name:
            read()
        elif damage is remove or (damage is not lengthen and "/" not in name):
            with pytest.raises(RunError, match=name):
                read()


def test_a_flipped_bit_anywhere_in_a_run_is_found(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    rng = random.Random(0)
    for name, file in run.files.items():
        path = run.path / file.at
        whole = path.read_bytes()
        for _ in range(5):
            content = bytearray(whole)
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
            assert [(f.file, f.kind) for f in run.verify()] == [(name, "checksum")]
        path.write_bytes(whole)
    assert run.verify() == []


def test_a_flipped_bit_anywhere_in_run_json_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "a").path / "run.json"
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            same = json.loads(content) == json.loads(whole)
        except ValueError:
            same = False
        faults = [(f.file, f.kind) for f in verify(tmp_path)]
        assert same or faults[0] in (("run.json", "header"), ("run.json", "checksum"),
                                     ("run.json", "newer"))  # fmt: skip


def test_files_with_the_right_checksum_that_were_never_right_are_found(tmp_path: Path) -> None:
    import hashlib

    run = make(tmp_path / "a")
    document = json.loads((run.path / "run.json").read_text())
    for name in FILES[1:]:
        junk = b"not what it says\nnot at all\n"
        (run.path / name).write_bytes(junk)
        document["files"][name] |= {
            "bytes": len(junk),
            "sha256": hashlib.sha256(junk).hexdigest(),
        }
    edit(run.path, **document)
    faults = open_run(run.path).verify()
    assert {(fault.file, fault.kind) for fault in faults} == {
        (name, "unreadable") for name in FILES[1:]
    }


def test_of_a_thousand_runs_a_tenth_broken_each_is_told_apart_and_quickly(tmp_path: Path) -> None:
    make(tmp_path / "run-0000", gates={}, rows={}, weights=None)
    files = ("run.json", "curves.jsonl", "samples.parquet", "maps/received.safetensors")
    for number in range(1, 1000):
        shutil.copytree(tmp_path / "run-0000", tmp_path / f"run-{number:04}", copy_function=os.link)
    damages = (cut, emptied, remove, lengthen)
    for number in range(0, 1000, 10):
        path = tmp_path / f"run-{number:04}" / files[number // 10 % len(files)]
        content = path.read_bytes()
        path.unlink()  # it is the same file in all runs
        path.write_bytes(content)
        damages[number // 40 % len(damages)](path)
    found = list_runs(tmp_path)
    bad = {run.id for run in found if run.state == "broken"} | set(found.left_out)
    assert bad == {f"run-{number:04}" for number in range(0, 1000, 10)}
    assert len(found.complete) == 900
    assert all(run.reason for run in found.of("broken"))
    code = """
import json, sys, time
from attnviz.runs import list_runs
def seconds(work):
    times = []
    for _ in range(3):
        start = time.process_time(); work(); times.append(time.process_time() - start)
    return min(times)
headers = [run.path / "run.json" for run in list_runs(sys.argv[1]).complete]
whole = seconds(lambda: list_runs(sys.argv[1]))
least = seconds(lambda: [json.loads(path.read_bytes()) for path in headers])
assert whole < 30 * least, (whole, least)
print(whole, least)
"""  # without the type checks of the tests
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def full_disk(code: str, root: Path, limit: int = 20_000) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose files cannot grow beyond a limit, as on a disk that is full."""
    start = (
        "import resource, signal, sys; from pathlib import Path\n"
        "import numpy as np, pandas as pd\n"
        "from attnviz.errors import RunError\n"
        "from attnviz.runs import *\n"
        "from tests.runs.made import make\n"
        "root = Path(sys.argv[1]); big = np.ones((100, 64, 64))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    )
    words = [sys.executable, "-c", start + code, str(root)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def test_a_disk_that_fills_while_a_run_is_saved_leaves_no_run(tmp_path: Path) -> None:
    done = full_disk("make(root / 'a', maps={'big': big})", tmp_path / "runs")
    assert "RunError: write " in done.stderr
    assert "maps/big.safetensors: file too large" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_disk_that_fills_while_training_leaves_a_run_that_says_so(tmp_path: Path) -> None:
    code = (
        "with start_run(root, 'a', variant='mha', settings={}, seed=0) as writer:\n"
        "    writer.curve(epoch=0)\n"
        "    writer.maps('small', np.ones((1, 2, 2)))\n"
        "    writer.maps('big', big)\n"
    )
    done = full_disk(code, tmp_path)
    assert "RunError" in done.stderr
    run = open_run(tmp_path / "a")
    assert run.state == "stopped"
    assert run.reason.startswith("RunError: write ")
    assert run.map_names == ("small",)
    assert run.verify() == []
    with resume_run(tmp_path / "a") as writer:
        writer.maps("big", np.ones((100, 64, 64)))
        assert writer.finish().verify() == []


def test_a_disk_that_fills_while_amending_leaves_the_old_run(tmp_path: Path) -> None:
    make(tmp_path / "a")
    before = everything(tmp_path)
    code = (
        "with amend_run(root / 'a') as writer:\n"
        "    writer.maps('received', np.ones((6, 2, 2)))\n"
        "    writer.maps('big', big)\n"
    )
    assert "file too large" in full_disk(code, tmp_path).stderr
    assert everything(tmp_path) == before


def test_a_disk_that_fills_in_the_middle_of_a_line_leaves_whole_lines(tmp_path: Path) -> None:
    code = (
        "writer = start_run(root, 'a', variant='mha', settings={}, seed=0)\n"
        "try:\n"
        "    while True: writer.curve(epoch=1, note='x' * 700)\n"
        "except RunError as error: print(error)\n"
        "writer.stop('disk full')\n"
    )
    done = full_disk(code, tmp_path, limit=8_000)
    assert "a/curves.jsonl: file too large" in done.stdout, done.stderr
    content = (tmp_path / "a" / "curves.jsonl").read_bytes()
    assert content.endswith(b"}\n")
    assert len(open_run(tmp_path / "a").curves()) > 3


def test_a_full_disk_refuses_a_dataset_whole(tmp_path: Path) -> None:
    code = (
        "save_dataset(root, images=np.zeros((100, 64, 64, 3), np.uint8),\n"
        "    masks=np.zeros((100, 64, 64), bool), boxes=np.zeros((100, 4), int),\n"
        "    labels=np.zeros(100, int), info={})"
    )
    assert "data.safetensors: file too large" in full_disk(code, tmp_path).stderr
    assert everything(tmp_path) == {}
    assert list((tmp_path / "datasets").iterdir()) == []


@pytest.mark.parametrize("error", [28, 5, 122])  # no space, input/output error, quota
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_whatever_call_the_system_refuses_the_folder_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    make(tmp_path / "a")
    writer = start_run(tmp_path, "b", **BEGUN)
    writer.maps("m", np.ones((1, 2, 2)))
    before = everything(tmp_path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        for attempt in (
            lambda: writer.maps("m", np.zeros((1, 2, 2))),
            lambda: writer.maps("n", np.zeros((1, 2, 2))),
            lambda: writer.finish({"accuracy": 1}),
            lambda: make(tmp_path / "c"),
            lambda: start_run(tmp_path, "d", **BEGUN),
            lambda: save_dataset(
                tmp_path,
                images=np.zeros((1, 2, 2, 3), np.uint8),
                masks=np.zeros((1, 2, 2), bool),
                boxes=np.zeros((1, 4), int),
                labels=np.zeros(1, int),
                info={},
            ),
        ):
            with pytest.raises(
                RunError, match=rf"^write {tmp_path}/.*{os.strerror(error).lower()}"
            ):
                attempt()
    assert everything(tmp_path) == before
    writer.maps("n", np.zeros((1, 2, 2)))
    assert writer.finish().verify() == []


def test_a_line_that_could_not_be_synced_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = start_run(tmp_path, "a", **BEGUN)
    writer.curve(epoch=0)
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, part: real(handle, bytes(part)[:4]))
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(RunError, match=r"curves\.jsonl: full"):
            writer.curve(epoch=1)
    writer.curve(epoch=2)
    assert open_run(writer.path).curves()["epoch"].tolist() == [0, 2]


def test_a_file_in_the_way_of_the_runs_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("I was here first")
    for attempt in (
        lambda: start_run(tmp_path / "runs", "a", **BEGUN),
        lambda: make(tmp_path / "runs" / "a"),
        lambda: make(tmp_path / "runs" / "deeper" / "a"),
    ):
        with pytest.raises(RunError, match=rf"^write {tmp_path}/runs/.*: (not a d|file exists)"):
            attempt()
    assert everything(tmp_path) == {"runs": b"I was here first"}


def test_a_file_in_the_way_of_a_run_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(RunError, match="something is there already"):
        make(tmp_path / "a")
    assert everything(tmp_path) == {"a": b"mine"}


def as_nobody(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run code as a user whom permissions bind: root may write everywhere."""
    drop = "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    load = (  # all of it, for that user may not even see where Python lies
        "import os, sys, pandas, pyarrow.dataset, pyarrow.parquet, safetensors.numpy\n"
        "from attnviz.errors import RunError; from attnviz.runs import *\n"
        "this_environment(); str(os.strerror(13))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", load + drop + code, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def open_tmp() -> Path:
    """A folder that another user can walk into; pytest's own are private."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="attnviz-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_folder_is_refused_by_name_and_stays_as_it_was(open_tmp: Path) -> None:
    make(open_tmp / "a")
    before = everything(open_tmp)
    for path in [open_tmp, *open_tmp.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    code = (
        "try: start_run(sys.argv[1], 'b', variant='mha', settings={}, seed=0)\n"
        "except RunError as error: print(error)\n"
        "with amend_run(sys.argv[1] + '/a') as writer: writer.write('x', b'')\n"
    )
    done = as_nobody(code, open_tmp)
    assert done.stdout.splitlines()[0] == f"write {open_tmp}/b: permission denied"
    assert f"RunError: write {open_tmp}/a/x: permission denied" in done.stderr
    assert everything(open_tmp) == before
    assert open_run(open_tmp / "a").verify() == []


def test_a_file_that_may_not_be_read_breaks_its_run_alone(open_tmp: Path) -> None:
    make(open_tmp / "a")
    make(open_tmp / "b")
    make(open_tmp / "c")
    (open_tmp / "a" / "run.json").chmod(0)
    (open_tmp / "b" / "samples.parquet").chmod(0)
    code = (
        "for run in list_runs(sys.argv[1]): print(run.id, run.state, run.reason)\n"
        "print(*verify(sys.argv[1]), sep='\\n')"
    )
    done = as_nobody(code, open_tmp)
    assert done.stdout.splitlines() == [
        "a broken run.json: permission denied",
        "b complete ",
        "c complete ",
        "a/run.json: permission denied",
        "b/samples.parquet: permission denied",
    ], done.stderr


def test_a_folder_that_may_not_be_read_breaks_its_run_alone(open_tmp: Path) -> None:
    for name in "abc":
        make(open_tmp / name)
    (open_tmp / "a" / "maps").chmod(0)
    (open_tmp / "b").chmod(0)
    code = (
        "found = list_runs(sys.argv[1])\n"
        "for run in found: print(run.id, run.state, run.reason)\n"
        "print(found.left_out)\n"
        "print(*verify(sys.argv[1]), sep='\\n')"
    )
    done = as_nobody(code, open_tmp)
    (open_tmp / "a" / "maps").chmod(0o755)
    (open_tmp / "b").chmod(0o755)
    said = done.stdout.splitlines()
    assert said[:3] == [
        "a broken maps/received.safetensors: permission denied",
        "c complete ",
        "{'b': 'permission denied'}",
    ], done.stderr
    assert "a/maps: permission denied" in said
    assert "b/run.json: permission denied" in said
    assert not any(line.startswith("c/") for line in said)


def test_what_killed_writers_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys; from attnviz.runs import lifecycle, start_run\n"
        "lifecycle.into_place = lambda *a: os._exit(9)\n"
        "start_run(sys.argv[1], sys.argv[2], variant='mha', settings={}, seed=0)"
    )
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path), name])
    assert len(list(tmp_path.glob(".*.partial"))) == 2
    assert list_runs(tmp_path).left_out == {}
    make(tmp_path / "a")
    assert [path.name.split(".")[1] for path in tmp_path.glob(".*.partial")] == ["b"]
    (old,) = tmp_path.glob(".*.partial")
    os.utime(old, (0, 0))
    make(tmp_path / "c")
    assert not list(tmp_path.glob(".*.partial"))


def test_what_a_living_writer_is_making_is_not_cleared(tmp_path: Path) -> None:
    alive = tmp_path / ".a.01234567.partial"
    alive.mkdir()
    os.utime(alive, (0, 0))
    lock = Lock(alive)
    make(tmp_path / "a")
    assert alive.exists()
    lock.release()


def test_arrays_that_no_header_names_are_cleared_by_the_next_writer(tmp_path: Path) -> None:
    make(tmp_path / "a")
    before = everything(tmp_path)
    (tmp_path / "a" / "maps" / "orphan.safetensors").write_bytes(b"x")
    (tmp_path / "a" / ".run.json.0123abcd.partial").write_bytes(b"x")
    assert open_run(tmp_path / "a").verify() == []
    with amend_run(tmp_path / "a") as writer:
        writer.stop("only looking")
    assert everything(tmp_path) == before


def test_nothing_is_written_outside_by_a_header_that_points_there(tmp_path: Path) -> None:
    make(tmp_path / "runs" / "a")
    (tmp_path / "precious").write_text("kept")
    document = json.loads((tmp_path / "runs" / "a" / "run.json").read_text())
    document["files"]["maps/received.safetensors"]["at"] = "../../precious"
    edit(tmp_path / "runs" / "a", **document)
    run = open_run(tmp_path / "runs" / "a")
    assert (run.state, run.reason) == (
        "broken",
        "run.json: the entry of 'maps/received.safetensors' makes no sense",
    )
    with pytest.raises(RunError):
        amend_run(run.path)
    assert (tmp_path / "precious").read_text() == "kept"
