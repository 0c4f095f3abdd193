"""The test images of the runs, kept once per content.

`<root>/datasets/<digest>/` holds `data.safetensors` (images, masks, boxes, labels) and
`dataset.json`, written whole. The digest is of the arrays alone: runs with the same digest were
measured on the same pixels, whatever the data was called. Images are written batch by batch, so
any number of them can be kept.

Images of one size are kept as `(n, h, w, 3)`. Those of several sizes lie one after the other, as
`(pixels, 3)`, beside an array `sizes` of their heights and widths. Volumes and videos are kept as
`(n, d, h, w, 3)`, of one size; `Dataset.cut` gives a slice or frame of each.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from attnviz.errors import InputError, RunError
from attnviz.runs.documents import SIZE_LIMIT, document, plain, sealed
from attnviz.runs.entries import OutsideError, inside
from attnviz.runs.header import File, channels, entry_of, three
from attnviz.runs.layout import DATA, DATASET_HEADER, DATASETS, SCHEMA
from attnviz.runs.locking import Lock
from attnviz.runs.names import checked, is_plain
from attnviz.runs.staging import removed, sweep
from attnviz.runs.storage import (
    Place,
    Store,
    local_path,
    open_store,
    partial_name,
    sync_folder,
    unwritable,
    write_whole,
)
from attnviz.runs.tensors import Array, Indices, TensorFile, open_tensors

Batch = Mapping[str, Array]
"""Images, masks and, where there are any, boxes and labels of a few images."""

_BLOCK = 1 << 20
_TYPES = {"boxes": "<i8", "images": "|u1", "labels": "<i8", "masks": "|b1", "sizes": "<i8"}
_CODES = {"<i8": "I64", "|u1": "U8", "|b1": "BOOL"}


@dataclass(frozen=True)
class Cut:
    """Images at one size, or a slice of each volume, with the object's place in them.

    Attributes:
        images: `(n, h, w, 3)` uint8.
        masks: `(n, h, w)` bool.
        boxes: `(n, 4)` boxes `[x0, y0, x1, y1)`; all zero without an object.
        at: `(n,)`, which slice or frame of each; None of images.
        depth: How many slices or frames there are; None of images.
        axis: What they are, `"slice"` or `"frame"`.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    boxes: NDArray[np.int64]
    at: NDArray[np.int64] | None = None
    depth: int | None = None
    axis: str = "slice"

    def box(self, place: int = 0) -> tuple[int, ...] | None:
        """The box of one of these images; None where it has none."""
        return tuple(int(v) for v in self.boxes[place]) if self.masks[place].any() else None

    def of(self, maps: NDArray[Any]) -> NDArray[Any]:
        """The maps' parts that lie over these slices.

        Args:
            maps: Raw maps of the same images: `(n, h, w)` or `(n, heads, h, w)`; of volumes
                `(n, d', h, w)` or `(n, heads, d', h, w)`, on any grid over the same volume.

        Returns:
            `(n, h, w)`, or `(n, heads, h, w)` where there are heads.
        """
        if self.at is None or self.depth is None:
            return maps
        which = self.layers(maps.shape[-3])
        parts = [one[..., k, :, :] for one, k in zip(maps, which, strict=True)]
        return np.stack(parts) if parts else maps[..., 0, :, :]

    def layers(self, count: int) -> NDArray[np.int64]:
        """`(n,)`, which of `count` equal layers of its volume each of these slices lies in."""
        if self.at is None or self.depth is None:
            raise InputError("layers: expected slices of volumes, got images")
        found = (self.at + 0.5) * count / self.depth
        return np.minimum(count - 1, found.astype(np.int64))


