"""Which place of a feature map each element of a tensor is, followed through the ops of a model.

A convolution puts out a feature map, and each of its rows and columns is a place. From there on
every op that moves tokens without mixing them is followed: copies in another order of memory,
rolls, padding, concatenation with class tokens, linear layers, norms, attention. A view shares its
tensor's storage, so where its elements lie is computed from their addresses. An op that is not
known, or that gathers, sorts or mixes tokens, ends what is known: a place is proven or it is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from attnviz.capture.provenance import Tag, Tags
from attnviz.token_places import Places, Role

Numbers = np.ndarray[Any, np.dtype[np.int64]]

Present = Callable[[Numbers], Numbers]

JOINED = -(10**9)
"""What a token of parameters or of other data adds to the number of its place."""

PADDED = -(10**12)
"""The same of padding."""

_UNCHANGED = {
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "rsub", "gelu", "gelu_", "relu",
    "relu_", "silu", "silu_", "sigmoid", "sigmoid_", "tanh", "hardtanh", "hardtanh_", "hardswish",
    "hardswish_", "leaky_relu", "leaky_relu_", "elu", "mish", "softplus", "neg", "exp", "sqrt",
    "pow", "erf", "native_layer_norm", "native_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "_batch_norm_with_update",
    "cudnn_batch_norm", "miopen_batch_norm", "native_group_norm", "_fused_rms_norm", "_softmax",
    "softmax", "_safe_softmax", "clone", "_to_copy", "native_dropout", "dropout", "masked_fill",
    "masked_fill_", "where", "clamp", "clamp_min", "clamp_max", "detach", "alias", "nan_to_num",
    "_transformer_encoder_layer_fwd", "_native_multi_head_attention", "layer_norm", "group_norm",
    "batch_norm", "to", "contiguous", "addcmul", "lerp", "hardsigmoid",
}  # fmt: skip
_POOLED = {
    "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "avg_pool3d",
    "max_pool3d_with_indices", "_adaptive_avg_pool3d", "upsample_bilinear2d", "upsample_nearest2d",
    "upsample_bicubic2d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa",
}  # fmt: skip


@dataclass(eq=False, slots=True)
class Space:
    """A grid of places, and which tokens beside them were read by themselves.

    Attributes:
        grid: Its sides.
        read: Numbers of tokens that are no places and were given to an op alone.
    """

    grid: tuple[int, ...]
    read: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Axis:
    """One axis of a tensor as it was written, and what each step along it adds.

    Attributes:
        stride: In elements.
        size: How many steps there are.
        adds: `(size,)`, what each adds to the number of the place.
        space: The grid that these are numbers on.
    """

    stride: int
    size: int
    adds: Numbers
    space: Space


@dataclass(slots=True)
class Origin:
    """Where the elements of a storage lie.

    Attributes:
        axes: Its axes that tell places.
        shape: The shape of the tensor as it was written.
        stride: Its strides.
        known: Sums along axes of views, by stride, size, offset and grid.
    """

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    known: dict[Any, Numbers | None] = field(default_factory=dict)

    def along(self, view: Tensor, axis: int, space: Space) -> Numbers | None:
        """What each step along an axis of a view adds; None if that is nothing."""
        size, stride, offset = view.shape[axis], view.stride(axis), int(view.storage_offset())
        key = (size, stride, offset, id(space))
        if key not in self.known:
            self.known[key] = self._along(size, stride, offset, space)
        return self.known[key]

    def _along(self, size: int, stride: int, offset: int, space: Space) -> Numbers | None:
        if size == 1 or stride == 0:
            return None
        address = offset + stride * np.arange(size, dtype=np.int64)
        adds = self._number(address, space) - self._number(np.array([offset]), space)
        return adds if adds.any() else None

    def _number(self, address: Numbers, space: Space) -> Numbers:
        total = np.zeros(len(address), dtype=np.int64)
        for axis in self.axes:
            if axis.space is space:
                total += axis.adds[address // axis.stride % axis.size]
        return total

    def start(self, view: Tensor, space: Space) -> int:
        """The number at a view's first element."""
        return int(self._number(np.array([int(view.storage_offset())]), space)[0])

    def spaces(self) -> list[Space]:
        """The grids that its axes tell of."""
        return list({id(axis.space): axis.space for axis in self.axes}.values())


