"""A rule for an operator can be registered from outside the package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from attnviz.capture import Session, registry, rule, watch
from attnviz.capture.fused_weights import Fused
from attnviz.errors import InputError
from tests.capture import nets


@torch.library.custom_op("attnviz_tests::temper", mutates_args=())
def temper(x: Tensor) -> Tensor:
    """A softmax over the last axis that no rule of the package knows."""
    return torch.softmax(x, -1)


@torch.library.custom_op("attnviz_tests::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A fused kernel that no rule of the package knows."""
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def tempered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights: Tensor = temper(q @ k.mT * q.shape[-1] ** -0.5)
    return weights @ v


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = attend(q, k, v)
    return out


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = dict(registry.RULES)
    yield
    registry.RULES.clear()
    registry.RULES.update(before)
    registry.FOUND.clear()


def follow_temper(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    source = session.tags.get(args[0])
    out = func(*args, **kwargs)
    session.softmax(out, out.dim() - 1, source)
    return out


def follow_attend(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    out = func(*args, **kwargs)
    q, k, v = args
    replaced = session.attention.fused(Fused(q, k, v, scale=q.shape[-1] ** -0.5), out)
    return out if replaced is None else replaced


@pytest.mark.parametrize(
    ("attention", "op", "function", "how"),
    [(tempered, "attnviz_tests.temper.default", follow_temper, "qk"),
     (kernel, "attnviz_tests.attend.default", follow_attend, "fused")],
)  # fmt: skip
def test_an_op_without_a_rule_is_followed_once_it_has_one(
    attention: nets.Attend, op: str, function: registry.Rule, how: str
) -> None:
    model, twin = nets.around(nets.Attention(attention)), nets.around(nets.Attention())
    x = nets.images()
    with torch.no_grad(), watch(model, empty=True) as unknown:
        plain = model(x)
    assert not len(unknown)
    rule(op)(function)
    with torch.no_grad(), watch(model) as seen, watch(twin) as known:
        assert torch.equal(model(x), plain)
        twin(x)
    (record,) = seen.values()
    assert (record.name, record.how, record.axis) == ("attn", how, "k")
    assert record.source.startswith("test_registry.py:")
    assert record.logit_scale == pytest.approx(known["attn"].logit_scale)
    assert record.weights is not None
    assert known["attn"].weights is not None
    torch.testing.assert_close(record.weights, known["attn"].weights)
    with torch.no_grad(), watch(model, edit={"attn": "zero"}):
        assert not torch.equal(model(x), plain)


@pytest.mark.parametrize("name", ["aten.bmm", "aten::bmm.default", "a.b.c.d"])
def test_a_name_that_is_no_ops_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="expected names of ops such as"):
        rule(name)
    with pytest.raises(InputError, match="expected the name of an op, got none"):
        rule()
