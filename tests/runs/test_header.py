"""run.json: judged by every field, trusted in none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnviz.errors import InputError, RunError
from attnviz.runs import STALE_AFTER, list_runs, open_run, start_run
from attnviz.runs.documents import plain
from attnviz.runs.header import parse, this_writer
from tests.runs.made import edit, make

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("schema", "status", "variant", "seed", "settings", "environment", "summary", "progress",
          "dataset", "created", "heartbeat", "writer", "files", "reason")  # fmt: skip
GOOD = {"schema": 1, "status": "complete", "files": {"samples.parquet": {"bytes": 1}}}


@given(values)
def test_any_json_is_parsed_or_refused(value: Any) -> None:
    with suppress(RunError):
        parse(json.dumps(value).encode())


@given(changes=st.dictionaries(st.sampled_from(FIELDS), values))
def test_a_good_header_with_any_field_replaced_lists_as_some_state(
    changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("runs")
    (root / "a").mkdir()
    (root / "a" / "run.json").write_text(json.dumps(GOOD | changes))
    (run,) = list_runs(root)
    assert run.state in ("complete", "running", "stale", "stopped", "broken", "newer")
    assert run.state in ("complete", "running") or run.reason
    assert run.verify() is not None
    assert isinstance(repr(run), str)


@given(content=st.binary(max_size=300))
def test_any_bytes_list_as_broken(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("runs")
    (root / "a").mkdir()
    (root / "a" / "run.json").write_bytes(content)
    (run,) = list_runs(root)
    assert run.state == "broken"
    assert run.reason.startswith("run.json: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "run.json: not JSON (truncated or corrupt)"),
        (b'{"schema": 1, "sta', "run.json: not JSON (truncated or corrupt)"),
        (b"\xff\xfe\x00", "run.json: not JSON (truncated or corrupt)"),
        (b"[" * 100_000, "run.json: not JSON (truncated or corrupt)"),
        (b"[]", "run.json: expected an object, got list"),
        (b"{}", "run.json: 'schema' should be a whole number from 1"),
        (b'{"schema": true}', "run.json: 'schema' should be a whole number from 1"),
        (b'{"schema": 1}', "run.json: 'status' should be one of running, stopped, complete"),
        (b'{"schema": 1, "status": "complete", "seed": 0.5}',
         "run.json: 'seed' should be a whole number"),
        (b'{"schema": 1, "status": "complete", "settings": []}',
         "run.json: 'settings' should be an object, got list"),
        (b'{"schema": 1, "status": "complete", "variant": 3}',
         "run.json: 'variant' should be text, got int"),
        (b'{"schema": 1, "status": "complete", "dataset": "../x"}',
         "run.json: 'dataset' should be a digest"),
        (b'{"schema": 1, "status": "complete", "created": "yesterday"}',
         "run.json: 'created' should be an ISO 8601 time"),
        (b'{"schema": 1, "status": "complete", "files": {"../x": {"bytes": 1}}}',
         "run.json: lists a file outside the run, '../x'"),
        (b'{"schema": 1, "status": "complete", "files": {"x": {"bytes": 1, "at": "/etc/passwd"}}}',
         "run.json: the entry of 'x' makes no sense"),
        (b'{"schema": 1, "status": "complete", "files": {"x": {"bytes": -1}}}',
         "run.json: the entry of 'x' makes no sense"),
        (b'{"schema": 1, "status": "complete", "files": {"x": {"bytes": 1}}}',
         "run.json: the entry of 'x' makes no sense"),
        (b'{"schema": 1, "status": "complete", "files": {"x": {"bytes": 1, "sha256": ""}}}',
         "x: missing"),
        (b'{"schema": 1, "status": "complete", "classes": [1]}',
         "run.json: 'classes' should be a list of names"),
        (b'{"schema": 1, "status": "complete", "classes": "ab"}',
         "run.json: 'classes' should be a list, got str"),
    ],
)  # fmt: skip
def test_a_broken_header_says_what_is_wrong(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_bytes(content)
    run = open_run(tmp_path / "a")
    assert (run.state, run.reason) == ("broken", reason)


def test_a_newer_schema_is_no_fault_of_the_run(tmp_path: Path) -> None:
    make(tmp_path / "a")
    edit(tmp_path / "a", schema=99)
    run = open_run(tmp_path / "a")
    assert (run.state, run.reason) == ("newer", "written by a newer attnviz (99 > 1)")
    assert [f.kind for f in run.verify()] == ["newer"]
    edit(tmp_path / "a", schema=10**200)
    assert open_run(tmp_path / "a").reason == (
        "written by a newer attnviz (a very large number > 1)"
    )


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


ELSEWHERE = {"host": "another-machine", "pid": 1, "namespace": 7}


def test_a_fresh_heartbeat_is_running_and_an_old_one_stale(tmp_path: Path) -> None:
    start_run(tmp_path, "a", variant="mha", settings={}, seed=0)
    edit(tmp_path / "a", writer=ELSEWHERE, heartbeat=ago(1))
    assert open_run(tmp_path / "a").state == "running"
    edit(tmp_path / "a", heartbeat=ago(2 * STALE_AFTER))
    run = open_run(tmp_path / "a")
    assert (run.state, run.reason) == ("stale", "no heartbeat for 10 min")
    edit(tmp_path / "a", heartbeat=None)
    assert open_run(tmp_path / "a").state == "stale"


def test_a_clock_that_went_backwards_makes_nothing_stale(tmp_path: Path) -> None:
    start_run(tmp_path, "a", variant="mha", settings={}, seed=0)
    edit(tmp_path / "a", writer=ELSEWHERE, created=ago(-9e6), heartbeat=ago(-8e6))
    run = open_run(tmp_path / "a")
    assert (run.state, run.reason) == ("running", "")
    edit(tmp_path / "a", heartbeat="9999-12-31T23:59:59+00:00")
    assert open_run(tmp_path / "a").state == "running"
    edit(tmp_path / "a", heartbeat="0001-01-01T00:00:00+14:00")
    assert open_run(tmp_path / "a").state in ("stale", "broken")


def test_a_clock_that_jumps_back_while_a_run_is_written_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnviz.runs import header
    from attnviz.runs import writer as writing

    with start_run(tmp_path, "a", variant="mha", settings={}, seed=0) as writer:
        writer.curve(epoch=1)
        past = iter(ago(seconds) for seconds in (1e7, 2e7, 3e7, 4e7))
        monkeypatch.setattr(writing, "now", lambda: next(past))
        writer.maps("m", np.ones((1, 2, 2)))
        run = writer.finish({"accuracy": 1.0})
    assert run.state == "complete"
    assert run.heartbeat is not None
    assert run.created is not None
    assert run.heartbeat < run.created
    assert run.verify() == []
    assert header.judged(parse((tmp_path / "a" / "run.json").read_bytes()))[0] == "complete"


def test_a_run_whose_process_died_on_this_machine_is_stale_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from attnviz.runs import start_run;"
        "start_run(sys.argv[1], 'a', variant='mha', settings={}, seed=0); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    run = open_run(tmp_path / "a")
    assert run.state == "stale"
    assert run.reason.endswith("is gone")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_a_run_whose_dead_process_nobody_has_reaped_is_stale_at_once(tmp_path: Path) -> None:
    code = """
