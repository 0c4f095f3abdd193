"""Arrays in safetensors files: maps as scaled fp16, and single rows read without the rest.

Attention rows are small numbers (1/576 on a 24 × 24 grid) and fp16 is coarse there, so each map is
divided by its own largest absolute value before it is rounded, and that scale is kept as fp32. A
value `v` of a map with maximum `m` comes back within `max(2⁻¹¹ |v|, 2⁻²⁵ m)`; zero, NaN and
infinities come back as they were, and the largest value comes back exactly.

Files are written by safetensors itself and read here by byte range: the library reads local files
only, and the same code has to fetch one map from a remote store without fetching all of them. What
a file's header claims is compared with the file's size before anything is reserved or looped over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import index
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from attnviz.errors import InputError, RunError
from attnviz.runs.documents import loaded
from attnviz.runs.storage import WHOLE_LIMIT, Span, Store

Array: TypeAlias = NDArray[Any]
Indices: TypeAlias = Iterable[SupportsIndex]

_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "I64": "<i8",
    "U64": "<u8",
    "F64": "<f8",
}
_HEAD = 1 << 16
_HEADER_LIMIT = 1 << 24
_RANK_LIMIT = 32
_LARGEST = 1 << 40  # places along an axis; an empty array may claim any number of them


def to_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The arrays as the content of a safetensors file."""
    from safetensors.numpy import save

    content: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return content


def from_bytes(content: bytes, where: str) -> dict[str, Array]:
    """All arrays of a safetensors file; `RunError` naming the file if it is none."""
    from safetensors.numpy import load

    try:
        arrays: dict[str, Array] = load(content)
    except Exception as error:  # the library raises its own kinds and built-in ones
        raise RunError(f"read {where}: not a whole safetensors file ({error})") from error
    return arrays


def scaled(array: Array, axes: int) -> dict[str, Array]:
    """A map's values as fp16 in [-1, 1] and the fp32 scale of each map.

    Args:
        array: Any real array; the last `axes` axes are one map, the ones before count maps.
        axes: How many axes a map has.

    Returns:
        `{"values": fp16 of the same shape, "scale": fp32 of the leading axes}`.
    """
    values = np.asarray(array, dtype=np.float32)
    inside = tuple(range(values.ndim - axes, values.ndim))
    sizes = np.where(np.isfinite(values), np.abs(values), np.float32(0))
    scale = sizes.max(axis=inside, initial=0.0).astype(np.float32)
    scale[scale == 0] = 1.0
    with np.errstate(over="ignore"):  # numpy 1.26 fills its vectors with ones and divides these too
        parts = values / np.expand_dims(scale, inside)
    return {"values": parts.astype(np.float16), "scale": scale}


def restored(values: Array, scale: Array) -> NDArray[np.float32]:
    """Invert `scaled`, as fp32; `ValueError` if values and scale do not match."""
    if scale.shape != values.shape[: scale.ndim]:
        raise ValueError(f"a scale of shape {scale.shape} for values of shape {values.shape}")
    full = scale.reshape(scale.shape + (1,) * (values.ndim - scale.ndim))
    with np.errstate(invalid="ignore", over="ignore"):  # a crafted scale may be infinite
        result: NDArray[np.float32] = values.astype(np.float32) * full
    return result