@dataclass(frozen=True)
class Dataset:
    """Test images and the object's place in them.

    Attributes:
        digest: The first 16 hex digits of the sha256 of its arrays.
        info: Its notes: source, split.
        count: How many images it has.
        mean: What was subtracted from each channel (of pixels from 0 to 1) before a model saw it;
            None where that was not noted.
        std: What each channel was divided by.
        store: Where it lies.
    """

    digest: str
    info: Mapping[str, Any]
    count: int
    store: Store = field(repr=False)
    file: File = field(repr=False)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images; of several sizes the largest of each."""
        if self._mixed:
            height, width = self.sizes().max(0).tolist()
            return height, width
        shape = self._open().shape("images")
        return shape[-3], shape[-2]

    @property
    def depth(self) -> int | None:
        """How many slices or frames the volumes or videos have; None of images."""
        shape = self._open().shape("images")
        return shape[1] if len(shape) == 5 else None

    def sizes(self, indices: Indices | None = None) -> NDArray[np.int64]:
        """`(n, 2)`, the height and width of each image."""
        if self._mixed:
            return self._rows("sizes", indices)
        count = self.count if indices is None else len(list(indices))
        return np.tile(np.array(self.size, dtype=np.int64), (count, 1))

    def images(self, indices: Indices | None = None) -> NDArray[np.uint8]:
        """`(n, h, w, 3)` uint8, all or the given ones; of volumes `(n, d, h, w, 3)`.

        Raises:
            InputError: They are of several sizes; see `together`.
        """
        return self._pictures("images", indices)

    def masks(self, indices: Indices | None = None) -> NDArray[np.bool_]:
        """`(n, h, w)` bool, of volumes `(n, d, h, w)`: where the object is, all False without one.

        Raises:
            InputError: They are of several sizes; see `together`.
        """
        return self._pictures("masks", indices)

    def together(
        self, indices: Indices
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.int64]]:
        """Images, masks and boxes at one size, to be shown side by side.

        Images of several sizes are stretched to the largest height and width among them, by the
        nearest pixel, and their masks and boxes with them.
        """
        chosen = [int(index) for index in indices]
        sizes = self.sizes(chosen)
        boxes = self.boxes(chosen)
        if len(np.unique(sizes, axis=0)) < 2:
            return self.images(chosen), self.masks(chosen), boxes
        height, width = sizes.max(0).tolist()
        images, masks = (
            np.stack([_stretched(self._pictures(name, [index])[0], height, width)
                      for index in chosen])
            for name in ("images", "masks")
        )  # fmt: skip
        scale = np.array([width, height] * 2) / sizes[:, [1, 0, 1, 0]]
        edges = boxes * scale
        boxes = np.concatenate([np.floor(edges[:, :2]), np.ceil(edges[:, 2:])], 1).astype(np.int64)
        return images, masks, boxes

    def cut(self, indices: Indices, at: int | None = None) -> Cut:
        """Images as of `together`; of volumes or videos one slice or frame of each.

        Args:
            indices: Which images.
            at: Which slice or frame, from 0; by default of each the one that shows most of its
                object, the middle one where there is none.

        Raises:
            InputError: There is no such slice.
        """
        chosen = [int(index) for index in indices]
        depth = self.depth
        if depth is None:
            return Cut(*self.together(chosen))
        if at is not None and not 0 <= at < depth:
            raise InputError(f"slice {at}: expected one from 0 to {depth - 1}")
        images, masks = self.images(chosen), self.masks(chosen)
        area = masks.sum(axis=(2, 3))
        most = np.where(area.any(axis=1), area.argmax(axis=1), depth // 2)
        which = most if at is None else np.full(len(chosen), at)
        rows = np.arange(len(chosen))
        shown = masks[rows, which]
        axis = "frame" if self.info.get("axis") == "frame" else "slice"
        return Cut(images[rows, which], shown, boxes_of(shown), which.astype(np.int64), depth, axis)

    def boxes(self, indices: Indices | None = None) -> NDArray[np.int64]:
        """`(n, 4)` boxes `[x0, y0, x1, y1)` in pixels; all zero in an image without an object."""
        return self._rows("boxes", indices)

    def labels(self, indices: Indices | None = None) -> NDArray[np.int64]:
        """`(n,)` class of each image; −1 for one without a label."""
        return self._rows("labels", indices)

    def check(self) -> None:
        """Compare the arrays' shapes with the number of images, without reading them.

        Raises:
            RunError: one is missing, or has another shape.
        """
        tensors = self._open()
        n = self.count
        wanted: dict[str, tuple[int, ...]] = {"boxes": (n, 4), "labels": (n,)}
        if self._mixed:
            pixels = int(self._areas_checked().prod(1).sum())
            wanted |= {"images": (pixels, 3), "masks": (pixels,), "sizes": (n, 2)}
        else:
            inner = self.size if self.depth is None else (self.depth, *self.size)
            wanted |= {"images": (n, *inner, 3), "masks": (n, *inner)}
        for name, shape in wanted.items():
            if tensors.shape(name) != shape:
                raise RunError(
                    f"read {self.store.where}/{DATA}: {name} of shape {tensors.shape(name)}, "
                    f"expected {shape}"
                )

    @cached_property
    def _mixed(self) -> bool:
        """Whether the images are of several sizes."""
        return "sizes" in self._open().entries

    def _pictures(self, name: str, indices: Indices | None) -> Array:
        if not self._mixed:
            return self._rows(name, indices)
        chosen = list(range(self.count)) if indices is None else [int(i) for i in indices]
        sizes = self._areas_checked()
        if any(not 0 <= index < self.count for index in chosen):
            raise InputError(
                f"{name}: expected indices from 0 to {self.count - 1}, got {chosen[:8]}"
            )
        found = {(int(h), int(w)) for h, w in sizes[chosen]}
        if len(found) > 1:
            told = ", ".join(f"{h} × {w}" for h, w in sorted(found)[:4])
            raise InputError(
                f"{name}: expected images of one size, got {told}; ask for those of one size (see "
                "sizes), or for all at one size with together"
            )
        ends = np.cumsum(sizes.prod(1))
        spans = [(int(ends[i] - sizes[i].prod()), int(ends[i])) for i in chosen]
        parts = self._open().stretches(name, spans)
        inner = self._open().shape(name)[1:]
        height, width = found.pop() if found else (0, 0)
        whole: Array = np.concatenate(parts) if parts else np.empty((0, *inner))
        return whole.reshape((len(chosen), height, width, *inner))

    def _areas_checked(self) -> NDArray[np.int64]:
        """The sizes, once they add up to the pixels that are there; `RunError` if not."""
        sizes = self.sizes()
        areas = [int(height) * int(width) for height, width in sizes]
        pixels = self._open().shape("masks")[:1]
        if (sizes < 1).any() or (sum(areas),) != pixels or len(areas) != self.count:
            raise RunError(
                f"read {self.store.where}/{DATA}: sizes of {sum(areas)} pixels in {len(areas)} "
                f"images, expected {pixels} in {self.count}"
            )
        return sizes

    def _open(self) -> TensorFile:
        return open_tensors(self.store, DATA, self.file.size)

    def _rows(self, name: str, indices: Indices | None) -> Array:
        return self._open().rows(name, indices)


def _stretched(picture: Array, height: int, width: int) -> Array:
    """A picture `(h, w, …)` at another size, by the nearest pixel."""
    rows = (np.arange(height) * picture.shape[0]) // height
    columns = (np.arange(width) * picture.shape[1]) // width
    found: Array = picture[rows][:, columns]
    return found


def save_dataset(
    root: Place,
    batches: Iterable[Batch] | None = None,
    *,
    images: NDArray[np.uint8] | None = None,
    masks: NDArray[np.bool_] | None = None,
    boxes: Array | None = None,
    labels: Array | None = None,
    info: Mapping[str, Any],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> str:
    """Keep test images beside the runs; the same arrays are kept once.

    Args:
        root: The folder of runs.
        batches: The arrays below by name, for a few images at a time, those of one batch being of
            one size; at no time more than one batch is in memory. Or all of them at once:
        images: `(n, h, w, 3)` uint8, of one size; volumes or videos `(n, d, h, w, 3)`.
        masks: `(n, h, w)` bool, or `(n, d, h, w)`.
        boxes: `(n, 4)` whole numbers `[x0, y0, x1, y1)`; by default those of the masks.
        labels: `(n,)` whole numbers; by default −1, no label.
        info: Anything JSON can hold. `"axis"` says what the `d` images of a volume are: `"slice"`
            (the default) or `"frame"`.
        mean: The mean of each channel by which this data is normalised, of pixels from 0 to 1;
            where a model has its own, that is noted in its run.
        std: The standard deviation of each channel, the same.

    Returns:
        The digest by which `open_dataset` finds it.

    Raises:
        InputError: shapes or types disagree, or the same images are kept with another mean or
            standard deviation.
        RunError: it cannot be written; nothing is left behind.
    """
    if (batches is None) == (images is None):
        raise InputError("save_dataset: expected either batches or images and masks")
    noted = plain(info, "info")
    scales = {"mean": channels("mean", mean), "std": channels("std", std)}
    if batches is None:
        given = {"images": images, "masks": masks, "boxes": boxes, "labels": labels}
        arrays = _checked_arrays({name: one for name, one in given.items() if one is not None})
        if _is_kept(root, digest := digest_of(arrays), scales):
            return digest
        batches = [arrays]
    folder = local_path(root) / DATASETS
    aside = folder / partial_name("data")
    lock = None
    try:
        inside(local_path(root), f"{DATASETS}/{DATASET_HEADER}")
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, "data")
        aside.mkdir()
        lock = Lock(aside)
        shapes = _parts_written(aside, batches)
        digest = _digest_of_parts(aside, shapes)
        if not _is_kept(root, digest, scales):
            entry = _joined(aside, shapes)
            header = {"schema": SCHEMA, "count": shapes["labels"][0], "info": noted,
                      **scales, "files": {DATA: entry}}  # fmt: skip
            write_whole(aside / DATASET_HEADER, sealed(header))
            _named(aside, folder / digest)
    except OutsideError as error:
        raise OutsideError(f"write {error}") from error
    except OSError as error:
        raise error if isinstance(error, RunError) else unwritable(aside / DATA, error) from error
    finally:
        removed(aside, lock)
    return digest


def open_dataset(root: Place, digest: str) -> Dataset:
    """Open test images by their digest; arrays are read on demand.

    Args:
        root: The folder of runs (or its address) that has them below `datasets/`.
        digest: What `save_dataset` returned and `Run.dataset` holds.

    Raises:
        RunError: they are not there, or their header is broken or newer.
    """
    store = open_store(root).below(DATASETS).below(checked("dataset", digest))
    found = document(store.read(DATASET_HEADER, SIZE_LIMIT), f"{store.where}/{DATASET_HEADER}")
    try:
        entry = found["files"][DATA]
        file = entry_of(DATA, entry)
        info, count = dict(found["info"]), int(found["count"])
        mean, std = (three(found.get(name)) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"open {store.where}: {DATASET_HEADER} makes no sense") from error
    return Dataset(digest, info, count, store, file, mean, std)


def list_datasets(root: Place) -> tuple[str, ...]:
    """The digests of the test images kept beside the runs."""
    try:
        folders = open_store(root).below(DATASETS).catalogue(DATASET_HEADER)
    except RunError:
        return ()
    return tuple(sorted(name for name in folders if is_plain(name)))


def digest_of(arrays: Mapping[str, Array]) -> str:
    """The first 16 hex digits of the sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(_label(name, array.dtype.str, array.shape))
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _is_kept(root: Place, digest: str, scales: Mapping[str, list[float] | None]) -> bool:
    """Whether these images are kept already; refused if they are under another normalisation."""
    if not (local_path(root) / DATASETS / digest / DATASET_HEADER).is_file():
        return False
    found = open_dataset(root, digest)
    for name, given in scales.items():
        kept = getattr(found, name)
        if given is not None and kept is not None and tuple(given) != kept:
            raise InputError(
                f"{name}: these images are kept with {kept} already, got {tuple(given)}; leave it "
                "out, and note the model's own in its run: start_run(…, mean=…, std=…)"
            )
    return True


