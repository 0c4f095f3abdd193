"""A header of an earlier form is written anew on request; what a run holds stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attnviz.errors import RunError
from attnviz.runs import migrate_run, open_run
from tests.runs.made import edit, everything, make


def test_migrating_seals_a_header_that_was_edited_and_keeps_the_edit(tmp_path: Path) -> None:
    path = make(tmp_path / "a").path
    edit(path, variant="renamed")
    before = everything(path)
    assert migrate_run(path)
    run = open_run(path)
    assert (run.state, run.variant, run.verify()) == ("complete", "renamed", [])
    assert "seal" in json.loads((path / "run.json").read_text())
    after = everything(path)
    assert {k: v for k, v in after.items() if k != "run.json"} == {
        k: v for k, v in before.items() if k != "run.json"
    }
    assert not migrate_run(path)


def test_migrating_replaces_the_former_name_of_a_level(tmp_path: Path) -> None:
    old = {"mean": 0.5, "chance": 0.1, "ceiling": 0.9}
    path = make(tmp_path / "a", summary={"metrics": {"received": {"iou": old}}}).path
    assert migrate_run(path)
    summary = open_run(path).summary
    assert summary["metrics"]["received"]["iou"] == {"mean": 0.5, "chance": 0.1, "redrawn": 0.9}
    assert open_run(path).verify() == []
    assert not migrate_run(path)


def test_a_run_of_today_has_nothing_to_migrate(tmp_path: Path) -> None:
    make(tmp_path / "a")
    before = everything(tmp_path)
    assert not migrate_run(tmp_path / "a")
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "summary", [{"metrics": 3}, {"metrics": {"m": 1}}, {"metrics": {"m": {"iou": [1]}}}, {}]
)
def test_a_summary_of_another_form_is_left_as_it_is(tmp_path: Path, summary: object) -> None:
    path = make(tmp_path / "a").path
    edit(path, summary=summary)
    assert migrate_run(path)
    assert open_run(path).summary == summary


def test_what_cannot_be_migrated_says_why(tmp_path: Path) -> None:
    path = make(tmp_path / "a").path
    edit(path, schema=99)
    with pytest.raises(RunError, match=r"migrate .*a: the run is newer \(written by a newer"):
        migrate_run(path)
    for schema in (0, -1, True, "1"):
        edit(path, schema=schema)
        with pytest.raises(RunError, match=r"the run is broken \(run.json: 'schema' should be"):
            migrate_run(path)
