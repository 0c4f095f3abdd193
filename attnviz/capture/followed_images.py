"""How the image that each element belongs to is followed through the ops of a model.

Images lie along the first axis of what a model is given. Models fold this axis into others, in
either order, turn it and split it again; the numbers tell where each of its entries went. They are
kept by every op that works on each entry by itself, and lost where an op is not known, or where
elements of several images are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.capture.lineage import Numbers
from attnviz.capture.op_mode import apart

Known = Sequence[tuple[Tensor, Numbers | None]]
"""The operands that depend on the images, each with the images of its elements, None if lost."""

FoundImages = Callable[[Known, Any, Any, Tensor], Numbers | None]
"""From the known operands, the op's arguments and its result to the images of the result."""


@dataclass(frozen=True, slots=True)
class Batch:
    """How images are followed through an op.

    Attributes:
        images: From operands to the images of the result's elements.
        reads: The tensors that these depend on.
        samples: Whether they depend on values.
    """

    images: FoundImages
    reads: Callable[[Any, Tensor], Sequence[Tensor]]
    samples: bool = False


def batch_of(func: Any) -> Batch | None:
    """How images are followed through an op; None where they are lost."""
    name, schema = str(func), getattr(func, "_schema", None)
    if not name.startswith("aten."):
        return None
    packet = name.split(".")[1]
    plain = packet.rstrip("_") if schema is not None and schema.is_mutable else packet
    if plain in _ALONG:
        names = [argument.name for argument in schema.arguments] if schema is not None else []
        return Batch(_along(names.index("dim") if "dim" in names else -1), _first)
    if plain in _BY_OP:
        return _BY_OP[plain]
    if "scaled_dot_product" in packet and "backward" not in packet:
        return Batch(_attended, _first)
    return Batch(_elementwise, _all) if plain in _ELEMENTWISE else None


def _all(args: Any, made: Tensor) -> Sequence[Tensor]:
    return [x for x in args if isinstance(x, Tensor)]


def _first(args: Any, made: Tensor) -> Sequence[Tensor]:
    return args[:1]  # type: ignore[no-any-return]  # arguments of any op


def _second(args: Any, made: Tensor) -> Sequence[Tensor]:
    return args[1:2]  # type: ignore[no-any-return]  # the same


def _parts(args: Any, made: Tensor) -> Sequence[Tensor]:
    return [x for x in args[0] if isinstance(x, Tensor)]