class Lineage:
    """Follows places through the ops of one watch."""

    def __init__(self, is_parameter: Callable[[Tensor], bool]) -> None:
        self.is_parameter = is_parameter
        self._tags = Tags()

    def get(self, tensor: Any) -> Origin | None:
        """What is known of a tensor's storage."""
        if not len(self._tags) or not isinstance(tensor, Tensor) or tensor.is_nested:
            return None
        tag = self._tags.get(tensor)
        return None if tag is None else tag.extra

    def clear(self) -> None:
        """Forget everything."""
        self._tags.clear()

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note where the elements of an op's result lie."""
        handler = _HANDLERS.get(func)
        if handler is None:
            handler = _HANDLERS[func] = _handler(func)
        handler(self, func, args, kwargs, out)

    def put(self, tensor: Tensor, axes: Sequence[tuple[int, Numbers, Space]]) -> None:
        """Note where a new tensor's elements lie: by axis what each step adds."""
        kept = tuple(
            Axis(tensor.stride(i), tensor.shape[i], adds, space) for i, adds, space in axes
        )
        dense = tensor.storage_offset() == 0 and all(axis.stride for axis in kept)
        if not kept or not dense:
            self._tags.drop(tensor)
            return
        origin = Origin(kept, tuple(tensor.shape), tensor.stride())
        self._tags.put(tensor, Tag("origin", extra=origin))

    def drop(self, tensor: Any) -> None:
        """Forget a tensor that was written to."""
        if isinstance(tensor, Tensor) and not tensor.is_nested and len(self._tags):
            self._tags.drop(tensor)

    def axes_of(self, view: Tensor, origin: Origin) -> Iterator[tuple[int, Numbers, Space]]:
        """By axis of a view and grid what each step adds, the first element's number included."""
        for space in origin.spaces():
            start, found = origin.start(view, space), False
            for axis in range(view.dim()):
                adds = origin.along(view, axis, space)
                if adds is not None:
                    yield axis, adds + (0 if found else start), space
                    found = True

    def read_alone(self, view: Tensor, origin: Origin) -> None:
        """Note which token that is no place is the only one that an op was given."""
        for axis in origin.axes:
            index = int(view.storage_offset()) // axis.stride % axis.size
            own = any(
                n > 1 and axis.stride <= s < axis.stride * axis.size
                for n, s in zip(view.shape, view.stride(), strict=True)
            )
            if not own and axis.adds[index] * 2 > PADDED and axis.adds[index] * 2 < JOINED:
                axis.space.read.add(index)


Handler = Callable[[Lineage, Any, Any, Any, Any], None]
_HANDLERS: dict[Any, Handler] = {}


def _handler(func: Any) -> Handler:
    """The function that follows an op."""
    name = str(func)
    if not name.startswith("aten."):
        return _lost
    packet = name.split(".")[1]
    if packet in _UNCHANGED:
        return _unchanged
    if packet == "convolution":
        return _convolved
    if packet in _POOLED:
        return _pooled
    special = {
        "mm": _multiplied, "bmm": _multiplied, "addmm": _added, "baddbmm": _added, "cat": _joined,
        "roll": _rolled, "constant_pad_nd": _padded, "copy_": _copied,
    }  # fmt: skip
    if packet in special:
        return special[packet]
    if "scaled_dot_product" in packet and "backward" not in packet:
        return _attended
    return _lost


def _lost(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """An op that is not known: what it writes to is no longer known either."""
    schema = getattr(func, "_schema", None)
    if schema is not None and schema.is_mutable and args:
        lineage.drop(args[0])


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, (tuple, list)) and out else out


