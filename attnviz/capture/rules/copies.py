"""Rules for ops that copy, cast, join or resize a tensor and keep its meaning.

Views need none: they share the storage, and with it the tag.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from attnviz.capture.provenance import PARAMETER, Tag
from attnviz.capture.registry import rule
from attnviz.capture.session import Session

WEIGHTS = ("softmax", "gate", "scores")


@rule(
    "aten.masked_fill.Scalar", "aten.masked_fill.Tensor", "aten.masked_fill_.Scalar",
    "aten.masked_fill_.Tensor", "aten.where.self", "aten.where.ScalarOther",
    "aten.clamp_min.default", "aten.clamp_max.default", "aten.nan_to_num.default",
    "aten.repeat.default", "aten.rsub.Scalar", "aten.tril.default", "aten.triu.default",
)  # fmt: skip
def same_shape(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Carry a tag over to a cast or a masked version of the same tensor."""
    tag, source, _ = first_tagged(session, args)
    out = func(*args, **kwargs)
    if tag is not None and isinstance(out, Tensor):
        session.tags.carry(tag, source, out)
    return out


@rule("aten._to_copy.default")
def cast(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A cast tensor is what it was; autocast casts parameters before anything else is known."""
    if isinstance(args[0], nn.Parameter):
        out = func(*args, **kwargs)
        session.tags.put(out, PARAMETER)
        return out
    return same_shape(session, func, args, kwargs)


@rule("aten.clone.default")
def clone(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A copy in another memory order; one of six axes cuts windows."""
    out = func(*args, **kwargs)
    if out.dim() == 6:
        session.windows.cut(args[0], out, session.tags.get(args[0]))
    tag = session.tags.get(args[0])
    if tag is not None:
        session.tags.carry(tag, args[0], out)
    return out


@rule("aten.cat.default", "aten.stack.default")
def join(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Concatenated or stacked weights keep the axis that sums to one."""
    out = func(*args, **kwargs)
    tensors = [x for x in args[0] if isinstance(x, Tensor)]
    tags = [session.tags.get(x) for x in tensors]
    first = tags[0] if tags else None
    scaled = next((tag for tag in tags if tag is not None and tag.kind == "scaled"), None)
    if scaled is not None:
        session.tags.put(out, scaled)
        return out
    if first is None or any(tag is None or tag.kind != first.kind for tag in tags):
        return out
    if first.kind == "parameter":
        session.tags.put(out, first)
    elif first.kind in WEIGHTS:
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
        axis = first.find(tensors[0])
        if axis is not None and str(func) == "aten.stack.default":
            axis += axis >= dim
        elif axis == dim:
            axis = None
        along_keys = first.kind == "scores" and dim == out.dim() - 1
        scores = first.scores and first.scores.in_larger(query=along_keys)
        session.tags.put(out, first.on(out, axis, scores=scores))
    return out


@rule(
    "aten.native_layer_norm.default", "aten.native_batch_norm.default",
    "aten._native_batch_norm_legit.default", "aten.cudnn_batch_norm.default",
    "aten._native_batch_norm_legit_no_training.default",
    "aten._batch_norm_with_update.default", "aten._batch_norm_no_update.default",
    "aten.miopen_batch_norm.default",
)  # fmt: skip
def normal(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A norm over mixed heads keeps the axes, though nothing sums to one any more."""
    out = func(*args, **kwargs)
    tag = session.tags.get(args[0])
    if tag is not None and _headsfirst_tagged(tag, args[0]):
        session.tags.carry(tag, args[0], out[0], mixed=True)
    return out


@rule("aten.convolution.default")
def convolve(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A convolution over `(b, heads, q, k)` mixes heads and neighbouring places."""
    out = func(*args, **kwargs)
    shape = out.shape
    if len(shape) == 4:
        session.scopes.maps.add((shape[2], shape[3]))
    tag = session.tags.get(args[0])
    if tag is not None and shape[2:] == args[0].shape[2:] and _headsfirst_tagged(tag, args[0]):
        axis = tag.find(args[0])
        if tag.kind == "scores" or (axis is not None and axis > 1):
            session.tags.put(out, tag.on(out, axis, mixed=True))
    return out


def _headsfirst_tagged(tag: Tag, x: Tensor) -> bool:
    """Whether a tensor still is a map of queries and keys, and no feature made of one."""
    if tag.kind == "scores" and tag.scores is not None:
        return {*tag.scores.shape[-2:]} <= {*x.shape[1:]}
    return tag.kind == "softmax"


@rule(
    "aten.upsample_bilinear2d.default", "aten.upsample_nearest2d.default",
    "aten.upsample_bicubic2d.default", "aten._upsample_nearest_exact2d.default",
    "aten._upsample_bilinear2d_aa.default",
)  # fmt: skip
def resize(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A gate that was computed on a coarser grid is one, even where it is as large as features."""
    out = func(*args, **kwargs)
    tag = session.tags.get(args[0])
    if tag is not None and tag.kind == "gate":
        session.tags.carry(tag, args[0], out, extra="resized")
    return out


@rule("aten.copy_.default")
def overwrite(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A tensor that is written over takes its source's tag, or loses its own."""
    out = func(*args, **kwargs)
    tag = session.tags.get(args[1]) if isinstance(args[1], Tensor) else None
    if tag is not None and tag.kind in WEIGHTS and args[0].shape == args[1].shape:
        session.tags.carry(tag, args[1], args[0])
    elif args[0].numel() * args[0].element_size() == args[0].untyped_storage().nbytes():
        session.tags.drop(args[0])
    return out


@rule(
    "aten.index.Tensor", "aten.index_select.default", "aten.gather.default",
    "aten._unsafe_index.Tensor",
)  # fmt: skip
def look_up(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A table of biases stays a parameter, a gate in another order a gate."""
    out = func(*args, **kwargs)
    tag = session.tags.get(args[0])
    if session.is_parameter(args[0]):
        session.tags.put(out, PARAMETER)
    elif tag is not None and tag.kind == "gate":
        session.tags.carry(tag, args[0], out)
    return out


@rule("aten.flip.default")
def flip(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A flipped gate is a gate."""
    out = func(*args, **kwargs)
    tag = session.tags.get(args[0])
    if tag is not None and tag.kind == "gate":
        session.tags.carry(tag, args[0], out)
    return out


@rule("aten.relu.default", "aten.relu_.default")
def rectify(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Logits above zero are still logits."""
    out = func(*args, **kwargs)
    tag = session.tags.get(args[0])
    if tag is not None and tag.kind == "scores":
        session.tags.carry(tag, args[0], out)
    return out


def first_tagged(session: Session, args: Any) -> tuple[Tag | None, Any, Tensor | None]:
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
        tag = session.tags.get(x)
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
