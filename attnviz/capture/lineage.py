"""Which place of a feature map each element of a tensor is, followed through the ops of a model.

The model's image is a grid of pixels, and a convolution makes a coarser grid of it. From there on
every op that moves tokens without mixing them is followed: copies in another order of memory,
rolls, padding, concatenation with class tokens, linear layers, norms, attention. A view shares its
tensor's storage, so where its elements lie is computed from their addresses. An op that is not
known, or that gathers, sorts or mixes tokens, ends what is known: a place is proven or it is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.capture.op_mode import apart
from attnviz.capture.provenance import Tag, Tags, storage_key

Numbers = np.ndarray[Any, np.dtype[np.int64]]
"""Cells of a grid, counted row by row; below zero tokens that are no places."""

PADDED = -(10**9)
"""The number of padding. Other tokens that are no places count from −1 down."""

_MOST = 1 << 22  # elements of the numbers of one tensor

_UNCHANGED = {
    "add", "sub", "mul", "div", "rsub", "gelu", "relu", "silu", "sigmoid", "tanh", "hardtanh",
    "hardswish", "hardsigmoid", "leaky_relu", "elu", "mish", "softplus", "neg", "exp", "sqrt",
    "pow", "erf", "native_layer_norm", "native_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "_batch_norm_with_update",
    "cudnn_batch_norm", "miopen_batch_norm", "native_group_norm", "_fused_rms_norm", "rsqrt",
    "_softmax", "softmax", "_safe_softmax", "clone", "_to_copy", "native_dropout", "dropout",
    "masked_fill", "where", "clamp", "clamp_min", "clamp_max", "detach", "alias", "nan_to_num",
    "_transformer_encoder_layer_fwd", "_native_multi_head_attention", "layer_norm", "group_norm",
    "batch_norm", "to", "contiguous", "addcmul", "lerp", "_prelu_kernel", "abs", "log",
    "reciprocal",
}  # fmt: skip
_RESIZED = {
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_bilinear2d",
    "upsample_nearest2d", "upsample_bicubic2d", "upsample_trilinear3d", "upsample_nearest3d",
    "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
}  # fmt: skip
_POOLED = {
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "max_pool2d",
    "mkldnn_max_pool2d",
}  # fmt: skip


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


@dataclass(eq=False, slots=True)
class Space:
    """A grid of places over the image, and which tokens beside them were read by themselves.

    Attributes:
        lines: Its axes.
        raw: Whether its cells are no places of tokens: the pixels that the model was given, which
            become places once a layer makes a feature map of them (a 4-D tensor can also hold
            tokens by head), or sampling points.
        read: Numbers of tokens that are no places and were given to a layer alone.
        others: How many tokens that are no places have joined it.
    """

    lines: tuple[Line, ...]
    raw: bool = False
    read: set[int] = field(default_factory=set)
    others: int = 0

    @property
    def grid(self) -> tuple[int, ...]:
        """Its sides."""
        return tuple(line.size for line in self.lines)

    def whole(self, dims: int) -> Label:
        """The label of a feature map `(b, c, …)` over this grid."""
        numbers = np.arange(math.prod(self.grid), dtype=np.int64)
        return Label(self, numbers.reshape((*([1] * (dims - len(self.grid))), *self.grid)))


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
        """The points of several, one after the other."""
        starts = np.cumsum([0, *(len(one.maps) for one in parts)]).tolist()
        levels = [one.level + start for one, start in zip(parts, starts, strict=False)]
        return cls(
            torch.cat([one.at for one in parts]), torch.cat([one.row for one in parts]),
            torch.cat(levels), tuple(m for one in parts for m in one.maps),
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
    """

    space: Space
    numbers: Numbers

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


