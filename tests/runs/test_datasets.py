"""Test images, kept once per content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnviz.errors import InputError, RunError
from attnviz.runs import list_datasets, open_dataset, open_run, save_dataset, verify
from tests.runs.made import everything, make


def given(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8),
        "masks": rng.random((5, 8, 8)) > 0.5,
        "boxes": rng.integers(0, 8, (5, 4)),
        "labels": np.array([0, 1, 0, 1, 0]),
    }


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    digest = save_dataset(tmp_path, info={"source": "photos"}, **given())
    found, arrays = open_dataset(tmp_path, digest), given()
    assert (found.digest, found.count, found.info) == (digest, 5, {"source": "photos"})
    np.testing.assert_array_equal(found.images(), arrays["images"])
    np.testing.assert_array_equal(found.images([3, 1]), arrays["images"][[3, 1]])
    np.testing.assert_array_equal(found.masks([4]), arrays["masks"][[4]])
    np.testing.assert_array_equal(found.boxes(), arrays["boxes"])
    np.testing.assert_array_equal(found.labels(), arrays["labels"])
    for array in (found.images(), found.masks([1]), found.boxes(), found.labels()):
        assert array.flags.writeable
    assert (found.images().dtype, found.masks().dtype) == (np.uint8, np.bool_)
    assert list_datasets(tmp_path) == (digest,)


def test_the_digest_is_of_the_arrays_and_of_nothing_else(tmp_path: Path) -> None:
    digest = save_dataset(tmp_path, info={"name": "a"}, **given())
    before = everything(tmp_path)
    assert save_dataset(tmp_path, info={"name": "b"}, **given()) == digest
    small = given() | {"boxes": given()["boxes"].astype(np.int32), "labels": given()["labels"] > 0}
    assert save_dataset(tmp_path, info={}, **small) == digest
    assert everything(tmp_path) == before
    for key in given():
        changed = given() | {key: np.roll(given()[key], 1, axis=0)}
        assert save_dataset(tmp_path, info={}, **changed) != digest
    assert len(list_datasets(tmp_path)) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((5, 8, 8, 3))}, r"images: expected uint8 \(n, h, w, 3\), got float64"),
        ({"images": np.zeros((5, 3, 8, 8), np.uint8)}, r"images: expected uint8 \(n, h, w, 3\)"),
        ({"masks": np.zeros((5, 8, 9), bool)}, r"masks: expected bool \(5, 8, 8\), got bool of"),
        ({"masks": np.zeros((5, 8, 8))}, r"masks: expected bool \(5, 8, 8\), got float64"),
        ({"boxes": np.zeros((5, 4))}, r"boxes: expected whole numbers \(5, 4\), got float64"),
        ({"labels": np.zeros(4, int)}, r"labels: expected whole numbers \(5,\), got int64 of"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str, unchecked: None
) -> None:
    with pytest.raises(InputError, match=message):
        save_dataset(tmp_path, info={}, **(given() | change))
    assert everything(tmp_path) == {}


def test_a_missing_broken_or_newer_dataset_says_so(tmp_path: Path) -> None:
    digest = save_dataset(tmp_path, info={}, **given())
    header = tmp_path / "datasets" / digest / "dataset.json"
    with pytest.raises(RunError, match=r"dataset.json: no such file or folder"):
        open_dataset(tmp_path, "0" * 16)
    with pytest.raises(InputError, match=r"^dataset '../x': expected up to 120"):
        open_dataset(tmp_path, "../x")
    for content, message in (
        ("{", "dataset.json: not JSON"),
        ('{"schema": 1}', "dataset.json makes no sense"),
        ('{"schema": 1, "count": 1e999, "info": {}, "files": {}}', "dataset.json makes no sense"),
        ('{"schema": 9}', r"written by a newer attnviz \(9 > 1\)"),
    ):
        header.write_text(content)
        with pytest.raises(RunError, match=message):
            open_dataset(tmp_path, digest)


def test_verify_names_the_fault_of_a_dataset(tmp_path: Path) -> None:
    digest = save_dataset(tmp_path, info={}, **given())
    make(tmp_path / "a", dataset=digest)
    assert verify(tmp_path) == []
    assert verify(tmp_path / "a") == []
    data = tmp_path / "datasets" / digest / "data.safetensors"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert [(f.where, f.file, f.kind) for f in verify(tmp_path)] == [
        (f"datasets/{digest}", "data.safetensors", "checksum")
    ]
    data.unlink()
    assert [f.kind for f in verify(tmp_path)] == ["missing"]
    (tmp_path / "datasets" / digest / "dataset.json").unlink()
    assert [(f.file, f.kind) for f in verify(tmp_path)] == [("dataset.json", "missing")]
    assert [(f.file, f.kind) for f in verify(tmp_path / "a")] == [("dataset.json", "missing")]


def test_a_run_finds_its_test_images_from_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    digest = save_dataset(tmp_path / "runs", info={}, **given())
    run = make(tmp_path / "runs" / "a", dataset=digest)
    monkeypatch.chdir(run.path / "maps")
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "runs"), "/found/runs", recursive=True)
    for place in ("..", "../../a", "../.", str(run.path), "memory://found/runs/a"):
        assert open_run(place).test_set().digest == digest
    monkeypatch.chdir("..")
    assert open_run(".").test_set().digest == digest
    with pytest.raises(RunError, match=r"b: expected the digest of its test images, the run names"):
        make(tmp_path / "runs" / "b").test_set()
