"""`attnviz compare` and `attnviz report`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attnviz.cli import run
from tests.comparison.written import dataset, write_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for variant, energy in (("mha", 0.7), ("cnn", 0.3)):
        for seed in range(3):
            write_run(root, variant, seed, energy=energy)
    return root


def test_compare_prints_the_ranking(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(root), "--resamples", "100"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("energy pointing game on 8 images, 3 seeds\n")
    assert "mha looks at the object most: energy 0." in out


def test_compare_takes_single_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(root / "mha-0"), str(root / "cnn-0"), "--resamples", "100"]) == 0
    out = capsys.readouterr().out
    assert "one training each: energy mha 0." in out
    assert "looks at the object most" not in out


def test_json_is_json_and_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(root), "--json", "--resamples", "100"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["winner"] == "mha"
    assert {row["variant"] for row in told["table"]} == {"mha", "cnn"}


@pytest.mark.parametrize(
    ("flag", "start"),
    [
        ("--csv", "variant,metric,mean,low,high,"),
        ("--markdown", "| rank | variant | energy pointing game | pointing game | accuracy |"),
        ("--latex", "\\begin{table}"),
    ],
)
def test_other_forms(root: Path, capsys: pytest.CaptureFixture[str], flag: str, start: str) -> None:
    assert run(["compare", str(root), flag, "--resamples", "100"]) == 0
    assert capsys.readouterr().out.startswith(start)


def test_metrics_and_primary_can_be_chosen(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--primary", "pointing_game", "--metrics", "energy_pointing_game", "--markdown"]
    assert run(["compare", str(root), *words, "--resamples", "100"]) == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert header == "| rank | variant | pointing game | energy pointing game | accuracy |"


def test_the_figure_is_written(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "dots.png"
    assert run(["compare", str(root), "--figure", str(path), "--resamples", "100"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_name_cannot_command_the_terminal(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(root, "\x1b[31mred\x07", name="red")
    assert run(["compare", str(root), "--resamples", "100"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31mred\\x07" in out


def test_what_may_not_be_ranked_is_bad_input(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(root, "cbam", digest=dataset(root, 15))
    assert run(["compare", str(root)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("attnviz: compare: cannot rank runs measured on different")
    assert captured.err.count("\n") == 1


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_report_writes_the_page_and_says_where(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert run(["report", str(root), "--out", str(out), "--title", "Mine"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "<h1>Mine</h1>" in out.read_text()


def test_report_ranks_runs_on_other_images_apart(root: Path, tmp_path: Path) -> None:
    write_run(root, "cbam", digest=dataset(root, 15))
    out = tmp_path / "page.html"
    assert run(["report", str(root), "--out", str(out)]) == 0
    assert 'id="question-2-ranking"' in out.read_text()


def test_report_without_runs_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    assert run(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "page.html")]) == 2
    assert not (tmp_path / "page.html").exists()
    assert "at least one complete run, got no run at all" in capsys.readouterr().err


def test_report_of_a_metric_that_no_run_has_says_so_on_the_page_too(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert run(["report", str(root), "--out", str(out), "--primary", "odd"]) == 1
    assert "not ranked: unknown metric 'odd'" in capsys.readouterr().err
    page = out.read_text()
    assert "Not ranked. </strong>unknown metric" in page
    assert "has no &#x27;odd&#x27; of the map" in page
