"""Which place of a feature map each element of a tensor is, followed through the ops of a model.

The model's image is a grid of pixels, and a convolution makes a coarser grid of it. From there on
every op that moves tokens without mixing them is followed, by the rules of `followed_ops`. A view
shares its tensor's storage, so where its elements lie is computed from their addresses.

An origin is computed once: ops of the same kind on tensors of the same origins and strides have the
same result, in each block of a model, in each of its forward passes, on each batch and in the next
watch.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.capture.provenance import ByStorage, storage_key

Numbers = np.ndarray[Any, np.dtype[np.int64]]
"""Cells of a grid, counted row by row; below zero tokens that are no places."""

PADDED = -(10**9)
"""The number of padding. Other tokens that are no places count from −1 down."""

MOST = 1 << 22
"""The most elements of the numbers of one tensor, and of all tensors that are remembered."""

_KEPT = 1 << 19  # the same, once a watch has ended
_ORIGINS = 2048  # remembered at most
_SMALL = 1 << 15  # numbers that are remembered for all grids of the same sides


@dataclass(frozen=True, slots=True)
class Line:
    """The rows of a grid along one axis of the image.

    Attributes:
        size: How many there are.
        first: The centre of the first one, in pixels.
        step: From one centre to the next.
        pixels: The image's own side.
    """

    size: int
    first: float
    step: float
    pixels: int

    def off(self, rows: Sequence[int] | None = None) -> float:
        """The largest distance, in cells, from where rows of a grid over the image would lie.

        Args:
            rows: Only these rows, as a grid of their own; all if not given.
        """
        ends = (0, self.size - 1) if rows is None else (rows[0], rows[-1])
        count = self.size if rows is None else len(rows)
        cell = self.pixels / count
        return max(
            abs(self.first + self.step * row - (place + 0.5) * cell) / cell
            for row, place in zip(ends, (0, count - 1), strict=True)
        )

    def on_image(self) -> tuple[int, int, float]:
        """How many rows the image has, the first of these, and the largest distance in cells.

        They are its own, or more where patches do not divide the image and a rest is left.
        """
        if self.off() < 0.5:
            return self.size, 0, self.off()
        count = max(self.size, round(self.pixels / self.step))
        cell = self.pixels / count
        first = min(max(round(self.first / cell - 0.5), 0), count - self.size)
        ends = (0, self.size - 1)
        off = max(abs(self.first + self.step * i - (first + i + 0.5) * cell) / cell for i in ends)
        return count, first, off


@dataclass(eq=False, slots=True)
class Space:
    """A grid of places over the image, and how many tokens beside them have joined it.

    Attributes:
        lines: Its axes.
        raw: Whether its cells are no places of tokens: the pixels that the model was given, which
            become places once a layer makes a feature map of them (a 4-D tensor can also hold
            tokens by head), or sampling points.
        told: Whether its cells are the rows and columns that the model itself computed as the
            positions of its tokens, for rotary embeddings.
        others: How many tokens that are no places have joined it.
    """

    lines: tuple[Line, ...]
    raw: bool = False
    told: bool = False
    others: int = 0
    _whole: dict[int, Label] = field(default_factory=dict, repr=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Its sides."""
        return tuple(line.size for line in self.lines)

    def whole(self, dims: int) -> Label:
        """The label of a feature map `(b, c, …)` over this grid."""
        found = self._whole.get(dims)
        if found is None:
            sides = (*([1] * (dims - len(self.lines))), *self.grid)
            found = self._whole[dims] = Label(self, _row_by_row(sides))
        return found


def _row_by_row(sides: tuple[int, ...]) -> Numbers:
    small = math.prod(sides) <= _SMALL
    return _small_row_by_row(sides) if small else _counted(sides)


@lru_cache(32)
def _small_row_by_row(sides: tuple[int, ...]) -> Numbers:
    numbers = _counted(sides)
    numbers.flags.writeable = False  # all grids of these sides share it
    return numbers


def _counted(sides: tuple[int, ...]) -> Numbers:
    return np.arange(math.prod(sides), dtype=np.int64).reshape(sides)


