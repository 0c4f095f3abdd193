"""Tags, notes and named views beside the runs."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from attnviz.errors import InputError, RunError
from attnviz.runs import Note, name_view, note_image, note_run, read_notes, tag_images
from attnviz.runs.notes import NOTES


def test_a_folder_without_notes_has_none(tmp_path: Path):
    found = read_notes(tmp_path)
    assert not found.runs
    assert not found.images
    assert not found.views


def test_what_is_noted_is_read_back(tmp_path: Path):
    note_run(tmp_path, "mha-0", tags=["good", " good ", ""], note=" to be shown ")
    note_image(tmp_path, "abc", 7, tags=["blurred"])
    tag_images(tmp_path, "abc", [7, 9], "odd")
    name_view(tmp_path, "worst", "explore?run=mha-0")
    found = read_notes(tmp_path)
    assert found.runs == {"mha-0": Note(("good",), "to be shown")}
    assert found.images["abc"] == {7: Note(("blurred", "odd")), 9: Note(("odd",))}
    assert found.tags_of_images("abc") == ["blurred", "odd"]
    assert found.views == {"worst": "explore?run=mha-0"}


def test_an_empty_note_is_removed(tmp_path: Path):
    note_run(tmp_path, "mha-0", tags=["good"])
    assert note_run(tmp_path, "mha-0").runs == {}
    tag_images(tmp_path, "abc", [1], "odd")
    assert tag_images(tmp_path, "abc", [1], "odd", on=False).images["abc"] == {}
    name_view(tmp_path, "v", "gallery?")
    assert name_view(tmp_path, "v", None).views == {}


def test_readers_who_write_at_once_lose_nothing(tmp_path: Path):
    def write(reader: int) -> None:
        for i in range(5):
            tag_images(tmp_path, "abc", [reader], f"t{i}")

    readers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for one in readers:
        one.start()
    for one in readers:
        one.join()
    found = read_notes(tmp_path).images["abc"]
    assert {n: sorted(note.tags) for n, note in found.items()} == {
        n: [f"t{i}" for i in range(5)] for n in range(4)
    }
    assert [path.name for path in tmp_path.iterdir()] == [NOTES]  # nothing half-written is left


@pytest.mark.parametrize("content", ["[]", "{", '{"schema": 2}', '{"schema": 1, "runs": []}'])
def test_a_file_that_is_no_notes_is_named_and_left_as_it_is(content: str, tmp_path: Path):
    (tmp_path / NOTES).write_text(content)
    with pytest.raises(RunError, match=r"notes\.json"):
        read_notes(tmp_path)
    with pytest.raises(RunError, match=r"notes\.json"):
        note_run(tmp_path, "mha-0", tags=["x"])
    assert (tmp_path / NOTES).read_text() == content


def test_entries_of_a_wrong_type_count_as_none(tmp_path: Path):
    content = {
        "schema": 1, "runs": {"a": 3, "b": {"tags": [1, "x"], "note": 2}},
        "images": {"abc": {"one": {}, "2": {"tags": "x"}}, "d": 3}, "views": {"v": 1},
    }  # fmt: skip
    (tmp_path / NOTES).write_text(json.dumps(content))
    found = read_notes(tmp_path)
    assert found.runs == {"a": Note(), "b": Note(("x",))}
    assert found.images == {"abc": {2: Note()}}
    assert found.views == {}


def test_what_is_too_long_is_refused(tmp_path: Path):
    for given in ({"tags": ["x" * 41]}, {"note": "x" * 2001}, {"tags": [*map(str, range(21))]}):
        with pytest.raises(InputError, match="at most"):
            note_run(tmp_path, "mha-0", **given)
    with pytest.raises(InputError, match="expected a name"):
        name_view(tmp_path, "  ", "gallery?")
    with pytest.raises(InputError, match="local folder"):
        note_run("memory://shared", "mha-0", tags=["x"])


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path):
    outside = tmp_path / "outside.json"
    outside.write_text('{"schema": 1}')
    root = tmp_path / "runs"
    root.mkdir()
    (root / NOTES).symlink_to(outside)
    with pytest.raises(RunError):
        note_run(root, "mha-0", tags=["x"])
    assert outside.read_text() == '{"schema": 1}'
