"""Tables, figures and pages are written beside runs, never into one."""

from __future__ import annotations

import argparse
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from attnviz.cli import COMMANDS, Parser, run
from attnviz.errors import InputError
from attnviz.figures import save_png
from attnviz.report import write_report
from attnviz.runs import save_dataset
from attnviz.runs.outputs import outside_runs, write_output
from tests.runs.made import everything, make

ENDINGS = ("", ".csv", ".json", ".parquet", ".png", ".html")


def outputs() -> dict[str, argparse.Action]:
    """Every option of every command that names a file or a folder to write to."""
    found = {}
    for name in COMMANDS:
        parser = Parser(prog=name)
        import_module(f"attnviz.cli.{name}").arguments(parser)
        for action in parser._actions:
            made = getattr(action.type, "__module__", "") == "attnviz.cli.argument_types"
            if made and getattr(action.type, "__qualname__", "").startswith(("file", "folder")):
                found[f"{name} {action.option_strings[0]}"] = action
    return found


def test_the_options_that_name_an_output_are_known() -> None:
    assert set(outputs()) >= {"export --out", "report --out", "compare --figure", "watch --out"}


@pytest.mark.parametrize("place", ["{0}", "{0}/sub", "{0}/../a/maps", "{1}", "{1}/sub", "linked"])
def test_no_command_takes_a_place_inside_a_run_for_its_output(tmp_path: Path, place: str) -> None:
    run_path = make(tmp_path / "runs" / "a").path
    digest = save_dataset(
        tmp_path / "runs",
        images=np.zeros((1, 2, 2, 3), np.uint8),
        masks=np.zeros((1, 2, 2), bool),
        info={},
    )
    data = tmp_path / "runs" / "datasets" / digest
    (tmp_path / "linked").symlink_to(run_path)
    folder = tmp_path / "linked" if place == "linked" else Path(place.format(run_path, data))
    before = everything(tmp_path)
    for name, action in outputs().items():
        assert callable(action.type)
        refused = 0
        for ending in ENDINGS:
            with pytest.raises(argparse.ArgumentTypeError) as told:
                action.type(str(folder / f"x{ending}"))
            refused += "only its own files belong there" in str(told.value)
        assert refused, name
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "words", [["export", "--out"], ["report", "--out"], ["compare", "--figure"]]
)
@pytest.mark.parametrize("name", ["run.json", "new.{}", "maps/received.{}"])
def test_the_command_line_leaves_the_run_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], name: str
) -> None:
    path = make(tmp_path / "runs" / "a").path
    ending = {"export": "json", "report": "html", "compare": "png"}[words[0]]
    before = everything(tmp_path)
    command, option = words
    assert run([command, str(path), option, str(path / name.format(ending))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert everything(tmp_path) == before
    assert run(["export", str(path), "--out", str(tmp_path / "runs" / "run.json")]) == 2
    assert "is the header of a run; choose another name" in capsys.readouterr().err
    assert run(["export", str(path), "--out", str(tmp_path / "runs" / "table.json")]) == 0


def test_functions_refuse_it_too(tmp_path: Path) -> None:
    path = make(tmp_path / "runs" / "a").path
    before = everything(tmp_path)
    for attempt in (
        lambda: save_png(np.zeros((2, 2)), path / "x.png"),
        lambda: write_output(path / "deep" / "er" / "x", b""),
    ):
        with pytest.raises(InputError, match=r"^write .*is a run \(it has a run.json\), and only"):
            attempt()
    with pytest.raises(InputError, match=r"complete run|only its own files"):
        write_report(tmp_path / "runs", path / "x.html")
    assert everything(tmp_path) == before


def test_a_file_called_run_json_of_something_else_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"tasks": ["build"]}')
    assert outside_runs(tmp_path / "x.csv") == tmp_path / "x.csv"
    write_output(tmp_path / "new" / "x.csv", b"1\n")
    assert (tmp_path / "new" / "x.csv").read_bytes() == b"1\n"


def test_a_link_in_the_place_of_the_output_is_replaced_not_followed(tmp_path: Path) -> None:
    path = make(tmp_path / "runs" / "a").path
    (tmp_path / "x.json").symlink_to(path / "run.json")
    before = everything(path)
    write_output(tmp_path / "x.json", b"{}")
    assert everything(path) == before
    assert not (tmp_path / "x.json").is_symlink()
    shutil.rmtree(path)
