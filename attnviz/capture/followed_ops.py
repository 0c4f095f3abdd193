"""How places are followed through each op that moves tokens without mixing them.

Copies in another order of memory, rolls, padding, concatenation with class tokens, linear layers,
norms and attention are followed. An op that is not known, or that gathers, sorts or mixes tokens,
ends what is known: a place is proven or it is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.capture.followed_images import ALIKE, SPATIAL, FoundImages, batch_of
from attnviz.capture.lineage import (
    LOST,
    MOST,
    PADDED,
    Label,
    Labels,
    Line,
    Lineage,
    Numbers,
    Origin,
    SampledMap,
    Samples,
    Space,
    form,
)
from attnviz.capture.op_mode import apart

_FEWEST = 4  # tokens whose positions can be a grid

_UNCHANGED = {
    "add", "sub", "mul", "div", "rsub", "gelu", "relu", "silu", "sigmoid", "tanh", "hardtanh",
    "hardswish", "hardsigmoid", "leaky_relu", "elu", "mish", "softplus", "neg", "exp", "sqrt",
    "pow", "erf", "native_layer_norm", "native_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "_batch_norm_with_update",
    "cudnn_batch_norm", "miopen_batch_norm", "native_group_norm", "_fused_rms_norm", "rsqrt",
    "_softmax", "softmax", "_safe_softmax", "_log_softmax", "clone", "native_dropout", "dropout",
    "masked_fill", "where", "clamp", "clamp_min", "clamp_max", "detach", "alias", "nan_to_num",
    "_transformer_encoder_layer_fwd", "_native_multi_head_attention", "layer_norm", "group_norm",
    "batch_norm", "to", "contiguous", "addcmul", "lerp", "_prelu_kernel", "abs", "log",
    "reciprocal", "cos", "sin",
}  # fmt: skip
_RESIZED = {
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_bilinear2d",
    "upsample_nearest2d", "upsample_bicubic2d", "upsample_trilinear3d", "upsample_nearest3d",
    "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "pixel_shuffle", "pixel_unshuffle",
}  # fmt: skip
_REPEATED_AROUND = {
    f"{way}_pad{axes}d" for way in ("reflection", "replication") for axes in (2, 3)
}  # fmt: skip
_POOLED = {
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "max_pool2d",
    "mkldnn_max_pool2d",
}  # fmt: skip


def _flat(values: Any) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


_NONE: set[Origin | None] = {None}
_LOST: set[Origin | None] = {LOST}

Found = Callable[[Lineage, Any, Any, Tensor], Labels | None]
Reads = Callable[[Any, Tensor], Sequence[Tensor]]
Settings = Callable[[Any, Any], Any]
LinesOf = Callable[[Sequence[Line]], Iterable[Line]]


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """How an op is followed.

    Attributes:
        labels: From the op's arguments and its result to the result's labels; None leaves it alone.
        reads: The tensors that these depend on, from the op's arguments and its result.
        keeps: Whether each element stays where it is.
        single: Whether these are the first argument alone.
        settings: From the op's arguments to what else they depend on, as a key; None if nothing.
        writes: Whether it writes into its first argument.
        samples: Whether they depend on values.
        joins: Whether tokens of which nothing is known may join others.
        layer: Whether it is a layer that reads its first operand, if the others are parameters.
        images: From the tensors that it reads, its arguments and its result to the result's images.
    """

    labels: Found
    reads: Reads
    keeps: bool = False
    single: bool = False
    settings: Settings | None = None
    writes: bool = False
    samples: bool = False
    joins: bool = False
    layer: bool = False
    images: FoundImages = ALIKE


def followed(func: Any) -> Followed | None:
    """How an op is followed; None if what is known stays as it is."""
    found = _places_followed(func)
    if found is None or found.keeps:
        return found
    if found.labels in (_resized, _pooled):
        return replace(found, images=SPATIAL)
    batch = batch_of(func)
    if batch is None:
        return replace(found, images=_no_images)
    if found.labels is _lost:
        return replace(found, images=batch.images, reads=batch.reads, settings=_frozen,
                       samples=batch.samples)  # fmt: skip
    return replace(found, images=batch.images)


def _no_images(known: Any, args: Any, kwargs: Any, made: Tensor) -> None:
    return None


def _places_followed(func: Any) -> Followed | None:
    name, schema = str(func), getattr(func, "_schema", None)
    writes = bool(schema is not None and schema.is_mutable)
    packet = name.split(".")[1] if name.startswith("aten.") else ""
    plain = packet.rstrip("_") if writes else packet
    if plain in _UNCHANGED:
        if writes and tensors(func) == 1:
            return None
        if "batch_norm" in plain or plain == "native_group_norm":
            return Followed(_unchanged, _first, keeps=True, single=True, writes=writes)
        if "layer_norm" in plain:
            return Followed(_unchanged, _first, keeps=True, layer=True)
        return Followed(_unchanged, _alike, keeps=True, writes=writes)
    if plain == "_to_copy":
        return Followed(_converted, _alike, keeps=True, samples=True)
    if plain in _RESIZED:
        return Followed(_resized, _first, single=True, settings=_frozen)
    if plain in _POOLED:
        return Followed(_pooled, _first, single=True, settings=_frozen)
    if "scaled_dot_product" in packet and "backward" not in packet:
        return Followed(_attended, _first)
    if plain in ("convolution", "_convolution"):
        return Followed(_convolved, _first, single=True, settings=_kernel)
    if plain in _REPEATED_AROUND:
        return Followed(_around, _first, settings=_frozen)
    if plain == "constant_pad_nd":
        return Followed(_padded, _first, settings=_frozen)
    if plain in ("mm", "bmm"):
        return Followed(_multiplied, lambda args, made: args[:2], layer=True)
    if plain in ("addmm", "baddbmm"):
        return Followed(_added, lambda args, made: args[1:3], writes=writes, layer=True)
    if plain in ("cat", "stack"):
        return Followed(
            _joined if plain == "cat" else _stacked, _parts, settings=_frozen, joins=True
        )
    if plain in ("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler"):
        return Followed(_sampled, _first, samples=True)
    if plain == "index":
        return Followed(_indexed, _first, samples=True)
    if plain == "flip":
        return Followed(_flipped, _first, settings=_frozen)
    if plain == "roll":
        return Followed(_rolled, _first, settings=_frozen)
    if plain == "copy":
        return Followed(_copied, lambda args, made: args[1:2], writes=writes)
    return Followed(_lost, lambda args, made: (), writes=writes)


def tensors(func: Any) -> int | None:
    """How many arguments of an op are tensors or lists of these; None if it does not say."""
    schema = getattr(func, "_schema", None)
    return None if schema is None else sum("Tensor" in str(x.type) for x in schema.arguments)


def _alike(args: Any, made: Tensor) -> Sequence[Tensor]:
    return [x for x in args if isinstance(x, Tensor)]


def _first(args: Any, made: Tensor) -> Sequence[Tensor]:
    return args[:1]  # type: ignore[no-any-return]  # arguments of any op


def _parts(args: Any, made: Tensor) -> Sequence[Tensor]:
    return [x for x in args[0] if isinstance(x, Tensor)]


def follow(lineage: Lineage, rule: Followed, args: Any, kwargs: Any, out: Any) -> None:
    """Note where the elements of an op's result lie."""
    made = out[0] if isinstance(out, (tuple, list)) and out else out
    if not isinstance(made, Tensor) or made.layout is not torch.strided or made.is_nested:
        return
    origin = lineage.origin(args[0]) if rule.single else None
    if origin is None:
        found = _of_all(lineage, rule, args, kwargs, made)
    elif origin is LOST:
        found = LOST
    elif not rule.keeps:
        found = _result(lineage, rule, args, kwargs, made, ((args[0], origin),), {origin})
    elif origin.form == form(made) == form(args[0]):
        found = origin
    else:
        found = _of_all(lineage, rule, args, kwargs, made)
    if found is None:
        return
    if rule.writes:
        lineage.written(made, found)
        return
    lineage.put(made, found)
    if made is not out:
        for other in out[1:]:
            if isinstance(other, Tensor) and other.dim() == made.dim():
                lineage.put(other, found if form(other) == found.form else LOST)


