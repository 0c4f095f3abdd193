"""Rules for ops that write a tensor anew without changing what it means.

Views need none: they share their storage, and the tag with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnviz.capture.provenance import PARAMETER, Tag

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

aten = torch.ops.aten

_WEIGHTS = ("softmax", "gate", "scores")


def same_shape(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Carry a tag over to a cast or a masked version of the same tensor."""
    tag, source, _ = _first(watcher, args)
    out = func(*args, **kwargs)
    if tag is not None and isinstance(out, Tensor):
        carry(watcher, tag, source, out)
    return out


def cast(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A cast tensor is what it was; autocast casts parameters before anything else is known."""
    if isinstance(args[0], nn.Parameter):
        out = func(*args, **kwargs)
        watcher.tags.put(out, PARAMETER)
        return out
    return same_shape(watcher, func, args, kwargs)


def clone(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A copy in another memory order; one of six axes cuts windows."""
    out = func(*args, **kwargs)
    if out.dim() == 6:
        watcher.windows.cut(args[0], out, watcher.tags.get(args[0]))
    tag = watcher.tags.get(args[0])
    if tag is not None:
        carry(watcher, tag, args[0], out)
    return out


def add(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Logits keep their name under a bias or mask, weights and gates under a number."""
    tag, source, rest = _first(watcher, args)
    out = func(*args, **kwargs)
    if not isinstance(out, Tensor) or out.dim() < 1:
        return out
    if tag is None:
        outer(watcher, args, out)
    elif tag.kind == "parameter" or tag.kind == "clip":
        carry(watcher, tag, source, out)
    elif tag.kind == "scores":
        alike = rest is not None and not watcher.is_parameter(rest) and rest.shape == out.shape
        carry(watcher, tag, source, out, mixed=tag.mixed or alike)
    elif tag.kind in _WEIGHTS and source.shape == out.shape:
        if rest is None or rest.dim() == 0 or _weighs(watcher, rest):
            carry(watcher, tag, source, out)
    elif tag.kind == "gate" and rest is not None and _weighs(watcher, rest):
        carry(watcher, tag, source, out)
    return out


def _weighs(watcher: Watcher, x: Tensor) -> bool:
    tag = watcher.tags.get(x)
    return tag is not None and tag.kind in ("softmax", "gate", "parameter")


def outer(watcher: Watcher, args: Any, out: Tensor) -> None:
    """Tag what two broadcast tensors were combined to: each spans axes that the other lacks."""
    if len(args) < 2 or not isinstance(args[1], Tensor) or not isinstance(args[0], Tensor):
        return
    x, y = args[0], args[1]
    if out.dim() < 4 or x.dim() != out.dim() or y.dim() != out.dim():
        return
    if x.shape == out.shape and 0 not in x.stride():
        return
    if y.shape == out.shape and 0 not in y.stride():
        return
    watcher.tags.put(out, Tag("outer"))


def join(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Concatenated or stacked weights keep the axis that sums to one."""
    out = func(*args, **kwargs)
    tensors = [x for x in args[0] if isinstance(x, Tensor)]
    tags = [watcher.tags.get(x) for x in tensors]
    first = tags[0] if tags else None
    if first is None or any(tag is None or tag.kind != first.kind for tag in tags):
        return out
    if first.kind == "parameter":
        watcher.tags.put(out, first)
    elif first.kind in _WEIGHTS:
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
        axis = first.find(tensors[0])
        if axis is not None and func is aten.stack.default:
            axis += axis >= dim
        elif axis == dim:
            axis = None
        watcher.tags.put(out, first.on(out, axis))
    return out


def normal(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A norm over mixed heads keeps the axes, though nothing sums to one any more."""
    out = func(*args, **kwargs)
    tag = watcher.tags.get(args[0])
    if tag is not None and _heads_first(tag, args[0]):
        carry(watcher, tag, args[0], out[0], mixed=True)
    return out


def convolve(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A convolution over `(b, heads, q, k)` mixes heads and neighbouring places."""
    out = func(*args, **kwargs)
    shape = out.shape
    if len(shape) == 4:
        watcher.maps.add((shape[2], shape[3]))
    tag = watcher.tags.get(args[0])
    if tag is not None and shape[2:] == args[0].shape[2:] and _heads_first(tag, args[0]):
        axis = tag.find(args[0])
        if tag.kind == "scores" or (axis is not None and axis > 1):
            watcher.tags.put(out, tag.on(out, axis, mixed=True))
    return out


def _heads_first(tag: Tag, x: Tensor) -> bool:
    """Whether a tensor still is a map of queries and keys, and no feature made of one."""
    if tag.kind == "scores" and tag.scores is not None:
        return {*tag.scores.shape[-2:]} <= {*x.shape[1:]}
    return tag.kind == "softmax"


def resize(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A gate that was computed on a coarser grid is one, even where it is as large as features."""
    out = func(*args, **kwargs)
    tag = watcher.tags.get(args[0])
    if tag is not None and tag.kind == "gate":
        carry(watcher, tag, args[0], out, extra="resized")
    return out


def overwrite(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A tensor that is written over takes its source's tag, or loses its own."""
    out = func(*args, **kwargs)
    tag = watcher.tags.get(args[1]) if isinstance(args[1], Tensor) else None
    if tag is not None and tag.kind in _WEIGHTS and args[0].shape == args[1].shape:
        carry(watcher, tag, args[1], args[0])
    elif args[0].numel() * args[0].element_size() == args[0].untyped_storage().nbytes():
        watcher.tags.drop(args[0])
    return out


def look_up(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A table of biases stays a parameter; where to look is computed from places alone."""
    out = func(*args, **kwargs)
    if watcher.is_parameter(args[0]):
        watcher.tags.put(out, PARAMETER)
    return out


def rectify(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Logits above zero are still logits."""
    out = func(*args, **kwargs)
    tag = watcher.tags.get(args[0])
    if tag is not None and tag.kind == "scores":
        carry(watcher, tag, args[0], out)
    return out


def carry(watcher: Watcher, tag: Tag, source: Tensor, out: Tensor, **changes: Any) -> None:
    """Tag `out`, which holds the same axes as `source`, aligned at the last one."""
    if tag.kind == "parameter":
        watcher.tags.put(out, tag)
        return
    axis = tag.find(source)
    if axis is not None:
        moved = axis + out.dim() - source.dim()
        axis = moved if moved >= 0 and out.shape[moved] == source.shape[axis] else None
    watcher.tags.put(out, tag.on(out, axis, **changes))


def _first(watcher: Watcher, args: Any) -> tuple[Tag | None, Any, Tensor | None]:
    """The first tagged tensor that is no parameter, with the other one.

    A parameter's tag is given only if all tensors are parameters or numbers.
    """
    found: tuple[Tag | None, Any] = (None, None)
    parameter: tuple[Tag | None, Any] = (None, None)
    rest: Tensor | None = None
    data = False
    for x in args:
        if not isinstance(x, Tensor):
            continue
        tag = watcher.tags.get(x)
        if tag is not None and tag.kind != "parameter" and found[0] is None:
            found = tag, x
            continue
        rest = x
        if tag is None:
            data = data or x.dim() > 0
        elif tag.kind == "parameter":
            parameter = tag, x
    if found[0] is not None:
        return (*found, rest)
    return (*((None, None) if data else parameter), rest)


def _ops(*names: str) -> list[Any]:
    """Overloads by name, those that this torch has."""
    found = []
    for name in names:
        packet, overload = name.rsplit(".", 1)
        op = getattr(getattr(aten, packet, None), overload, None)
        if op is not None:
            found.append(op)
    return found


RULES: dict[Any, Any] = {
    aten.clone.default: clone,
    aten._to_copy.default: cast,
    aten.copy_.default: overwrite,
    **dict.fromkeys(
        _ops(
            "masked_fill.Scalar", "masked_fill.Tensor", "masked_fill_.Scalar",
            "masked_fill_.Tensor", "where.self", "where.ScalarOther", "clamp_min.default",
            "clamp_max.default", "nan_to_num.default", "repeat.default", "rsub.Scalar",
            "detach.default", "alias.default", "lift_fresh.default", "tril.default", "triu.default",
        ),
        same_shape,
    ),
    **dict.fromkeys(_ops("add.Tensor", "add_.Tensor", "sub.Tensor", "sub_.Tensor", "add.Scalar",
                         "sub.Scalar"), add),
    **dict.fromkeys(_ops("upsample_bilinear2d.default", "upsample_nearest2d.default",
                         "upsample_bicubic2d.default", "_upsample_nearest_exact2d.default",
                         "_upsample_bilinear2d_aa.default"), resize),
    **dict.fromkeys(_ops("cat.default", "stack.default"), join),
    **dict.fromkeys(_ops("native_layer_norm.default", "native_batch_norm.default",
                         "_native_batch_norm_legit.default", "cudnn_batch_norm.default",
                         "_native_batch_norm_legit_no_training.default",
                         "_batch_norm_with_update.default", "_batch_norm_no_update.default",
                         "miopen_batch_norm.default"), normal),
    aten.convolution.default: convolve,
    **dict.fromkeys(_ops("index.Tensor", "index_select.default", "gather.default",
                         "_unsafe_index.Tensor"), look_up),
    **dict.fromkeys(_ops("relu.default", "relu_.default"), rectify),
}  # fmt: skip