import os, sys
from attnviz.runs import open_run, start_run
if (child := os.fork()) == 0:
    start_run(sys.argv[1], "a", variant="mha", settings={}, seed=0)
    os._exit(9)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
os.kill(child, 0)  # the system says that it is there
print(open_run(sys.argv[1] + "/a").state)
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "stale\n", done.stderr


def test_a_run_of_this_process_is_running(tmp_path: Path) -> None:
    writer = start_run(tmp_path, "a", variant="mha", settings={}, seed=0)
    assert open_run(writer.path).state == "running"
    assert this_writer()["pid"] == os.getpid()


@pytest.mark.parametrize("pid", [0, -1, 2**40, "7", None, True])
def test_a_nonsense_process_id_is_asked_nothing(tmp_path: Path, pid: object) -> None:
    start_run(tmp_path, "a", variant="mha", settings={}, seed=0)
    edit(tmp_path / "a", writer={**this_writer(), "pid": pid})
    assert open_run(tmp_path / "a").state == "running"


def test_plain_unpacks_what_settings_are_made_of() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Patch:
        size: int
        where: Path

    given = {
        "patch": Patch(16, Path("a/b")),
        "rate": np.float32(0.5),
        "count": np.int64(3),
        "nan": float("nan"),
        "inf": np.inf,
        "grid": np.eye(2),
        "one": np.array(1),
        "names": {"b", "a"},
        "pair": (1, 2),
        "when": datetime(2024, 1, 2, tzinfo=UTC),
    }
    assert plain(given, "settings") == {
        "patch": {"size": 16, "where": "a/b"},
        "rate": 0.5,
        "count": 3,
        "nan": None,
        "inf": None,
        "grid": [[1.0, 0.0], [0.0, 1.0]],
        "one": 1,
        "names": ["a", "b"],
        "pair": [1, 2],
        "when": "2024-01-02T00:00:00+00:00",
    }


def test_what_json_cannot_hold_is_refused_by_its_place() -> None:
    with pytest.raises(
        InputError,
        match=r"^settings\.model\[1\]: expected numbers, text, lists or dicts, got function$",
    ):
        plain({"model": [1, make]}, "settings")
