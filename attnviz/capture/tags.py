"""What is known about a tensor, kept with its storage and forgotten with it.

A view shares its tensor's storage, so a tag follows every reshape and permute at no cost; an axis
is found again in a view by its size and stride. The table holds weak references: a storage's
address cannot be given to another tensor while its tag lives, and no tensor lives longer for being
tagged.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attnviz.capture.places import Place

_SWEEP = 512  # tags of storages that are gone are dropped once the table has grown to this


@dataclass(slots=True)
class Scores:
    """A product of data with data: the logits of an attention, or part of a linear one.

    Attributes:
        query: The left factor, kept only if operands were asked for.
        key: The right factor, the same.
        scale: What the product has been multiplied by since, and its factors before it.
        width: The length of the contracted axis, d_k.
        shape: The product's shape.
    """

    query: Tensor | None
    key: Tensor | None
    scale: float
    width: int
    shape: tuple[int, ...]
    place: Place | None = None


@dataclass(slots=True, eq=False)
class Squash:
    """One run of a softmax or a gate's function, whatever becomes of its result.

    Attributes:
        op: Its name, such as `"softmax"` or `"sigmoid"`.
        place: Who ran it, and where in the source.
        scores: The q · k it was computed from, if it was.
        used: Whether its result met data in a product.
        source: The input's storage, to tell x · σ(x) from a gate.
        shape: The result's shape.
        twice: Whether its input was itself a softmax's result.
    """

    op: str
    place: Place
    shape: tuple[int, ...]
    scores: Scores | None = None
    used: bool = False
    source: int = 0
    twice: bool = False
    outer: bool = False
    number: int = -1


@dataclass(slots=True)
class Tag:
    """What a storage holds.

    Attributes:
        kind: `"softmax"`, `"gate"`, `"scores"`, `"parameter"`, `"factor"`, `"dropout"`, …
        shape: Sizes of the tensor as it was written.
        stride: Its strides, the same.
        axis: Which of its dimensions sums to one; None where none does.
        squash: The function that made it.
        scores: The data product that made it.
        factor: By which number it was multiplied since.
        raw: The tensor before dropout, where dropout followed.
        mixed: Whether parameters have mixed its heads since.
    """

    kind: str
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    axis: int | None = None
    squash: Squash | None = None
    scores: Scores | None = None
    factor: float = 1.0
    raw: Tensor | None = None
    mixed: bool = False
    extra: Any = field(default=None)

    def find(self, view: Tensor) -> int | None:
        """The dimension of a view that is this tag's axis, None if it was lost."""
        if self.axis is None:
            return None
        shape, stride = tuple(view.shape), view.stride()
        if shape == self.shape and stride == self.stride:
            return self.axis
        size, step = self.shape[self.axis], self.stride[self.axis]
        hits = [i for i, n in enumerate(shape) if n == size and (stride[i] == step)]
        return hits[-1] if hits else None

    def on(self, tensor: Tensor, axis: int | None, **changes: Any) -> Tag:
        """The same tag for a tensor that was written anew."""
        return replace(
            self, shape=tuple(tensor.shape), stride=tensor.stride(), axis=axis, **changes
        )


PARAMETER = Tag("parameter")


class Tags:
    """A weak table from storages to tags."""

    def __init__(self) -> None:
        self._tags: dict[int, Tag] = {}
        self._alive: dict[int, Any] = {}
        self._limit = _SWEEP

    def __len__(self) -> int:
        return len(self._tags)

    def get(self, tensor: Tensor) -> Tag | None:
        """The tag of a tensor's storage, if it has one."""
        tag: Tag | None = self._tags.get(tensor.untyped_storage()._cdata)
        return tag

    def put(self, tensor: Tensor, tag: Tag) -> None:
        """Tag a tensor's storage for as long as it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage._weak_ref()
        self._tags[key] = tag
        if len(self._tags) > self._limit:
            self.sweep()
            self._limit = max(_SWEEP, 2 * len(self._tags))

    def drop(self, tensor: Tensor) -> None:
        """Forget what a storage held."""
        self._tags.pop(tensor.untyped_storage()._cdata, None)

    def sweep(self) -> None:
        """Forget the storages that are gone."""
        expired = torch.UntypedStorage._expired
        for key in [key for key, ref in self._alive.items() if expired(ref)]:
            self._release(key)

    def clear(self) -> None:
        """Forget everything."""
        for key in list(self._alive):
            self._release(key)

    def _release(self, key: int) -> None:
        torch.UntypedStorage._free_weak_ref(self._alive.pop(key))
        self._tags.pop(key, None)
