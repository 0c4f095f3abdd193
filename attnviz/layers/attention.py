"""Attention layers over the places of a feature map.

`Attend` runs the fused kernel, and computes the weights explicitly only where a hook is registered
on its softmax. `attnviz.watch` needs no hook and so leaves the fused kernel, and with it every bit
of the output, as it is.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from attnviz.errors import InputError, unknown_name

TOKENS = ("places", "reshaped")


class Attend(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017): `softmax(q kᵀ · scale) v`.

    Attributes:
        softmax: Runs only with a forward hook or pre-hook registered on it; the fused kernel runs
            otherwise. The two agree to 1e-6 in float32.
        scale: What multiplies `q kᵀ`; `1 / √d_k` if not given.
    """

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)
        self.scale = scale

    def forward(
        self,
        q: Float[Tensor, "b heads q d_k"],
        k: Float[Tensor, "b heads k d_k"],
        v: Float[Tensor, "b heads k d_v"],
    ) -> Float[Tensor, "b heads q d_v"]:
        """Weight the values by the similarity of keys and queries."""
        if not (self.softmax._forward_hooks or self.softmax._forward_pre_hooks):
            return _fused(q, k, v, self.scale)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        weights: Tensor = self.softmax((q * scale) @ k.mT)
        return weights @ v


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # the fused kernel's step takes half as long in float32 as in bfloat16 on a CPU whose
        # convolutions are quicker in bfloat16
        with torch.autocast("cpu", enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            return F.scaled_dot_product_attention(q, k, v, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention between places, with residual and layer norm.

    Args:
        channels: Of the feature map.
        heads: How many.
        d_k: Width of a head's queries, keys and values.
        dropout: Of the projected output, before the residual is added.
        position: Whether `position_code` is added to the tokens.
        tokens: `"places"` makes each place a token, with its channels as features. `"reshaped"`
            reads the memory of `(b, c, h, w)` as `(b, h·w, c)`, as a published tutorial does: a
            token is then a run of neighbouring pixels of one channel, and no row of the weights
            belongs to a place. It exists for comparison.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 4,
        d_k: int = 8,
        dropout: float = 0.1,
        position: bool = False,
        tokens: str = "places",
    ) -> None:
        super().__init__()
        if tokens not in TOKENS:
            raise unknown_name("kind of tokens", tokens, TOKENS)
        if heads < 1 or d_k < 1:
            raise InputError(
                f"MultiHeadAttention: expected heads and d_k of 1 or more, got {heads} and {d_k}"
            )
        self.heads, self.position, self.tokens = heads, position, tokens
        self.query = nn.Linear(channels, heads * d_k, bias=False)
        self.key = nn.Linear(channels, heads * d_k, bias=False)
        self.value = nn.Linear(channels, heads * d_k, bias=False)
        self.attend = Attend()
        self.project = nn.Linear(heads * d_k, channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply self-attention over the tokens."""
        b, c, h, w = x.shape
        if self.position:
            x = x + position_code(c, h, w, x)
        tokens = x.flatten(2).mT if self.tokens == "places" else x.reshape(b, h * w, c)
        q, k, v = (
            _split(layer(tokens), self.heads) for layer in (self.query, self.key, self.value)
        )
        mixed = self.attend(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.norm(tokens + self.dropout(self.project(mixed)))
        if self.tokens == "reshaped":
            return out.reshape(b, c, h, w)
        return out.mT.reshape(b, c, h, w)


class ConvAttention(nn.Module):
    """Multi-head attention by 1 × 1 convolutions, every head as wide as the feature map.

    The heads are concatenated and mixed; a second mixing layer follows, each with its residual and
    layer norm over the channels.

    Args:
        channels: Of the feature map.
        heads: How many.
    """

    def __init__(self, channels: int, *, heads: int = 4) -> None:
        super().__init__()
        if heads < 1:
            raise InputError(f"ConvAttention: expected 1 head or more, got {heads}")
        self.heads = heads
        self.query = nn.Conv1d(channels, heads * channels, 1)
        self.key = nn.Conv1d(channels, heads * channels, 1)
        self.value = nn.Conv1d(channels, heads * channels, 1)
        self.attend = Attend()
        self.mix_heads = nn.Conv1d(heads * channels, channels, 1)
        self.norm_heads = nn.LayerNorm(channels)
        self.mix_channels = nn.Conv1d(channels, channels, 1)
        self.norm_channels = nn.LayerNorm(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply self-attention over the places."""
        places = x.flatten(2).mT
        q, k, v = (
            _split(_pointwise(layer, places), self.heads)
            for layer in (self.query, self.key, self.value)
        )
        mixed = self.attend(q, k, v).transpose(1, 2).flatten(2)
        places = self.norm_heads(places + _pointwise(self.mix_heads, mixed))
        mixed = _pointwise(self.mix_channels, F.leaky_relu(places))
        out: Tensor = self.norm_channels(places + mixed)
        return out.mT.reshape(x.shape)


class NonLocal(nn.Module):
    """A non-local block with residual (Wang et al. 2018), embedded Gaussian, one head.

    Args:
        channels: Of the feature map; queries, keys and values have half of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, inner, 1)
        self.attend = Attend(scale=1.0)  # the paper's scores are not scaled
        self.project = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Add the attention-weighted values to each place."""
        b, _, h, w = x.shape
        q, k, v = (layer(x).flatten(2).mT[:, None] for layer in (self.query, self.key, self.value))
        mixed = self.attend(q, k, v)[:, 0].mT.reshape(b, -1, h, w)
        out: Tensor = x + self.project(mixed)
        return out


class LearnedQuery(nn.Module):
    """Attention pooling by one learned query, in place of the global mean.

    Args:
        channels: Of the feature map.
        heads: How many; if not given 4, or 1 where four do not divide the channels.
        added: Whether the pooled vector is added to every place instead, so that more layers can
            follow.
    """

    def __init__(self, channels: int, *, heads: int | None = None, added: bool = False) -> None:
        super().__init__()
        if heads is None:
            heads = 4 if channels % 4 == 0 else 1
        if heads < 1 or channels % heads:
            raise InputError(f"LearnedQuery: expected heads that divide {channels}, got {heads}")
        self.heads, self.added = heads, added
        self.query = nn.Parameter(torch.randn(1, heads, 1, channels // heads))
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.attend = Attend()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:
        """Pool the places into one, `(b, c, 1, 1)`, or into each, `(b, c, h, w)`."""
        tokens = x.flatten(2).mT
        k, v = (_split(layer(tokens), self.heads) for layer in (self.key, self.value))
        gathered: Tensor = self.attend(self.query.expand(len(x), -1, -1, -1), k, v)
        gathered = gathered.flatten(1)[:, :, None, None]
        return x + gathered if self.added else gathered


def position_code(channels: int, h: int, w: int, like: Tensor) -> Float[Tensor, "c h w"]:
    """Sines and cosines of rows and columns (Vaswani et al. 2017, in two dimensions).

    The first half of the channels codes the row, the second the column, each at wavelengths from
    2π to 10,000 · 2π. It has no weights and fits any size.

    Args:
        channels: How many.
        h: Rows.
        w: Columns.
        like: Tensor that sets device and dtype.
    """
    half = (channels + 1) // 2
    rates = 10_000 ** (-torch.arange(0, half, 2, device=like.device) / half)
    codes = []
    for size in (h, w):
        angle = rates[:, None] * torch.arange(size, device=like.device)
        codes.append(torch.stack([angle.sin(), angle.cos()], 1).flatten(0, 1)[:half])
    rows, columns = codes
    code = torch.cat([rows[:, :, None].expand(-1, h, w), columns[:, None, :].expand(-1, h, w)])
    return code[:channels].to(like.dtype)


def _split(tokens: Tensor, heads: int) -> Tensor:
    """`(b, n, heads · d)` to `(b, heads, n, d)`."""
    b, n, width = tokens.shape
    return tokens.view(b, n, heads, width // heads).transpose(1, 2)


def _pointwise(layer: nn.Conv1d, tokens: Tensor) -> Tensor:
    """A 1 × 1 convolution applied as the linear map it is; channels stay the last, packed axis."""
    return F.linear(tokens, torch.squeeze(layer.weight, -1), layer.bias)
