"""Images: three sources, and three splits that share nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnviz import InputError
from experiments.data import photos
from experiments.data.folder import folder_images
from experiments.data.photos import PHOTOGRAPHS, SPLITS, photo_crops, photo_scenes
from experiments.data.stl10 import stl10_images
from experiments.loading import about, groups, load_images
from experiments.settings import Settings


def test_no_scene_serves_two_splits() -> None:
    scenes = [{one.scene for one in PHOTOGRAPHS if one.split == split} for split in SPLITS]
    assert sum(map(len, scenes)) == len(set.union(*scenes))
    assert len({one.name for one in PHOTOGRAPHS}) == len(PHOTOGRAPHS)


def test_the_two_pictures_of_a_stereo_pair_are_one_scene() -> None:
    pair = [one for one in PHOTOGRAPHS if one.name.startswith("motorcycle")]
    assert [one.scene for one in pair] == ["motorcycle", "motorcycle"]
    assert [one.name for one in pair] == ["motorcycle_left", "motorcycle_right"]


def test_there_are_eight_test_photographs_or_more_and_four_to_validate() -> None:
    assert len(set(photo_scenes("test", 100))) >= 8
    assert len(set(photo_scenes("val", 100))) >= 4


def test_every_crop_is_of_the_photograph_that_its_scene_names() -> None:
    side, count = 96, 2 * len(PHOTOGRAPHS)
    for split in SPLITS:
        crops, scenes = photo_crops(split, count, seed=3, side=side), photo_scenes(split, count)
        for crop, scene in zip(crops, scenes, strict=True):
            low, high = zip(*(_range(one.name) for one in PHOTOGRAPHS if one.scene == scene),
                            strict=True)  # fmt: skip
            assert crop.min() >= min(low) - 40, scene  # Lanczos may ring
            assert crop.max() <= max(high) + 40, scene
            grey = (crop[..., 0] == crop[..., 1]).all() and (crop[..., 1] == crop[..., 2]).all()
            assert grey == (", grey" in next(p.shows for p in PHOTOGRAPHS if p.scene == scene))


def _range(name: str) -> tuple[int, int]:
    pixels = np.asarray(photos._image(name))
    return int(pixels.min()), int(pixels.max())


def test_a_crop_may_be_larger_than_its_photograph() -> None:
    crops = photo_crops("test", 9, seed=0, side=256)
    assert crops.shape == (9, 256, 256, 3)
    assert all(crop.std() > 3 for crop in crops)


def test_every_photograph_says_what_it_shows_its_licence_and_its_package() -> None:
    told = about(Settings())["photographs"]
    assert {split: set(names) for split, names in told.items()} == {
        split: {one.name for one in PHOTOGRAPHS if one.split == split} for split in SPLITS
    }
    assert told["test"]["grace_hopper"] == (
        "Grace Hopper, U.S. Navy; public domain; from matplotlib"
    )
    assert about(Settings(data="stl10")) == {}


def test_images_that_are_photographs_of_their_own_have_no_groups() -> None:
    assert groups(Settings(data="folder", path="images"), "test") is None
    assert groups(Settings(test_images=11), "test") == photo_scenes("test", 11)


def test_the_page_on_data_names_every_photograph() -> None:
    page = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text()
    for one in PHOTOGRAPHS:
        assert f"`{one.name}`" in page, one.name
        assert one.shows in page, one.name
        assert one.licence in page


def test_crops_are_deterministic_and_a_shorter_list_is_the_beginning_of_a_longer() -> None:
    long = photo_crops("test", 6, seed=1, side=32)
    assert long.shape == (6, 32, 32, 3)
    assert long.dtype == np.uint8
    assert np.array_equal(photo_crops("test", 4, seed=1, side=32), long[:4])
    assert not np.array_equal(photo_crops("test", 6, seed=2, side=32), long)
    assert len({crop.tobytes() for crop in long}) == 6


def test_crops_of_every_split_are_photographs_not_blanks() -> None:
    for split in SPLITS:
        assert photo_crops(split, 8, seed=0).std() > 20


def write_stl10(root: Path, monkeypatch: pytest.MonkeyPatch, *, train: int, test: int) -> None:
    """A small STL-10 in its own binary format: channel-first, column-major, one byte a value."""
    from torchvision.datasets import STL10

    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sums = {}
    for split, count in (("train", train), ("test", test), ("unlabeled", 1)):
        pixels = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (folder / f"{split}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(1 + n % 10 for n in range(count)))
        np.save(root / f"{split}.npy", pixels)
    (folder / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")
    for file in folder.iterdir():
        sums[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
    for listing in ("train_list", "test_list"):
        entries = [[name, sums.get(name, "")] for name, _ in getattr(STL10, listing)]
        monkeypatch.setattr(STL10, listing, [entry for entry in entries if entry[1]])


def test_stl10_keeps_its_splits_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stl10(tmp_path, monkeypatch, train=20, test=6)
    splits = {
        split: stl10_images(split, count, path=tmp_path, seed=0)
        for split, count in (("train", 16), ("val", 4), ("test", 6))
    }
    originals = {name: np.load(tmp_path / f"{name}.npy") for name in ("train", "test")}
    both = [crop.tobytes() for name in ("train", "val") for crop in splits[name]]
    own = [image.transpose(1, 2, 0).tobytes() for image in originals["train"]]
    assert sorted(both) == sorted(own)
    test = [image.transpose(1, 2, 0).tobytes() for image in originals["test"]]
    assert sorted(crop.tobytes() for crop in splits["test"]) == sorted(test)


def test_stl10_says_how_to_get_it_and_how_many_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"stl10: expected STL-10 in .*download stl10_binary"):
        stl10_images("train", 1, path=tmp_path / "nothing", seed=0)
    write_stl10(tmp_path, monkeypatch, train=20, test=6)
    with pytest.raises(InputError, match=r"at most 6 images in its test split, got 7"):
        stl10_images("test", 7, path=tmp_path, seed=0)


def write_folder(root: Path, count: int) -> None:
    for number in range(count):
        pixels = np.full((40, 60, 3), number * 9, np.uint8)
        Image.fromarray(pixels).save(root / f"{number:02}.png")


def test_a_folder_is_shared_out_and_no_file_serves_two_splits(tmp_path: Path) -> None:
    write_folder(tmp_path, 20)
    greys = [
        set(folder_images(split, count, path=tmp_path, seed=3, side=24)[:, 0, 0, 0].tolist())
        for split, count in (("train", 12), ("val", 3), ("test", 5))
    ]
    assert [len(grey) for grey in greys] == [12, 3, 5]
    assert len(set.union(*greys)) == 20


def test_sub_folders_named_as_splits_are_taken_as_such(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        write_folder(tmp_path / split, 2)
    assert len(folder_images("val", 2, path=tmp_path, seed=0, side=24)) == 2


@pytest.mark.parametrize(
    ("count", "prepare", "message"),
    [
        (4, lambda root: None, r"expected images \(.*\) below .*, got none"),
        (
            1,
            lambda root: (root / "a.png").write_bytes(b"no image"),
            r"a\.png: expected one of PNG, JPEG",
        ),
        (4, lambda root: write_folder(root, 3), r"expected at least 4 images for the train split"),
        (4, lambda root: root.rmdir(), r"expected a folder of images, got .*--path"),
    ],
)
def test_a_bad_folder_is_named(
    tmp_path: Path, count: int, prepare: Callable[[Path], object], message: str
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    prepare(root)
    with pytest.raises(InputError, match=message):
        folder_images("train", count, path=root, seed=0)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    whole = (tmp_path / "00.png").read_bytes()
    (tmp_path / "00.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"00\.png: cannot be decoded"):
        folder_images("train", 1, path=tmp_path, seed=0)


def test_a_source_without_its_folder_asks_for_it() -> None:
    with pytest.raises(InputError, match=r"--data stl10: expected its folder with --path"):
        load_images(Settings(data="stl10"), "train")
