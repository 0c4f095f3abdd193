"""Attention over the places of a feature map.

The weights cost nothing until somebody looks: `Attend` runs the fused kernel, and only where a hook
sits on its softmax does it write the weights out. `attnviz.watch` needs no hook and so leaves the
fused kernel, and with it every bit of the output, as it is.
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
        softmax: Runs only where a forward hook or pre-hook sits on it; the fused kernel runs
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
        """Mix the values by how well their keys answer each query."""
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
        tokens: `"places"` makes each place a token, with its channels as features. `"reshaped"`
            reads the memory of `(b, c, h, w)` as `(b, h·w, c)`, as a published tutorial does: a
            token is then a run of neighbouring pixels of one channel, and no row of the weights
            belongs to a place. It is kept to show what that does.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 4,
        d_k: int = 8,
        dropout: float = 0.1,
        tokens: str = "places",
    ) -> None:
        super().__init__()
        if tokens not in TOKENS:
            raise unknown_name("kind of tokens", tokens, TOKENS)
        self.heads, self.tokens = heads, tokens
        self.query = nn.Linear(channels, heads * d_k, bias=False)
        self.key = nn.Linear(channels, heads * d_k, bias=False)
        self.value = nn.Linear(channels, heads * d_k, bias=False)
        self.attend = Attend()
        self.project = nn.Linear(heads * d_k, channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Let every token look at every other."""
        b, c, h, w = x.shape
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
        """Let every place look at every other."""
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


def _split(tokens: Tensor, heads: int) -> Tensor:
    """`(b, n, heads · d)` to `(b, heads, n, d)`."""
    b, n, width = tokens.shape
    return tokens.view(b, n, heads, width // heads).transpose(1, 2)


def _pointwise(layer: nn.Conv1d, tokens: Tensor) -> Tensor:
    """A 1 × 1 convolution applied as the linear map it is; channels stay the last, packed axis."""
    return F.linear(tokens, torch.squeeze(layer.weight, -1), layer.bias)