@dataclass(frozen=True)
class Entry:
    """Location of one array in a file: type, shape, and bytes `[start, stop)`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file of a store, opened by its header; arrays are read on demand."""

    store: Store
    name: str
    entries: Mapping[str, Entry]
    head: bytes

    def rows(self, array: str, indices: Indices | None = None) -> Array:
        """Some rows along the first axis, in the given order, or all of them.

        Raises:
            InputError: an index is out of range.
            RunError: the file has no such array, ends before it should, or the rows are too
                many to be held at once.
        """
        entry = self._entry(array)
        count = entry.shape[0] if entry.shape else 0
        inner = entry.shape[1:]
        stride = entry.dtype.itemsize * prod(inner)
        if indices is None:
            taken, spans = count, [(entry.start, entry.stop)] if count * stride else []
        else:
            rows = _inside(indices, count, self.name)
            taken, spans = len(rows), _joined(rows, entry.start, stride) if stride else []
        if taken * stride > WHOLE_LIMIT:
            raise RunError(
                f"read {self.store.where}/{self.name}: expected at most {WHOLE_LIMIT} bytes at "
                f"once, got {taken * stride}; read some of the images by their indices"
            )
        content = bytearray().join(self._parts(spans))  # an array upon it can be written to
        if len(content) != taken * stride:
            raise RunError(f"read {self.store.where}/{self.name}: ends before it should")
        return np.frombuffer(content, dtype=entry.dtype).reshape((taken, *inner))

    def stretches(self, array: str, spans: Sequence[tuple[int, int]]) -> list[Array]:
        """Rows `[start, stop)` along the first axis, an array for each stretch.

        Raises:
            RunError: As `rows`; and a stretch that the array does not have.
        """
        entry = self._entry(array)
        inner = entry.shape[1:]
        stride = entry.dtype.itemsize * prod(inner)
        where = f"read {self.store.where}/{self.name}"
        if any(not 0 <= start <= stop <= entry.shape[0] for start, stop in spans):
            raise RunError(f"{where}: {array} ends before it should")
        if sum(stop - start for start, stop in spans) * stride > WHOLE_LIMIT:
            raise RunError(
                f"{where}: expected at most {WHOLE_LIMIT} bytes at once; ask for some of the "
                "images by their indices"
            )
        parts = self._parts(
            [(entry.start + start * stride, entry.start + stop * stride) for start, stop in spans]
        )
        return [
            np.frombuffer(bytearray(part), dtype=entry.dtype).reshape((-1, *inner))
            for part in parts
        ]

    def shape(self, array: str) -> tuple[int, ...]:
        """The shape of an array, from the header alone."""
        return self._entry(array).shape

    def _entry(self, array: str) -> Entry:
        if array not in self.entries:
            raise RunError(f"read {self.store.where}/{self.name}: holds no array {array!r}")
        return self.entries[array]

    def _parts(self, spans: Sequence[Span]) -> list[bytes]:
        if not spans:
            return []
        if max(stop for _, stop in spans) <= len(self.head):
            return [self.head[start:stop] for start, stop in spans]
        return self.store.ranges(self.name, spans)


def open_tensors(store: Store, name: str, size: int | None = None) -> TensorFile:
    """Read a safetensors file's header: one request, which often brings the scales along.

    Args:
        store: The store of the file.
        name: Its name there.
        size: Its bytes, where they are known; arrays that the header puts beyond are refused.

    Raises:
        RunError: it is missing or its header makes no sense; the message names the file.
    """
    head = store.ranges(name, [(0, _HEAD)])[0]
    length = int.from_bytes(head[:8], "little")
    where = f"{store.where}/{name}"
    if len(head) < 8 or length > _HEADER_LIMIT:
        raise RunError(f"read {where}: not a safetensors file")
    if length + 8 > len(head):
        head = store.ranges(name, [(0, length + 8)])[0]
    try:
        entries = _parsed(loaded(head[8 : length + 8]), length + 8)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise RunError(f"read {where}: not a whole safetensors file") from error
    stop = max((entry.stop for entry in entries.values()), default=0)
    if size is not None and stop > size:
        raise RunError(f"read {where}: its header names {stop} bytes, the file has {size}")
    return TensorFile(store, name, entries, head)


def _parsed(header: Any, offset: int) -> dict[str, Entry]:
    if not isinstance(header, dict):
        raise TypeError("expected an object")
    arrays = {name: value for name, value in header.items() if name != "__metadata__"}
    return {name: _entry(value, offset) for name, value in arrays.items()}


def _entry(value: Any, offset: int) -> Entry:
    dtype = np.dtype(_DTYPES[value["dtype"]])
    shape, (start, stop) = tuple(value["shape"]), value["data_offsets"]
    numbers = (*shape, start, stop)
    if not all(type(number) is int and 0 <= number <= 1 << 62 for number in numbers):
        raise ValueError("expected whole numbers")
    if len(shape) > _RANK_LIMIT or max(shape, default=0) > _LARGEST:
        raise ValueError("too large")
    if prod(shape) * dtype.itemsize != stop - start:
        raise ValueError("sizes disagree")
    return Entry(dtype, shape, offset + start, offset + stop)


def _joined(rows: Iterable[int], start: int, stride: int) -> list[Span]:
    """The byte spans of rows in the order given, neighbours joined."""
    spans: list[Span] = []
    for row in rows:
        begin = start + row * stride
        if spans and spans[-1][1] == begin:
            spans[-1] = (spans[-1][0], begin + stride)
        else:
            spans.append((begin, begin + stride))
    return spans


def _inside(indices: Indices, count: int, name: str) -> list[int]:
    rows = [index(row) for row in indices]
    if any(not 0 <= row < count for row in rows):
        raise InputError(f"{name}: expected indices from 0 to {count - 1}, got {rows[:8]}")
    return rows
