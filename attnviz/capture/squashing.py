"""Rules for what makes weights: softmax, sigmoid, hard sigmoid, tanh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnviz.capture.tags import Squash, Tag

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

aten = torch.ops.aten


def softmax(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Tag a softmax's result with the axis that sums to one."""
    x, axis = args[0], args[1]
    tag = watcher.tags.get(x)
    out = func(*args, **kwargs)
    if x.dim() == 0 or (tag is not None and tag.kind == "parameter"):
        return out
    where = watcher.place()
    if where is None:
        return out
    scores = tag.scores if tag is not None and tag.kind == "scores" else None
    squash = Squash("softmax", where, tuple(out.shape), scores)
    squash.twice = tag is not None and tag.kind == "softmax" and not tag.mixed
    watcher.recorder.made(squash)
    axis = axis % out.dim()
    watcher.tags.put(out, Tag("softmax", tuple(out.shape), out.stride(), axis, squash))
    return out


def gate(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Tag the result of a function that squashes into an interval, as gates do."""
    x = args[0]
    tag = watcher.tags.get(x)
    out = func(*args, **kwargs)
    if tag is not None and tag.kind == "parameter":
        watcher.tags.put(out, tag)
        return out
    where = watcher.place()
    if where is None:
        return out
    squash = Squash(_NAMES[func], where, tuple(out.shape))
    squash.outer = tag is not None and tag.kind == "outer"
    watcher.recorder.made(squash)
    watcher.tags.put(out, Tag("gate", tuple(out.shape), out.stride(), None, squash))
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
}


def is_tensor(x: Any) -> bool:
    """Whether an argument is a tensor with axes."""
    return isinstance(x, Tensor) and x.dim() > 0
