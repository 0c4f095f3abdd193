"""Renaming and deleting whole runs, and the way back."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from attnviz.errors import InputError, RunError
from attnviz.runs import (
    BusyError,
    delete_run,
    list_runs,
    rename_run,
    restore_run,
    save_run,
    start_run,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two small runs."""
    for name in ("one", "two"):
        table = pd.DataFrame({"index": [0]})
        save_run(tmp_path / name, variant="mha", settings={}, seed=0, samples=table)
    return tmp_path


def ids(root: Path) -> list[str]:
    return [run.id for run in list_runs(root)]


def test_a_deleted_run_comes_back_whole(root: Path):
    before = {p.name: p.read_bytes() for p in (root / "one").iterdir() if p.is_file()}
    token = delete_run(root, "one")
    assert ids(root) == ["two"]
    assert restore_run(root, token) == "one"
    assert ids(root) == ["one", "two"]
    after = {p.name: p.read_bytes() for p in (root / "one").iterdir() if p.is_file()}
    assert after == before
    assert list_runs(root)[0].verify() == []


def test_a_name_may_be_deleted_twice(root: Path):
    first = delete_run(root, "one")
    rename_run(root, "two", "one")
    second = delete_run(root, "one")
    assert first != second
    restore_run(root, first)
    with pytest.raises(RunError, match="there already"):
        restore_run(root, second)
    assert ids(root) == ["one"]


def test_a_name_that_is_taken_or_invalid_is_refused(root: Path):
    with pytest.raises(RunError, match="there already"):
        rename_run(root, "one", "two")
    for name in ("../out", "", "a/b", "datasets", ".hidden"):
        with pytest.raises(InputError):
            rename_run(root, "one", name)
    for token in ("../one~ab", "one", "one~../x", "gone~abcd"):
        with pytest.raises((RunError, InputError)):
            restore_run(root, token)
    assert ids(root) == ["one", "two"]


def test_a_run_that_is_being_written_stays(root: Path):
    with start_run(root, "now", variant="mha", settings={}, seed=0) as writer:
        with pytest.raises(BusyError):
            delete_run(root, "now")
        with pytest.raises(BusyError):
            rename_run(root, "now", "other")
        writer.stop("enough")
    delete_run(root, "now")
    assert ids(root) == ["one", "two"]


def test_links_are_not_followed(root: Path, tmp_path_factory: pytest.TempPathFactory):
    outside = tmp_path_factory.mktemp("outside")
    (root / "one").rename(outside / "one")
    (root / "link").symlink_to(outside / "one")
    with pytest.raises(RunError, match="link"):
        delete_run(root, "link")
    (root / ".deleted").symlink_to(outside)
    with pytest.raises(RunError, match="link"):
        delete_run(root, "two")
    assert sorted(p.name for p in outside.iterdir()) == ["one"]
    assert (root / "two").is_dir()


def test_a_listing_takes_over_what_has_not_changed(root: Path):
    first = list_runs(root)
    known = {run.id: run for run in first}
    again = list_runs(root, known=known)
    assert all(a is b for a, b in zip(first, again, strict=True))
    table = pd.DataFrame({"index": [0, 1]})
    delete_run(root, "one")
    save_run(root / "one", variant="other", settings={}, seed=0, samples=table)
    third = list_runs(root, known=known)
    assert third[0].variant == "other"
    assert third[1] is first[1]
    next(iter((root / "two").glob("samples*"))).unlink()
    assert list_runs(root, known=known)[1].state == "broken"