class Samples(Space):
    """Sampling points on feature maps; its numbers are rows of a table, and no cells.

    Attributes:
        at: `(points, axes)`, x, y (and z) of each point as shares of the feature map's sides.
        row: `(points,)`, which row of the sampled tensor, an image and a head, each is of.
        level: `(points,)`, which feature map each point lies on.
        maps: The feature maps.
    """

    __slots__ = ("at", "level", "maps", "row")

    def __init__(
        self, at: Tensor, row: Tensor, level: Tensor, maps: tuple[SampledMap, ...]
    ) -> None:
        super().__init__((), raw=True)
        self.at, self.row, self.level, self.maps = at, row, level, maps

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """The points of several, one after the other; a map that they share is one."""
        maps = list(dict.fromkeys(one for part in parts for one in part.maps))
        levels = [
            torch.tensor([maps.index(m) for m in one.maps]).to(one.level)[one.level]
            for one in parts
        ]
        return cls(
            torch.cat([one.at for one in parts]), torch.cat([one.row for one in parts]),
            torch.cat(levels), tuple(maps),
        )  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class SampledMap:
    """A feature map that values are sampled from.

    Attributes:
        sides: Its sides.
        filled: `(rows, axes)`, the share of its width and height behind which a row is zero.
        mode: `"bilinear"`, `"nearest"` or `"bicubic"`.
        padding: What lies outside of it: `"zeros"`, `"border"` or `"reflection"`.
    """

    sides: tuple[int, ...]
    filled: Tensor
    mode: str
    padding: str


@dataclass(frozen=True, eq=False, slots=True)
class Label:
    """The places of a tensor's elements.

    Attributes:
        space: The grid.
        numbers: The cell of each element; of size 1 along axes that it does not depend on.
        sides: What was read off it for the queries or keys of records.
    """

    space: Space
    numbers: Numbers
    sides: dict[Any, Any] = field(default_factory=dict, repr=False)

    def along(self, axis: int) -> bool:
        """Whether places differ along an axis."""
        return bool(self.numbers.shape[axis] > 1)

    def same(self, other: Label) -> bool:
        """Whether another label says the same."""
        if self is other or self.space is other.space:
            return self is other or np.array_equal(self.numbers, other.numbers)
        return bool(
            self.space.lines
            and self.space.lines == other.space.lines
            and np.array_equal(self.numbers, other.numbers)
        )


Labels = tuple[Label, ...]
Form = tuple[tuple[int, ...], tuple[int, ...], int]


class Origin:
    """Where the elements of a storage lie, and which image of the batch each is of.

    Attributes:
        form: Shape, strides and offset of the tensor as it was written.
        labels: Its labels; none where no places are known any more.
        images: The image of each element, of size 1 along axes that it does not depend on; None
            where that is not known.
        fixed: Whether it does not depend on values, as sampling points do.
        told: Whether it is known from positions that the model computed.
    """

    __slots__ = (
        "_bare", "_images", "_known", "fixed", "form", "images", "labels", "told",
    )  # fmt: skip

    def __init__(self, form: Form, labels: Labels, images: Numbers | None = None) -> None:
        known = bool(labels or images is not None) and _in_order(form)
        self.form = form
        self.labels = labels if known else ()
        self.images = images if known else None
        self.fixed = not any(isinstance(label.space, Samples) for label in self.labels)
        self.told = bool(self.labels) and all(label.space.told for label in self.labels)
        self._known: dict[Form, Labels] = {form: self.labels}
        self._images: dict[Form, Numbers | None] = {form: self.images}
        self._bare: Origin | None = None

    def without_places(self) -> Origin:
        """What is left of it once places were written over."""
        if self._bare is None:
            self._bare = Origin(self.form, (), self.images)
        return self._bare

    @property
    def lost(self) -> bool:
        """Whether nothing is known any more."""
        return not self.labels and self.images is None

    def of(self, form: Form) -> Labels:
        """The labels of a view."""
        if not self.labels:
            return ()
        found = self._known.get(form)
        if found is None:
            found = self._known[form] = tuple(
                Label(label.space, numbers)
                for label in self.labels
                if (numbers := self._seen(label.numbers, form)) is not None
            )
            if self.fixed:
                _remembered.held += sum(label.numbers.size for label in found)
        return found

    def images_of(self, form: Form) -> Numbers | None:
        """The images of a view's elements."""
        if self.images is None:
            return None
        if form not in self._images:
            self._images[form] = self._seen(self.images, form)
        return self._images[form]

    def says(self, form: Form, labels: Labels, images: Numbers | None) -> bool:
        """Whether a view has these labels and these images."""
        known = self.of(form)
        return (
            len(known) == len(labels)
            and all(map(Label.same, known, labels))
            and alike(self.images_of(form), images)
        )

    def _seen(self, whole: Numbers, form: Form) -> Numbers | None:
        """The numbers of a view's elements, read at their addresses."""
        shape, stride, offset = form
        chosen = [i for i, n in enumerate(whole.shape) if n > 1]
        start = np.array(offset - self.form[2], dtype=np.int64)
        address, sizes = start.reshape([1] * len(shape)), [1] * len(shape)
        for axis, (size, step) in enumerate(zip(shape, stride, strict=True)):
            if size < 2 or not step:
                continue
            along = start + step * np.arange(size, dtype=np.int64)
            if any((index != index[0]).any() for index in self._index(along, chosen)):
                sizes[axis] = size
                address = address + (along - start).reshape(
                    [-1 if i == axis else 1 for i in range(len(shape))]
                )
                if address.size > MOST:
                    return None
        numbers = whole.reshape([whole.shape[i] for i in chosen])
        found: Numbers = numbers[tuple(self._index(address, chosen))] if chosen else numbers
        return _reduced(found.reshape(sizes))

    def _index(self, address: Numbers, chosen: Sequence[int]) -> list[Numbers]:
        """The index of addresses along some axes of the tensor as it was written."""
        shape, stride, _ = self.form
        found: dict[int, Numbers] = {}
        for i in sorted(range(len(shape)), key=lambda i: -stride[i]):
            if shape[i] > 1:
                found[i], address = address // stride[i], address % stride[i]
        return [found[i].clip(0, shape[i] - 1) for i in chosen]


