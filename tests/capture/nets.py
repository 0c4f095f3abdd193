"""Small models that attend and gate in the ways that people write it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 8
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q kᵀ / √d) v`, as it is written most often."""
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def scaled_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1) @ v


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhqk,bhkd->bhqd", logits.softmax(-1), v)


def columns(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys before queries: `(b, heads, k, q)`, softmax over the third axis."""
    logits = k @ q.mT * q.shape[-1] ** -0.5
    return logits.softmax(-2).mT @ v


def values_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`vᵀ Aᵀ`, weights on the right of the product."""
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return (v.mT @ weights.mT).mT


def merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Batch and heads in one axis, `torch.baddbmm` with its own scale."""
    b, heads, n, d = q.shape
    q, k, v = (x.reshape(b * heads, n, d) for x in (q, k, v))
    logits = torch.baddbmm(q.new_zeros(1), q, k.mT, beta=0, alpha=d**-0.5)
    return torch.bmm(logits.softmax(-1), v).view(b, heads, n, d)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The softmax written out."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    powers = torch.exp(logits - logits.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True) @ v


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.mT
    logits *= q.shape[-1] ** -0.5
    logits += torch.zeros(())
    return logits.softmax(-1) @ v


EQUAL: dict[str, Attend] = {
    f.__name__: f
    for f in (plain, fused, scaled_query, einsum, columns, values_first, merged, by_hand, in_place)
}
"""Ways to write one and the same attention."""


class Attention(nn.Module):
    """Self-attention between the places of `(b, c, h, w)`."""

    def __init__(self, attend: Attend = plain, *, heads: int = 2, width: int = WIDTH) -> None:
        super().__init__()
        self.attend, self.num_heads = attend, heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x.flatten(2).mT).view(b, h * w, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.attend(q, k, v).transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)


def around(middle: nn.Module, *, seed: int = 0) -> nn.Sequential:
    """A network `(b, 3, h, w)` → `(b, 2)` with a middle that works on a quarter of the size."""
    torch.manual_seed(seed)
    for module in middle.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, WIDTH, 4, 4))
    net.add_module("attn", middle)
    net.add_module(
        "head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 2))
    )
    return net.eval()


def images(b: int = 2, h: int = 16, w: int = 24, *, seed: int = 1) -> Tensor:
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(seed))