def _of_all(
    lineage: Lineage, rule: Followed, args: Any, kwargs: Any, made: Tensor
) -> Origin | None:
    """The origin of a result, from all tensors that it depends on; None leaves it alone."""
    known = [(x, lineage.origin(x)) for x in rule.reads(args, made) if isinstance(x, Tensor)]
    origins = {origin for _, origin in known}
    if rule.layer and (first := known[0][1]) is not None and first.labels and (
        all(lineage.is_parameter(x) for x, _ in known[1:])
    ):  # fmt: skip
        lineage.read_alone(first.of(form(known[0][0])))
    if rule.keeps and not any(origin is not None and origin.told for _, origin in known):
        shape = made.shape
        known = [(x, origin) for x, origin in known if x.shape == shape] or known
        origins = {origin for _, origin in known}
    if rule.samples and not (rule.keeps and _is_of_one_kind(args[0], made)):
        found = _sampled_now(lineage, rule, args, kwargs, made)
        return None if found is LOST and not _any_known(lineage, args) else found
    if not origins <= _NONE:
        return _result(lineage, rule, args, kwargs, made, known, origins)
    return LOST if _any_known(lineage, args) else None


def _is_of_one_kind(x: Tensor, made: Tensor) -> bool:
    return x.is_floating_point() or not made.is_floating_point()


