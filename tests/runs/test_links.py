"""Nothing outside a run's folder is read, written or removed through what lies inside it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from attnviz.errors import AttnvizError, RunError
from attnviz.runs import (
    amend_run,
    list_runs,
    migrate_run,
    open_run,
    resume_run,
    save_dataset,
    start_run,
    verify,
)
from attnviz.runs.entries import inside, remove_tree
from tests.runs.made import edit, everything, make

ROOT = Path(__file__).parents[2]
BEGUN = {"variant": "mha", "settings": {}, "seed": 0}
ONE = np.ones((1, 2, 2))


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder outside the runs, in which nothing may change."""
    folder = tmp_path / "precious"
    (folder / "deeper").mkdir(parents=True)
    for name in ("one.safetensors", "two.txt", ".x.0123abcd.partial", "deeper/three", "run.json"):
        (folder / name).write_text(f"years of work on {name}")
        (folder / name).chmod(0o600)
    return folder


@pytest.fixture(autouse=True)
def _untouched(precious: Path) -> Iterator[None]:
    def state() -> dict[str, tuple[bytes, int, int]]:
        files = [path for path in precious.rglob("*") if path.is_file()]
        return {
            str(path): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_ino)
            for path in files
        }

    before = state()
    yield
    assert state() == before


def amend(path: Path) -> None:
    with amend_run(path) as writer:
        writer.write("note.txt", b"new")


def give_up(path: Path) -> None:
    amend_run(path).stop("")


def resume(path: Path) -> None:
    edit(path, status="stopped", heartbeat=None)
    with resume_run(path) as writer:
        writer.curve(epoch=9)
        writer.finish()


def migrate(path: Path) -> None:
    edit(path, variant="renamed")
    assert migrate_run(path)


WAYS = (amend, give_up, resume, migrate)
FOLDERS = ("maps", "gates", "rows", "checkpoints", "maps/deeper", ".hidden")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_linked_folder_is_neither_followed_nor_removed_and_verify_names_it(
    tmp_path: Path, precious: Path, name: str, way: Callable[[Path], None]
) -> None:
    kept = {"maps": {"x": ONE}} if name == "maps/deeper" else {"maps": {}}
    path = make(tmp_path / "runs" / "a", **kept, gates={}, rows={}).path
    (path / name).symlink_to(precious)
    assert list_runs(tmp_path / "runs")[0].state == "complete"
    way(path)
    assert (path / name).is_symlink()
    run = open_run(path)
    assert run.state == "complete"
    assert not any("precious" in file or "one" in file for file in run.files)
    faults = [(f.file, f.kind) for f in run.verify()]
    assert faults == [(name, "link")]
    assert "a symbolic link; links and mounts inside a run are not followed" in str(run.verify()[0])


@pytest.mark.parametrize("target", ["folder", "file", "nowhere", "itself"])
def test_nothing_is_written_through_a_link(tmp_path: Path, precious: Path, target: str) -> None:
    path = make(tmp_path / "runs" / "a", maps={}).path
    goal = {
        "folder": precious, "file": precious / "two.txt", "nowhere": precious / "new",
        "itself": path / "maps",
    }  # fmt: skip
    (path / "maps").symlink_to(goal[target])
    (path / "extra").symlink_to(goal[target])
    before = (path / "run.json").read_bytes()
    with amend_run(path) as writer:
        for attempt in (
            lambda: writer.maps("one", ONE),
            lambda: writer.write("extra", b"x"),
            lambda: writer.write("extra/file", b"x"),
            lambda: writer.file("extra/one"),
        ):
            with pytest.raises(RunError, match=r"^write .*(maps|extra): is a symbolic link"):
                attempt()
        writer.stop("")
    assert (path / "run.json").read_bytes() == before
    assert not (precious / "new").exists()


