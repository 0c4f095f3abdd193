"""What an evaluation has computed so far: pieces of a data set, each a file, whole or not at all.

A data set is evaluated a piece at a time. A piece's arrays go to disk when it is done, so that
memory does not grow with the number of images and an interrupted evaluation goes on where it
stopped. The pieces of a run lie in the run's own folder until the run is complete.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from attnviz.errors import RunError
from attnviz.maps import resized
from attnviz.runs.storage import write_whole
from attnviz.runs.tensors import to_bytes

FOLDER = "pieces"
_TEXT = "text"


def parts_of(count: int, size: int) -> list[range]:
    """`0 … count − 1` in pieces of `size`."""
    return [range(start, min(count, start + size)) for start in range(0, count, size)]


class Pieces:
    """Arrays of images, a file per piece.

    Args:
        folder: Where they lie; None takes a temporary folder that goes with this object.
        write: How a file of this name is written whole; None writes it into the folder.
    """

    def __init__(
        self, folder: Path | None = None, write: Callable[[str, bytes], object] | None = None
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="attnviz-")) if folder is None else folder
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._write = write or (lambda name, content: write_whole(self.folder / name, content))

    def __contains__(self, part: range) -> bool:
        return (self.folder / _file(part)).is_file()

    def put(
        self, part: range, arrays: Mapping[str, np.ndarray], text: Mapping[str, Sequence[str]]
    ) -> None:
        """Keep a piece: arrays whose first axis is the images, and columns of text."""
        packed = np.frombuffer(json.dumps(dict(text)).encode(), dtype=np.uint8)
        whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        self._write(_file(part), to_bytes({**whole, _TEXT: packed}))

    def names(self, parts: Sequence[range]) -> list[str]:
        """The arrays that any of the pieces holds, in the order in which they first appear."""
        found: dict[str, None] = {}
        for part in parts:
            with self._opened(part) as file:
                found |= dict.fromkeys(key for key in file.keys() if key != _TEXT)  # noqa: SIM118  # a file has no iterator
        return list(found)

    def joined(self, name: str, parts: Sequence[range]) -> np.ndarray:
        """An array of all images; NaN where a piece has none.

        Maps of several grids are resized to the largest of them, bilinearly.

        Raises:
            RunError: The pieces hold arrays of different shapes.
        """
        held = [self._array(part, name) for part in parts]
        shape = largest_grid([array.shape[1:] for array in held if array is not None])
        held = [None if array is None else on_grid(array, shape) for array in held]
        whole = [
            np.full((len(part), *shape), np.nan, np.float32) if array is None else array
            for part, array in zip(parts, held, strict=True)
        ]
        try:
            return np.concatenate(whole)
        except ValueError as error:
            raise RunError(f"{self.folder}: pieces of {name!r} do not fit ({error})") from error

    def text(self, parts: Sequence[range]) -> dict[str, list[str]]:
        """The columns of text of all images."""
        found: dict[str, list[str]] = {}
        for part in parts:
            with self._opened(part) as file:
                columns = json.loads(file.get_tensor(_TEXT).tobytes())
            for key, values in columns.items():
                found.setdefault(key, []).extend(values)
        return found

    def walk(self, name: str, parts: Sequence[range]) -> Iterator[np.ndarray]:
        """An array piece by piece."""
        for part in parts:
            array = self._array(part, name)
            if array is not None:
                yield array

    def _array(self, part: range, name: str) -> np.ndarray | None:
        with self._opened(part) as file:
            if name not in file.keys():  # noqa: SIM118  # a file has no iterator
                return None
            array: np.ndarray = file.get_tensor(name)
            return array

    def _opened(self, part: range) -> Any:
        path = self.folder / _file(part)
        try:
            return safe_open(path, framework="numpy")
        except Exception as error:  # safetensors has an exception of its own for damage
            raise RunError(f"{path}: an evaluation's piece cannot be read ({error})") from error


def largest_grid(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The shape of an array that takes all of these: the greatest height and width of a grid."""
    first = shapes[0]
    if len(first) < 2 or any(len(shape) != len(first) for shape in shapes):
        return tuple(first)
    return (*first[:-2], max(shape[-2] for shape in shapes), max(shape[-1] for shape in shapes))


def on_grid(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Maps `(n, …, h, w)` resized bilinearly to the grid that `shape` ends with.

    What has that grid already, or no grid, is returned as it is.
    """
    if array.shape[1:] == tuple(shape) or array.ndim < 3 or len(shape) != array.ndim - 1:
        return array
    size = (int(shape[-2]), int(shape[-1]))
    return resized(torch.from_numpy(array), size, "bilinear").numpy()


def _file(part: range) -> str:
    return f"{part.start:08d}-{part.stop:08d}.safetensors"