def _sampled_now(
    lineage: Lineage, rule: Followed, args: Any, kwargs: Any, made: Tensor
) -> Origin | None:
    """The origin of a result that depends on values; the same one for equal positions."""
    labels = rule.labels(lineage, args, kwargs, made)
    images = _images(lineage, rule, args, kwargs, made)
    if not labels and images is None:
        return None if labels is None else LOST
    origin = Origin(form(made), labels or (), images)
    if not origin.fixed:
        return origin
    key = (
        rule, origin.form, None if images is None else (images.shape, images.tobytes()),
        tuple((one.space.lines, one.numbers.tobytes()) for one in origin.labels),
    )  # fmt: skip
    return lineage.once(key, lambda: origin, again=False)


def _images(
    lineage: Lineage, rule: Followed, args: Any, kwargs: Any, made: Tensor
) -> Numbers | None:
    """The images of a result's elements."""
    known: list[tuple[Tensor, Numbers | None]] = []
    for x in rule.reads(args, made):
        origin = lineage.origin(x) if isinstance(x, Tensor) else None
        if origin is not None:
            known.append((x, origin.images_of(form(x))))
    return rule.images(known, args, kwargs, made) if known else None


def _result(
    lineage: Lineage, rule: Followed, args: Any, kwargs: Any, made: Tensor,
    known: Sequence[tuple[Tensor, Origin | None]], origins: set[Origin | None],
) -> Origin | None:  # fmt: skip
    """The origin of a result, from operands of which something is known."""
    if origins == _LOST:
        return LOST
    written = form(made)
    if rule.keeps and len(origins) == 1:
        origin = known[0][1]
        if origin is not None and origin.form == written and (
            all(form(x) == written for x, _ in known)
        ):  # fmt: skip
            return origin
    if not all(origin is None or origin.fixed for origin in origins):
        return _found(lineage, rule, args, kwargs, made)
    given = tuple(
        (_unknown(lineage, x) if origin is None else LOST if origin.lost else (origin, *form(x)))
        for x, origin in known
    )
    key = (rule, written, given, None if rule.settings is None else rule.settings(args, kwargs))
    return lineage.once(
        key, lambda: _found(lineage, rule, args, kwargs, made),
        again=rule.joins and None in origins,
    )  # fmt: skip


def _unknown(lineage: Lineage, x: Tensor) -> Any:
    """What the result depends on of a tensor of which nothing is known."""
    return None, x.shape, x.is_floating_point(), 0 in x.stride(), lineage.is_parameter(x)


def _any_known(lineage: Lineage, args: Any) -> bool:
    return any(isinstance(x, Tensor) and lineage.origin(x) is not None for x in _flat(args))


def _frozen(*values: Any) -> Any:
    """Arguments as a key: tensors by their shapes."""
    return tuple(map(_key, values))


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    return tuple((name, _key(one)) for name, one in value.items()) if (
        isinstance(value, dict)
    ) else value  # fmt: skip


def _kernel(args: Any, kwargs: Any) -> Any:
    """A convolution's arguments as a key: kernel size, stride, padding, dilation, transposed."""
    return args[1].shape, *map(tuple, args[3:6]), args[6]


def _found(lineage: Lineage, rule: Followed, args: Any, kwargs: Any, made: Tensor) -> Origin | None:
    """The origin of a result; that of an operand if it lies in the same way."""
    labels = rule.labels(lineage, args, kwargs, made)
    images = _images(lineage, rule, args, kwargs, made)
    if not labels and images is None:
        return None if labels is None else LOST
    written, labels = form(made), labels or ()
    for x in rule.reads(args, made):
        origin = lineage.origin(x)
        if origin is not None and origin.form == written and origin.says(written, labels, images):
            return origin
    return Origin(written, labels, images)


