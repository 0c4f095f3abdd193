"""Rules for elementwise products and sums: gates, scales of logits, weighted sums."""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose, nan
from typing import Any

from torch import Tensor

from attnviz.capture.provenance import Tag, storage_key
from attnviz.capture.registry import rule
from attnviz.capture.rules.copies import WEIGHTS, first_tagged
from attnviz.capture.session import Session

_SMALL = 1e-3  # what is added to a sum to keep it from zero

_OWN = ("gate", "softmax", "scores", "parameter", "weighted")


@rule("aten.mul.Tensor", "aten.mul_.Tensor")
def multiply(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A number scales; a gate meets features; a mask or dropout meets weights."""
    x, y = args[0], args[1]
    if not isinstance(y, Tensor) or not isinstance(x, Tensor) or not x.dim() or not y.dim():
        return scale(session, func, args, kwargs)
    tags = session.tags.get(x), session.tags.get(y)
    if tags == (None, None):
        out = func(*args, **kwargs)
        _outer(session, args, out)
        return out
    for side, tag in enumerate(tags):
        if tag is not None and tag.kind in ("gate", "softmax"):
            spans = _spans(session, args[side], args[1 - side], tag, tags[1 - side])
            if spans is not None:
                return _gated(session, func, args, kwargs, side, tag, spans)
    out = func(*args, **kwargs)
    if not _still_scaled(session, tags, out):
        _kept(session, args, tags, out)
    return out


def _still_scaled(session: Session, tags: Sequence[Tag | None], out: Tensor) -> bool:
    """Whether an operand was multiplied by what may be no gate, and the result with it."""
    tag = next((tag for tag in tags if tag is not None and tag.kind == "scaled"), None)
    if tag is not None:
        session.tags.put(out, tag)
    return tag is not None


@rule(
    "aten.add.Tensor", "aten.add_.Tensor", "aten.sub.Tensor", "aten.sub_.Tensor",
    "aten.add.Scalar", "aten.sub.Scalar",
)  # fmt: skip
def add(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Logits keep their name under a bias or mask, weights and gates under a number."""
    tag, source, rest = first_tagged(session, args)
    tags = [session.tags.get(x) for x in args if isinstance(x, Tensor)]
    denominator = _log_total(session, func, args)
    out = func(*args, **kwargs)
    if not isinstance(out, Tensor) or out.dim() < 1 or _still_scaled(session, tags, out):
        return out
    if denominator is not None and out.shape == args[0].shape:
        made = Tag("log_softmax", tuple(out.shape), out.stride(), denominator, extra=tags[0])
        session.tags.put(out, made)
    elif tag is not None and tag.kind == "total":
        if rest is None and abs(_number(args[1])) < _SMALL:
            session.tags.put(out, tag)
    elif tag is None:
        _outer(session, args, out)
    elif tag.kind == "parameter" or tag.kind == "clip":
        session.tags.carry(tag, source, out)
    elif tag.kind == "scores":
        alike = rest is not None and not session.is_parameter(rest) and rest.shape == out.shape
        session.tags.carry(tag, source, out, mixed=tag.mixed or alike)
    elif tag.kind in WEIGHTS and source.shape == out.shape:
        if rest is None or rest.dim() == 0 or _weighs(session, rest):
            session.tags.carry(tag, source, out)
    elif tag.kind == "gate" and rest is not None and _weighs(session, rest):
        session.tags.carry(tag, source, out)
    return out


def _log_total(session: Session, func: Any, args: Any) -> int | None:
    """The axis of logits whose own logsumexp is subtracted from them; None of others."""
    if not str(func).startswith("aten.sub") or not isinstance(args[1], Tensor):
        return None
    tag = session.tags.get(args[1])
    if tag is None or tag.kind != "log_total" or tag.extra != storage_key(args[0]):
        return None
    return tag.axis


def _weighs(session: Session, x: Tensor) -> bool:
    tag = session.tags.get(x)
    return tag is not None and tag.kind in ("softmax", "gate", "parameter")


def _outer(session: Session, args: Any, out: Tensor) -> None:
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
    session.tags.put(out, Tag("outer"))


def _kept(session: Session, args: Any, tags: tuple[Tag | None, Tag | None], out: Tensor) -> None:
    """Weights times a mask, a bias or dropout are still these weights."""
    for side, tag in enumerate(tags):
        if tag is None or tag.kind not in ("softmax", "scores", "gate", "parameter"):
            continue
        other, known = args[1 - side], tags[1 - side]
        if tag.kind == "parameter":
            if known is not None and known.kind == "parameter":
                session.tags.put(out, tag)
            continue
        if out.shape != args[side].shape:
            continue
        if tag.kind == "gate":
            if tag.squash is not None:
                tag.squash.used = True
            if known is not None and known.kind in ("gate", "parameter"):
                session.tags.carry(tag, args[side], out)
            return
        if known is not None and known.kind == "dropout":
            raw = args[side] if tag.raw is None else tag.raw
            session.tags.carry(tag, args[side], out, raw=raw)
        elif session.is_parameter(other) or other.shape != out.shape:
            session.tags.carry(tag, args[side], out, factor=nan)
        else:
            session.tags.carry(tag, args[side], out)
        return


def _spans(
    session: Session, gate: Tensor, other: Tensor, tag: Tag, known: Tag | None
) -> list[int] | None:
    """The axes along which a gate is repeated over a larger tensor of data, None if it is not."""
    if known is not None and known.kind in _OWN:
        return None
    if other.dim() < 3 or gate.dim() > other.dim() or session.is_parameter(other):
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
    session: Session, func: Any, args: Any, kwargs: Any, side: int, tag: Tag, spans: list[int]
) -> Any:
    gate, other = args[side], args[1 - side]
    written = str(func) == "aten.mul_.Tensor" and session.options.features
    kept = other.clone() if written else other
    replaced, weighted = session.gates.gate(tag, gate, kept, spans)
    if replaced is not None:
        args = (replaced, other) if side == 0 else (other, replaced)
    out = func(*args, **kwargs)
    if replaced is not None:
        session.recorder.guard(out)
    if weighted is not None:
        session.tags.put(out, weighted.on(out, None))
    elif tag.kind == "gate":
        session.tags.put(out, Tag("scaled", extra=tag.squash))
    return out


