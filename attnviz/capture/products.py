"""Rules for matrix products: where weights meet values, and where queries meet keys."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnviz.capture.tags import Scores, Tag

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

aten = torch.ops.aten


def bmm(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """`(n, i, j) @ (n, j, k)`, and `(i, j) @ (j, k)`."""
    return _product(watcher, func, args, kwargs, 0, 1)


def baddbmm(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """`β · input + α · (n, i, j) @ (n, j, k)`, and the same with two axes."""
    return _product(watcher, func, args, kwargs, 1, 2)


def _product(watcher: Watcher, func: Any, args: Any, kwargs: Any, i: int, j: int) -> Any:
    left, right = args[i], args[j]
    parameters = watcher.is_parameter(left), watcher.is_parameter(right)
    if any(parameters):
        out = func(*args, **kwargs)
        _mixed(watcher, left, right, parameters, out)
        batched = left.dim() == 3 and len(left) > 1 and not all(parameters)
        if batched and watcher.tags.get(out) is None:
            # learned queries meet keys; or experts their input, which no softmax over keys follows
            _scored(watcher, left, right, (None, None), out, nan, mixed=True)
        return out
    tags = watcher.tags.get(left), watcher.tags.get(right)
    for side, operand, tag, rows in ((i, left, tags[0], -2), (j, right, tags[1], -1)):
        if tag is None or tag.kind != "softmax":
            continue
        query, key = operand.dim() + rows, operand.dim() - 3 - rows
        values, known = (right, tags[1]) if side == i else (left, tags[0])
        if known is not None and known.kind == "softmax" and side == i and _fits(
            known, right, right.dim() - 2) and not _fits(tag, operand, key):  # fmt: skip
            continue  # the right one is the attention, the left one its values
        replaced = watcher.recorder.attention(tag, operand, query, key, values, known)
        if replaced is not None:
            args = (*args[:side], replaced, *args[side + 1 :])
        out = func(*args, **kwargs)
        watcher.tags.put(out, Tag("context"))
        if replaced is not None:
            watcher.recorder.guard(out)
        return out
    out = func(*args, **kwargs)
    _scored(watcher, left, right, tags, out, float(kwargs.get("alpha", 1.0)))
    return out


def _fits(tag: Tag, operand: Tensor, key: int) -> bool:
    """Whether the contracted axis is the one that sums to one."""
    return tag.find(operand) == key


def _mixed(
    watcher: Watcher, left: Tensor, right: Tensor, parameters: tuple[bool, bool], out: Tensor
) -> None:
    """A linear layer over the heads keeps the softmax's axis, and makes new heads."""
    if all(parameters):
        tag = watcher.tags.get(left)
        if tag is not None:
            watcher.tags.put(out, tag)
        return
    x, contracted = (right, right.dim() - 2) if parameters[0] else (left, left.dim() - 1)
    tag = watcher.tags.get(x)
    if tag is None or tag.kind not in ("softmax", "scores"):
        return
    size, stride = x.shape[contracted], x.stride(contracted)
    hits = [a for a, n in enumerate(tag.shape) if n == size and tag.stride[a] == stride]
    if not hits or tag.axis == hits[-1]:
        return
    rest = [a for a in range(len(tag.shape)) if a != hits[-1]]
    made = out.shape[-2] if parameters[0] else out.shape[-1]
    order = [-1, *rest] if parameters[0] else [*rest, -1]
    shape = tuple(made if a < 0 else tag.shape[a] for a in order)
    if torch.Size(shape).numel() == out.numel() and out.is_contiguous():
        axis = None if tag.axis is None else order.index(tag.axis)
        stride_ = _strides(shape)
        watcher.tags.put(out, Tag(tag.kind, shape, stride_, axis, tag.squash, tag.scores,
                                  tag.factor, None, True))  # fmt: skip


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _scored(
    watcher: Watcher,
    left: Tensor,
    right: Tensor,
    tags: tuple[Tag | None, Tag | None],
    out: Tensor,
    alpha: float,
    *,
    mixed: bool = False,
) -> None:
    """Tag a product of data with data: logits, if a softmax follows."""
    scale = alpha
    for tag, operand in zip(tags, (left, right), strict=True):
        if tag is None:
            continue
        if tag.kind == "scores" and not tag.mixed and tag.scores is not None:
            other = right if operand is left else left
            watcher.recorder.linear(tag, operand, other)
            watcher.tags.put(out, Tag("context"))
            return
        if tag.kind == "factor":
            whole = operand.numel() * operand.element_size() == operand.untyped_storage().nbytes()
            scale *= tag.factor if whole or tag.extra else nan
    keep = watcher.options.operands
    scores = Scores(
        left if keep else None,
        right.transpose(-2, -1) if keep else None,
        scale,
        left.shape[-1],
        tuple(out.shape),
        watcher.running(),
    )
    tag = Tag("scores", tuple(out.shape), out.stride(), None, None, scores, mixed=mixed)
    watcher.tags.put(out, tag)


RULES: dict[Any, Any] = {
    aten.bmm.default: bmm,
    aten.baddbmm.default: baddbmm,
    aten.mm.default: bmm,
    aten.addmm.default: baddbmm,
}
