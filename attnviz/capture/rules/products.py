"""Rules for matrix products: weights times values, and queries times keys."""

from __future__ import annotations

from dataclasses import replace
from math import nan, prod
from typing import Any

from torch import Tensor

from attnviz.capture.provenance import PARAMETER, Scores, Tag, factor_of
from attnviz.capture.registry import rule
from attnviz.capture.session import Session


@rule("aten.bmm.default", "aten.mm.default", fixed=True)
def bmm(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """`(n, i, j) @ (n, j, k)`, and `(i, j) @ (j, k)`."""
    return _product(session, func, args, kwargs, 0, 1)


@rule("aten.baddbmm.default", "aten.addmm.default")
def baddbmm(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """`β · input + α · (n, i, j) @ (n, j, k)`, and the same with two axes."""
    return _product(session, func, args, kwargs, 1, 2)


def _product(session: Session, func: Any, args: Any, kwargs: Any, i: int, j: int) -> Any:
    left, right = args[i], args[j]
    tags = session.tags.get(left), session.tags.get(right)
    if left.dim() == 2 and tags == (None, None):
        # a linear layer, as a rule: its weight was made or exchanged since the watch began
        session.know_parameters()
        tags = session.tags.get(left), session.tags.get(right)
    parameters = _fixed(tags[0]), _fixed(tags[1])
    if all(parameters):
        return _learned(session, func, args, kwargs, left, right, tags)
    if any(parameters) and not any(_is_learned(tag) for tag in tags):
        data = int(parameters[0])
        replaced = _met_learned(session, (left, right)[data], tags[data], -1 - data)
        if replaced is not None:
            number = (i, j)[data]
            args = (*args[:number], replaced, *args[number + 1 :])
        out = func(*args, **kwargs)
        if replaced is not None:
            session.recorder.guard(out)
        _mixed(session, left, right, parameters, out)
        if left.dim() == 3 and len(left) > 1 and session.tags.get(out) is None:
            # learned queries meet keys; or experts their input, which no softmax over keys follows
            _scored(session, left, right, (None, None), out, nan, mixed=True)
        return out
    side = _weights(left, right, tags)
    if side is None:
        out = func(*args, **kwargs)
        _scored(session, left, right, tags, out, float(kwargs.get("alpha", 1.0)))
        return out
    operand, tag, known = (left, right)[side], tags[side], tags[1 - side]
    assert tag is not None  # or it would be no weights
    query, key = operand.dim() - 2 + side, operand.dim() - 1 - side
    if tag.kind == "scores":
        replaced = session.attention.linear(tag, operand, query, key)
    else:
        values = left.mT if side else right
        replaced = session.attention.product(tag, operand, query, key, known, values)
    if replaced is not None:
        number = (i, j)[side]
        args = (*args[:number], replaced, *args[number + 1 :])
    out = func(*args, **kwargs)
    session.tags.put(out, Tag("context"))
    if replaced is not None:
        session.recorder.guard(out)
    return out


def _met_learned(session: Session, x: Tensor, tag: Tag | None, axis: int) -> Tensor | None:
    """Attention weights meet learned values, as of relative positions; edited ones, if they are."""
    squash = None if tag is None or tag.kind != "softmax" else tag.squash
    if tag is None or squash is None or squash.scores is None:
        return None
    return session.recorder.used_again(squash, x) if tag.find(x) == x.dim() + axis else None


def _is_learned(tag: Tag | None) -> bool:
    """Whether these are weights between learned queries, whose values are learned as well."""
    return (
        tag is not None
        and tag.kind == "softmax"
        and tag.squash is not None
        and tag.squash.learned
        and not tag.mixed
    )


def _learned(
    session: Session, func: Any, args: Any, kwargs: Any, left: Tensor, right: Tensor,
    tags: tuple[Tag | None, Tag | None],
) -> Any:  # fmt: skip
    """A product of parameters; one for each head or image may be logits of learned queries."""
    out = func(*args, **kwargs)
    if left.dim() < 3:
        session.tags.put(out, PARAMETER)
        return out
    _scored(session, left, right, tags, out, float(kwargs.get("alpha", 1.0)))
    made = session.tags.get(out)
    assert made is not None  # `_scored` has just put it
    session.tags.put(out, replace(made, kind="parameter"))
    return out


def _fixed(tag: Tag | None) -> bool:
    return tag is not None and tag.kind == "parameter"


def _weights(left: Tensor, right: Tensor, tags: tuple[Tag | None, Tag | None]) -> int | None:
    """Which factor holds weights that meet values, 0 or 1; None if neither does.

    A softmax's result comes before bare logits; of two results the one that is contracted along
    its own axis. Logits may have passed a sigmoid or the like; those of a product without a batch
    meet values without one, or else they are features from a layer that is not known as one.
    """
    kinds = [None if tag is None else tag.kind for tag in tags]
    if kinds == ["softmax", "softmax"]:
        assert tags[0] is not None
        assert tags[1] is not None
        left_fits = tags[0].find(left) == left.dim() - 1
        return 1 if tags[1].find(right) == right.dim() - 2 and not left_fits else 0
    if "softmax" in kinds:
        return kinds.index("softmax")
    for side, tag in enumerate(tags):
        if tag is None or tag.mixed or tag.kind not in ("scores", "gate"):
            continue
        scores = tag.scores if tag.squash is None else tag.squash.scores
        if scores is not None and min(len(scores.shape), 3) == left.dim():
            return side
    return None


def _mixed(
    session: Session, left: Tensor, right: Tensor, parameters: tuple[bool, bool], out: Tensor
) -> None:
    """A linear layer over the heads keeps the softmax's axis, and makes new heads."""
    x, contracted = (right, right.dim() - 2) if parameters[0] else (left, left.dim() - 1)
    tag = session.tags.get(x)
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
    if prod(shape) == out.numel() and out.is_contiguous():
        axis = None if tag.axis is None else order.index(tag.axis)
        stride_ = _strides(shape)
        session.tags.put(out, Tag(tag.kind, shape, stride_, axis, tag.squash, tag.scores,
                                  tag.factor, None, True))  # fmt: skip


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _scored(
    session: Session,
    left: Tensor,
    right: Tensor,
    tags: tuple[Tag | None, Tag | None],
    out: Tensor,
    alpha: float,
    *,
    mixed: bool = False,
) -> None:
    """Tag a product of data with data: logits, if a softmax follows."""
    scale = alpha * factor_of(tags[0], left) * factor_of(tags[1], right)
    keep = session.options.reads_operands
    scores = Scores(
        left if keep else None,
        right.transpose(-2, -1) if keep else None,
        scale,
        left.shape[-1],
        tuple(out.shape),
    )
    made = Tag("scores", tuple(out.shape), out.stride(), None, None, scores, mixed=mixed)
    session.tags.put(out, made)