LOST = Origin(((), (), 0), ())
"""The origin of tensors of which nothing is known any more."""

_APART = Origin(((), (), 0), ())  # of tensors that were looked at, and are no images


def form(tensor: Tensor) -> Form:
    """Shape, strides and offset."""
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


def _is_input(tensor: Tensor) -> bool:
    """Whether a tensor can be an image, features, or the numbers of words."""
    dims = tensor.dim()
    return 3 <= dims <= 5 or (dims == 2 and not tensor.is_floating_point())


def _storage(tensor: Tensor) -> int | None:
    """A number that identifies a tensor's storage; None of those that have none, as in `vmap`."""
    try:
        return storage_key(tensor)
    except (NotImplementedError, RuntimeError):
        return None


def _in_order(form: Form) -> bool:
    """Whether each element has an address of its own, and axes lie within each other."""
    inner = 1
    for stride, size in sorted(zip(form[1], form[0], strict=True)):
        if size > 1:
            if stride < inner:
                return False
            inner = stride * size
    return True


def _pixels(shape: tuple[int, ...]) -> Labels:
    """The labels of images that a model was given, for each way in which its axes can be read.

    `(c, h, w)`, `(b, c, h, w)`, `(b, h, w, c)`, `(b, d, h, w)`, `(b, c, d, h, w)`,
    `(b, t, c, h, w)` and `(b, t, h, w, c)`: a layer finds out which it is, since its own input's
    axes are known.
    """
    dims, few = len(shape), 4
    axes = [tuple(range(dims - 2, dims))]
    if dims > 3:
        axes += [tuple(range(1, dims - 1))] * (shape[-1] <= few)
        axes += [tuple(range(dims - 3, dims))] * (dims == 5 or shape[1] > few)
    if dims == 5:
        axes += [(1, 3, 4)] + [(2, 3)] * (shape[-1] <= few)
    found = []
    for chosen in axes:
        sides = tuple(shape[i] for i in chosen)
        if math.prod(sides) <= MOST:
            space = Space(tuple(Line(n, 0.5, 1.0, n) for n in sides), raw=True)
            whole = space.whole(len(sides)).numbers
            found.append(Label(space, whole.reshape([
                n if i in chosen else 1 for i, n in enumerate(shape)
            ])))  # fmt: skip
    return tuple(found)


def alike(one: Numbers | None, other: Numbers | None) -> bool:
    """Whether numbers are the same, or both unknown."""
    if one is None or other is None:
        return one is other
    return one is other or np.array_equal(one, other)


def _of_image(whole: Form) -> Origin:
    """The origin of an image that a model was given."""
    shape = tuple(whole[0])
    return Origin(whole, _pixels(shape) if len(shape) > 2 else (), _batch(shape))


def _batch(shape: tuple[int, ...]) -> Numbers | None:
    """The images of what a model was given, along its first axis; None of a single one."""
    count = shape[0]
    numbers = np.arange(count, dtype=np.int64).reshape(-1, *[1] * (len(shape) - 1))
    return numbers if count > 1 else None


def _reduced(numbers: Numbers) -> Numbers:
    """Numbers without the axes that they do not depend on."""
    for axis, size in enumerate(numbers.shape):
        first = numbers.take([0], axis)
        if size > 1 and (numbers == first).all():
            numbers = first
    return numbers


