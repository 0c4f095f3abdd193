"""An older schema opens as it lies, and is written anew on request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from attnviz.errors import RunError
from attnviz.runs import SCHEMA, list_runs, migrate_run, open_run
from attnviz.runs.migrations import upgraded
from tests.runs.made import edit, everything, make

OLD = Path(__file__).parent / "schema_0"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_a_run_of_schema_0_opens_as_it_lies(old: Path) -> None:
    before = everything(old)
    run = open_run(old)
    assert (run.state, run.reason, run.schema) == ("complete", "", 0)
    assert (run.variant, run.seed) == ("cbam", 4)
    assert run.settings == {"epochs": 2, "patch": {"size": 16}}
    assert run.summary == {"accuracy": 0.75}
    assert run.created is not None
    assert run.created.isoformat() == "2023-11-14T22:13:20+00:00"
    assert run.curves()["train_loss"].tolist() == [0.7, 0.6]
    assert run.samples()["received/iou"].tolist() == [0.25, 0.5, 0.75]
    assert run.maps("received").tolist() == [[[0, 1], [2, 4]]] * 3
    assert {fault.kind for fault in run.verify()} == {"unchecked"}
    assert everything(old) == before


def test_migrating_writes_it_under_the_present_schema_with_checksums(old: Path) -> None:
    before = open_run(old)
    assert migrate_run(old)
    run = open_run(old)
    assert json.loads((old / "run.json").read_text())["schema"] == SCHEMA
    assert run.verify() == []
    assert all(file.sha256 for file in run.files.values())
    for name in ("variant", "seed", "settings", "summary", "created", "state"):
        assert getattr(run, name) == getattr(before, name)
    assert run.maps("received").tolist() == before.maps("received").tolist()
    assert not migrate_run(old)


def test_a_run_of_today_has_nothing_to_migrate(tmp_path: Path) -> None:
    make(tmp_path / "a")
    before = everything(tmp_path)
    assert not migrate_run(tmp_path / "a")
    assert everything(tmp_path) == before


def test_what_cannot_be_migrated_says_why(old: Path) -> None:
    edit(old, schema=99)
    with pytest.raises(RunError, match=r"migrate .*old: the run is newer \(written by a newer"):
        migrate_run(old)
    edit(old, schema=0, files={"samples.parquet": 1})
    with pytest.raises(RunError, match=r"the run is broken \(samples.parquet: expected 1 bytes"):
        migrate_run(old)


@pytest.mark.parametrize("field", [{"files": 3}, {"time": "noon"}, {"time": 1e300}, {"config": 1}])
def test_a_broken_old_header_is_broken(old: Path, field: dict[str, object]) -> None:
    edit(old, **field)
    (run,) = list_runs(old)
    assert run.state == "broken"
    assert run.reason.startswith("run.json: ")


def test_every_older_schema_has_a_step() -> None:
    for schema in range(SCHEMA):
        assert upgraded({"schema": schema})["schema"] == SCHEMA