def _elementwise(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    """Each element stays where it is; operands that are as large have to lie alike.

    What is repeated over the others counts where none is as large.
    """
    large = [one for one in known if one[0].shape == made.shape] or known
    found: Numbers | None = None
    for x, numbers in large:
        if numbers is None or x.dim() > made.dim():
            return None
        own = numbers.reshape([1] * (made.dim() - x.dim()) + list(numbers.shape))
        if found is not None and not np.array_equal(own, found):
            return None
        found = own
    return found


def _apart_from(first: int) -> FoundImages:
    """Images that lie along the axes before some others, within which elements move or mix."""

    def found(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
        x, numbers = known[0]
        if numbers is None or x.dim() != made.dim() or any(n > 1 for n in numbers.shape[first:]):
            return None
        same = all(n in (1, made.shape[i]) for i, n in enumerate(numbers.shape))
        return numbers if same else None

    return found


ALIKE: FoundImages = _elementwise
"""Of ops that keep each element where it is."""

SPATIAL = _apart_from(2)
"""Of ops that work on each channel of a feature map by itself."""


def _entries(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    """Images along the first axis, whose entries stay in order; other axes may become others."""
    x, numbers = known[0]
    if numbers is None or not made.dim() or any(n > 1 for n in numbers.shape[1:]):
        return None
    if made.shape[0] != x.shape[0]:
        return None
    return numbers.reshape(-1, *[1] * (made.dim() - 1))


def _along(position: int) -> FoundImages:
    """An op that works along some axes: reduces them, sorts or picks their entries."""

    def found(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
        x, numbers = known[0]
        dims = args[position] if 0 <= position < len(args) else kwargs.get("dim", ())
        dims = [dims] if isinstance(dims, int) else list(dims or ())
        own = {d % x.dim() for d in dims} or set(range(x.dim()))
        if numbers is None or any(numbers.shape[d] > 1 for d in own):
            return None
        if made.dim() == x.dim() - len(own):
            return numbers.reshape([n for i, n in enumerate(numbers.shape) if i not in own])
        same = made.dim() == x.dim() and all(
            n in (1, made.shape[i]) for i, n in enumerate(numbers.shape)
        )
        return numbers if same else None

    return found


def _product(known: Known, left: Tensor, right: Tensor) -> Numbers | None:
    """Rows are of the left factor's images, columns of the right one's."""
    told = [next(((n,) for x, n in known if x is one), ()) for one in (left, right)]
    found: Numbers | None = None
    for side, one in enumerate(told):
        for numbers in one:
            if numbers is None or numbers.shape[numbers.ndim - 1 - side] > 1:
                return None
            if found is not None and not np.array_equal(found, numbers):
                return None
            found = numbers
    return found


def _multiplied(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    return _product(known, args[0], args[1])


def _added(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    return _product(known, args[1], args[2])


def _attended(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    numbers = known[0][1]
    if numbers is None or numbers.shape[-1] > 1 or made.shape[:-1] != args[0].shape[:-1]:
        return None
    return numbers


def _joined(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    """What follows each other along an axis; parts that no image determines are of all."""
    parts = [x for x in args[0] if isinstance(x, Tensor) and x.numel()]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % made.dim()
    own = [(x, n) for x, n in known if x.numel()]
    if not own or any(n is None or x.dim() != made.dim() for x, n in own):
        return None
    numbers = [n for _, n in own if n is not None]
    if all(np.array_equal(n, numbers[0]) for n in numbers) and numbers[0].shape[dim] == 1:
        return numbers[0]
    if len(own) < len(parts):
        return None
    sizes = [max(n.shape[i] for n in numbers) for i in range(made.dim())]
    found: Numbers = np.concatenate([
        np.broadcast_to(n, [x.shape[dim] if i == dim else size for i, size in enumerate(sizes)])
        for x, n in own
        if n is not None
    ], dim)  # fmt: skip
    return found


def _stacked(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    numbers = [n for _, n in known if n is not None]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % made.dim()
    if len(numbers) < len(known):
        return None
    if all(np.array_equal(n, numbers[0]) for n in numbers):
        return np.expand_dims(numbers[0], dim)
    if len(numbers) < len(args[0]):
        return None
    sizes = np.broadcast_shapes(*(n.shape for n in numbers))
    found: Numbers = np.stack([np.broadcast_to(n, sizes) for n in numbers], dim)
    return found


def _rolled(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    numbers, dims = known[0][1], args[2] if len(args) > 2 else ()
    if numbers is None or not dims:
        return None
    return np.roll(numbers, tuple(args[1]), tuple(d % made.dim() for d in dims))


def _flipped(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    numbers = known[0][1]
    if numbers is None:
        return None
    return np.ascontiguousarray(np.flip(numbers, tuple(d % made.dim() for d in args[1])))


def _padded(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    (x, numbers), by = known[0], list(args[1])
    padded = {x.dim() - 1 - i // 2 for i in range(len(by)) if by[i]}
    return None if numbers is None or any(numbers.shape[i] > 1 for i in padded) else numbers


def _copied(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    return _elementwise([one for one in known if one[0] is args[1]], args, kwargs, made)


Replaced = Callable[[Numbers, Numbers, Any, Tensor], bool]
"""From the images of a tensor, those of what is written into it and the op's arguments and result
to whether each element is of the same image as what takes its place."""


def _written(source: int, alike: Replaced, *, samples: bool = False) -> Batch:
    """Something is written into some elements, which stay where they are.

    What depends on images has to be written to those that it is of.

    Args:
        source: The argument that is written.
        alike: Whether it is of the images that it is written to.
        samples: Whether that depends on values.
    """

    def found(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
        value = args[source] if len(args) > source else None
        own = next((numbers for x, numbers in known if x is args[0]), None)
        written = [numbers for x, numbers in known if x is value]
        if own is None or made.shape != args[0].shape:
            return None
        kept = all(numbers is not None and alike(own, numbers, args, made) for numbers in written)
        return own if kept else None

    def reads(args: Any, made: Tensor) -> Sequence[Tensor]:
        return [args[0], *(x for x in args[source : source + 1] if isinstance(x, Tensor))]

    return Batch(found, reads, samples)


def _along_axis(position: int) -> Replaced:
    """Written along one axis, to any of its entries; of the other axes to the same ones."""

    def alike(own: Numbers, numbers: Numbers, args: Any, made: Tensor) -> bool:
        dim = (int(args[position]) if len(args) > position else 0) % made.dim()
        if numbers.ndim == made.dim() - 1:  # one entry
            numbers = np.expand_dims(numbers, dim)
        return own.shape[dim] == 1 and np.array_equal(numbers, own)

    return alike


@apart
def _at_index(own: Numbers, numbers: Numbers, args: Any, made: Tensor) -> bool:
    """Written where an index says."""
    picked = _indexed([(args[0], own)], args, {}, args[2])
    return picked is not None and _equal(picked, numbers)


@apart
def _at_mask(own: Numbers, numbers: Numbers, args: Any, made: Tensor) -> bool:
    """Written in order where a mask is set; what is the same along the last axis is read once."""
    mask, value = args[1].expand(made.shape), args[2]
    last = made.dim() > 1 and value.dim() > 1 and value.shape[-1] == made.shape[-1]
    if last and mask.stride(-1) == 0 and own.shape[-1] == numbers.shape[-1] == 1:
        mask, own, numbers = mask[..., 0], own[..., 0], numbers[..., 0]
        value = value[..., 0]
    chosen = mask.detach().cpu().numpy().astype(bool)
    taken = np.broadcast_to(numbers, tuple(value.shape)).reshape(-1)[: int(chosen.sum())]
    return np.array_equal(np.broadcast_to(own, chosen.shape)[chosen], taken)


def _anywhere(own: Numbers, numbers: Numbers, args: Any, made: Tensor) -> bool:
    """One number is written to all elements."""
    return bool((own == numbers).all())


def _equal(one: Numbers, other: Numbers) -> bool:
    """Whether images are the same where arrays of one broadcast shape have a size of 1."""
    try:
        return bool(np.equal(*np.broadcast_arrays(one, other)).all())
    except ValueError:
        return False


def _embedded(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    """A table is read for each of the numbers."""
    numbers = known[0][1]
    return None if numbers is None else numbers[..., None]


def _repeated(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    numbers, times = known[0][1], list(args[1])
    if numbers is None:
        return None
    own = numbers.reshape([1] * (made.dim() - numbers.ndim) + list(numbers.shape))
    found: Numbers = np.tile(own, [n if own.shape[i] > 1 else 1 for i, n in enumerate(times)])
    return found


@apart
def _selected(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    """Chosen entries along one axis."""
    numbers, dim, index = known[0][1], args[1] % args[0].dim(), args[2]
    if numbers is None or numbers.shape[dim] == 1:
        return numbers
    found: Numbers = numbers.take(index.detach().cpu().numpy().reshape(-1), dim)
    return found


@apart
def _indexed(known: Known, args: Any, kwargs: Any, made: Tensor) -> Numbers | None:
    """Chosen entries along axes that follow each other."""
    (x, numbers), index = known[0], list(args[1])
    chosen = [i for i, one in enumerate(index) if one is not None]
    if numbers is None or chosen != list(range(chosen[0], chosen[-1] + 1)):
        return None
    axes = range(chosen[0], chosen[0] + sum(_axes(index[i]) for i in chosen))
    lead, rest = numbers.shape[: axes.start], numbers.shape[axes.stop :]
    if all(numbers.shape[i] == 1 for i in axes):
        return numbers.reshape(*lead, *[1] * (made.dim() - len(lead) - len(rest)), *rest)
    whole = np.broadcast_to(numbers, (*lead, *(x.shape[i] for i in axes), *rest))
    found: Numbers = whole[(
        *[slice(None)] * axes.start, *(index[i].detach().cpu().numpy() for i in chosen),
    )]  # fmt: skip
    return found


def _axes(index: Tensor) -> int:
    """How many axes an index stands for."""
    return index.dim() if index.dtype in (torch.bool, torch.uint8) else 1


_ELEMENTWISE = {
    "_log_softmax", "addcdiv", "log1p", "expm1", "square", "sign", "round", "floor", "ceil",
    "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and",
    "logical_or", "bitwise_not", "bitwise_and", "bitwise_or", "remainder", "floor_divide",
    "log_sigmoid_forward", "celu", "selu", "hardshrink", "softshrink", "threshold", "tril", "triu",
}  # fmt: skip
_ALONG = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "any", "all", "argmax",
    "argmin", "logsumexp", "linalg_vector_norm", "norm", "cumsum", "cumprod", "sort", "argsort",
    "topk", "gather", "median", "glu", "renorm",
}  # fmt: skip
_SPATIAL = {
    "upsample_linear1d", "upsample_nearest1d", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
}  # fmt: skip
_ENTRIES = {
    "im2col", "col2im", "grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler",
    "channel_shuffle", "_cdist_forward", "unfold", "avg_pool1d", "adaptive_avg_pool1d",
}  # fmt: skip
_WRITTEN = {
    "fill": _written(1, _anywhere), "zero": _written(1, _anywhere),
    "masked_scatter": _written(2, _at_mask, samples=True),
    "index_put": _written(2, _at_index, samples=True),
    **dict.fromkeys(
        ("index_fill", "index_copy", "index_add", "scatter", "scatter_add"),
        _written(3, _along_axis(1)),
    ),
    **dict.fromkeys(("slice_scatter", "select_scatter"), _written(1, _along_axis(2))),
}  # fmt: skip
_BY_OP = {
    "convolution": Batch(_apart_from(1), _first),
    "_convolution": Batch(_apart_from(1), _first),
    **dict.fromkeys(_SPATIAL, Batch(SPATIAL, _first)),
    **dict.fromkeys(_ENTRIES, Batch(_entries, _first)),
    **_WRITTEN,
    **dict.fromkeys(("mm", "bmm"), Batch(_multiplied, lambda args, made: args[:2])),
    **dict.fromkeys(("addmm", "baddbmm"), Batch(_added, lambda args, made: args[1:3])),
    "cat": Batch(_joined, _parts),
    "stack": Batch(_stacked, _parts),
    "roll": Batch(_rolled, _first),
    "flip": Batch(_flipped, _first),
    "constant_pad_nd": Batch(_padded, _first),
    "copy": Batch(_copied, _second),
    "embedding": Batch(_embedded, _second),
    "repeat": Batch(_repeated, _first),
    "index_select": Batch(_selected, _first, samples=True),
    "index": Batch(_indexed, _first, samples=True),
    "_unsafe_index": Batch(_indexed, _first, samples=True),
}