class Lineage:
    """Places of the tensors of one watch.

    Attributes:
        is_parameter: Whether a tensor is a parameter, or was made of them alone.

    Args:
        is_parameter: The same.
        given: The tensors that the model was called with; called within the model.
    """

    def __init__(
        self, is_parameter: Callable[[Tensor], bool], given: Callable[[], Sequence[Tensor]]
    ) -> None:
        self.is_parameter = is_parameter
        self._given = given
        self._origins: ByStorage[Origin] = ByStorage()
        self._times: Counter[Any] = Counter()
        self._read: defaultdict[Space, set[int]] = defaultdict(set)

    def origin(self, tensor: Tensor) -> Origin | None:
        """Where the elements of an op's operand lie; None if it is no feature.

        It may be an image that the model was called with, or a part of one.
        """
        if tensor.is_nested:
            return None
        found = self._origins.get(tensor)
        if found is None and 2 <= tensor.dim() <= 5 and not self.is_parameter(tensor):
            found = self._from_image(tensor)
        return None if found is _APART else found

    def images(self, tensor: Tensor) -> Numbers | None:
        """The image of each element, of size 1 along axes that it does not depend on."""
        if not len(self._origins) or tensor.is_nested:
            return None
        found = self._origins.get(tensor)
        return None if found is None else found.images_of(form(tensor))

    def labels(self, tensor: Any) -> Labels | None:
        """What is known of a tensor's elements: nothing is `()`, None if it is no feature."""
        if not len(self._origins) or not isinstance(tensor, Tensor) or tensor.is_nested:
            return None
        found = self._origins.get(tensor)
        return None if found is None or found is _APART else found.of(form(tensor))

    def _from_image(self, tensor: Tensor) -> Origin | None:
        given, key = self._given(), _storage(tensor)
        for image in given if key is not None else ():
            if _is_input(image) and _storage(image) == key:
                whole = form(image)
                found = self.once(whole, partial(_of_image, whole), again=False)
                if found is not None:
                    self.put(image, found)
                return found
        if given:
            self.put(tensor, _APART)
        return None

    def finish(self) -> None:
        """A forward pass has ended."""
        self._times.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._origins.clear()
        self._times.clear()
        self._read.clear()
        _remembered.shrink(_KEPT)

    def read_alone(self, labels: Labels) -> None:
        """Note that a layer was given one token only, if it is no place."""
        for label in labels:
            if label.numbers.size == 1 and PADDED < label.numbers.flat[0] < 0:
                self._read[label.space].add(int(label.numbers.flat[0]))

    def alone(self, space: Space) -> frozenset[int]:
        """Numbers of the tokens beside a grid that a layer was given by themselves."""
        return frozenset(self._read.get(space, ()))

    def put(self, tensor: Tensor, origin: Origin) -> None:
        """Note where a new tensor's elements lie."""
        self._origins.put(tensor, origin)

    def written(self, target: Tensor, origin: Origin) -> None:
        """An op has written into a tensor, or into a part of one."""
        known = self._origins.get(target)
        if known is origin:
            return
        part, images = form(target), origin.images
        if known is not None and not known.lost and known.says(part, origin.labels, images):
            return
        whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
        if not whole and known is not None and images is not None and (
            alike(known.images_of(part), images)
        ):  # fmt: skip
            origin, whole = known.without_places(), True
        self.put(target, origin if whole else LOST)

    def once(self, key: Any, find: Callable[[], Origin | None], *, again: bool) -> Origin | None:
        """The origin that was found under a key, or that is found now.

        Args:
            key: All that it depends on.
            find: Called for a new key; None leaves the tensor alone.
            again: Whether each use of the key in one forward pass has an origin of its own, since
                tokens join that are no places.
        """
        made = _remembered.made
        try:
            if again:
                self._times[key] += 1
                key = key, self._times[key]
            if key in made:
                return made[key]
        except TypeError:  # sizes that are symbols
            return find()
        found = find()
        if found is not None:
            _remembered.held += sum(label.numbers.size for label in found.labels)
            _remembered.held += 0 if found.images is None else found.images.size
        _remembered.shrink(MOST)
        made[key] = found
        return found


class _Remembered(threading.local):
    """The origins that were found under their keys, by all watches of one thread.

    Attributes:
        made: The origins.
        held: How many elements their numbers have.
    """

    def __init__(self) -> None:
        self.made: dict[Any, Origin | None] = {}
        self.held = 0

    def shrink(self, most: int) -> None:
        """Forget all if these are more than some number, or the origins too many."""
        if len(self.made) >= _ORIGINS or self.held > most:
            self.made.clear()
            self.held = 0


_remembered = _Remembered()
