"""No name leads out of the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnviz.errors import InputError
from attnviz.runs import amend_run, open_run, start_run
from attnviz.runs.names import array_file, array_name, is_plain, is_relative
from tests.runs.made import everything, make

BAD = ["", ".", "..", "../up", "a/b", "/abs", "a\x00b", "a\nb", "\x1b[31m", ".hidden", "dot.",
       "a\\b", "C:x", "é", "<script>", "a b", "x" * 121, "-rf"]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_run_id_that_is_no_plain_name_is_refused_before_anything_is_made(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError, match=r"^run id .*: expected up to 120 of the characters"):
        start_run(tmp_path / "runs", name, variant="mha", settings={}, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_test_images_is_no_run_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds the test images"):
        start_run(tmp_path, "datasets", variant="mha", settings={}, seed=0)


@pytest.mark.parametrize(
    "name", [*(name for name in BAD if name != "a/b"), "a//b", "a/../b", "a/./b", "a/b/c/d/e", "a/"]
)
def test_a_file_name_stays_inside_the_run(tmp_path: Path, name: str) -> None:
    with start_run(tmp_path, "run", variant="mha", settings={}, seed=0) as writer:
        for refused in (writer.file, writer.drop, lambda n: writer.write(n, b"")):
            with pytest.raises(InputError, match=r"^file name .*inside the run$"):
                refused(name)
        writer.stop("done")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("name", ["a\x00b", "a\nb", "\x1b[31m", "x" * 121, "é" * 21, "\ud800"])
def test_an_array_name_that_could_not_be_read_back_is_refused_before_anything_is_written(
    tmp_path: Path, name: object
) -> None:
    made = make(tmp_path / "run")
    before = everything(tmp_path)
    with amend_run(made.path) as writer:
        for room, shape in (("maps", (1, 2, 2)), ("gates", (1, 2)), ("rows", (1, 1, 2, 2))):
            with pytest.raises(InputError, match=rf"^name of {room} .*printable text of up to 120"):
                getattr(writer, room)(name, np.zeros(shape))
        writer.stop("looked")
    assert everything(tmp_path) == before
    with pytest.raises(InputError, match="name of rows"):
        make(tmp_path / "b", rows={"good": np.zeros((1, 1, 2, 2)), name: np.zeros((1, 1, 2, 2))})
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "1#1",
            "blocks.0.attn#12",
            "mha__v2",
            "größe",
            "a b",
            "a/b",
            "../up",
            "/abs",
            "..",
            ".",
        ),
        *(".hidden", "dot.", "a\\b", "C:x", "<script>", "-rf", "%41", "100%", "~", "x.2", "a?b*"),
        *("x" * 120, "x" * 109, "é" * 20, "x.safetensors", "con", "图"),
    ],
)
def test_an_array_name_that_is_accepted_can_be_read_back_and_replaced(
    tmp_path: Path, name: str
) -> None:
    run = make(tmp_path / "run", maps={name: np.ones((6, 2, 2)), "x": np.ones((6, 2, 2))})
    assert run.map_names == (name, "x")
    for value in (2.0, 3.0, 4.0):
        with amend_run(run.path) as writer:
            writer.maps(name, np.full((6, 2, 2), value))
            writer.gates(name, np.full((6, 2), value))
            writer.rows(name, np.full((1, 1, 2, 2), value), about={"layer": name})
        run = open_run(run.path)
        assert (run.state, run.reason, run.verify()) == ("complete", "", [])
        assert np.unique(run.maps(name)).tolist() == [value]
        assert np.unique(run.gates(name)).tolist() == [value]
        assert run.row_images(name) == (0,)
        assert run.about(f"rows/{name}") == {"layer": name}
    inside = run.path / "maps"
    assert {p.parent for p in tmp_path.rglob("*.safetensors")} == {
        run.path, inside, run.path / "gates", run.path / "rows"
    }  # fmt: skip
    assert not list(tmp_path.rglob(".*"))


def test_names_that_differ_in_case_alone_are_two_files_everywhere(tmp_path: Path) -> None:
    run = make(tmp_path / "a", maps={"Attend": np.ones((6, 2, 2)), "attend": np.zeros((6, 2, 2))})
    places = [file.at.casefold() for file in run.files.values()]
    assert len(set(places)) == len(places)
    assert run.maps("Attend").min() == 1
    assert run.maps("attend").max() == 0


@given(st.text(max_size=40))
def test_the_file_of_an_array_name_leads_back_to_the_name(name: str) -> None:
    try:
        path = array_file("maps", name)
    except InputError:
        return
    assert array_name("maps", path) == name
    assert is_relative(path)
    assert path.isascii()


@given(st.text(alphabet="%0123456789abcDEF./~é", max_size=12))
def test_a_file_that_no_array_name_gives_is_no_array(encoded: str) -> None:
    """Two files never stand for one name."""
    name = array_name("maps", f"maps/{encoded}.safetensors")
    if name is not None:
        assert array_file("maps", name) == f"maps/{encoded}.safetensors"


@pytest.mark.parametrize(
    "name", ["run.json", "curves.jsonl", "samples.parquet", "maps/x", "rows/y"]
)
def test_what_the_writer_keeps_itself_cannot_be_overwritten_as_a_file(
    tmp_path: Path, name: str
) -> None:
    with start_run(tmp_path, "run", variant="mha", settings={}, seed=0) as writer:
        with pytest.raises(InputError, match="the writer keeps that one itself"):
            writer.write(name, b"")
        with pytest.raises(InputError, match="the writer keeps that one itself"):
            writer.file(name)


@given(st.text())
def test_a_plain_name_joined_to_a_folder_is_a_child_of_it(name: str) -> None:
    if is_plain(name):
        assert (Path("/runs") / name).resolve().parent == Path("/runs")
    if is_relative(name):
        assert (Path("/runs") / name).resolve().is_relative_to("/runs")
