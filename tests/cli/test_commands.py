"""The commands about runs, as they are called from a shell."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest

from attnviz.cli import run
from attnviz.runs import start_run
from tests.runs.made import N, edit, make


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make(tmp_path / "cbam-0", variant="cbam", settings={"patch": {"size": 8}, "epochs": 3})
    make(tmp_path / "mha-0")
    make(tmp_path / "new")
    edit(tmp_path / "new", schema=99)
    start_run(tmp_path, "stopped", variant="mha", settings={}, seed=0).stop("ctrl-c")
    (tmp_path / "empty").mkdir()
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_ls_lists_states_and_reasons(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ls", str(runs)]) == 0
    out = shown(capsys)
    head, *lines = out.splitlines()
    assert head.split() == ["id", "state", "variant", "seed", "accuracy", "created", "reason"]
    assert [line.split()[:2] for line in lines[:4]] == [
        ["cbam-0", "complete"], ["mha-0", "complete"], ["new", "newer"], ["stopped", "stopped"],
    ]  # fmt: skip
    assert "written by a newer attnviz (99 > 1)" in out
    assert "4 runs: 2 complete, 1 stopped, 1 newer" in out
    assert "left out: empty (no run.json)" in out


def test_ls_says_how_far_a_running_run_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_run(tmp_path, "a", variant="mha", settings={}, seed=0) as writer:
        writer.heartbeat(epoch=3, epochs=50, loss=0.1)
        assert run(["ls", str(tmp_path)]) == 0
        writer.stop("")
    assert "epoch 3 of 50" in shown(capsys)


def test_ls_can_be_narrowed_and_read_by_machines(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ls", str(runs), "--json", "--state", "stopped", "--state", "newer"]) == 0
    found = json.loads(shown(capsys))
    assert [(r["id"], r["state"]) for r in found["runs"]] == [
        ("new", "newer"), ("stopped", "stopped"),
    ]  # fmt: skip
    assert found["left_out"] == {"empty": "no run.json"}


def test_show_prints_what_a_run_says(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(runs / "mha-0")]) == 0
    out = shown(capsys)
    for words in ("mha-0: complete", "patch.size  16", "accuracy  0.980", "received  iou     0.500",
                  "maps/heads.safetensors", "6 × 2 × 4 × 4"):  # fmt: skip
        assert words in out
    assert run(["show", str(runs / "mha-0"), "--json"]) == 0
    found = json.loads(shown(capsys))
    assert found["settings"] == {"patch": {"size": 16}, "epochs": 3}
    assert found["files"]["samples.parquet"]["size"] > 0


def test_show_says_1_of_a_run_that_is_newer_or_broken(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["show", str(runs / "new")]) == 1
    assert "new: newer (written by a newer attnviz (99 > 1))" in shown(capsys)
    (runs / "mha-0" / "samples.parquet").unlink()
    assert run(["show", str(runs / "mha-0")]) == 1
    assert "mha-0: broken (samples.parquet: missing)" in shown(capsys)


def test_diff_prints_only_what_differs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(runs / "cbam-0"), str(runs / "mha-0")]
    assert run(["diff", *pair]) == 0
    assert [line.split() for line in shown(capsys).splitlines()] == [
        ["setting", "cbam-0", "mha-0"], ["variant", "cbam", "mha"], ["patch.size", "8", "16"],
    ]  # fmt: skip
    assert run(["diff", *pair, "--json", "--environment"]) == 0
    assert json.loads(shown(capsys)) == {
        "runs": ["cbam-0", "mha-0"],
        "differences": {"variant": ["cbam", "mha"], "patch.size": [8, 16]},
    }
    assert run(["diff", pair[0], pair[0]]) == 0
    assert shown(capsys) == "no difference\n"


def test_export_joins_the_complete_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(runs)]) == 0
    out, err = capsys.readouterr()
    frame = pd.read_csv(io.StringIO(out))
    assert frame.columns.tolist()[:3] == ["run", "variant", "seed"]
    assert frame["run"].tolist() == ["cbam-0"] * N + ["mha-0"] * N
    assert err == "attnviz: left out 2 runs that are not complete\n"


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
@pytest.mark.parametrize(("table", "rows"), [("samples", 2 * N), ("scores", 2), ("curves", 6)])
def test_export_writes_every_table_in_every_format(
    runs: Path, tmp_path: Path, suffix: str, table: str, rows: int
) -> None:
    out = tmp_path / f"out{suffix}"
    assert run(["export", str(runs), "--table", table, "--out", str(out)]) == 0
    read = {".csv": pd.read_csv, ".json": pd.read_json, ".parquet": pd.read_parquet}[suffix]
    frame = read(out)
    assert len(frame) == rows
    assert frame["variant"].unique().tolist() == ["cbam", "mha"]


def test_export_prints_json_on_request(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(runs), "--table", "scores", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "run": "cbam-0", "variant": "cbam", "seed": 0,
        "map": "received", "metric": "iou", "mean": 0.5, "low": 0.4, "high": 0.6,
    }  # fmt: skip


def test_verify_finds_nothing_or_names_the_fault(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(runs / "new", schema=1)
    assert run(["verify", str(runs)]) == 0
    assert shown(capsys) == "4 runs, all well\n"
    (runs / "new" / "model.safetensors").write_bytes(b"")
    assert run(["verify", str(runs)]) == 1
    out = shown(capsys)
    assert "size  new/model.safetensors: expected" in out
    assert "4 runs, 1 faults" in out
    assert run(["verify", str(runs), "--json"]) == 1
    assert json.loads(shown(capsys))[0]["file"] == "model.safetensors"


def test_migrate_writes_edited_headers_anew(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    edit(make(runs / "old").path, variant="renamed")
    assert run(["migrate", str(runs)]) == 1
    out = shown(capsys)
    assert "old: header written anew" in out
    assert "mha-0: is up to date" in out
    assert f"new: failed: migrate {runs}/new: the run is newer" in out
    shutil.rmtree(runs / "new")
    assert run(["migrate", str(runs), "--json"]) == 0
    assert json.loads(shown(capsys))["old"] == "is up to date"
    assert run(["show", str(runs / "old")]) == 0
    assert "renamed" in shown(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ls", "none"], "list none: no such file or folder"),
        (["show", "."], "open .: no run here (expected a run.json)"),
        (["show", "none"], "list none: no such file or folder"),
        (["diff", "mha-0"], "diff: expected two runs or more, got 1"),
        (["diff", "mha-0", "none"], "list none: no such file or folder"),
        (["export", "empty"], "export empty: no complete run among 0"),
        (["export", ".", "--out", "x.xls"], "argument --out: expected a name that ends in .csv"),
        (["export", ".", "--out", "no\0/x.csv"], None),
        (["verify", "none"], "list none: no such file or folder"),
        (["migrate", "none"], "list none: no such file or folder"),
        (["lss", "."], "unknown command 'lss': did you mean 'ls'?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    runs: Path,
    words: list[str],
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs)
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"attnviz: {message or ''}")


@pytest.mark.parametrize("words", [["ls"], ["ls", "a", "b"], ["ls", ".", "--state", "x"], []])
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert (
        (f"attnviz {words[0]} --help lists its arguments" in err)
        if words
        else ("usage: attnviz" in out)
    )


def test_debug_shows_where_an_error_came_from(runs: Path) -> None:
    from attnviz.errors import RunError

    for words in (["ls", "none", "--debug"], ["--debug", "ls", "none"]):
        with pytest.raises(RunError):
            run(words)


def test_an_unexpected_error_is_one_line_too(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import attnviz.cli.ls

    def broken(root: object) -> None:
        raise ZeroDivisionError("a bug\x1b[31m")

    monkeypatch.setattr(attnviz.cli.ls, "list_runs", broken)
    assert run(["ls", str(runs)]) == 2
    assert capsys.readouterr().err == (
        "attnviz: unexpected ZeroDivisionError: a bug\\x1b[31m; --debug shows where it came from\n"
    )
    with pytest.raises(ZeroDivisionError):
        run(["ls", str(runs), "--debug"])


def test_what_a_stranger_wrote_is_shown_and_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;gone\x07\r\n\u202eevil"
    make(tmp_path / "a", variant=evil, settings={evil: evil}, summary={evil: [evil]})
    make(tmp_path / "b").path.rename(tmp_path / "b\x1b[2J")
    for words in (["ls", str(tmp_path)], ["show", str(tmp_path / "a")],
                  ["diff", str(tmp_path / "a"), str(tmp_path / "a")]):  # fmt: skip
        assert run(words) == 0
        out = shown(capsys)
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(out)


def test_numbers_that_are_none_are_null_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a")
    text = (tmp_path / "a" / "run.json").read_text().replace("0.98", "1e999")
    (tmp_path / "a" / "run.json").write_text(text)
    assert run(["ls", str(tmp_path), "--json"]) == 0
    assert json.loads(shown(capsys))["runs"][0]["accuracy"] is None
