"""COCO annotations: boxes, polygons and run lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage.draw import polygon

from attnviz.data.preprocessing import preprocessing
from attnviz.data.samples import Sample, Samples
from attnviz.data.scenes import Scene, filled_box
from attnviz.errors import InputError, UnsupportedError, unknown_name
from attnviz.image_files import photograph, upright_size


def coco(
    file: str | Path,
    images: str | Path,
    *,
    transform: Any,
    thing: str | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    group: str | None = None,
    seed: int = 0,
) -> Samples:
    """Images with COCO annotations.

    An object is its segmentation (polygons or run lengths), or its box where it has none. Crowds
    (`iscrowd`) count neither way. An image's label is the category of its largest object in pixels,
    as an index into `classes`; an image without objects is known to hold none.

    Args:
        file: The JSON of annotations.
        images: The folder of its images.
        transform: From a PIL image to the tensor that the model takes; objects follow it.
        thing: Names of the categories that are looked for; None takes all. Objects of other
            categories are outside.
        classes: The categories' names in the order of the model's outputs; None orders them by
            their ids.
        group: A key of the images' entries: the group of an image.
        seed: Of a random transform.

    Returns:
        Samples; `classes` are the categories' names.

    Raises:
        InputError: The file is no such JSON, a category is unknown, images are missing or of
            another size than the file says, or annotations belong to no image or category; they
            are named, before anything is computed.
    """
    return _Coco(Path(file), Path(images), transform, thing, classes, group, seed)


class _Coco:
    """The images of a file of annotations."""

    def __init__(
        self,
        file: Path,
        folder: Path,
        transform: Any,
        thing: str | Sequence[str] | None,
        classes: Sequence[str] | None,
        group: str | None,
        seed: int,
    ) -> None:
        self.file, self.folder, self.group = file, folder, group
        self.moved = preprocessing(transform, seed)
        content = _read(file)
        self.entries: list[Mapping[str, Any]] = list(content["images"])
        listed = content.get("categories") or ()
        for rows, what, keys in (
            (self.entries, "images", ("id", "file_name")),
            (listed, "categories", ("id", "name")),
        ):
            _refuse_incomplete(file, rows, what, keys)
        categories = sorted(listed, key=lambda one: one["id"])
        by_id = {one["id"]: str(one["name"]) for one in categories}
        self.classes = tuple(by_id.values() if classes is None else classes)
        if len(set(self.classes)) < len(self.classes):
            raise InputError(
                f"{file}: several classes have one name, {', '.join(self.classes)}; rename the "
                "categories, or give classes= in the order of the model's outputs"
            )
        names = (thing,) if isinstance(thing, str) else thing
        self.thing = names[0] if names is not None and len(names) == 1 else "object"
        for name in names or ():
            if name not in by_id.values():
                raise unknown_name("category", name, by_id.values())
        self._wanted = {
            one["id"] for one in categories if names is None or str(one["name"]) in names
        }
        for id_ in self._wanted:
            if by_id[id_] not in self.classes:
                raise unknown_name("class of category", by_id[id_], self.classes)
        self._index = {id_: self.classes.index(by_id[id_]) for id_ in self._wanted}
        self._of_image: dict[Any, list[Mapping[str, Any]]] = {}
        for one in content["annotations"]:
            self._of_image.setdefault(one.get("image_id"), []).append(one)
        self._check()
        self._check_references(content["annotations"], by_id)

    def _check(self) -> None:
        missing = [
            e["file_name"] for e in self.entries if not (self.folder / e["file_name"]).is_file()
        ]
        if missing:
            raise InputError(
                f"{self.file}: {len(missing)} of {len(self.entries)} images are missing in "
                f"{self.folder}, such as {missing[0]}"
            )
        if self.group is not None and any(self.group not in entry for entry in self.entries):
            raise InputError(f"{self.file}: group={self.group!r} is no key of every image's entry")
        for entry in self.entries:
            self._check_size(entry)

    def _check_references(
        self, annotations: Sequence[Mapping[str, Any]], by_id: Mapping[Any, str]
    ) -> None:
        """An `InputError` for annotations that would be dropped."""
        ids = [entry["id"] for entry in self.entries]
        if len(set(ids)) < len(ids):
            raise InputError(
                f"{self.file}: expected one image per id, got {len(ids)} images of {len(set(ids))} "
                "ids; give each image an id of its own"
            )
        for key, known, what in (
            ("image_id", set(ids), "images"),
            ("category_id", set(by_id), "categories"),
        ):
            lost = [one.get(key) for one in annotations if one.get(key) not in known]
            if key == "image_id" and len(lost) < len(annotations):
                continue  # of images of a larger set, of which these are a part
            if lost:
                raise InputError(
                    f"{self.file}: {len(lost)} of {len(annotations)} annotations name by "
                    f"{key} none of the {len(known)} {what}, such as {lost[0]!r}; list it under "
                    f"{what!r} (ids are compared with their type), or remove the annotations"
                )

    def _check_size(self, entry: Mapping[str, Any]) -> None:
        """An `InputError` where the annotations are of another image than the file holds."""
        name = entry["file_name"]
        (width, height), turn = upright_size(self.folder / name)
        w, h = int(entry.get("width") or 0), int(entry.get("height") or 0)
        if not (w and h):  # not said
            if turn == 1:
                return
            w, h = height, width
        if turn != 1 and ((w, h) == (height, width) or turn in (2, 3, 4)):
            raise InputError(
                f"{self.file}: {name} is rotated by EXIF (orientation {turn}), so that annotations "
                "may be of the rotated image or of the stored one; save it upright, without EXIF, "
                "with annotations to match"
            )
        if (w, h) != (width, height):
            raise InputError(
                f"{self.file}: expected {name} at {h} × {w} (height × width), as its entry says, "
                f"got a file of {height} × {width}; annotations are in the pixels of their image, "
                "scale them with it"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        name = str(entry["file_name"])
        picture = photograph(self.folder / name, name=name)
        found = self._of_image.get(entry["id"], [])
        wanted = [one for one in found if one.get("category_id") in self._wanted]
        try:
            objects, ignore = objects_of(wanted, picture.size)
        except InputError as error:
            raise InputError(f"item {index} ({name}): {error}") from error
        single = [one for one in wanted if not one.get("iscrowd")]
        sizes = [int(mask.sum()) for mask in objects]
        largest = single[int(np.argmax(sizes))] if single else None
        scene = Scene(
            picture,
            objects,
            ignore,
            label=None if largest is None else self._index.get(largest["category_id"]),
            group=None if self.group is None else str(entry[self.group]),
            name=name,
        )
        return scene.prepared(self.moved, index)


def objects_of(
    annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Annotations of one image as a mask per object, and its crowds as ignored pixels.

    Args:
        annotations: As in COCO's JSON.
        size: Width and height of the image.

    Raises:
        InputError: An annotation with neither box nor segmentation, or one outside the image.
        UnsupportedError: Compressed run lengths and no package that reads them.
    """
    objects: list[np.ndarray] = []
    crowd = np.zeros((size[1], size[0]), dtype=bool)
    for one in annotations:
        mask = _mask(one, size)
        if one.get("iscrowd"):
            crowd |= mask
        else:
            objects.append(mask)
    return objects, crowd if crowd.any() else None


