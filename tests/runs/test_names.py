"""No name leads out of the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnviz.errors import InputError
from attnviz.runs import resume_run, start_run
from attnviz.runs.names import is_plain, is_relative

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
    with resume_run(tmp_path / "run") as writer, pytest.raises(InputError, match="name of maps"):
        writer.maps(name, np.zeros((1, 2, 2)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


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
