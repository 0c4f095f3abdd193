"""The test images of the runs, kept once per content.

`<root>/datasets/<digest>/` holds `data.safetensors` (images, masks, boxes, labels) and
`dataset.json`, written whole. The digest is of the arrays alone: runs with the same digest were
measured on the same pixels, whatever the data was called.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnviz.errors import InputError, RunError
from attnviz.runs.header import File, document, plain, sealed
from attnviz.runs.migrations import SCHEMA
from attnviz.runs.names import checked, is_plain
from attnviz.runs.storage import (
    Place,
    Store,
    local_path,
    open_store,
    partial_name,
    unwritable,
    write_whole,
)
from attnviz.runs.tensors import Array, Indices, open_tensors, to_bytes

HEADER = "dataset.json"
DATA = "data.safetensors"
FOLDER = "datasets"


@dataclass(frozen=True)
class Dataset:
    """Test images and where the thing to be found is in them.

    Attributes:
        digest: The first 16 hex digits of the sha256 of its arrays.
        info: What the lab noted: source, split, patch settings.
        count: How many images it has.
        store: Where it lies.
    """

    digest: str
    info: Mapping[str, Any]
    count: int
    store: Store = field(repr=False)
    file: File = field(repr=False)

    def images(self, indices: Indices | None = None) -> NDArray[np.uint8]:
        """`(n, h, w, 3)` uint8, all or those asked for."""
        return self._rows("images", indices)

    def masks(self, indices: Indices | None = None) -> NDArray[np.bool_]:
        """`(n, h, w)` bool: where the patch is; all False in an image without one."""
        return self._rows("masks", indices)

    def boxes(self) -> NDArray[np.int64]:
        """`(n, 4)` half-open `x0 y0 x1 y1` in pixels; all zero in an image without a patch."""
        return self._rows("boxes", None)

    def labels(self) -> NDArray[np.int64]:
        """`(n,)` class of each image."""
        return self._rows("labels", None)

    def _rows(self, name: str, indices: Indices | None) -> Array:
        return open_tensors(self.store, DATA).rows(name, indices)


def save_dataset(
    root: Place,
    *,
    images: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    boxes: Array,
    labels: Array,
    info: Mapping[str, Any],
) -> str:
    """Keep test images beside the runs; the same arrays are kept once.

    Args:
        root: The folder of runs.
        images: `(n, h, w, 3)` uint8.
        masks: `(n, h, w)` bool.
        boxes: `(n, 4)` whole numbers, half-open `x0 y0 x1 y1`.
        labels: `(n,)` whole numbers.
        info: Anything JSON can hold.

    Returns:
        The digest by which `open_dataset` finds it.

    Raises:
        InputError: shapes or types disagree.
        RunError: it cannot be written; nothing is left behind.
    """
    arrays = _checked_arrays(images, masks, boxes, labels)
    digest = digest_of(arrays)
    folder = local_path(root) / FOLDER / digest
    if (folder / HEADER).is_file():
        return digest
    content = to_bytes(arrays)
    header = {
        "schema": SCHEMA,
        "count": len(images),
        "info": plain(info, "info"),
        "files": {DATA: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
    }
    aside = folder.with_name(partial_name(digest))
    try:
        write_whole(aside / DATA, content)
        write_whole(aside / HEADER, sealed(header))
        os.rename(aside, folder)
    except OSError as error:
        if not (folder / HEADER).is_file():  # unless another process has just kept the same
            raise error if isinstance(error, RunError) else unwritable(folder, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return digest


def open_dataset(root: Place, digest: str) -> Dataset:
    """Open test images by their digest; arrays are read when asked for.

    Args:
        root: The folder of runs (or its address) that has them below `datasets/`.
        digest: What `save_dataset` returned and `Run.dataset` holds.

    Raises:
        RunError: they are not there, or their header is broken or newer.
    """
    store = open_store(root).below(FOLDER).below(checked("dataset", digest))
    found = document(store.read(HEADER), f"{store.where}/{HEADER}")
    try:
        entry = found["files"][DATA]
        file = File(int(entry["bytes"]), str(entry["sha256"]), DATA)
        info, count = dict(found["info"]), int(found["count"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"open {store.where}: {HEADER} makes no sense") from error
    return Dataset(digest, info, count, store, file)


def list_datasets(root: Place) -> tuple[str, ...]:
    """The digests of the test images kept beside the runs."""
    try:
        folders = open_store(root).below(FOLDER).catalogue(HEADER)
    except RunError:
        return ()
    return tuple(sorted(name for name in folders if is_plain(name)))


def digest_of(arrays: Mapping[str, Array]) -> str:
    """The first 16 hex digits of the sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _checked_arrays(images: Array, masks: Array, boxes: Array, labels: Array) -> dict[str, Array]:
    n = len(images)
    images, masks = np.asarray(images), np.asarray(masks)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise InputError(
            f"images: expected uint8 (n, h, w, 3), got {images.dtype} of shape {images.shape}"
        )
    if masks.shape != images.shape[:3] or masks.dtype != np.bool_:
        raise InputError(
            f"masks: expected bool {images.shape[:3]}, got {masks.dtype} of shape {masks.shape}"
        )
    boxes, labels = _whole("boxes", boxes, (n, 4)), _whole("labels", labels, (n,))
    return {"images": images, "masks": masks, "boxes": boxes, "labels": labels}


def _whole(name: str, array: Array, shape: tuple[int, ...]) -> NDArray[np.int64]:
    array = np.asarray(array)
    if array.shape != shape or array.dtype.kind not in "iub":
        raise InputError(
            f"{name}: expected whole numbers {shape}, got {array.dtype} of shape {array.shape}"
        )
    return array.astype("<i8")