class Origin:
    """Where the elements of a storage lie.

    Attributes:
        labels: The labels of the tensor as it was written; none where nothing is known any more.
    """

    __slots__ = ("_known", "_offset", "_shape", "_stride", "labels")

    def __init__(self, tensor: Tensor, labels: Labels) -> None:
        self.labels = labels
        self._shape, self._stride = tuple(tensor.shape), tensor.stride()
        self._offset = int(tensor.storage_offset())
        self._known: dict[Any, Labels] = {}

    def of(self, view: Tensor) -> Labels:
        """The labels of a view."""
        if not self.labels:
            return ()
        shape, stride, offset = tuple(view.shape), view.stride(), int(view.storage_offset())
        if shape == self._shape and stride == self._stride and offset == self._offset:
            return self.labels
        key = (shape, stride, offset)
        if key not in self._known:
            self._known[key] = tuple(
                Label(label.space, numbers)
                for label in self.labels
                if (numbers := self._seen(label, shape, stride, offset)) is not None
            )
        return self._known[key]

    def _seen(
        self, label: Label, shape: Sequence[int], stride: Sequence[int], offset: int
    ) -> Numbers | None:
        """The numbers of a view's elements, read at their addresses."""
        chosen = [i for i, n in enumerate(label.numbers.shape) if n > 1]
        start = np.array(offset - self._offset, dtype=np.int64)
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
                if address.size > _MOST:
                    return None
        numbers = label.numbers.reshape([label.numbers.shape[i] for i in chosen])
        found: Numbers = numbers[tuple(self._index(address, chosen))] if chosen else numbers
        return _reduced(found.reshape(sizes))

    def _index(self, address: Numbers, chosen: Sequence[int]) -> list[Numbers]:
        """The index of addresses along some axes of the tensor as it was written."""
        found: dict[int, Numbers] = {}
        for i in sorted(range(len(self._shape)), key=lambda i: -self._stride[i]):
            if self._shape[i] > 1:
                found[i], address = address // self._stride[i], address % self._stride[i]
        return [found[i].clip(0, self._shape[i] - 1) for i in chosen]


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
        if math.prod(sides) <= _MOST:
            space = Space(tuple(Line(n, 0.5, 1.0, n) for n in sides), raw=True)
            whole = space.whole(len(sides)).numbers
            found.append(Label(space, whole.reshape([
                n if i in chosen else 1 for i, n in enumerate(shape)
            ])))  # fmt: skip
    return tuple(found)


def _reduced(numbers: Numbers) -> Numbers:
    """Numbers without the axes that they do not depend on."""
    for axis, size in enumerate(numbers.shape):
        first = numbers.take([0], axis)
        if size > 1 and (numbers == first).all():
            numbers = first
    return numbers


class Lineage:
    """Follows places through the ops of one watch.

    Args:
        is_parameter: Whether a tensor is a parameter, or was made of them alone.
        given: The tensors that the model was called with; called within the model.
    """

    def __init__(
        self, is_parameter: Callable[[Tensor], bool], given: Callable[[], Iterable[Tensor]]
    ) -> None:
        self.is_parameter = is_parameter
        self._given = given
        self._tags = Tags()
        self._pixels: dict[tuple[int, ...], Labels] = {}

    def labels(self, tensor: Any) -> Labels | None:
        """What is known of a tensor's elements: nothing is `()`, None if it is no feature."""
        if not len(self._tags) or not isinstance(tensor, Tensor) or tensor.is_nested:
            return None
        tag = self._tags.get(tensor)
        if tag is None:
            return None
        origin: Origin = tag.extra
        return origin.of(tensor)

    def clear(self) -> None:
        """Forget everything."""
        self._tags.clear()
        self._pixels.clear()

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note where the elements of an op's result lie."""
        rule = _RULES.get(func)
        if rule is None:
            rule = _RULES[func] = _rule(func)
        made = out[0] if isinstance(out, (tuple, list)) and out else out
        if not isinstance(made, Tensor) or made.layout is not torch.strided or made.is_nested:
            return
        known = [self._from_image(x) for x in _flat(args) if isinstance(x, Tensor)]
        if not rule.seeds and all(labels is None for labels in known):
            return
        found = rule.labels(self, args, kwargs, made)
        if found is None:
            return
        if rule.writes:
            self._written(made, found)
            return
        self._put(made, found)
        if isinstance(out, (tuple, list)):
            for other in out[1:]:
                if isinstance(other, Tensor) and other.dim() == made.dim():
                    self._put(other, found if other.shape == made.shape else ())

    def _from_image(self, tensor: Tensor) -> Labels | None:
        """The labels of a tensor, which may be an image that the model was called with."""
        known = self.labels(tensor)
        if known is None and 3 <= tensor.dim() <= 5 and not self.is_parameter(tensor):
            key = storage_key(tensor)
            for image in self._given():
                if 3 <= image.dim() <= 5 and storage_key(image) == key:
                    shape = tuple(image.shape)
                    if shape not in self._pixels:
                        self._pixels[shape] = _pixels(shape)
                    self._put(image, self._pixels[shape])
                    return self.labels(tensor)
        return known

    def read_alone(self, labels: Labels) -> None:
        """Note that a layer was given one token only, if it is no place."""
        for label in labels:
            if label.numbers.size == 1 and PADDED < label.numbers.flat[0] < 0:
                label.space.read.add(int(label.numbers.flat[0]))

    def _put(self, tensor: Tensor, labels: Labels) -> None:
        if labels and not _written_in_order(tensor):
            labels = ()
        self._tags.put(tensor, Tag("origin", extra=Origin(tensor, labels)))

    def _written(self, target: Tensor, labels: Labels) -> None:
        """An op has written into a tensor, or into a part of one."""
        known = self.labels(target)
        if known and len(known) == len(labels) and all(map(Label.same, known, labels)):
            return
        whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
        self._put(target, labels if whole else ())


