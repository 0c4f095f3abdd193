"""Weights keep their graph on request, on fused paths too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from attnviz.capture import gradients, watch
from attnviz.errors import InputError
from tests.capture import nets
from tests.capture.test_gates import Squeeze


def slow_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and their gradient by plain autograd, from a model whose weights are a leaf."""
    found: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        weights.retain_grad()
        found.append(weights)
        return weights @ v

    model = nets.around(nets.Attention(attend))
    model(x)[:, 1].sum().backward()
    assert found[0].grad is not None
    return found[0].detach(), found[0].grad


@pytest.mark.parametrize("way", nets.EQUAL)
def test_gradients_by_the_weights_on_every_path(way: str) -> None:
    x = nets.images()
    weights, truth = slow_gradient(x)
    model = nets.around(nets.Attention(nets.EQUAL[way]))
    plain = model(x)
    with watch(model, keep_graph=True) as seen:
        out = model(x)
    assert torch.equal(plain, out)
    record = seen["attn"]
    assert record.weights is not None
    assert record.weights.requires_grad
    torch.testing.assert_close(record.weights, weights, atol=1e-6, rtol=1e-5)
    slope = record.gradient(out[:, 1])
    assert slope.shape == (2, 2, 24, 24)
    torch.testing.assert_close(slope, truth, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("way", ["plain", "fused"])
def test_a_loss_on_the_weights_trains_the_projections(way: str) -> None:
    model = nets.around(nets.Attention(nets.EQUAL[way]))
    with watch(model, keep_graph=True) as seen:
        model(nets.images())
    weights = seen["attn"].weights
    assert weights is not None
    loss = torch.special.entr(weights).sum()
    (slope,) = torch.autograd.grad(loss, [model.attn.qkv.weight])  # type: ignore[union-attr, list-item]
    assert slope[: 2 * nets.WIDTH].abs().max() > 0  # queries and keys
    assert not slope[2 * nets.WIDTH :].any()  # not values


def test_several_records_by_one_backward_pass() -> None:
    model = nets.around(nn.Sequential(nets.Attention(), nets.Attention(nets.fused)))
    with watch(model, keep_graph=True) as seen:
        out = model(nets.images())
    both = gradients(seen.values(), out)
    for record, slope in zip(seen.values(), both, strict=True):
        torch.testing.assert_close(record.gradient(out), slope)


def test_grouped_queries_have_gradients_per_query_head() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)

    def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x[:, :2].repeat_interleave(2, 1) for x in (k, v))
        return nets.plain(q, k, v)

    slopes = []
    for way in (attend, by_hand):
        model = nets.around(nets.Attention(way, heads=4))
        with watch(model, keep_graph=True) as seen:
            out = model(nets.images())
        slopes.append(seen["attn"].gradient(out))
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("apply", ["product", "expanded", "viewed"])
def test_gradients_by_a_gate(apply: str) -> None:
    model = nets.around(Squeeze(torch.sigmoid, apply))
    with watch(model, keep_graph=True) as seen:
        out = model(nets.images())
    slope = seen["attn"].gradient(out)
    with torch.no_grad():
        x = model.stem(nets.images())  # type: ignore[operator]  # a submodule
    scale = seen["attn"].scale
    assert scale is not None
    leaf = scale.detach().requires_grad_()
    (truth,) = torch.autograd.grad(model.head(x * leaf).sum(), leaf)  # type: ignore[operator]
    torch.testing.assert_close(slope, truth)


def test_what_has_no_graph_says_so() -> None:
    model = nets.around(nets.Attention())
    with watch(model) as seen:
        out = model(nets.images())
    with pytest.raises(InputError, match=r"'attn' has no graph; .*keep_graph=True"):
        seen["attn"].gradient(out)
    with watch(model, keep_graph=True) as seen:
        out = model(nets.images())
    with pytest.raises(InputError, match="do not depend on 'attn'"):
        seen["attn"].gradient(model(nets.images()))
    with pytest.raises(InputError, match="expected outputs with their graph"):
        seen["attn"].gradient(out.detach())
    with torch.no_grad(), watch(model, keep_graph=True) as seen:
        model(nets.images())
    with pytest.raises(InputError, match="'attn' has no graph"):
        seen["attn"].gradient(out)


def test_a_gradient_has_the_heads_that_were_kept() -> None:
    model, x = nets.around(nets.Attention(heads=4)), nets.images()
    with watch(model, keep_graph=True) as whole:
        out = model(x)
    expected = whole["attn"].gradient(out)
    with watch(model, keep_graph=True, heads=[2, 0]) as seen:
        out = model(x)
    slope = seen["attn"].gradient(out)
    torch.testing.assert_close(slope, expected[:, [2, 0]])


@pytest.mark.parametrize("way", ["plain", "fused"])
def test_a_graph_is_kept_within_a_checkpoint(way: str) -> None:
    attn = nets.Attention(nets.EQUAL[way])
    model, x = nets.around(attn), nets.images()
    with watch(model, keep_graph=True) as whole:
        out = model(x)
    expected = whole["attn"].gradient(out)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = attn

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.attn, x, use_reentrant=False)
            return out

    model.attn = Checkpointed()
    with watch(model, keep_graph=True) as seen:
        out = model(x)
    slope = seen["attn.attn"].gradient(out)
    torch.testing.assert_close(slope, expected)
