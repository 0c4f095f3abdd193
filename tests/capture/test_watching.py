"""A watch sees what attends and what gates, and changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnviz.capture import watch


class HandWritten(nn.Module):
    """Self-attention over the places of a feature map, softmax written out or fused."""

    def __init__(self, *, heads: int = 2, width: int = 8, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x.flatten(2).mT).view(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v
        return y.transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)


def small(**options: bool) -> nn.Module:
    torch.manual_seed(0)
    attn = HandWritten(**options)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), attn, nn.Conv2d(8, 2, 1)).eval()


def test_hand_written_and_fused_attention_agree_and_change_nothing() -> None:
    x = torch.randn(2, 3, 16, 24)
    rows = {}
    for fused in (False, True):
        model = small(fused=fused)
        plain = model(x)
        with watch(model) as seen:
            assert torch.equal(model(x), plain)
        record = seen["1"]
        assert record.weights is not None
        assert record.weights.shape == (2, 2, 24, 24)
        assert (record.query_grid, record.key_grid, record.prefix) == ((4, 6), (4, 6), 0)
        assert record.how == ("fused" if fused else "qk")
        assert record.exact is not fused
        torch.testing.assert_close(record.weights.sum(-1), torch.ones(2, 2, 24))
        rows[fused] = record.weights
    torch.testing.assert_close(rows[True], rows[False], atol=1e-6, rtol=1e-5)
