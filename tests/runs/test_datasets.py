"""Test images, kept once per content."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
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


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1] * 5, [0, 5], [4, 0, 1]])
def test_batches_give_the_same_as_everything_at_once(tmp_path: Path, sizes: list[int]) -> None:
    """On pictures that are no squares, to the last byte."""
    rng = np.random.default_rng(3)
    whole = {
        "images": rng.integers(0, 256, (5, 6, 9, 3), dtype=np.uint8),
        "masks": rng.random((5, 6, 9)) > 0.8,
        "boxes": rng.integers(0, 6, (5, 4)),
        "labels": np.array([0, 3, 1, 2, 0]),
    }
    ends = np.cumsum(sizes)
    parts = zip(sizes, ends, strict=True)
    batches = ({k: v[end - size : end] for k, v in whole.items()} for size, end in parts)
    digest = save_dataset(tmp_path / "a", info={}, **whole)
    assert save_dataset(tmp_path / "b", batches, info={}) == digest
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    found = open_dataset(tmp_path / "b", digest)
    assert (found.size, found.count) == ((6, 9), 5)
    for name, array in whole.items():
        np.testing.assert_array_equal(getattr(found, name)(), array)
    from safetensors.numpy import load_file

    read = load_file(tmp_path / "b" / "datasets" / digest / "data.safetensors")
    assert all((read[name] == array).all() for name, array in whole.items())
    assert verify(tmp_path / "b") == []


def test_images_of_several_sizes_come_back_at_their_own_and_together_at_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    sizes = [(6, 9), (6, 9), (4, 4), (6, 9), (12, 3)]
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    masks = [np.zeros(size, bool) for size in sizes]
    for mask in masks[:-1]:
        mask[1:3, 2:4] = True
    batches = [
        {"images": np.stack(pictures[a:b]), "masks": np.stack(masks[a:b])}
        for a, b in ((0, 2), (2, 3), (3, 4), (4, 5))
    ]
    digest = save_dataset(tmp_path, batches, info={})
    found = open_dataset(tmp_path, digest)
    assert (found.count, found.size) == (5, (12, 9))
    assert found.sizes().tolist() == [list(size) for size in sizes]
    for index in (4, 2, 0, 3):
        np.testing.assert_array_equal(found.images([index])[0], pictures[index])
        np.testing.assert_array_equal(found.masks([index])[0], masks[index])
    np.testing.assert_array_equal(found.images([3, 0]), np.stack([pictures[3], pictures[0]]))
    with pytest.raises(InputError, match="expected images of one size, got 4 × 4, 6 × 9"):
        found.images([0, 2])
    with pytest.raises(InputError, match="indices from 0 to 4"):
        found.images([5])
    shown, marked, boxes = found.together([0, 4, 2])
    assert shown.shape == (3, 12, 9, 3)
    assert boxes.tolist() == [[2, 2, 4, 6], [0, 0, 0, 0], [4, 3, 9, 9]]
    np.testing.assert_array_equal(shown[0], np.repeat(pictures[0], 2, axis=0))
    np.testing.assert_array_equal(marked[0], np.repeat(masks[0], 2, axis=0))
    assert all(image.flags.writeable for image in (found.images([2]), shown))
    assert verify(tmp_path) == []
    assert save_dataset(tmp_path, batches, info={}) == digest
    assert save_dataset(tmp_path, batches[::-1], info={}) != digest


def test_sizes_that_are_not_those_of_the_pixels_are_a_fault(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    one = {"images": np.zeros((1, 4, 4, 3), np.uint8), "masks": np.zeros((1, 4, 4), bool)}
    other = {"images": np.zeros((1, 4, 5, 3), np.uint8), "masks": np.zeros((1, 4, 5), bool)}
    digest = save_dataset(tmp_path, [one, other], info={})
    path = tmp_path / "datasets" / digest / "data.safetensors"
    arrays = load_file(path)
    for sizes in ([[4, 4], [4, 50]], [[-4, -4], [4, 5]], [[4, 4], [1 << 40, 1 << 40]]):
        save_file(arrays | {"sizes": np.array(sizes)}, path)
        with pytest.raises(RunError, match=r"sizes of .* pixels in 2 images, expected"):
            open_dataset(tmp_path, digest).images([0])
        with pytest.raises(RunError, match=r"sizes of .* pixels in 2 images, expected"):
            open_dataset(tmp_path, digest).check()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_the_memory_that_images_take_does_not_grow_with_their_number(tmp_path: Path) -> None:
    code = """
