"""Folders of images and masks, and COCO files, in the real formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Resize, ToTensor

from attnviz.data import coco, mask_folder
from attnviz.errors import InputError, UnsupportedError


def written(root: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    """Images and masks by name; the upper left quarter is the thing."""
    for name, (h, w) in sizes.items():
        for folder in ("images", "masks"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        shades = np.random.default_rng(len(name)).integers(0, 256, (h, w, 3), np.uint8)
        Image.fromarray(shades).save(root / "images" / f"{name}.jpg")
        mask = np.zeros((h, w), np.uint8)
        mask[: h // 2, : w // 2] = 255
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


NAMES = {"cat/a": (20, 30), "cat/b": (24, 24), "dog/a": (30, 20)}


def test_a_mask_goes_with_the_image_of_its_name_and_folder(tmp_path: Path) -> None:
    root = written(tmp_path, NAMES)
    data = mask_folder(
        root / "images", root / "masks", transform=ToTensor(), labels="folder", group="folder"
    )
    samples = [data[i] for i in range(len(data))]
    assert [s.name for s in samples] == ["cat/a.jpg", "cat/b.jpg", "dog/a.jpg"]
    assert [s.label for s in samples] == [0, 0, 1]
    assert data.classes == ("cat", "dog")  # type: ignore[attr-defined]
    assert [s.group for s in samples] == ["cat", "cat", "dog"]
    for sample, (h, w) in zip(samples, NAMES.values(), strict=True):
        assert sample.image.shape == (3, h, w)
        assert sample.mask is not None
        assert sample.mask.nonzero().amax(0).tolist() == [h // 2 - 1, w // 2 - 1]


def test_what_is_wrong_in_a_folder_is_named_before_the_work(tmp_path: Path) -> None:
    root = written(tmp_path, NAMES)
    images, masks = root / "images", root / "masks"
    Image.new("L", (9, 9)).save(masks / "cat/b.png")
    with pytest.raises(
        InputError, match=r"cat/b.png: expected the size of its image b.jpg, 24 × 24"
    ):
        mask_folder(images, masks, transform=ToTensor())
    assert repr(mask_folder(images, transform=ToTensor(), labels="folder")) == (
        f"{images}: 3 images, 0 with a mask file, classes cat, dog"
    )
    (masks / "cat/b.png").unlink()
    with pytest.raises(InputError, match=r"mask: expected a folder of masks, there is none"):
        mask_folder(images, root / "mask", transform=ToTensor(), without="empty")
    with pytest.raises(InputError, match=r"holds masks, such as .*, but of none of the images"):
        mask_folder(images / "cat", masks, transform=ToTensor(), without="empty")
    with pytest.raises(InputError, match=r"1 of 3 images have no mask, such as cat/b\.jpg"):
        mask_folder(images, masks, transform=ToTensor())
    empty = mask_folder(images, masks, transform=ToTensor(), without="empty")[1]
    unknown = mask_folder(images, masks, transform=ToTensor(), without="unknown")[1]
    assert empty.mask is not None
    assert not empty.mask.any()
    assert unknown.mask is None
    with pytest.raises(InputError, match="labels: 2 images have none"):
        mask_folder(images, transform=ToTensor(), labels={"b": 1})
    with pytest.raises(InputError, match="expected a folder of images, there is none"):
        mask_folder(root / "nothing", transform=ToTensor())
    (root / "bare").mkdir()
    with pytest.raises(InputError, match="expected images"):
        mask_folder(root / "bare", transform=ToTensor())


def test_labels_go_by_path_before_name_and_a_name_of_two_images_is_refused(tmp_path: Path) -> None:
    root = written(tmp_path, NAMES)
    paths = {"cat/a.jpg": 0, "cat/b": 1, "dog/a": 2}

    def labels(source: Any) -> list[Any]:
        data = mask_folder(root / "images", transform=ToTensor(), labels=source)
        return [data[i].label for i in range(3)]

    assert labels(paths) == [0, 1, 2]
    assert labels({"a": 7, "b.jpg": 1, "dog/a": 2}) == [7, 1, 2]
    with pytest.raises(
        InputError, match=r"labels: a is the name of 2 images, cat/a\.jpg and dog/a"
    ):
        labels({"a": 7, "b": 1})
    with pytest.raises(InputError, match=r"group: a\.jpg is the name of 2 images"):
        mask_folder(root / "images", transform=ToTensor(), group={"a.jpg": "p", "b": "q"})
    (root / "images/c.jpg").write_bytes((root / "images/dog/a.jpg").read_bytes())
    with pytest.raises(InputError, match=r"expected images in sub-folders, .* c\.jpg lies in"):
        labels("folder")


def test_a_mask_is_found_whatever_the_case_of_its_suffix(tmp_path: Path) -> None:
    root = written(tmp_path, NAMES)
    (root / "masks/cat/a.png").rename(root / "masks/cat/a.PNG")
    sample = mask_folder(root / "images", root / "masks", transform=ToTensor(), without="empty")[0]
    assert sample.mask is not None
    assert sample.mask.any()


def test_images_do_not_count_as_empty_beside_masks_of_no_image(tmp_path: Path) -> None:
    root = written(tmp_path, NAMES)
    (root / "masks/cat/a.png").rename(root / "masks/cat/a_mask.png")

    def read(without: Any) -> Any:
        return mask_folder(root / "images", root / "masks", transform=ToTensor(), without=without)

    with pytest.raises(InputError, match=r"cat/a\.jpg, would count as empty, but 1 mask files are"):
        read("empty")
    with pytest.raises(InputError, match=r"1 mask files are of no image, such as cat/a_mask\.png;"):
        read("error")
    assert read("unknown")[0].mask is None


def test_a_mask_that_is_not_one_s_own_is_refused(tmp_path: Path) -> None:
    root = written(tmp_path, {"a": (8, 8), "b": (8, 8)})
    images, masks = root / "images", root / "masks"

    def read(masks: Path = masks) -> Any:
        return mask_folder(images, masks, transform=ToTensor(), without="empty")

    for folder in (images, root):
        with pytest.raises(InputError, match="expected a folder of masks apart from the images"):
            read(folder)
    Image.new("L", (8, 8)).save(masks / "a.tif")
    with pytest.raises(InputError, match=r"expected one mask for an image, got a\.png and a\.tif"):
        read()
    (masks / "a.tif").unlink()
    (masks / "a.png").rename(masks / "a.jpg")
    with pytest.raises(InputError, match=r"expected a mask in a lossless format .*; \.jpg changes"):
        read()
    (masks / "a.jpg").rename(masks / "a.png")
    Image.new("RGB", (8, 8)).save(images / "a.bmp")
    with pytest.raises(InputError, match="expected a mask for each image, this one is that of a"):
        read()


def test_a_misspelt_without_is_refused(tmp_path: Path, unchecked: None) -> None:
    root = written(tmp_path, {"a": (8, 8)})
    with pytest.raises(InputError, match="unknown without 'empy': did you mean 'empty'"):
        mask_folder(root / "images", root / "masks", transform=ToTensor(), without="empy")  # type: ignore[arg-type]  # the point of the test


def test_a_label_map_on_disk_needs_its_values_said(tmp_path: Path) -> None:
    root = written(tmp_path, {"a": (8, 8)})
    values = np.zeros((8, 8), np.uint8)
    values[:2], values[2:4], values[4] = 1, 2, 255
    Image.fromarray(values).save(root / "masks/a.png")
    data = mask_folder(root / "images", root / "masks", transform=ToTensor(), ignore=(255,))
    with pytest.raises(InputError, match="say which are the thing"):
        data[0]
    sample = mask_folder(
        root / "images", root / "masks", transform=ToTensor(), inside=2, ignore=(255,)
    )[0]
    assert sample.mask is not None
    assert sample.ignore is not None
    assert sample.mask.nonzero()[:, 0].unique().tolist() == [2, 3]
    assert sample.ignore.nonzero()[:, 0].unique().tolist() == [4]


def annotated(root: Path, annotations: list[dict[str, Any]]) -> Path:
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", (20, 12), "grey").save(root / "images/a.png")
    Image.new("RGB", (20, 12), "white").save(root / "images/b.png")
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 20, "height": 12, "patient": "p1"},
            {"id": 9, "file_name": "b.png", "width": 20, "height": 12, "patient": "p2"},
        ],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [{"id": i, "image_id": 7, **one} for i, one in enumerate(annotations)],
    }
    file = root / "coco.json"
    file.write_text(json.dumps(content))
    return file


RLE = {"size": [12, 20], "counts": [12 * 5 + 2, 3, 9, 3, 12 * 13 + 7]}
"""Columns 5 and 6, rows 2 to 4."""


@pytest.mark.parametrize(
    ("annotation", "box"),
    [
        ({"bbox": [3, 2, 6, 4]}, [3, 2, 9, 6]),
        ({"segmentation": [[3, 2, 9, 2, 9, 6, 3, 6]], "bbox": [0, 0, 1, 1]}, [3, 2, 9, 6]),
        ({"segmentation": RLE}, [5, 2, 7, 5]),
        ({"segmentation": [[3, 2.2, 9, 2.2, 9, 2.6, 3, 2.6]]}, [3, 2, 9, 3]),
    ],
    ids=["box", "polygon", "run lengths", "sliver"],
)
def test_annotations_of_every_kind_are_drawn(
    tmp_path: Path, annotation: dict[str, Any], box: list[int]
) -> None:
    file = annotated(tmp_path, [{"category_id": 3, "area": 24, "iscrowd": 0, **annotation}])
    data = coco(file, tmp_path / "images", transform=ToTensor(), group="patient")
    sample, other = data[0], data[1]
    assert sample.boxes is not None
    assert sample.boxes.tolist() == [box]
    assert (sample.label, sample.group, data.classes) == (1, "p1", ("cat", "dog"))  # type: ignore[attr-defined]
    assert other.mask is not None
    assert not other.mask.any()
    assert other.label is None


def test_a_polygon_is_as_its_twin_point_by_point(tmp_path: Path) -> None:
    corners = [(2.2, 1.4), (17.6, 3.1), (11.3, 10.7)]
    file = annotated(tmp_path, [{"category_id": 1, "segmentation": [sum(corners, ())]}])
    mask = coco(file, tmp_path / "images", transform=ToTensor())[0].mask
    assert mask is not None
    inside = np.zeros((12, 20))
    for y, x in np.ndindex(12, 20):
        points = [(x + (i + 0.5) / 5, y + (j + 0.5) / 5) for i in range(5) for j in range(5)]
        inside[y, x] = np.mean([_in_triangle(point, corners) for point in points])
    sure = (inside < 0.3) | (inside > 0.7)
    np.testing.assert_array_equal(mask.numpy()[sure], inside[sure] > 0.5)


def _in_triangle(p: tuple[float, float], corners: list[tuple[float, float]]) -> bool:
    signs = []
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        signs.append((bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0)
    return len(set(signs)) == 1


def test_crowds_count_neither_way_and_other_categories_are_outside(tmp_path: Path) -> None:
    file = annotated(
        tmp_path,
        [
            {"category_id": 3, "bbox": [0, 0, 4, 4], "area": 16},
            {"category_id": 3, "bbox": [10, 0, 4, 4], "iscrowd": 1},
            {"category_id": 1, "bbox": [0, 8, 4, 4], "area": 16},
        ],
    )
    sample = coco(file, tmp_path / "images", transform=ToTensor(), thing="dog")[0]
    assert sample.mask is not None
    assert sample.ignore is not None
    assert sample.mask.nonzero().amax(0).tolist() == [3, 3]
    assert sample.ignore[0, 10]
    assert not sample.ignore[0, 0]


def test_objects_follow_a_resize(tmp_path: Path) -> None:
    file = annotated(tmp_path, [{"category_id": 3, "bbox": [4, 4, 8, 4]}])
    transform = Compose([Resize((24, 40)), ToTensor()])
    sample = coco(file, tmp_path / "images", transform=transform)[0]
    assert sample.boxes is not None
    assert sample.boxes.tolist() == [[8, 8, 24, 16]]
    assert isinstance(sample.image, torch.Tensor)


def test_what_is_wrong_in_a_file_is_named(tmp_path: Path) -> None:
    file = annotated(tmp_path, [{"category_id": 3, "bbox": [15, 2, 16, 4]}])
    images = tmp_path / "images"
    with pytest.raises(InputError, match=r"item 0 \(a.png\): expected a box"):
        coco(file, images, transform=ToTensor())[0]
    with pytest.raises(InputError, match=r"unknown category .*did you mean 'dog'"):
        coco(file, images, transform=ToTensor(), thing="dgo")
    with pytest.raises(InputError, match="no key of every image"):
        coco(file, images, transform=ToTensor(), group="hospital")
    (images / "b.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 images are missing .* b\.png"):
        coco(file, images, transform=ToTensor())
    file.write_text("[]")
    with pytest.raises(InputError, match="expected COCO's JSON"):
        coco(file, images, transform=ToTensor())


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({}, "an annotation with neither segmentation nor bbox"),
        ({"segmentation": [[1, 1, 4, 4]]}, "a polygon of 2 corners"),
        ({"segmentation": [[1, 1, 40, 4, 4, 8]]}, "a polygon that reaches outside the 12 × 20"),
        (
            {"segmentation": {"size": [20, 12], "counts": [240]}},
            "run lengths of a 20 × 12 image for one of 12 × 20",
        ),
        (
            {"segmentation": {"size": [12, 20], "counts": [3, 4]}},
            "run lengths of 7 pixels for an image of 240",
        ),
        ({"segmentation": {"counts": [240]}}, "expected run lengths with size and counts, got"),
        ({"segmentation": [1, 1, 4, 4, 1, 4]}, "expected a list of polygons, each"),
        ({"segmentation": [[1, 1, 4, 4, 1, 4, 2]]}, "expected a list of polygons, each"),
        ({"segmentation": [[1, 1, 4, 4, 1, float("nan")]]}, "a polygon with NaN or infinite"),
        ({"bbox": []}, r"expected a bbox \[x, y, width, height\] of four numbers, got \[\]"),
        ({"bbox": [1, 2, 3, None]}, r"expected a bbox \[x, y, width, height\] of four numbers"),
    ],
)
def test_an_annotation_that_cannot_be_drawn_is_named(
    tmp_path: Path, annotation: dict[str, Any], message: str
) -> None:
    file = annotated(tmp_path, [{"category_id": 3, **annotation}])
    with pytest.raises(InputError, match=rf"item 0 \(a.png\): {message}"):
        coco(file, tmp_path / "images", transform=ToTensor())[0]


@pytest.mark.parametrize("area", [{}, {"area": None}])
def test_the_label_is_that_of_the_largest_object_in_pixels(
    area: dict[str, Any], tmp_path: Path
) -> None:
    small, large = {"bbox": [0, 0, 3, 3]}, {"bbox": [4, 0, 9, 9]}
    crowd = {"bbox": [0, 0, 20, 12], "category_id": 3, "iscrowd": 1, **area}
    rows = [{**small, "category_id": 3, **area}, {**large, "category_id": 1, **area}, crowd]
    sample = coco(annotated(tmp_path, rows), tmp_path / "images", transform=ToTensor())[0]
    assert sample.label == 0  # cat


def changed(root: Path, part: str, **values: Any) -> Path:
    """The file of one box, with other values in the first entry of a part; None removes a key."""
    file = annotated(root, [{"category_id": 3, "bbox": [3, 2, 6, 4]}])
    content = json.loads(file.read_text())
    content[part][0].update(values)
    for key in [key for key, value in values.items() if value is None]:
        del content[part][0][key]
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("annotations", {"image_id": "7"}, "1 of 1 annotations name by image_id none of the 2 ima"),
        ("annotations", {"image_id": None}, "1 of 1 annotations name by image_id none of the 2"),
        ("annotations", {"category_id": 99}, "name by category_id none of the 2 categories, such"),
        ("images", {"id": 9}, "expected one image per id, got 2 images of 1 ids"),
        ("images", {"file_name": None}, "expected images with id and file_name, 1 of 2 lack one"),
        ("categories", {"name": "cat"}, "several classes have one name, cat, cat"),
        ("images", {"width": 10, "height": 6}, "expected a.png at 6 × 10 .* got a file of 12 × 20"),
    ],
)
def test_annotations_that_would_be_dropped_or_misplaced_are_refused(
    part: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = changed(tmp_path, part, **values)
    with pytest.raises(InputError, match=message):
        coco(file, tmp_path / "images", transform=ToTensor())


@pytest.mark.parametrize(
    ("turn", "values", "clear"),
    [
        (6, {}, False),  # the entry has the stored size
        (6, {"width": 12, "height": 20}, True),  # the entry has the rotated size
        (6, {"width": None, "height": None}, False),
        (3, {}, False),
        (1, {"width": None, "height": None}, True),
    ],
)
def test_annotations_of_an_image_rotated_by_exif_need_a_clear_size(
    turn: int, values: dict[str, Any], clear: bool, tmp_path: Path
) -> None:
    file = changed(tmp_path, "images", **values)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (20, 12), "grey").save(tmp_path / "images/a.png", exif=exif)
    if clear:
        sample = coco(file, tmp_path / "images", transform=ToTensor())[0]
        assert sample.mask is not None
        assert sample.mask[2:6, 3:9].all()
        return
    with pytest.raises(InputError, match=rf"a\.png is rotated by EXIF \(orientation {turn}\)"):
        coco(file, tmp_path / "images", transform=ToTensor())


def test_labels_are_a_mapping_a_function_or_the_folder(tmp_path: Path, unchecked: None) -> None:
    root = written(tmp_path, {"a": (8, 8)})
    by_function = mask_folder(
        root / "images", root / "masks", transform=ToTensor(), labels=lambda path: len(path.stem)
    )
    assert by_function[0].label == 1
    with pytest.raises(InputError, match="labels: expected a mapping by file name, a function"):
        mask_folder(root / "images", root / "masks", transform=ToTensor(), labels=7)  # type: ignore[arg-type]  # the point of the test


def test_compressed_run_lengths_need_a_decoder(tmp_path: Path) -> None:
    coded = {"size": [12, 20], "counts": "n1300000000"}
    file = annotated(tmp_path, [{"category_id": 3, "segmentation": coded}])
    data = coco(file, tmp_path / "images", transform=ToTensor())
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        with pytest.raises(UnsupportedError, match="compressed run lengths need pycocotools"):
            data[0]
    else:
        assert data[0].mask is not None