@pytest.mark.parametrize(
    "name", ["run.json", "samples.parquet", "curves.jsonl", "model.safetensors",
             "maps/received.safetensors", "maps"]
)  # fmt: skip
def test_a_linked_file_is_not_read_and_breaks_its_run_alone(
    tmp_path: Path, precious: Path, name: str
) -> None:
    path = make(tmp_path / "runs" / "a").path
    make(tmp_path / "runs" / "b")
    away = tmp_path / "away"
    shutil.move(path / name, away)
    (path / name).symlink_to(away)
    before = everything(away) if away.is_dir() else away.read_bytes()
    found = list_runs(tmp_path / "runs")
    assert found.named("b").state == "complete"
    run = found.named("a")
    assert run.state == "broken"
    assert "a symbolic link" in run.reason
    assert (name, "link") in [(f.file, f.kind) for f in verify(tmp_path / "runs")]
    for attempt in (lambda: amend_run(path), lambda: resume_run(path), lambda: migrate_run(path)):
        with pytest.raises(RunError):
            attempt()
    for read in (run.samples, run.curves, run.weights, lambda: run.maps("received")):
        try:
            read()
        except AttnvizError as error:
            said = str(error)
            assert "symbolic link" in said or "has no" in said or run.schema is None
    assert (everything(away) if away.is_dir() else away.read_bytes()) == before


def test_curves_that_became_a_link_under_a_writer_are_not_appended_to(
    tmp_path: Path, precious: Path
) -> None:
    writer = start_run(tmp_path / "runs", "a", **BEGUN)
    writer.curve(epoch=0)
    (writer.path / "curves.jsonl").unlink()
    (writer.path / "curves.jsonl").symlink_to(precious / "two.txt")
    with pytest.raises(RunError, match=r"^write .*curves\.jsonl: is a symbolic link"):
        writer.curve(epoch=1)
    with pytest.raises(RunError, match="is a symbolic link"):
        writer.finish()


@pytest.mark.parametrize("name", ["curves.jsonl", "checkpoint"])
def test_a_hard_linked_file_is_named_and_its_other_name_keeps_its_content(
    tmp_path: Path, precious: Path, name: str
) -> None:
    writer = start_run(tmp_path / "runs", "a", **BEGUN)
    os.link(precious / "two.txt", writer.file("checkpoint"))
    if name == "curves.jsonl":
        (writer.path / "checkpoint").rename(writer.path / name)
        writer.keep_curves(0)
        writer.curve(epoch=0)
        os.link(writer.path / name, tmp_path / "other")
        writer.curve(epoch=1)
        assert (tmp_path / "other").read_bytes().count(b"\n") == 1
        run = writer.finish()
        assert (len(run.curve_rows()), run.verify()) == (2, [])
        return
    run = writer.finish()
    assert run.state == "complete"
    assert [(f.file, f.kind) for f in run.verify()] == [(name, "link")]
    assert "hard link: 2 names share its content" in str(run.verify()[0])


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: it never ends
    except PermissionError:
        pytest.skip("making a device needs root")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("put", [fifo, folder, listening, device])
@pytest.mark.parametrize(
    "name", ["run.json", "samples.parquet", "curves.jsonl", "maps/received.safetensors", "stray"]
)
def test_what_is_no_regular_file_is_named_and_nothing_waits_for_it(
    tmp_path: Path, name: str, put: Callable[[Path], None]
) -> None:
    path = make(tmp_path / "runs" / "a").path
    make(tmp_path / "runs" / "b")
    if name != "stray":
        (path / name).unlink()
    put(path / name)
    found = list_runs(tmp_path / "runs")
    assert found.named("b").state == "complete"
    state = {run.id: run.state for run in found}.get("a", "left out")
    assert state == ("complete" if name == "stray" else "broken")
    faults = [(f.file, f.kind) for f in verify(tmp_path / "runs")]
    if not (put is folder and name == "stray"):
        kind = "header" if (put, name) == (folder, "run.json") else "special"
        assert faults == [(name, kind)]
    for attempt in (lambda: amend_run(path).stop(""), lambda: open_run(path).samples()):
        try:
            attempt()
        except RunError as error:
            assert name != "stray" and str(error)  # noqa: PT017, PT018
    if name == "stray" and put is not folder:
        with amend_run(path) as writer, pytest.raises(RunError, match="expected a file"):
            writer.write("stray", b"x")


def test_of_a_folder_in_place_of_a_listed_file_the_name_is_said(tmp_path: Path) -> None:
    path = make(tmp_path / "a").path
    (path / "samples.parquet").unlink()
    (path / "samples.parquet").mkdir()
    assert open_run(path).reason == "samples.parquet: is a folder, expected a file"
    (path / "run.json").unlink()
    (path / "run.json").mkdir()
    with pytest.raises(RunError, match=r"^open .*a: run\.json: is a folder, expected a file$"):
        open_run(path)