def _label(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    return json.dumps([name, dtype, tuple(shape)]).encode()


def _parts_written(aside: Path, batches: Iterable[Batch]) -> dict[str, tuple[int, ...]]:
    """Write each array's batches to a file of its own; the whole arrays' shapes."""
    inner: dict[str, tuple[int, ...]] = {}
    sizes: set[tuple[int, ...]] = set()
    count = pixels = 0
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {
            name: stack.enter_context((aside / name).open("wb")) for name in _TYPES
        }
        for batch in batches:
            arrays = _checked_arrays(batch)
            n, *sides = arrays["masks"].shape
            height, width = sides[-2:]
            sizes |= {tuple(sides)} if n else set()
            arrays["sizes"] = np.tile(np.array([height, width], dtype="<i8"), (n, 1))
            for name, array in arrays.items():
                inner[name] = array.shape[1:]
                files[name].write(np.ascontiguousarray(array).data)
            count += n
            pixels += n * height * width
    if not inner:
        raise InputError("save_dataset: expected at least one batch of images, got none")
    shapes = {name: (count, *shape) for name, shape in inner.items()}
    if len(sizes) > 1 and any(len(sides) > 2 for sides in sizes):
        raise InputError(
            f"save_dataset: expected volumes of one size, got {sorted(sizes)[:4]}; resize them"
        )
    if len(sizes) > 1:
        return shapes | {"images": (pixels, 3), "masks": (pixels,)}
    (aside / "sizes").unlink()
    del shapes["sizes"]
    return shapes


def _digest_of_parts(aside: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(shapes):
        digest.update(_label(name, _TYPES[name], shapes[name]))
        for block in _blocks(aside / name):
            digest.update(block)
    return digest.hexdigest()[:16]


def _joined(aside: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Join the arrays' files to one safetensors file; its size and checksum."""
    words = [name for name in ("boxes", "labels", "sizes") if name in shapes]
    names = [*words, "images", "masks"]  # whole words first, for their alignment
    header: dict[str, Any] = {}
    stop = 0
    for name in names:
        start, stop = stop, stop + np.dtype(_TYPES[name]).itemsize * prod(shapes[name])
        header[name] = {"dtype": _CODES[_TYPES[name]], "shape": list(shapes[name]),
                        "data_offsets": [start, stop]}  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with (aside / DATA).open("wb") as out:
        for block in _all_blocks(aside, [len(text).to_bytes(8, "little"), text], names):
            out.write(block)
            digest.update(block)
            size += len(block)
        out.flush()
        os.fsync(out.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _all_blocks(aside: Path, head: Sequence[bytes], names: Sequence[str]) -> Iterator[bytes]:
    yield from head
    for name in names:
        yield from _blocks(aside / name)
        (aside / name).unlink()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _named(aside: Path, folder: Path) -> None:
    """Give a whole folder its name, unless another process has just kept the same."""
    try:
        os.rename(aside, folder)
    except OSError:
        if not (folder / DATASET_HEADER).is_file():
            raise
    sync_folder(folder.parent)


def _checked_arrays(batch: Batch) -> dict[str, Array]:
    unknown = sorted(set(batch) - (set(_TYPES) - {"sizes"}))
    if unknown or "images" not in batch or "masks" not in batch:
        raise InputError(
            f"save_dataset: expected images, masks and, if there are any, boxes and labels, got "
            f"{', '.join(batch) or 'nothing'}"
        )
    images, masks = np.asarray(batch["images"]), np.asarray(batch["masks"])
    n = len(images)
    if images.ndim not in (4, 5) or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise InputError(
            f"images: expected uint8 (n, h, w, 3), got {images.dtype} of shape {images.shape}; "
            "volumes are (n, d, h, w, 3)"
        )
    if masks.shape != images.shape[:-1] or masks.dtype != np.bool_:
        raise InputError(
            f"masks: expected bool {images.shape[:-1]}, got {masks.dtype} of shape {masks.shape}"
        )
    boxes = _whole("boxes", batch.get("boxes", boxes_of(masks)), (n, 4))
    labels = _whole("labels", batch.get("labels", np.full(n, -1)), (n,))
    return {"images": images, "masks": masks, "boxes": boxes, "labels": labels}


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The smallest box `[x0, y0, x1, y1)` around each mask `(n, h, w)`; zero if empty.

    Of a volume's mask `(n, d, h, w)` it holds what is marked in any slice.
    """
    boxes = np.zeros((len(masks), 4), dtype=np.int64)
    flat = np.asarray(masks.any(axis=1)) if masks.ndim == 4 else masks
    for box, mask in zip(boxes, flat, strict=True):
        rows, columns = np.nonzero(mask)
        if len(rows):
            box[:] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return boxes


def _whole(name: str, array: Array, shape: tuple[int, ...]) -> NDArray[np.int64]:
    array = np.asarray(array)
    if array.shape != shape or array.dtype.kind not in "iub":
        raise InputError(
            f"{name}: expected whole numbers {shape}, got {array.dtype} of shape {array.shape}"
        )
    return array.astype("<i8")
