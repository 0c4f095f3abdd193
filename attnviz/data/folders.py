"""Folders of images with a mask of the same name beside each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from attnviz.data.mask_values import Inside, chosen_values, refuse_absent, values_of_file
from attnviz.data.preprocessing import preprocessing
from attnviz.data.samples import Sample, Samples
from attnviz.data.scenes import Scene
from attnviz.errors import InputError, unknown_name
from attnviz.image_files import SUFFIXES, photograph, upright_size

ByFile: TypeAlias = Mapping[str, Any] | Callable[[Path], Any] | Literal["folder"] | None
"""A value per image: by its path in the folder or its name, each with or without the suffix, by a
function of its path, or the name of its folder."""

_WITHOUT = ("error", "empty", "unknown")
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".gif")


def mask_folder(
    images: str | Path,
    masks: str | Path | None = None,
    *,
    transform: Any,
    labels: ByFile = None,
    classes: Sequence[str] | None = None,
    group: ByFile = None,
    inside: Inside = None,
    ignore: int | Sequence[int] = (),
    without: Literal["error", "empty", "unknown"] = "error",
    seed: int = 0,
) -> Samples:
    """Images of a folder, and of its sub-folders, each with the mask of its name.

    The mask of `images/a/b.jpg` is `masks/a/b.png` (or another lossless format); neither folder
    lies in the other. In a mask of one value beside 0 that value is the thing; of a label map
    `inside` says which values are. Masks are grey images, or palettes: of greys read by their
    brightness, with colours by index, 0 the background in black. Of an image of one colour the
    alpha channel is the mask. Other masks in colour are refused.

    Args:
        images: The folder of images.
        masks: The folder of masks; None for images whose places are unknown.
        transform: From a PIL image to the tensor that the model takes; masks follow it.
        labels: Each image's class; with `"folder"` the name of its sub-folder. Text is a class's
            name, a number its index.
        classes: The classes' names in the order of the model's outputs; None takes those of the
            labels in alphabetical order.
        group: What each image belongs to (photograph, patient, video).
        inside: Values of the masks that are the thing.
        ignore: Values of the masks that count neither way.
        without: What an image without a mask file is: an error, known to hold nothing (`"empty"`),
            or of unknown place (`"unknown"`).
        seed: Of a random transform.

    Returns:
        Samples; `classes` are the classes' names.

    Raises:
        InputError: A folder without images, images without a mask, masks of another size, a label
            that is missing, or values `inside` that no mask holds; files are named, before anything
            is computed. A mask in colour, when it is read.
    """
    return _MaskFolder(Path(images), None if masks is None else Path(masks), transform, labels,
                       classes, group, inside, ignore, without, seed)  # fmt: skip


class _MaskFolder:
    """The images of a folder with their masks."""

    def __init__(
        self,
        images: Path,
        masks: Path | None,
        transform: Any,
        labels: ByFile,
        classes: Sequence[str] | None,
        group: ByFile,
        inside: Inside,
        ignore: int | Sequence[int],
        without: str,
        seed: int,
    ) -> None:
        self.folder = images
        self.ignore = chosen_values(ignore, "ignore") or ()
        self.inside = chosen_values(inside, "inside")
        self.moved = preprocessing(transform, seed)
        self.paths = _images(images)
        if without not in _WITHOUT:
            raise unknown_name("without", str(without), _WITHOUT)
        self.masks: list[Path | None] = [None] * len(self.paths)
        self.known = masks is not None and without != "unknown"
        if masks is not None:
            _check_folders(images, masks)
            files = _mask_files(masks)
            keys = [_key(path, images) for path in self.paths]
            self.masks = [_mask_of(files.get(key, [])) for key in keys]
            others = files.keys() - set(keys)
            self._check_names(masks, without, [files[key] for key in sorted(others)])
        self._check_sizes(masks)
        if self.inside is not None:
            refuse_absent(self.inside, (self._values(mask) for mask in self.masks if mask))
        self.groups = _by_file(group, self.paths, images, "group")
        found = _by_file(labels, self.paths, images, "labels")
        self.classes, self.labels = _numbered(
            found, classes, [self._name(path) for path in self.paths]
        )

    def _check_names(self, masks: Path, without: str, others: Sequence[Sequence[Path]]) -> None:
        """An `InputError` where images have no mask, or masks are those of other images."""
        missing = [p for p, m in zip(self.paths, self.masks, strict=True) if m is None]
        names = [one.relative_to(masks).as_posix() for several in others for one in several]
        if len(missing) == len(self.paths) and names:
            first = missing[0].relative_to(self.folder).with_suffix(".png")
            raise InputError(
                f"{masks}: holds masks, such as {names[0]}, but of none "
                f"of the images; expected the image's own name, such as {first.as_posix()}; leave "
                "masks out where places are unknown"
            )
        lost = f"{len(names)} mask files are of no image, such as {names[0]}" if names else ""
        if missing and without == "error":
            raise InputError(
                f"{masks}: {len(missing)} of {len(self.paths)} images have no mask, such as "
                f"{self._name(missing[0])}{'; ' * bool(lost)}{lost}; add the masks, or say "
                "without='empty' (--without empty) if these images hold nothing, 'unknown' if that "
                "is not known"
            )
        if missing and lost and without == "empty":
            raise InputError(
                f"{masks}: images without a mask, such as {self._name(missing[0])}, would count as "
                f"empty, but {lost}; give masks their image's name, and move those of other images "
                "elsewhere"
            )
        shared = [m for m, count in Counter(m for m in self.masks if m).items() if count > 1]
        if shared:
            sharing = [p.name for p, m in zip(self.paths, self.masks, strict=True) if m in shared]
            raise InputError(
                f"{shared[0]}: expected a mask for each image, this one is that of "
                f"{' and '.join(sharing[:2])}; rename the images"
            )

    def _check_sizes(self, masks: Path | None) -> None:
        for path, mask in zip(self.paths, self.masks, strict=True):
            if mask is None or masks is None:
                continue
            (size, turn), (given, own) = upright_size(path), upright_size(mask)
            if size != given:
                (w, h), (x, y) = size, given
                raise InputError(
                    f"{mask}: expected the size of its image {path.name}, {h} × {w} (height × "
                    f"width), got {y} × {x}; a mask is given at its image's own size, before any "
                    "transform"
                )
            if turn != 1 and own == 1 and (turn in (2, 3, 4) or size[0] == size[1]):
                raise InputError(
                    f"{mask}: its image {path.name} is rotated by EXIF (orientation {turn}) and "
                    "the mask states no orientation, so that it may be of the rotated image or of "
                    "the stored one; save both upright, without EXIF"
                )

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        """Where the images are, how many there are, and how many have a mask."""
        masks = sum(mask is not None for mask in self.masks)
        classes = f", classes {', '.join(self.classes)}" if self.classes else ""
        return f"{self.folder}: {len(self)} images, {masks} with a mask file{classes}"

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def __getitem__(self, index: int) -> Sample:
        path, mask = self.paths[index], self.masks[index]
        name = self._name(path)
        objects: list[np.ndarray] | None = [] if self.known else None
        void = None
        if mask is not None:
            objects, void = self._objects(mask, index)
        group = self.groups[index]
        scene = Scene(
            photograph(path, name=name),
            objects,
            void,
            label=self.labels[index],
            group=None if group is None else str(group),
            name=name,
            apart=False,
        )
        return scene.prepared(self.moved, index)

    def _objects(self, mask: Path, index: int) -> tuple[list[np.ndarray], np.ndarray | None]:
        values = self._values(mask)
        void = np.isin(values, self.ignore) if self.ignore else None
        if self.inside is not None:
            return [np.isin(values, self.inside)], void
        others = [int(v) for v in np.unique(values) if v and v not in self.ignore]
        if len(others) > 1:
            raise InputError(
                f"item {index} ({mask.name}): a label map with the values {[0, *others][:8]}: say "
                "which are the thing, inside=<values>, and which count neither way, ignore="
            )
        return [np.isin(values, others)], void

    def _values(self, mask: Path) -> np.ndarray:
        try:
            return values_of_file(mask, chosen=self.inside is not None)
        except InputError as error:
            raise InputError(f"{mask}: {error}") from error


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of images, there is none")
    found = sorted(
        path for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )  # fmt: skip
    if not found:
        raise InputError(f"{folder}: expected images ({', '.join(sorted(SUFFIXES))}), got none")
    return found


def _check_folders(images: Path, masks: Path) -> None:
    if not masks.is_dir():
        raise InputError(f"{masks}: expected a folder of masks, there is none")
    one, other = images.resolve(), masks.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise InputError(
            f"{masks}: expected a folder of masks apart from the images, {images}, neither in the "
            "other; else masks are taken for images"
        )


def _key(path: Path, folder: Path) -> str:
    """What an image and its mask share: the path in the folder without the suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _mask_files(masks: Path) -> dict[str, list[Path]]:
    """The files of a folder of masks by the image that they are of."""
    found: dict[str, list[Path]] = {}
    for path in sorted(masks.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found.setdefault(_key(path, masks), []).append(path)
    return found


def _mask_of(files: Sequence[Path]) -> Path | None:
    """The one mask of an image, None where there is none; a preview beside it is left out."""
    files = [one for one in files if one.suffix.lower() in _LOSSLESS] or files
    if len(files) > 1:
        raise InputError(
            f"{files[0]}: expected one mask for an image, got {' and '.join(f.name for f in files)}"
        )
    if files and files[0].suffix.lower() not in _LOSSLESS:
        raise InputError(
            f"{files[0]}: expected a mask in a lossless format ({', '.join(_LOSSLESS)}); "
            f"{files[0].suffix} changes values, save the mask anew"
        )
    return files[0] if files else None


def _by_file(source: ByFile, paths: list[Path], folder: Path, what: str) -> list[Any]:
    if source is None:
        return [None] * len(paths)
    if source == "folder":
        folders = [path.relative_to(folder).parent.as_posix() for path in paths]
        if what == "labels" and "." in folders:
            raise InputError(
                f"labels: expected images in sub-folders, whose names are the classes; "
                f"{paths[folders.index('.')].name} lies in {folder} itself"
            )
        return folders
    if callable(source):
        return [source(path) for path in paths]
    if not isinstance(source, Mapping):
        raise InputError(
            f"{what}: expected a mapping by file name, a function of the path, or 'folder', got "
            f"{type(source).__name__}"
        )
    chosen = [_entry(path, source, folder) for path in paths]
    missing = [
        path.name for path, key in zip(paths, chosen, strict=True)
        if key is None or source[key] is None
    ]  # fmt: skip
    if missing:
        raise InputError(f"{what}: {len(missing)} images have none, such as {missing[0]}")
    for key, count in Counter(chosen).items():
        if count > 1:
            of = [p.relative_to(folder).as_posix() for p, k in zip(paths, chosen, strict=True)
                  if k == key]  # fmt: skip
            raise InputError(
                f"{what}: {key} is the name of {len(of)} images, {' and '.join(of[:2])}; give "
                "their paths in the folder"
            )
    return [source[str(key)] for key in chosen]


def _entry(path: Path, source: Mapping[str, Any], folder: Path) -> str | None:
    """The key under which a mapping holds an image: its path before its mere name."""
    names = (path.relative_to(folder).as_posix(), _key(path, folder), path.name, path.stem)
    return next((name for name in names if name in source), None)


def _numbered(
    labels: list[Any], classes: Sequence[str] | None, files: Sequence[str]
) -> tuple[tuple[str, ...], list[Any]]:
    """Class names in their order, and labels as numbers."""
    if not any(isinstance(label, str) for label in labels):
        return tuple(classes or ()), labels
    names = list(classes) if classes is not None else sorted({str(label) for label in labels})
    for label, file in zip(labels, files, strict=True):
        if str(label) not in names:
            raise unknown_name(f"class of {file}", str(label), names)
    return tuple(names), [names.index(str(label)) for label in labels]
