"""Tags of tensors: what made them, kept by storage for as long as the storage lives.

A view shares its tensor's storage, so a tag follows every reshape and permute at no cost; an axis
is found again in a view by its size and stride. The table holds weak references: a storage's
address cannot be given to another tensor while its tag lives, and no tensor lives longer for being
tagged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import isnan, nan
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from attnviz.capture.call_stack import Place

T = TypeVar("T")

_functorch: Any = torch._C._functorch
_UNMADE = (UninitializedParameter, UninitializedBuffer)
_TRAINED = {nn.Parameter: True, Tensor: False}  # isinstance of these runs Python code
_SWEEP = 16
"""How many new storages there are between two sweeps, at least.

What remains of a storage while its tag lives is small, but it lies beside where the values were: a
freed block cannot be joined to the next one, and the heap of a model that allocates large blocks
grows by holes that fit nothing.
"""


@dataclass(slots=True)
class Scores:
    """A product of data with data: the logits of an attention, or part of a linear one.

    Attributes:
        query: The left factor, kept with `operands=True`.
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

    def in_larger(self, *, query: bool) -> Scores:
        """The same for larger logits that these are a part of, whose factors are others.

        Args:
            query: Whether the queries are the same.
        """
        return replace(self, query=self.query if query else None, key=None)


@dataclass(slots=True, eq=False)
class Squash:
    """One run of a softmax or of a gate's function.

    Attributes:
        op: Its name, such as `"softmax"` or `"sigmoid"`.
        place: The module and source line that ran it.
        shape: The result's shape.
        scores: The q · k it was computed from, if it was.
        factor: What these were multiplied by in between; NaN if by a tensor.
        twice: Whether its input was itself a softmax's result.
        outer: Whether its input was a sum or product of broadcast tensors, as in BAM.
        learned: Whether q and k were made of parameters alone, as between learned queries.
        used: Whether its result met data in a product.
        early: Whether its result met learned values before it was recorded.
        size: How many weights sum to one.
        numbers: The records made of it, by storage offset: a softmax may be used in parts. Of parts
            along its own axis, each of other keys, by storage and offset.
    """

    op: str
    place: Place
    shape: tuple[int, ...]
    scores: Scores | None = None
    factor: float = 1.0
    twice: bool = False
    outer: bool = False
    learned: bool = False
    used: bool = False
    early: bool = False
    size: int = 0
    numbers: dict[Any, int] = field(default_factory=dict)

    @property
    def logit_scale(self) -> float | None:
        """What q · k was multiplied by in all, None where it is not a known number."""
        if self.scores is None:
            return None
        scale = self.scores.scale * self.factor
        return None if isnan(scale) else scale


@dataclass(slots=True)
class Tag:
    """What a storage holds.

    Attributes:
        kind: `"softmax"`, `"gate"`, `"scores"`, `"parameter"`, `"factor"` (multiplied by a
            number), `"dropout"` (a mask), `"weighted"` (softmax × data), `"outer"`, `"clip"`
            (between 0 and 6), `"exp"`, `"total"` (a sum of those), `"context"` (softmax @ data),
            `"moved"` (rolled or padded), `"log_gate"`
            and `"log_softmax"` (logarithms), `"log_total"` (that of a sum of `"exp"`), `"scaled"`
            (multiplied by a gate's function, which is no gate if coordinates come of it).
        shape: Sizes of the tensor as it was written.
        stride: Its strides, the same.
        axis: Which of its dimensions sums to one; None where none does or it was lost.
        squash: The function that made it.
        scores: The data product that made it.
        factor: By which number it was multiplied since.
        raw: The tensor before dropout, where dropout followed.
        mixed: Whether parameters have mixed its heads, or data was added, since.
        extra: What else its kind needs.
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
    extra: Any = None

    def find(self, view: Tensor) -> int | None:
        """The dimension of a view that is this tag's axis, None if it was lost."""
        if self.axis is None:
            return None
        shape, stride = tuple(view.shape), view.stride()
        if shape == self.shape and stride == self.stride:
            return self.axis
        size, step = self.shape[self.axis], self.stride[self.axis]
        hits = [i for i, n in enumerate(shape) if n == size and stride[i] == step]
        return hits[-1] if hits else None

    def split(self, view: Tensor) -> range | None:
        """The dimensions of a view that hold this tag's axis between them; None if none do."""
        if self.axis is None or 0 in view.shape:
            return None
        size, step = self.shape[self.axis], self.stride[self.axis]
        for last in range(view.dim()):
            for first in range(last):
                run = range(first, last + 1)
                if view.shape[first : last + 1].numel() == size and (
                    view.stride(last) == step and _nested(view, run)
                ):
                    return run
        return None

    def merged(self, tensor: Tensor, run: range, **changes: Any) -> Tag:
        """The same tag for a tensor that was written anew, with some dimensions as one."""
        shape, stride, last = tensor.shape, tensor.stride(), run[-1]
        size = shape[run[0] : last + 1].numel()
        return replace(
            self, shape=(*shape[: run[0]], size, *shape[last + 1 :]),
            stride=(*stride[: run[0]], stride[last], *stride[last + 1 :]), axis=run[0], **changes,
        )  # fmt: skip

    def on(self, tensor: Tensor, axis: int | None, **changes: Any) -> Tag:
        """The same tag for a tensor that was written anew."""
        return replace(
            self, shape=tuple(tensor.shape), stride=tensor.stride(), axis=axis, **changes
        )


