"""Rules for what makes weights: softmax, sigmoid, hard sigmoid, tanh, and these written by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnviz.capture.provenance import Squash, Tag
from attnviz.capture.rules.copies import carry

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

aten = torch.ops.aten


def softmax(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Tag a softmax's result with the axis that sums to one."""
    x, axis = args[0], args[1]
    tag = watcher.tags.get(x)
    out = func(*args, **kwargs)
    if x.dim() == 0:
        return out
    normalised(watcher, out, axis % out.dim(), tag)
    return out


def normalised(watcher: Watcher, out: Tensor, axis: int, source: Tag | None) -> None:
    """Tag a result that sums to one along an axis, made from a tagged or untagged source."""
    where = watcher.place()
    if where is None:
        return
    squash = Squash("softmax", where, tuple(out.shape), running=watcher.running())
    if source is not None and source.kind == "scores":
        squash.scores, squash.factor = source.scores, source.factor
    squash.twice = source is not None and source.kind == "softmax" and not source.mixed
    if squash.twice and source is not None and source.squash is not None:
        source.squash.used = True
        squash.scores = source.squash.scores
    watcher.recorder.made(squash)
    watcher.tags.put(out, Tag("softmax", tuple(out.shape), out.stride(), axis, squash))


def gate(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Tag the result of a function that squashes into an interval, as gates do."""
    tag = watcher.tags.get(args[0])
    out = func(*args, **kwargs)
    squashed(watcher, out, _NAMES[func], tag)
    return out


def squashed(watcher: Watcher, out: Tensor, op: str, source: Tag | None) -> None:
    """Tag a result that a gate's function has squashed."""
    where = watcher.place()
    if where is None or out.dim() < 1:
        return
    squash = Squash(op, where, tuple(out.shape), running=watcher.running())
    squash.outer = source is not None and source.kind == "outer"
    if source is not None and source.kind == "scores":
        squash.scores, squash.factor = source.scores, source.factor
    watcher.recorder.made(squash)
    watcher.tags.put(out, Tag("gate", tuple(out.shape), out.stride(), None, squash))


def clip(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """A clip to [0, 1] gates; one to [0, 6] does once it is divided by 6."""
    out = func(*args, **kwargs)
    low = args[1] if len(args) > 1 else kwargs.get("min_val", kwargs.get("min", -1))
    high = args[2] if len(args) > 2 else kwargs.get("max_val", kwargs.get("max", 1))
    if (low, high) == (0, 1):
        squashed(watcher, out, "hardsigmoid", watcher.tags.get(args[0]))
    elif (low, high) == (0, 6):
        watcher.tags.put(out, Tag("clip", tuple(out.shape), out.stride()))
    elif func not in (aten.hardtanh.default, aten.hardtanh_.default):
        tag = watcher.tags.get(args[0])
        if tag is not None and isinstance(out, Tensor):
            carry(watcher, tag, args[0], out)
    return out


def exponential(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """The numerator of a softmax that is written out."""
    tag = watcher.tags.get(args[0])
    out = func(*args, **kwargs)
    if out.dim() > 1:
        watcher.tags.put(out, Tag("exp", tuple(out.shape), out.stride(), extra=tag))
    return out


_NAMES: dict[Any, str] = {
    aten.sigmoid.default: "sigmoid",
    aten.sigmoid_.default: "sigmoid",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.hardsigmoid_.default: "hardsigmoid",
    aten.tanh.default: "tanh",
    aten.tanh_.default: "tanh",
}

RULES: dict[Any, Any] = {
    aten._softmax.default: softmax,
    aten._safe_softmax.default: softmax,
    **dict.fromkeys(_NAMES, gate),
    **dict.fromkeys(
        (aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default, aten.clamp_.default),
        clip,
    ),
    aten.exp.default: exponential,
    aten.exp_.default: exponential,
}
