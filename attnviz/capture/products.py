"""Rules for matrix products: where weights meet values, and where queries meet keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnviz.capture.tags import Scores, Tag

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

aten = torch.ops.aten


def bmm(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """`(n, i, j) @ (n, j, k)`."""
    return _product(watcher, func, args, kwargs, 0, 1)


def baddbmm(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """`β · input + α · (n, i, j) @ (n, j, k)`."""
    return _product(watcher, func, args, kwargs, 1, 2)


def mm(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """`(i, j) @ (j, k)`, a linear layer if one side is a parameter."""
    return _plain(watcher, func, args, kwargs, 0, 1)


def addmm(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """`β · bias + α · (i, j) @ (j, k)`."""
    return _plain(watcher, func, args, kwargs, 1, 2)


def _plain(watcher: Watcher, func: Any, args: Any, kwargs: Any, i: int, j: int) -> Any:
    if watcher.is_parameter(args[j]) or watcher.is_parameter(args[i]):
        out = func(*args, **kwargs)
        _mixed(watcher, args[i], args[j], out)
        return out
    return _product(watcher, func, args, kwargs, i, j)


def _mixed(watcher: Watcher, x: Tensor, weight: Tensor, out: Tensor) -> None:
    """A linear layer over the heads keeps the softmax's axis, and makes new heads."""
    tag = watcher.tags.get(x)
    if tag is None or tag.kind not in ("softmax", "scores"):
        if tag is not None and tag.kind == "parameter" and watcher.is_parameter(weight):
            watcher.tags.put(out, tag)
        return
    last = len(tag.shape) - 1
    if tag.axis == last or x.shape[-1] != tag.shape[last] or tag.stride[last] != 1:
        return
    shape = (*tag.shape[:-1], out.shape[-1])
    if torch.Size(shape).numel() == out.numel():
        stride = torch.empty(shape, device="meta").stride()
        watcher.tags.put(out, Tag(tag.kind, shape, stride, tag.axis, tag.squash, tag.scores,
                                  tag.factor, tag.raw, True))  # fmt: skip


def _product(watcher: Watcher, func: Any, args: Any, kwargs: Any, i: int, j: int) -> Any:
    left, right = args[i], args[j]
    for operand, other, side, query, key in (
        (left, right, i, left.dim() - 2, left.dim() - 1),
        (right, left, j, right.dim() - 1, right.dim() - 2),
    ):
        tag = watcher.tags.get(operand)
        if tag is None or tag.kind != "softmax" or watcher.is_parameter(other):
            continue
        replaced = watcher.recorder.attention(tag, operand, query, key, other)
        if replaced is not None:
            args = (*args[:side], replaced, *args[side + 1 :])
        return func(*args, **kwargs)
    out = func(*args, **kwargs)
    _scored(watcher, left, right, out, float(kwargs.get("alpha", 1.0)))
    return out


def _scored(watcher: Watcher, left: Tensor, right: Tensor, out: Tensor, alpha: float) -> None:
    """Tag a product of data with data: logits, if a softmax follows."""
    if watcher.is_parameter(left) or watcher.is_parameter(right):
        return
    scale = alpha
    for side in (left, right):
        tag = watcher.tags.get(side)
        if tag is not None and tag.kind == "scores":
            watcher.recorder.linear(tag, side, out)
            return
        if tag is not None:
            scale *= tag.factor
    keep = watcher.options.operands
    scores = Scores(
        left if keep else None,
        right.transpose(-2, -1) if keep else None,
        scale,
        left.shape[-1],
        tuple(out.shape),
    )
    watcher.tags.put(out, Tag("scores", tuple(out.shape), out.stride(), None, None, scores))


RULES: dict[Any, Any] = {
    aten.bmm.default: bmm,
    aten.baddbmm.default: baddbmm,
    aten.mm.default: mm,
    aten.addmm.default: addmm,
}