def test_a_link_onto_itself_and_an_unreadable_entry_hide_no_other_run(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    make(root / "b")
    (root / "a").symlink_to(root / "a")
    (root / "c").symlink_to(root / "nowhere")
    (make(root / "d").path / "loop").symlink_to(root / "d" / "loop")
    found = list_runs(root)
    assert [(run.id, run.state) for run in found] == [("b", "complete"), ("d", "complete")]
    assert "a" in found.left_out
    assert [(f.where, f.file) for f in verify(root)] == [("d", "loop"), ("a", "run.json")]


def test_a_run_that_is_itself_reached_through_a_link_is_that_run(tmp_path: Path) -> None:
    """Someone moved it to a larger disk."""
    make(tmp_path / "disk" / "a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "disk" / "a")
    (run,) = list_runs(tmp_path / "runs")
    assert (run.state, run.verify()) == ("complete", [])
    amend(run.path)
    assert (tmp_path / "runs" / "a").is_symlink()
    assert open_run(tmp_path / "disk" / "a").read("note.txt") == b"new"


def test_test_images_are_not_written_through_a_link(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "datasets").symlink_to(precious)
    with pytest.raises(RunError, match=r"^write .*datasets: is a symbolic link"):
        save_dataset(
            tmp_path / "runs",
            images=np.zeros((1, 2, 2, 3), np.uint8),
            masks=np.zeros((1, 2, 2), bool),
            info={},
        )


def test_clearing_up_leaves_links_and_other_programs_folders_alone(
    tmp_path: Path, precious: Path
) -> None:
    runs = tmp_path / "runs"
    (runs / ".my.download.partial").mkdir(parents=True)
    (runs / ".my.download.partial" / "half").write_text("of something else")
    os.utime(runs / ".my.download.partial", (0, 0))
    (runs / ".a.0123abcd.partial").symlink_to(precious)
    make(runs / "a")
    assert (runs / ".my.download.partial" / "half").exists()
    assert (runs / ".a.0123abcd.partial").is_symlink()
    remove_tree(runs / ".a.0123abcd.partial")
    assert (runs / ".a.0123abcd.partial").is_symlink()


def test_a_mount_is_neither_followed_nor_written_nor_removed(
    tmp_path: Path, precious: Path
) -> None:
    path = make(tmp_path / "runs" / "a", gates={}).path
    (path / "gates").mkdir()
    code = (
        "import subprocess, sys; from pathlib import Path; import numpy as np\n"
        "from attnviz.runs import *; from attnviz.errors import AttnvizError, RunError\n"
        "run, outside = Path(sys.argv[1]), sys.argv[2]\n"
        "done = subprocess.run(['mount', '--bind', outside, run / 'gates'])\n"
        "if done.returncode: sys.exit('no mount')\n"
        "writer = amend_run(run)\n"
        "try: writer.gates('x', np.ones((1, 2)))\n"
        "except RunError as error: print(error)\n"
        "writer.finish()\n"
        "print(*open_run(run).verify())\n"
    )
    words = ["unshare", "-Urm", sys.executable, "-c", code, str(path), str(precious)]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        assert "not permitted" in done.stderr or "no mount" in done.stderr, done.stderr
        pytest.skip("this system lets nobody mount")
    said, fault = done.stdout.splitlines()
    assert said.startswith(f"write {path}/gates: is a mount")
    assert fault == "a/gates: a mount; links and mounts inside a run are not followed"


def test_every_part_of_a_path_is_checked(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("")
    assert inside(tmp_path, "a/b/c") == tmp_path / "a/b/c"
    assert inside(tmp_path, "x/y/z", make=True) == tmp_path / "x/y/z"
    assert (tmp_path / "x" / "y").is_dir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("link/b/c", "link/new", "link"):
        with pytest.raises(RunError, match=r"link: is a symbolic link"):
            inside(tmp_path, name)


def test_a_seal_tells_an_edited_header(tmp_path: Path) -> None:
    path = make(tmp_path / "a").path
    document = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(document | {"variant": "other"}))
    assert [(f.file, f.kind) for f in open_run(path).verify()] == [("run.json", "checksum")]
