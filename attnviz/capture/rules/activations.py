"""Rules for functions that make weights and gates: softmax, sigmoid, hard sigmoid, tanh."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attnviz.capture.provenance import PARAMETER, Tag, storage_key
from attnviz.capture.registry import rule
from attnviz.capture.session import Session


@rule("aten._softmax.default", "aten._safe_softmax.default", fixed=True)
def softmax(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Tag a softmax's result with the axis that sums to one."""
    x, axis = args[0], args[1]
    tag = session.tags.get(x)
    out = func(*args, **kwargs)
    if x.dim() == 0:
        return out
    if tag is not None and tag.kind == "parameter" and tag.scores is None:
        session.tags.put(out, PARAMETER)  # of parameters alone, and no logits
        return out
    session.softmax(out, axis % out.dim(), tag)
    return out


@rule(
    "aten.sigmoid.default", "aten.sigmoid_.default", "aten.hardsigmoid.default",
    "aten.hardsigmoid_.default", "aten.tanh.default", "aten.tanh_.default",
)  # fmt: skip
def gate(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Tag the result of a function that squashes into an interval, as gates do."""
    tag = session.tags.get(args[0])
    out = func(*args, **kwargs)
    session.gate(out, str(func).split(".")[1].rstrip("_"), tag)
    return out


@rule(
    "aten.hardtanh.default", "aten.hardtanh_.default", "aten.clamp.default",
    "aten.clamp_.default",
)  # fmt: skip
def clip(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A clip to [0, 1] gates; one to [0, 6] does once it is divided by 6."""
    out = func(*args, **kwargs)
    low = args[1] if len(args) > 1 else kwargs.get("min_val", kwargs.get("min", -1))
    high = args[2] if len(args) > 2 else kwargs.get("max_val", kwargs.get("max", 1))
    if (low, high) == (0, 1):
        session.gate(out, "hardsigmoid", session.tags.get(args[0]))
    elif (low, high) == (0, 6):
        session.tags.put(out, Tag("clip", tuple(out.shape), out.stride()))
    elif not str(func).startswith("aten.hardtanh"):
        tag = session.tags.get(args[0])
        if tag is not None and isinstance(out, Tensor):
            session.tags.carry(tag, args[0], out)
    return out


@rule("aten.log_sigmoid_forward.default")
def log_gate(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """The logarithm of a gate, which its exponential makes one."""
    out = func(*args, **kwargs)
    session.tags.put(out[0], Tag("log_gate", tuple(out[0].shape), out[0].stride()))
    return out


@rule("aten._log_softmax.default")
def log_softmax(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """The logarithm of a softmax, which its exponential makes one."""
    x, axis = args[0], args[1]
    out = func(*args, **kwargs)
    if x.dim() > 1:
        shape, logits = tuple(out.shape), session.tags.get(x)
        made = Tag("log_softmax", shape, out.stride(), axis % x.dim(), extra=logits)
        session.tags.put(out, made)
    return out


@rule("aten.logsumexp.default")
def log_total(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """The logarithm of a softmax's denominator, to be subtracted from the logits."""
    x, axes = args[0], args[1]
    out = func(*args, **kwargs)
    axes = [axes] if isinstance(axes, int) else axes
    if x.dim() > 1 and len(axes) == 1:
        session.tags.put(out, Tag("log_total", axis=axes[0] % x.dim(), extra=storage_key(x)))
    return out


@rule("aten.exp.default", "aten.exp_.default")
def exponential(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """The numerator of a softmax that is written out, or one or a sigmoid from its logarithm."""
    tag = session.tags.get(args[0])
    axis = None if tag is None else tag.find(args[0])
    out = func(*args, **kwargs)
    if tag is not None and tag.kind == "log_gate":
        session.gate(out, "sigmoid", None)
    elif tag is not None and tag.kind == "log_softmax" and axis is not None:
        session.softmax(out, axis, tag.extra)
    elif out.dim() > 1:
        session.tags.put(out, Tag("exp", tuple(out.shape), out.stride(), extra=tag))
    return out