def _unchanged(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Every element stays where it is."""
    made = _first(out)
    if not isinstance(made, Tensor):
        return
    found: tuple[Tensor, Origin] | None = None
    for x in args:
        if not isinstance(x, Tensor) or x.dim() == 0 or x.numel() == 1:
            continue
        origin = lineage.get(x)
        if origin is None:
            continue
        if str(func).split(".")[1] in ("native_layer_norm", "layer_norm"):
            lineage.read_alone(x, origin)
        if x.shape != made.shape:
            continue  # it is repeated over the others, as gates are
        if found is not None and not _agree(lineage, x, origin, *found):
            lineage.drop(made)
            return
        found = found or (x, origin)
    if found is None:
        lineage.drop(made)
        return
    if any(_foreign(lineage, x, made) for x in args):
        lineage.drop(made)
        return
    x, origin = found
    if made is x:
        return
    if made.storage_offset() == 0 and x.storage_offset() == 0 and (
        tuple(x.shape) == origin.shape == tuple(made.shape)
        and x.stride() == origin.stride == made.stride()
    ):  # fmt: skip
        lineage._tags.put(made, Tag("origin", extra=origin))
        return
    lineage.put(made, list(lineage.axes_of(x, origin)))


def _foreign(lineage: Lineage, x: Any, made: Tensor) -> bool:
    """Whether an operand as large as the result is data of which nothing is known."""
    return (
        isinstance(x, Tensor) and x.shape == made.shape and lineage.get(x) is None
        and x.is_floating_point() and 0 not in x.stride() and not lineage.is_parameter(x)
    )  # fmt: skip


def _agree(lineage: Lineage, x: Tensor, origin: Origin, y: Tensor, other: Origin) -> bool:
    """Whether two tensors hold the same places in the same order."""
    if origin is other and x.stride() == y.stride() and x.storage_offset() == y.storage_offset():
        return True
    one, two = list(lineage.axes_of(x, origin)), list(lineage.axes_of(y, other))
    return len(one) == len(two) and all(
        a[0] == b[0] and a[2].grid == b[2].grid and np.array_equal(a[1], b[1])
        for a, b in zip(one, two, strict=True)
    )


def _whole(lineage: Lineage, x: Tensor, origin: Origin) -> bool:
    """Whether the last axes of a feature map are a whole grid, row by row."""
    for space in origin.spaces():
        sides = tuple(x.shape[2:])
        if space.grid != sides or origin.start(x, space):
            return False
        adds = [origin.along(x, axis, space) for axis in range(x.dim())]
        step = 1
        for axis in reversed(range(2, x.dim())):
            wanted = np.arange(x.shape[axis]) * step
            got = adds[axis]
            if x.shape[axis] > 1 and (got is None or not np.array_equal(got, wanted)):
                return False
            step *= x.shape[axis]
        if adds[0] is not None or adds[1] is not None:
            return False
    return True


def _mapped(lineage: Lineage, x: Any, made: Any) -> None:
    """A feature map made of a feature map: its rows and columns are a grid of their own."""
    if not isinstance(made, Tensor) or made.dim() not in (4, 5) or not isinstance(x, Tensor):
        return
    origin = lineage.get(x)
    if origin is not None and not _whole(lineage, x, origin):
        if x.shape[2:] == made.shape[2:] and x.dim() == made.dim():
            kept = [one for one in lineage.axes_of(x, origin) if one[0] != 1]
            lineage.put(made, kept)
        return
    sides = tuple(made.shape[2:])
    if origin is not None and origin.spaces()[0].grid == sides:
        space = origin.spaces()[0]
    else:
        space = Space(sides)
    axes, step = [], 1
    for axis in reversed(range(2, made.dim())):
        axes.append((axis, np.arange(made.shape[axis], dtype=np.int64) * step, space))
        step *= made.shape[axis]
    lineage.put(made, axes)


def _convolved(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    _mapped(lineage, args[0], out)


def _pooled(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    if lineage.get(args[0]) is not None:
        _mapped(lineage, args[0], _first(out))


def _multiplied(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Rows come from the left factor, columns from the right one; nothing else may tell places."""
    _product(lineage, args[0], args[1], out)


def _added(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    _product(lineage, args[1], args[2], out)


def _product(lineage: Lineage, left: Tensor, right: Tensor, out: Tensor) -> None:
    axes: list[tuple[int, Numbers, Space]] = []
    last = out.dim() - 1
    rows, columns = lineage.get(left), lineage.get(right)
    if rows is not None:
        if left.dim() == 2:
            lineage.read_alone(left, rows)
        mine = list(lineage.axes_of(left, rows))
        own = {id(one[2]) for one in mine if one[0] == last - 1} or {id(one[2]) for one in mine}
        if any(one[0] == last and id(one[2]) in own for one in mine) and not _scores(mine, last):
            return  # places are summed over
        axes += [one for one in mine if one[0] != last and id(one[2]) in own]
    if columns is not None:
        theirs = list(lineage.axes_of(right, columns))
        if any(one[0] == last for one in theirs):
            have = {(one[0], id(one[2])) for one in axes}
            axes += [
                one for one in theirs
                if one[0] != last - 1 and (one[0], id(one[2])) not in have
            ]  # fmt: skip
        elif rows is None and any(one[0] == last - 1 for one in theirs):
            return
    lineage.put(out, axes)


def _scores(mine: Sequence[tuple[int, Numbers, Space]], last: int) -> bool:
    """Whether a left factor has places along both of its last axes: attention weights."""
    return any(one[0] == last - 1 for one in mine)


def _attended(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Each query's mixture lies where the query does."""
    query, made = args[0], _first(out)
    origin = lineage.get(query)
    if origin is None or not isinstance(made, Tensor) or made.dim() != query.dim():
        return
    axes = list(lineage.axes_of(query, origin))
    if not any(one[0] == query.dim() - 1 for one in axes):
        lineage.put(made, axes)


def _joined(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Tokens that follow each other; those of which nothing is known are no places."""
    parts = [x for x in args[0] if isinstance(x, Tensor) and x.numel()]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    known = [(x, origin) for x in parts if (origin := lineage.get(x)) is not None]
    if not known or any(x.dim() != out.dim() for x in parts):
        return
    told = [list(lineage.axes_of(x, origin)) for x, origin in known]
    spaces = {id(one[2]): one[2] for one in told[0]}
    if len(spaces) != 1 or any({id(one[2]) for one in t} != set(spaces) for t in told):
        return
    space = next(iter(spaces.values()))
    along = [{axis: adds for axis, adds, _ in t} for t in told]
    rest = [{a: v for a, v in t.items() if a != dim} for t in along]
    if any(
        t.keys() != rest[0].keys() or any(not np.array_equal(t[a], rest[0][a]) for a in t)
        for t in rest
    ):
        return
    axes = [(axis, adds, space) for axis, adds in rest[0].items()]
    if any(dim in t for t in along):
        pieces, at = [], 0
        for x in parts:
            if at < len(known) and x is known[at][0]:
                adds = along[at].get(dim)
                pieces.append(np.zeros(x.shape[dim], np.int64) if adds is None else adds)
                at += 1
            else:
                pieces.append(np.full(x.shape[dim], JOINED, np.int64))
        axes.append((dim, np.concatenate(pieces), space))
    elif len(known) < len(parts) and dim not in (1, out.dim() - 1):
        return
    lineage.put(out, axes)


def _rolled(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    origin = lineage.get(args[0])
    if origin is None:
        return
    dims = args[2] if len(args) > 2 else ()
    shifts = dict(zip((d % out.dim() for d in dims), args[1], strict=False))
    if not dims:
        return
    axes = list(lineage.axes_of(args[0], origin))
    if any(d not in {one[0] for one in axes} and out.shape[d] > 1 and s for d, s in shifts.items()):
        return
    lineage.put(out, [(a, np.roll(adds, shifts.get(a, 0)), space) for a, adds, space in axes])


def _padded(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    origin = lineage.get(args[0])
    if origin is None:
        return
    by = list(args[1])
    pads = {out.dim() - 1 - i // 2: (by[i], by[i + 1]) for i in range(0, len(by), 2)}
    axes = []
    for axis, adds, space in lineage.axes_of(args[0], origin):
        before, after = pads.pop(axis, (0, 0))
        if before < 0 or after < 0:
            return
        axes.append((axis, np.pad(adds, (before, after), constant_values=PADDED), space))
    if any(any(pad) for pad in pads.values()):
        return
    lineage.put(out, axes)


def _copied(lineage: Lineage, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A tensor is written over as a whole, or is no longer known."""
    target, source = args[0], args[1]
    origin = lineage.get(source)
    whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
    if origin is not None and whole and target.shape == source.shape:
        lineage.put(target, list(lineage.axes_of(source, origin)))
    else:
        lineage.drop(target)


@dataclass(slots=True)
class Numbered:
    """The numbers of the places of one side of a record.

    Attributes:
        space: The grid that they are numbers on.
        rows: What each row of the weights' first axis adds.
        tokens: The number of each token.
    """

    space: Space
    rows: Numbers
    tokens: Numbers


def numbered(
    lineage: Lineage, tensor: Tensor, tokens: Sequence[int], lead: Sequence[int], present: Present
) -> Numbered | None:
    """Numbers of places along one axis of weights, queries or keys; None where not known.

    Args:
        lineage: What is known.
        tensor: The tensor.
        tokens: Its axes of tokens, slowest first.
        lead: Its leading axes.
        present: From values along the leading axes to `(b, heads)`.
    """
    origin = lineage.get(tensor)
    if origin is None:
        return None
    for space in origin.spaces():
        own = _outer(origin, tensor, tokens, space)
        if own is None:
            continue
        sums = np.zeros([tensor.shape[a] for a in lead], np.int64)
        for i, a in enumerate(lead):
            adds = origin.along(tensor, a, space)
            if adds is not None:
                sums += adds.reshape([-1 if k == i else 1 for k in range(len(lead))])
        rows = present(sums)
        if rows.size and not (rows == rows[:, :1]).all():
            return None  # heads that lie at different places
        return Numbered(space, rows[:, 0], own + origin.start(tensor, space))
    return None


def _outer(
    origin: Origin, tensor: Tensor, tokens: Sequence[int], space: Space
) -> Numbers | None:  # fmt: skip
    """What steps along some axes add together, flat; None where none of them adds anything."""
    found, total = False, np.zeros([tensor.shape[a] for a in tokens], np.int64)
    for i, a in enumerate(tokens):
        adds = origin.along(tensor, a, space)
        if adds is not None:
            found = True
            total += adds.reshape([-1 if k == i else 1 for k in range(len(tokens))])
    return total.ravel() if found else None


def proven(side: Numbered | None, images: int | None) -> Places | None:
    """Places from what rows of the weights and tokens within them add up to.

    None where two tokens of an image would be one place, where images differ, or where they do
    not fill an evenly spaced grid.
    """
    if side is None:
        return None
    numbers, space = side.rows[:, None] + side.tokens[None], side.space
    b = len(numbers)
    if not images or b % images:
        return None
    each = numbers.reshape(images, -1)
    if not (each == each[0]).all():
        return None
    cell = each[0]
    placed = cell[cell >= 0]
    if not len(placed) or len(np.unique(placed)) != len(placed):
        return None
    if placed.max() >= math.prod(space.grid):
        return None
    grid, inside = _lattice(placed, space.grid)
    if grid is None:
        return None
    cells = np.full(len(cell), -1)
    cells[cell >= 0] = inside
    roles: list[Role] = []
    for n in cell:
        roles.append("place" if n >= 0 else "padding" if n * 2 < PADDED else "other")
    n = len(side.tokens)
    for i in space.read:
        if i < n:
            for at in range(i, len(cell), n):
                if roles[at] == "other":
                    roles[at] = "class"
    return Places(
        grid, tuple(int(c) for c in cells), tuple(roles), status="proven",
        reason="followed from a feature map", error=0.0,
    )  # fmt: skip


def _lattice(placed: Numbers, grid: tuple[int, ...]) -> tuple[tuple[int, ...] | None, Numbers]:
    """The grid of evenly spaced rows and columns that cells fill, and their numbers on it."""
    sides, index, rest = [], np.zeros(len(placed), np.int64), placed
    columns = []
    for side in reversed(grid):
        columns.append(rest % side)
        rest = rest // side
    for column in columns[::-1]:
        values = np.unique(column)
        if len(values) > 2 and len(set(np.diff(values).tolist())) > 1:
            return None, index
        sides.append(len(values))
        index = index * len(values) + np.searchsorted(values, column)
    if math.prod(sides) != len(placed):
        return None, index
    return tuple(sides), index