@rule("aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default",
      "aten.cudnn_grid_sampler.default")  # fmt: skip
def sample(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """What multiplied the coordinates of sampling points is no gate."""
    tag = session.tags.get(args[1])
    out = func(*args, **kwargs)
    if tag is not None and tag.kind == "scaled":
        session.gates.scales_coordinates(tag.extra)
    return out


@rule("aten.lerp.Tensor", "aten.lerp_.Tensor")
def interpolate(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A gate between two tensors: start + gate · (end − start)."""
    return _gated_among(session, func, args, kwargs, ((2, 1),))


@rule("aten.addcmul.default", "aten.addcmul_.default")
def add_product(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A gate in a product that is added: start + value · gate · features."""
    return _gated_among(session, func, args, kwargs, ((1, 2), (2, 1)))


def _gated_among(
    session: Session, func: Any, args: Any, kwargs: Any, pairs: tuple[tuple[int, int], ...]
) -> Any:
    """Run an op of three tensors, one of which may gate another, by their numbers."""
    for side, number in pairs:
        gate, other = args[side], args[number]
        tag = session.tags.get(gate)
        if tag is None or tag.kind != "gate":
            continue
        spans = _spans(session, gate, other, tag, session.tags.get(other))
        if spans is None:
            continue
        replaced, _ = session.gates.gate(tag, gate, other, spans)
        if replaced is None:
            return func(*args, **kwargs)
        out = func(*(replaced if i == side else x for i, x in enumerate(args)), **kwargs)
        session.recorder.guard(out)
        return out
    return func(*args, **kwargs)


@rule("aten.mul.Scalar", "aten.mul_.Scalar")
def scale(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Remember by which number queries, logits or weights were multiplied."""
    return _scaled(session, func, args, kwargs)


def _scaled(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    x = args[0]
    tag = session.tags.get(x) if isinstance(x, Tensor) else None
    out = func(*args, **kwargs)
    if not isinstance(x, Tensor) or not x.dim():
        return out
    factor = multiplier(func, args)
    if tag is None:
        if out.dim() > 1 and factor == factor:
            session.tags.put(out, Tag("factor", factor=factor, extra=out is not x))
    elif tag.kind == "clip" and isclose(factor, 1 / 6, rel_tol=1e-3):
        session.gate(out, "hardsigmoid", tag)
    elif tag.kind == "scaled":
        session.tags.put(out, tag)
    elif tag.kind == "factor":
        session.tags.put(out, Tag("factor", factor=tag.factor * factor, extra=out is not x))
    elif tag.kind == "dropout" or tag.kind in ("softmax", "gate", "scores", "parameter", "clip"):
        session.tags.carry(tag, x, out, factor=tag.factor * factor)
    return out


def multiplier(func: Any, args: Any) -> float:
    """By which number an op multiplies its first argument; NaN if it is not known."""
    name = str(func)
    if not name.startswith(("aten.mul.", "aten.mul_.", "aten.div.", "aten.div_.")):
        return 1.0
    by = _number(args[1])
    if name.startswith("aten.div"):
        by = 1 / by if by else nan
    return by


def _number(by: Any) -> float:
    if not isinstance(by, Tensor):
        return float(by)
    return float(by) if by.device.type == "cpu" and by.numel() == 1 else nan


@rule("aten.div.Tensor", "aten.div_.Tensor", "aten.div.Scalar", "aten.div_.Scalar")
def divide(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A number scales; weights divided by their own sum are still weights."""
    x, y = args[0], args[1]
    if not isinstance(y, Tensor) or not isinstance(x, Tensor) or not x.dim() or not y.dim():
        return _scaled(session, func, args, kwargs)
    tag, total = session.tags.get(x), session.tags.get(y)
    out = func(*args, **kwargs)
    if tag is None or _still_scaled(session, (tag,), out):
        return out
    if tag.kind == "exp" and total is not None and total.kind == "total":
        axis = total.extra
        if axis is not None and axis < out.dim():
            session.softmax(out, axis, tag.extra)
    elif tag.kind in ("softmax", "scores", "parameter") and out.shape == x.shape:
        known = total is not None and total.kind == "parameter"
        if tag.kind != "parameter" or known:
            session.tags.carry(tag, x, out)
    return out


@rule("aten.sum.dim_IntList")
def reduce(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """A sum over the weighted axis makes pooled attention; one over exponentials a softmax."""
    out = func(*args, **kwargs)
    x = args[0]
    tag = session.tags.get(x)
    if tag is None or tag.kind not in ("weighted", "exp"):
        return out
    dims = args[1] if len(args) > 1 and args[1] else range(x.dim())
    axes = {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)}
    if tag.kind == "exp":
        if len(axes) == 1 and out.dim() == x.dim():
            session.tags.put(out, Tag("total", extra=next(iter(axes))))
    elif x.shape == tag.shape:
        session.gates.pooled(tag, axes)
    return out


@rule("aten.bernoulli_.float")
def mask(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Remember a dropout mask."""
    out = func(*args, **kwargs)
    session.tags.put(out, Tag("dropout", tuple(out.shape), out.stride()))
    return out


@rule("aten.native_dropout.default", "aten._fused_dropout.default")
def dropout(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Dropout as one op."""
    out = func(*args, **kwargs)
    tag = session.tags.get(args[0])
    if tag is not None and tag.kind in ("softmax", "gate"):
        raw = args[0] if tag.raw is None else tag.raw
        session.tags.carry(tag, args[0], out[0], raw=raw)
    return out