def _mask(annotation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        return _run_lengths(segmentation, size)
    if segmentation:
        return _polygons(segmentation, size)
    box = annotation.get("bbox")
    if box is None:
        raise InputError("an annotation with neither segmentation nor bbox")
    try:
        x, y, w, h = (float(value) for value in box)
    except (TypeError, ValueError):
        raise InputError(
            f"expected a bbox [x, y, width, height] of four numbers, got {box!r}"
        ) from None
    return filled_box((x, y, x + w, y + h), size)


def _polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Polygons filled; a corner `(x, y)` lies on pixel edges, as in COCO."""
    scale = 4  # a pixel is inside where most of it is
    fine = np.zeros((size[1] * scale, size[0] * scale), dtype=bool)
    for one in polygons:
        if not isinstance(one, Sequence | np.ndarray) or len(one) % 2:
            raise InputError(
                f"expected a list of polygons, each [x, y, x, y, …], got {str(one)[:40]} in it"
            )
        corners = np.asarray(one, dtype=float).reshape(-1, 2)
        if not np.isfinite(corners).all():
            raise InputError("a polygon with NaN or infinite corners")
        if len(corners) < 3:
            raise InputError(f"a polygon of {len(corners)} corners")
        if (corners < -1).any() or (corners > np.array(size) + 1).any():
            outside = ((corners < -1) | (corners > np.array(size) + 1)).any(1)
            raise InputError(
                f"a polygon that reaches outside the {size[1]} × {size[0]} image: "
                f"{corners[outside][0].round(1).tolist()}"
            )
        x, y = (corners * scale - 0.5).T
        fine[polygon(y, x, fine.shape)] = True
    share = fine.reshape(size[1], scale, size[0], scale).mean((1, 3))
    inside: np.ndarray = share >= 0.5
    return inside if inside.any() else share > 0  # a sliver stays an object


def _run_lengths(segmentation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Run lengths, down the columns, the first of them outside."""
    if not {"size", "counts"} <= set(segmentation):
        raise InputError(
            f"expected run lengths with size and counts, got {', '.join(segmentation) or 'nothing'}"
        )
    height, width = (int(n) for n in segmentation["size"])
    if (width, height) != size:
        raise InputError(
            f"run lengths of a {height} × {width} image for one of {size[1]} × {size[0]}"
        )
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
        decoded: np.ndarray = _decoder()(segmentation)
        return decoded
    runs = np.asarray(counts, dtype=np.int64)
    if runs.sum() != width * height or (runs < 0).any():
        raise InputError(f"run lengths of {runs.sum()} pixels for an image of {width * height}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def _decoder() -> Any:
    for package in ("pycocotools.mask", "faster_coco_eval.core.mask"):
        try:
            module = __import__(package, fromlist=["decode"])
        except ImportError:
            continue

        def decode(segmentation: Mapping[str, Any], module: Any = module) -> np.ndarray:
            counts = segmentation["counts"]
            coded = counts.encode() if isinstance(counts, str) else counts
            mask: np.ndarray = module.decode({**segmentation, "counts": coded}).astype(bool)
            return mask

        return decode
    raise UnsupportedError(
        "compressed run lengths need pycocotools or faster-coco-eval: install attnviz[coco]"
    )


def _refuse_incomplete(
    file: Path, rows: Sequence[Mapping[str, Any]], what: str, keys: Sequence[str]
) -> None:
    lacking = [row for row in rows if not set(keys) <= set(row)]
    if lacking:
        raise InputError(
            f"{file}: expected {what} with {' and '.join(keys)}, {len(lacking)} of {len(rows)} "
            "lack one of them"
        )


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{file}: expected COCO's JSON, got something else ({error})") from error
    if not isinstance(content, Mapping) or not {"images", "annotations"} <= set(content):
        raise InputError(f"{file}: expected COCO's JSON with 'images' and 'annotations'")
    return content
