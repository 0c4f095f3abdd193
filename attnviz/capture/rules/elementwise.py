"""Rules for elementwise products and sums: gates, scales of logits, weighted sums."""

from __future__ import annotations

from math import isclose, nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnviz.capture.provenance import Tag
from attnviz.capture.rules.activations import normalised, squashed
from attnviz.capture.rules.copies import carry, outer

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

aten = torch.ops.aten

_OWN = ("gate", "softmax", "scores", "parameter", "weighted")


def multiply(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A number scales; a gate meets features; a mask or dropout meets weights."""
    x, y = args[0], args[1]
    if not isinstance(y, Tensor) or not isinstance(x, Tensor) or not x.dim() or not y.dim():
        return scale(watcher, func, args, kwargs)
    tags = watcher.tags.get(x), watcher.tags.get(y)
    if tags == (None, None):
        out = func(*args, **kwargs)
        outer(watcher, args, out)
        return out
    for side, tag in enumerate(tags):
        if tag is not None and tag.kind in ("gate", "softmax"):
            spans = _spans(watcher, args[side], args[1 - side], tag, tags[1 - side])
            if spans is not None:
                return _gated(watcher, func, args, kwargs, side, tag, spans)
    out = func(*args, **kwargs)
    _kept(watcher, args, tags, out)
    return out


def _kept(watcher: Watcher, args: Any, tags: tuple[Tag | None, Tag | None], out: Tensor) -> None:
    """Weights times a mask, a bias or dropout are still these weights."""
    for side, tag in enumerate(tags):
        if tag is None or tag.kind not in ("softmax", "scores", "gate", "parameter"):
            continue
        other, known = args[1 - side], tags[1 - side]
        if tag.kind == "parameter":
            if known is not None and known.kind == "parameter":
                watcher.tags.put(out, tag)
            continue
        if out.shape != args[side].shape:
            continue
        if tag.kind == "gate":
            if tag.squash is not None:
                tag.squash.used = True
            if known is not None and known.kind in ("gate", "parameter"):
                carry(watcher, tag, args[side], out)
            return
        if known is not None and known.kind == "dropout":
            raw = args[side] if tag.raw is None else tag.raw
            carry(watcher, tag, args[side], out, raw=raw)
        elif watcher.is_parameter(other) or other.shape != out.shape:
            carry(watcher, tag, args[side], out, factor=nan)
        else:
            carry(watcher, tag, args[side], out)
        return


def _spans(
    watcher: Watcher, gate: Tensor, other: Tensor, tag: Tag, known: Tag | None
) -> list[int] | None:
    """The axes along which a gate is repeated over a larger tensor of data, None if it is not."""
    if known is not None and known.kind in _OWN:
        return None
    if other.dim() < 3 or gate.dim() > other.dim() or watcher.is_parameter(other):
        return None
    axes = repeated(gate, other)
    if axes:
        return axes
    whole = tag.extra == "resized" or (tag.squash is not None and tag.squash.outer)
    return [] if whole and gate.shape == other.shape else None


def repeated(gate: Tensor, other: Tensor) -> list[int]:
    """The axes of `other` along which a gate is repeated."""
    lead = other.dim() - gate.dim()
    shape, stride = gate.shape, gate.stride()
    return [
        i
        for i, n in enumerate(other.shape)
        if n > 1 and i > 0 and (i < lead or shape[i - lead] == 1 or stride[i - lead] == 0)
    ]


def _gated(
    watcher: Watcher, func: Any, args: Any, kwargs: Any, side: int, tag: Tag, spans: list[int]
) -> Any:
    gate, other = args[side], args[1 - side]
    written = func is aten.mul_.Tensor and watcher.options.features
    kept = other.clone() if written else other
    replaced, weighted = watcher.recorder.gate(tag, gate, kept, spans)
    if replaced is not None:
        args = (replaced, other) if side == 0 else (other, replaced)
    out = func(*args, **kwargs)
    if replaced is not None:
        watcher.recorder.guard(out)
    if weighted is not None:
        watcher.tags.put(out, weighted.on(out, None))
    return out


def scale(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Remember by which number queries, logits or weights were multiplied."""
    x, by = args[0], args[1]
    tag = watcher.tags.get(x) if isinstance(x, Tensor) else None
    out = func(*args, **kwargs)
    if not isinstance(x, Tensor) or not x.dim():
        return out
    number = _number(by)
    factor = (1 / number if number else nan) if func in _DIVISIONS else number
    if tag is None:
        if out.dim() > 1 and factor == factor:
            watcher.tags.put(out, Tag("factor", factor=factor, extra=out is not x))
    elif tag.kind == "clip" and isclose(factor, 1 / 6, rel_tol=1e-3):
        squashed(watcher, out, "hardsigmoid", tag)
    elif tag.kind == "factor":
        watcher.tags.put(out, Tag("factor", factor=tag.factor * factor, extra=out is not x))
    elif tag.kind == "dropout" or tag.kind in ("softmax", "gate", "scores", "parameter", "clip"):
        carry(watcher, tag, x, out, factor=tag.factor * factor)
    return out


def _number(by: Any) -> float:
    if not isinstance(by, Tensor):
        return float(by)
    return float(by) if by.device.type == "cpu" and by.numel() == 1 else nan


def divide(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A number scales; weights divided by their own sum are still weights."""
    x, y = args[0], args[1]
    if not isinstance(y, Tensor) or not isinstance(x, Tensor) or not x.dim() or not y.dim():
        return scale(watcher, func, args, kwargs)
    tag, total = watcher.tags.get(x), watcher.tags.get(y)
    out = func(*args, **kwargs)
    if tag is None:
        return out
    if tag.kind == "exp" and total is not None and total.kind == "total":
        axis = total.extra
        if axis is not None and axis < out.dim():
            normalised(watcher, out, axis, tag.extra)
    elif tag.kind in ("softmax", "scores", "parameter") and out.shape == x.shape:
        known = total is not None and total.kind == "parameter"
        if tag.kind != "parameter" or known:
            carry(watcher, tag, x, out)
    return out


def reduce(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A sum over the weighted axis makes pooled attention; one over exponentials a softmax."""
    out = func(*args, **kwargs)
    x = args[0]
    tag = watcher.tags.get(x)
    if tag is None or tag.kind not in ("weighted", "exp"):
        return out
    dims = args[1] if len(args) > 1 and args[1] else range(x.dim())
    axes = {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)}
    if tag.kind == "exp":
        if len(axes) == 1 and out.dim() == x.dim():
            watcher.tags.put(out, Tag("total", extra=next(iter(axes))))
    elif x.shape == tag.shape:
        watcher.recorder.pooled(tag, axes)
    return out


def mask(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Remember a dropout mask."""
    out = func(*args, **kwargs)
    watcher.tags.put(out, Tag("dropout", tuple(out.shape), out.stride()))
    return out


def dropout(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Dropout as one op."""
    out = func(*args, **kwargs)
    tag = watcher.tags.get(args[0])
    if tag is not None and tag.kind in ("softmax", "gate"):
        raw = args[0] if tag.raw is None else tag.raw
        carry(watcher, tag, args[0], out[0], raw=raw)
    return out


_DIVISIONS = (aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar, aten.div_.Scalar)

RULES: dict[Any, Any] = {
    aten.mul.Tensor: multiply,
    aten.mul_.Tensor: multiply,
    aten.mul.Scalar: scale,
    aten.mul_.Scalar: scale,
    **dict.fromkeys(_DIVISIONS, divide),
    aten.sum.dim_IntList: reduce,
    aten.bernoulli_.float: mask,
    aten.native_dropout.default: dropout,
    aten._fused_dropout.default: dropout,
}
