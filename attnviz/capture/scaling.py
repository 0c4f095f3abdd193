"""Rules for elementwise products: gates, scales of logits, weighted sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnviz.capture.copies import carry
from attnviz.capture.tags import Tag

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

aten = torch.ops.aten


def multiply(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A number scales; a gate meets features; a mask or dropout meets weights."""
    x, y = args[0], args[1]
    if not isinstance(y, Tensor) or not isinstance(x, Tensor) or not x.dim() or not y.dim():
        return _scale(watcher, func, args, kwargs)
    if not len(watcher.tags):
        return func(*args, **kwargs)
    tags = watcher.tags.get(x), watcher.tags.get(y)
    if tags == (None, None):
        return func(*args, **kwargs)
    for side, tag in enumerate(tags):
        if tag is not None and tag.kind in ("gate", "softmax"):
            gate, other = args[side], args[1 - side]
            if _gates(watcher, gate, other, tags[1 - side]):
                return _gated(watcher, func, args, kwargs, side, tag)
    out = func(*args, **kwargs)
    for side, tag in enumerate(tags):
        if tag is not None and tag.kind in ("softmax", "scores") and out.shape == args[side].shape:
            other = tags[1 - side]
            if other is not None and other.kind == "dropout":
                carry(watcher, tag, args[side], out, raw=_raw(tag, args[side]))
            else:
                carry(watcher, tag, args[side], out)
            break
    return out


def _raw(tag: Tag, weights: Tensor) -> Tensor:
    return weights if tag.raw is None else tag.raw


def _gates(watcher: Watcher, gate: Tensor, other: Tensor, tag: Tag | None) -> bool:
    """Whether a gate is laid over a larger tensor of data, repeated along some of its axes."""
    if tag is not None and tag.kind in ("gate", "softmax", "parameter", "scores"):
        return False
    if other.dim() < 3 or other.numel() <= _distinct(gate) or watcher.is_parameter(other):
        return False
    return bool(repeated(gate, other))


def _distinct(x: Tensor) -> int:
    """How many values a tensor has, expanded axes counted once."""
    n = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        n *= size if stride else 1
    return n


def repeated(gate: Tensor, other: Tensor) -> list[int]:
    """The axes of `other` along which a gate is repeated."""
    lead = other.dim() - gate.dim()
    return [
        i
        for i, n in enumerate(other.shape)
        if n > 1 and (i < lead or gate.shape[i - lead] == 1 or gate.stride(i - lead) == 0)
    ]


def _gated(watcher: Watcher, func: Any, args: Any, kwargs: Any, side: int, tag: Tag) -> Any:
    gate, other = args[side], args[1 - side]
    replaced = watcher.recorder.gate(tag, gate, other, repeated(gate, other))
    if replaced is not None:
        args = (replaced, other) if side == 0 else (other, replaced)
    return func(*args, **kwargs)


def _scale(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Remember by which number queries, logits or weights were multiplied."""
    out = func(*args, **kwargs)
    x, by = args[0], args[1]
    if not isinstance(x, Tensor) or isinstance(by, Tensor):
        return out
    factor = 1 / float(by) if func in _DIVISIONS and by else float(by)
    tag = watcher.tags.get(x)
    if tag is None:
        if out.dim() > 1:
            watcher.tags.put(out, Tag("factor", factor=factor))
    elif tag.kind == "scores" and tag.scores is not None:
        carry(watcher, tag, x, out, factor=tag.factor * factor)
    else:
        carry(watcher, tag, x, out, factor=tag.factor * factor)
    return out


_DIVISIONS = (aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar, aten.div_.Scalar)

RULES: dict[Any, Any] = {
    aten.mul.Tensor: multiply,
    aten.mul_.Tensor: multiply,
    aten.mul.Scalar: _scale,
    aten.mul_.Scalar: _scale,
    **dict.fromkeys(_DIVISIONS, multiply),
}