def _places(labels: Labels | None) -> Labels:
    """The labels of places, without those of pixels."""
    return tuple(one for one in labels or () if not one.space.raw)


def _lost(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    return ()


def _unchanged(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    """Every element stays where it is; operands that are as large have to lie alike.

    What is multiplied by a function of its positions, and has no places of its own, has these.
    """
    found: Labels | None = None
    told = _told(lineage, args, made)
    if told:
        return told
    for x in args:
        if not isinstance(x, Tensor) or x.shape != made.shape:
            continue  # numbers, and what is repeated over the others, as gates are
        labels = lineage.labels(x)
        if labels and all(one.space.told for one in labels):
            continue
        if labels is None:
            if x.is_floating_point() and 0 not in x.stride() and not lineage.is_parameter(x):
                return ()
            continue
        if found is None:
            found = labels
        else:
            found = tuple(one for one in found if any(one.same(other) for other in labels))
    return found or ()


def _told(lineage: Lineage, args: Any, made: Tensor) -> Labels:
    """Positions that one factor is a function of, where no other has places by itself."""
    found: list[Labels] = []
    for x in args:
        if isinstance(x, Tensor) and (labels := lineage.labels(x)):
            if not all(one.space.told for one in labels):
                return ()
            found.append(labels)
    if not found or any(not one.same(found[0][0]) for labels in found for one in labels[:1]):
        return ()
    (label,) = found[0][:1]
    missing = made.dim() - label.numbers.ndim
    return (Label(label.space, label.numbers.reshape([1] * missing + [*label.numbers.shape])),)


def _converted(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels | None:
    """Copies of another type; whole numbers may be positions."""
    x = args[0]
    if not x.is_floating_point() and made.is_floating_point():
        label = positions(x)
        return None if label is None else (label,)
    return None if lineage.labels(x) is None else _unchanged(lineage, args, kwargs, made)


def positions(x: Tensor) -> Label | None:
    """The places that whole numbers `(…, tokens, axes)` are rows and columns of.

    Axes of length 1 may stand anywhere. None unless each cell of one grid stands there once.
    """
    long = [i for i, n in enumerate(x.shape) if n > 1]
    if len(long) != 2 or x.shape[long[1]] not in (2, 3) or x.shape[long[0]] < _FEWEST:
        return None
    values = x.detach().cpu().numpy().reshape(x.shape[long[0]], x.shape[long[1]])
    sides = values.max(0) + 1
    if values.min() < 0 or (sides < 2).sum() > len(sides) - 2 or math.prod(sides) != len(values):
        return None
    numbers = np.ravel_multi_index(tuple(values.T), tuple(sides)).astype(np.int64)
    if len(np.unique(numbers)) != len(numbers):
        return None
    space = Space(tuple(Line(int(n), 0.5, 1.0, int(n)) for n in sides), told=True)
    return Label(space, numbers.reshape([-1 if i == long[0] else 1 for i in range(x.dim())]))


def _mapped(lineage: Lineage, x: Tensor, made: Tensor, lines_of: LinesOf) -> Labels:
    """A feature map made of a feature map: its rows and columns are a grid of their own."""
    labels = lineage.labels(x) if made.dim() == x.dim() and made.dim() in (4, 5) else None
    if not labels:
        return ()
    whole = next((one for one in labels if _is_whole(one, x)), None)
    if whole is None:
        if x.shape[2:] != made.shape[2:]:
            return ()
        return tuple(one for one in labels if not one.along(1))
    space, lines = whole.space, tuple(lines_of(whole.space.lines))
    if tuple(made.shape[2:]) != tuple(line.size for line in lines):
        return ()
    if lines == space.lines and not space.raw:
        return (space.whole(made.dim()),)
    return (Space(lines).whole(made.dim()),)


def _is_whole(label: Label, x: Tensor) -> bool:
    """Whether a feature map `(b, c, …)` holds a whole grid, row by row."""
    if label is label.space.whole(x.dim()):
        return label.space.grid == tuple(x.shape[2:])
    numbers, sides = label.numbers, tuple(x.shape[2:])
    return (
        label.space.grid == sides
        and tuple(numbers.shape) == (1, 1, *sides)
        and bool((numbers.ravel() == np.arange(numbers.size)).all())
    )


def _strided(
    lines: Sequence[Line], made: Tensor, kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool = False,
) -> Iterable[Line]:  # fmt: skip
    """The rows of what a kernel that moves over rows makes."""
    for i, line in enumerate(lines):
        size = made.shape[2 + i]
        k, s, p, d = (int(n[i if len(n) > 1 else 0]) for n in (kernel, stride, padding, dilation))
        middle = d * (k - 1) / 2 - p
        if s == 1 and not middle and size == line.size:
            yield line
        elif transposed:
            step = line.step / s
            yield Line(size, line.first - middle * step, step, line.pixels)
        else:
            yield Line(size, line.first + line.step * middle, line.step * s, line.pixels)


def _convolved(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    x, weight, _, stride, padding, dilation, transposed = args[:7]
    kernel = weight.shape[2:]
    return _mapped(
        lineage, x, made,
        lambda lines: _strided(lines, made, kernel, stride, padding, dilation, transposed),
    )  # fmt: skip


def _pooled(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    kernel = args[1]
    stride = args[2] if len(args) > 2 and args[2] else kernel
    padding = args[3] if len(args) > 3 else [0]
    dilation = args[4] if len(args) > 4 and isinstance(args[4], (list, tuple)) else [1]
    return _mapped(
        lineage, args[0], made,
        lambda lines: _strided(lines, made, kernel, stride, padding, dilation),
    )  # fmt: skip


def _resized(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    def resized(lines: Sequence[Line]) -> Iterable[Line]:
        for line, size in zip(lines, made.shape[2:], strict=True):
            step = line.step * line.size / size
            yield Line(size, line.first - line.step / 2 + step / 2, step, line.pixels)

    return _mapped(lineage, args[0], made, resized)


def _multiplied(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    return _product(lineage, args[0], args[1])


def _added(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    return _product(lineage, args[1], args[2])


def _product(lineage: Lineage, left: Tensor, right: Tensor) -> Labels:
    """Rows come from the left factor, columns from the right one; what is summed over is lost."""
    rows, columns = _places(lineage.labels(left)), _places(lineage.labels(right))
    last = left.dim() - 1
    layer = lineage.is_parameter(right)
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
            whole = len(known) == len(own) and (label.space.raw or _in_order(parts))
            return best if dim or whole else None  # images may change their order
        if len(known) < len(own):
            return None
    sizes = [max(x.numbers.shape[i] for x in known) for i in range(len(label.numbers.shape))]
    pieces = []
    for x, part in zip(own, parts, strict=True):
        shape = [part.shape[dim] if i == dim else n for i, n in enumerate(sizes)]
        if math.prod(shape) > MOST:
            return None
        numbers = _apart(label.space, len(sizes), part.shape[dim], dim) if x is None else x.numbers
        pieces.append(np.broadcast_to(numbers, shape))
    return Label(label.space, np.concatenate(pieces, dim))


def _in_order(parts: Sequence[Tensor]) -> bool:
    """Whether parts of equal tensors stand in the order in which they lie in these."""
    offsets = [int(x.storage_offset()) for x in parts]
    return offsets == sorted(set(offsets))


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
    if 0 in dims and made.shape[0] > 1:
        return ()  # images change their order
    return tuple(
        Label(one.space, np.ascontiguousarray(np.flip(one.numbers, dims)))
        for one in lineage.labels(args[0]) or ()
    )


def _padded(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels | None:
    x, by = args[0], list(args[1])
    pads = {x.dim() - 1 - i // 2: (by[i], by[i + 1]) for i in range(0, len(by), 2)}
    return tuple(_pad(label, pads) for label in lineage.labels(x) or ()) + _around(
        lineage, args, kwargs, made
    )


def _around(lineage: Lineage, args: Any, kwargs: Any, made: Tensor) -> Labels:
    """A feature map with rows around it that lie outside of the image, for the next layer.

    Nothing where so few rows are left that they would pass for a grid over the image.
    """
    x, by = args[0], list(args[1])
    if x.dim() not in (4, 5) or len(by) > 2 * (x.dim() - 2):
        return ()
    whole = next((one for one in lineage.labels(x) or () if _is_whole(one, x)), None)
    if whole is None:
        return ()
    lines = whole.space.lines
    before = [0] * (len(lines) - len(by) // 2) + by[-2::-2]
    wide = [
        Line(size, line.first - line.step * n, line.step, line.pixels)
        for line, n, size in zip(lines, before, made.shape[2:], strict=True)
    ]
    if any(line.size < known.size and line.off() < 0.5
           for line, known in zip(wide, lines, strict=True)):  # fmt: skip
        return ()
    return (Space(tuple(wide), raw=True).whole(made.dim()),)


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