def _flat(values: Any) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


def _written_in_order(tensor: Tensor) -> bool:
    """Whether each element has an address of its own, and axes lie within each other."""
    inner = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < inner:
                return False
            inner = stride * size
    return True


Found = Callable[[Lineage, Any, Any, Tensor], Labels | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """How an op is followed.

    Attributes:
        labels: From the op's arguments and its result to the result's labels; None leaves it alone.
        writes: Whether it writes into its first argument.
        seeds: Whether it tells something of tensors of which nothing is known.
    """

    labels: Found
    writes: bool = False
    seeds: bool = False


_RULES: dict[Any, Rule] = {}


def _rule(func: Any) -> Rule:
    name, schema = str(func), getattr(func, "_schema", None)
    writes = bool(schema is not None and schema.is_mutable)
    packet = name.split(".")[1] if name.startswith("aten.") else ""
    plain = packet.rstrip("_") if writes else packet
    if plain in _UNCHANGED:
        return Rule(_normed if "layer_norm" in plain else _unchanged, writes=writes)
    if plain in _RESIZED:
        return Rule(_resized)
    if plain in _POOLED:
        return Rule(_pooled)
    if "scaled_dot_product" in packet and "backward" not in packet:
        return Rule(_attended)
    special: dict[str, Found] = {
        "convolution": _convolved, "_convolution": _convolved, "mm": _multiplied,
        "bmm": _multiplied, "addmm": _added, "baddbmm": _added, "cat": _joined, "stack": _stacked,
        "roll": _rolled, "flip": _flipped, "constant_pad_nd": _padded, "copy": _copied,
    }  # fmt: skip
    sampling: dict[str, Found] = {
        "grid_sampler_2d": _sampled, "grid_sampler_3d": _sampled, "cudnn_grid_sampler": _sampled,
        "index": _indexed,
    }  # fmt: skip
    if plain in sampling:
        return Rule(sampling[plain], writes, seeds=True)
    return Rule(special.get(plain, _lost), writes)


def _places(labels: Labels | None) -> Labels:
    """The labels of places, without those of pixels."""
    return tuple(one for one in labels or () if not one.space.raw)


def _lost(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    return ()


def _normed(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    lineage.read_alone(lineage.labels(args[0]) or ())
    return _unchanged(lineage, args, kwargs, made)


def _unchanged(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    """Every element stays where it is; operands that are as large have to lie alike."""
    found: Labels | None = None
    for x in args:
        if not isinstance(x, Tensor) or x.shape != made.shape:
            continue  # numbers, and what is repeated over the others, as gates are
        labels = lineage.labels(x)
        if labels is None:
            if x.is_floating_point() and 0 not in x.stride() and not lineage.is_parameter(x):
                return ()
            continue
        if found is None:
            found = labels
        else:
            found = tuple(one for one in found if any(one.same(other) for other in labels))
    return found or ()


def _mapped(lineage: Lineage, x: Tensor, made: Tensor, lines: Sequence[Line] | None) -> Labels:
    """A feature map made of a feature map: its rows and columns are a grid of their own."""
    labels = lineage.labels(x) if made.dim() == x.dim() and made.dim() in (4, 5) else None
    if not labels:
        return ()
    whole = [one for one in labels if _is_whole(one, x)]
    if not whole:
        if x.shape[2:] != made.shape[2:]:
            return ()
        return tuple(one for one in labels if not one.along(1))
    space = whole[0].space
    if lines is None or tuple(made.shape[2:]) != tuple(line.size for line in lines):
        return ()
    if tuple(lines) == space.lines and not space.raw:
        return (space.whole(made.dim()),)
    return (Space(tuple(lines)).whole(made.dim()),)


def _is_whole(label: Label, x: Tensor) -> bool:
    """Whether a feature map `(b, c, …)` holds a whole grid, row by row."""
    numbers, sides = label.numbers, tuple(x.shape[2:])
    return (
        label.space.grid == sides
        and tuple(numbers.shape) == (1, 1, *sides)
        and bool((numbers.ravel() == np.arange(numbers.size)).all())
    )


def _lines(lineage: Lineage, x: Tensor) -> Sequence[Line] | None:
    return next((one.space.lines for one in lineage.labels(x) or () if _is_whole(one, x)), None)


def _strided(
    lines: Sequence[Line] | None, made: Tensor, kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool = False,
) -> list[Line] | None:  # fmt: skip
    """The rows of what a kernel that moves over rows makes."""
    if lines is None:
        return None
    found = []
    for i, line in enumerate(lines):
        size = made.shape[2 + i]
        k, s, p, d = (int(n[i if len(n) > 1 else 0]) for n in (kernel, stride, padding, dilation))
        middle = d * (k - 1) / 2 - p
        if transposed:
            step = line.step / s
            found.append(Line(size, line.first - middle * step, step, line.pixels))
        else:
            first = line.first + line.step * middle
            found.append(Line(size, first, line.step * s, line.pixels))
    return found


def _convolved(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    x, weight, _, stride, padding, dilation, transposed = args[:7]
    lines = _strided(
        _lines(lineage, x), made, weight.shape[2:], stride, padding, dilation, transposed
    )
    return _mapped(lineage, x, made, lines)


def _pooled(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    kernel = args[1]
    stride = args[2] if len(args) > 2 and args[2] else kernel
    padding = args[3] if len(args) > 3 else [0]
    dilation = args[4] if len(args) > 4 and isinstance(args[4], (list, tuple)) else [1]
    lines = _strided(_lines(lineage, args[0]), made, kernel, stride, padding, dilation)
    return _mapped(lineage, args[0], made, lines)


def _resized(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    lines = _lines(lineage, args[0])
    if lines is not None:
        new = []
        for line, size in zip(lines, made.shape[2:], strict=True):
            step = line.step * line.size / size
            new.append(Line(size, line.first - line.step / 2 + step / 2, step, line.pixels))
        lines = new
    return _mapped(lineage, args[0], made, lines)


def _multiplied(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    return _product(lineage, args[0], args[1])


def _added(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    return _product(lineage, args[1], args[2])


def _product(lineage: Lineage, left: Tensor, right: Tensor) -> Labels:
    """Rows come from the left factor, columns from the right one; what is summed over is lost."""
    rows, columns = _places(lineage.labels(left)), _places(lineage.labels(right))
    last = left.dim() - 1
    layer = lineage.is_parameter(right)
    if layer:
        lineage.read_alone(rows)
    left_over = [_summed(one, last) if layer else one for one in rows]
    kept = [one for one in left_over if one is not None and not one.along(last)]
    kept += [one for one in columns if not one.along(last - 1) and one.along(last)]
    return tuple(kept)


def _summed(label: Label, axis: int) -> Label | None:
    """The label of a sum over an axis: itself, or of a coarser grid if that holds whole blocks.

    So the tokens that patches are merged to, two by two, are places of half the rows and columns.
    None where the places that are summed over are no block.
    """
    if not label.along(axis):
        return label
    numbers = np.moveaxis(label.numbers, axis, -1)
    if (numbers < 0).any():
        return None
    lines, found, cells, rest = [], np.zeros(numbers.shape[:-1], np.int64), 1, numbers
    pattern: list[Numbers] = []
    step = 1
    for line in reversed(label.space.lines):
        index, rest = rest % line.size, rest // line.size
        low = index.min(-1, keepdims=True)
        inside = index - low
        side = int(inside.max()) + 1
        own = inside.reshape(-1, inside.shape[-1])[0]
        if line.size % side or (low % side).any() or (inside != own).any():
            return None
        pattern.append(own)
        first = line.first + line.step * (side - 1) / 2
        lines.append(Line(line.size // side, first, line.step * side, line.pixels))
        found += low[..., 0] // side * step
        cells, step = cells * side, step * (line.size // side)
    if len(set(zip(*(one.tolist() for one in pattern), strict=True))) != cells:
        return None
    return Label(Space(tuple(lines[::-1])), np.expand_dims(found, axis))


def _attended(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    """Each query's mixture lies where the query does."""
    query = args[0]
    if made.dim() != query.dim() or made.shape[:-1] != query.shape[:-1]:
        return ()
    labels = _places(lineage.labels(query))
    return tuple(one for one in labels if not one.along(query.dim() - 1))


def _joined(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    """Tokens that follow each other; those of which nothing is known are no places."""
    parts = [x for x in args[0] if isinstance(x, Tensor) and x.numel()]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % made.dim()
    if any(x.dim() != made.dim() for x in parts):
        return ()
    told = [lineage.labels(x) for x in parts]
    if (points := _points(told)) is not None:
        sizes = [max(n) for n in zip(*(one.numbers.shape for one in points), strict=True)]
        shapes = [[*sizes[:dim], x.shape[dim], *sizes[dim + 1 :]] for x in parts]
        space, numbers = _beside(points, shapes)
        return (Label(space, np.concatenate(numbers, dim)),)
    first = next((labels for labels in told if labels), ())
    return tuple(one for label in first if (one := _join(label, parts, told, dim)) is not None)


def _join(
    label: Label, parts: Sequence[Tensor], told: Sequence[Labels | None], dim: int
) -> Label | None:
    """The label of tensors that follow each other along an axis, all in the grid of one of them."""
    own: list[Label | None] = []
    for labels in told:
        here = [
            x for x in labels or ()
            if x.space.lines == label.space.lines or (dim == 1 and _near(x, label))
        ]  # fmt: skip
        if len(here) > 1 or (labels is not None and not here):
            return None  # on two grids, or lost
        own.append(here[0] if here else None)
    known = [x for x in own if x is not None]
    if not any(x.along(dim) or x.numbers.size == 1 for x in known):  # channels, heads or images
        if all(np.array_equal(x.numbers, label.numbers) for x in known):
            best = min(known, key=lambda x: sum(line.off() for line in x.space.lines))
            return best if dim or len(known) == len(own) else None
        if len(known) < len(own):
            return None
    sizes = [max(x.numbers.shape[i] for x in known) for i in range(len(label.numbers.shape))]
    pieces = []
    for x, part in zip(own, parts, strict=True):
        shape = [part.shape[dim] if i == dim else n for i, n in enumerate(sizes)]
        if math.prod(shape) > _MOST:
            return None
        numbers = _apart(label.space, len(sizes), part.shape[dim], dim) if x is None else x.numbers
        pieces.append(np.broadcast_to(numbers, shape))
    return Label(label.space, np.concatenate(pieces, dim))


def _near(one: Label, other: Label) -> bool:
    """Whether feature maps lie within half a step, as an enlarged one and a skip connection do."""
    pairs = zip(one.space.lines, other.space.lines, strict=False)
    return one.space.grid == other.space.grid and not one.along(1) and all(
        isclose(a.step, b.step) and abs(a.first - b.first) <= a.step / 2 * (1 + 1e-9)
        for a, b in pairs
    )  # fmt: skip


def _apart(space: Space, dims: int, count: int, dim: int) -> Numbers:
    """Numbers for tokens that join a grid and are no places."""
    first = space.others + 1
    space.others += count
    numbers = -np.arange(first, first + count, dtype=np.int64)
    return numbers.reshape([-1 if i == dim else 1 for i in range(dims)])


def _stacked(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    parts = list(args[0])
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % made.dim()
    told = [lineage.labels(x) for x in parts]
    if (points := _points(told)) is not None:
        sizes = [max(n) for n in zip(*(one.numbers.shape for one in points), strict=True)]
        space, numbers = _beside(points, [sizes] * len(points))
        return (Label(space, np.stack(numbers, dim)),)
    found = []
    for one in told[0] or ():
        if all(any(one.same(x) for x in labels or ()) for labels in told):
            found.append(Label(one.space, np.expand_dims(one.numbers, dim)))
    return tuple(found)


@apart
def _sampled(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    """Values at sampling points: which point each is from."""
    x, grid = args[0], args[1].detach()
    mode, padding, aligned = (*args[2:5], 0, 0, True)[:3]  # the defaults are those of cudnn's op
    sides = tuple(x.shape[2:])
    size = torch.tensor(sides[::-1], dtype=torch.float32, device=grid.device)
    at = (grid.flatten(0, -2).float() + 1) / 2
    if aligned:
        at = (at * (size - 1) + 0.5) / size
    count = len(at)
    row = torch.arange(count, device=grid.device) // max(1, count // len(x))
    filled = SampledMap(sides, _filled(x.detach()), _MODES[mode], _PADDINGS[padding])
    space = Samples(at, row, torch.zeros_like(row), (filled,))
    numbers = np.arange(count, dtype=np.int64).reshape(len(x), 1, *made.shape[2:])
    return (Label(space, numbers),)


@apart
def _indexed(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    """Values read at whole rows and columns of a feature map, `x[image, :, rows, columns]`."""
    x, index = args[0], list(args[1])
    if x.dim() not in (4, 5) or len(index) != x.dim() or index[1] is not None:
        return ()
    chosen = [one for i, one in enumerate(index) if i != 1]
    if any(one is None or one.dtype not in (torch.int32, torch.int64) for one in chosen):
        return ()
    sides = tuple(x.shape[2:])
    row, *cells = (
        one.remainder(n).flatten()
        for one, n in zip(torch.broadcast_tensors(*chosen), (len(x), *sides), strict=True)
    )
    at = torch.stack([(c + 0.5) / n for c, n in zip(cells[::-1], sides[::-1], strict=True)], -1)
    read = SampledMap(sides, _filled(x.detach()), "nearest", "border")
    space = Samples(at, row, torch.zeros_like(row), (read,))
    return (Label(space, np.arange(len(row), dtype=np.int64).reshape(*made.shape[:-1], 1)),)


_MODES, _PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")


def _filled(x: Tensor) -> Tensor:
    """`(rows, axes)`, the share of each side of a map behind which nothing but zeros lies."""
    there, shares = (x != 0).any(1), []
    for axis in range(x.dim() - 2, 0, -1):
        along = there.movedim(axis, 1).flatten(2).any(2)
        last = (along * torch.arange(1, along.shape[1] + 1, device=x.device)).amax(1)
        shares.append(last / along.shape[1])
    return torch.stack(shares, -1)


def _points(told: Sequence[Labels | None]) -> list[Label] | None:
    """The labels of tensors that all hold values at sampling points; None where some do not."""
    points = [
        next((one for one in labels or () if isinstance(one.space, Samples)), None)
        for labels in told
    ]
    known = [one for one in points if one is not None]
    return known if known and len(known) == len(points) else None


@apart
def _beside(
    points: Sequence[Label], shapes: Sequence[Sequence[int]]
) -> tuple[Space, list[Numbers]]:
    """One table for several labels of sampling points, and their numbers in it."""
    spaces = [one.space for one in points if isinstance(one.space, Samples)]
    starts = np.cumsum([0, *(len(one.at) for one in spaces)])
    numbers = [
        np.broadcast_to(one.numbers + start, shape)
        for one, start, shape in zip(points, starts, shapes, strict=False)
    ]
    return Samples.joined(spaces), numbers


def _rolled(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    dims = [d % made.dim() for d in (args[2] if len(args) > 2 else ())]
    if not dims:
        return ()
    labels = lineage.labels(args[0]) or ()
    return tuple(
        Label(one.space, np.roll(one.numbers, tuple(args[1]), tuple(dims)))
        for one in labels
        if all(one.along(d) or made.shape[d] == 1 for d in dims)
    )


def _flipped(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    dims = tuple(d % made.dim() for d in args[1])
    return tuple(
        Label(one.space, np.ascontiguousarray(np.flip(one.numbers, dims)))
        for one in lineage.labels(args[0]) or ()
    )


def _padded(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels | None:
    x, by = args[0], list(args[1])
    pads = {x.dim() - 1 - i // 2: (by[i], by[i + 1]) for i in range(0, len(by), 2)}
    return tuple(_pad(label, pads) for label in lineage.labels(x) or ())


def _pad(label: Label, pads: Mapping[int, tuple[int, int]]) -> Label:
    numbers = label.numbers
    for axis, (before, after) in pads.items():
        if label.along(axis):
            size = numbers.shape[axis]
            numbers = numbers.take(range(max(0, -before), size - max(0, -after)), axis)
            own = [(0, 0)] * numbers.ndim
            own[axis] = max(0, before), max(0, after)
            numbers = np.pad(numbers, own, constant_values=PADDED)
    return Label(label.space, numbers)


def _copied(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    return (lineage.labels(args[1]) or ()) if args[0].shape == args[1].shape else ()