import resource, sys
import numpy as np
from attnviz.runs import open_dataset, save_dataset
now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (60 << 20),) * 2)
one = {'images': np.full((50, 100, 100, 3), 7, np.uint8), 'masks': np.ones((50, 100, 100), bool)}
digest = save_dataset(sys.argv[1], (one for _ in range(100)), info={})  # 190 MB
print(open_dataset(sys.argv[1], digest).count, open_dataset(sys.argv[1], digest).boxes([4999]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "5000 [[  0   0 100 100]]", done.stderr


def test_boxes_and_labels_need_not_be_given(tmp_path: Path) -> None:
    masks = np.zeros((3, 5, 7), bool)
    masks[0, 1:3, 4:7] = True
    masks[2, 4, 0] = masks[2, 0, 3] = True
    images = np.zeros((3, 5, 7, 3), np.uint8)
    found = open_dataset(tmp_path, save_dataset(tmp_path, images=images, masks=masks, info={}))
    assert found.boxes().tolist() == [[4, 1, 7, 3], [0, 0, 0, 0], [0, 0, 4, 5]]
    assert found.labels([1, 2]).tolist() == [-1, -1]


def test_the_normalisation_is_kept_and_not_mixed_up(tmp_path: Path) -> None:
    scale = {"mean": [0.5, 0.25, 0.125], "std": (1, 2, 3)}
    digest = save_dataset(tmp_path, info={}, **scale, **given())
    found = open_dataset(tmp_path, digest)
    assert (found.mean, found.std) == ((0.5, 0.25, 0.125), (1.0, 2.0, 3.0))
    assert save_dataset(tmp_path, info={}, **given()) == digest
    with pytest.raises(InputError, match=r"std: these images are kept with .* already, got"):
        save_dataset(tmp_path, info={}, **given(), std=(1, 1, 1))
    run = make(tmp_path / "a", dataset=digest, mean=(0, 0, 0), std=(1, 1, 1))
    assert (run.mean, run.std) == ((0, 0, 0), (1, 1, 1))
    for bad in ((1, 2), (1, 2, float("nan")), (1, 0, 1)):
        with pytest.raises(InputError, match=r"std: expected three numbers, one for each channel"):
            save_dataset(tmp_path, info={}, **given(1), std=bad)
    assert list_datasets(tmp_path) == (digest,)


def test_what_cannot_be_streamed_says_why_and_leaves_nothing(
    tmp_path: Path, unchecked: None
) -> None:
    one = given()
    for batches, message in (
        ([], "expected at least one batch of images, got none"),
        ([{"images": one["images"]}], "expected images, masks and, if there are any, boxes"),
        ([one | {"mask": one["masks"]}], "expected images, masks and, if there are any, boxes"),
    ):
        with pytest.raises(InputError, match=message):
            save_dataset(tmp_path, iter(batches), info={})
    with pytest.raises(InputError, match="expected either batches or images and masks"):
        save_dataset(tmp_path, [one], info={}, **one)
    with pytest.raises(InputError, match="expected either batches or images and masks"):
        save_dataset(tmp_path, info={})

    def failing() -> Iterator[dict[str, Any]]:
        yield one
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_dataset(tmp_path, failing(), info={})
    assert everything(tmp_path) == {}
    assert list((tmp_path / "datasets").iterdir()) == []


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