def factor_of(tag: Tag | None, tensor: Tensor) -> float:
    """By which number a tensor was multiplied; NaN where only a part of its storage was."""
    if tag is None or tag.kind != "factor":
        return 1.0
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return tag.factor if whole or tag.extra else nan


def _nested(view: Tensor, run: range) -> bool:
    """Whether neighbouring dimensions lie within each other, as those of one that was split."""
    return all(view.stride(i) == view.stride(i + 1) * view.shape[i + 1] for i in run[:-1])


def storage_key(tensor: Tensor) -> int:
    """A number that identifies a tensor's storage among those that are alive."""
    storage: Any = tensor.untyped_storage()
    return int(storage._cdata)


PARAMETER = Tag("parameter")


class ByStorage(Generic[T]):
    """A weak table from storages to what is known of them."""

    def __init__(self) -> None:
        self._known: dict[int, T] = {}
        self._alive: dict[int, int] = {}
        self._limit = _SWEEP

    def __len__(self) -> int:
        return len(self._known)

    def get(self, tensor: Tensor) -> T | None:
        """What is known of a tensor's storage."""
        try:
            found: T | None = self._known.get(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # sparse tensors have none
            return None
        return found

    def put(self, tensor: Tensor, known: T) -> None:
        """Keep what is known of a tensor's storage for as long as it lives."""
        try:
            storage: Any = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return
        key = storage._cdata
        if key not in self._alive:
            if len(self._alive) >= self._limit:
                self.sweep()
                self._limit = len(self._alive) + max(_SWEEP, len(self._alive))
            self._alive[key] = storage._weak_ref()
        self._known[key] = known

    def drop(self, tensor: Tensor) -> None:
        """Forget a storage."""
        self._known.pop(tensor.untyped_storage()._cdata, None)

    def sweep(self) -> None:
        """Forget the storages that are gone."""
        expired = torch.UntypedStorage._expired
        for key in [key for key, ref in self._alive.items() if expired(ref)]:
            self._release(key)

    def clear(self) -> None:
        """Forget everything."""
        for key in list(self._alive):
            self._release(key)
        self._known.clear()

    def _release(self, key: int) -> None:
        torch.UntypedStorage._free_weak_ref(self._alive.pop(key))
        self._known.pop(key, None)


class Tags(ByStorage[Tag]):
    """A weak table from storages to tags."""

    def __init__(self) -> None:
        super().__init__()
        self._fixed: dict[int, tuple[torch.UntypedStorage, bool]] = {}

    def fix(self, tensors: Iterable[Tensor]) -> None:
        """Tag parameters and buffers, which live as long as the table."""
        for tensor in tensors:
            trained = _TRAINED.get(type(tensor))
            if trained is None and not isinstance(tensor, _UNMADE):
                trained = isinstance(tensor, nn.Parameter)
            if trained is not None and tensor.layout is torch.strided:
                while _functorch.is_functorch_wrapped_tensor(tensor):
                    tensor = _functorch.get_unwrapped(tensor)
                key = storage_key(tensor)
                self._fixed[key] = tensor.untyped_storage(), trained
                self._known[key] = PARAMETER

    def written(self, tensor: Tensor) -> None:
        """Data was written into what held a parameter: it is data now, unless that was training."""
        if not self._fixed.get(storage_key(tensor), (None, False))[1]:
            self.drop(tensor)

    def carry(self, tag: Tag, source: Tensor, out: Tensor, **changes: Any) -> None:
        """Give `out` the tag of `source`: it holds the same axes, aligned at the last one."""
        if tag.kind == "parameter":
            self.put(out, tag)
            return
        axis = tag.find(source)
        run = tag.split(source) if axis is None else None
        if run is not None and out.shape == source.shape and _nested(out, run):
            self.put(out, tag.merged(out, run, **changes))
            return
        if axis is not None:
            moved = axis + out.dim() - source.dim()
            axis = moved if moved >= 0 and out.shape[moved] == source.shape[axis] else None
        self.put(out, tag.on(out, axis, **changes))

    def clear(self) -> None:
        """Drop all tags."""
        super().clear()
        self._fixed.clear()
