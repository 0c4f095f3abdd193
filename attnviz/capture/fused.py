"""Fused attention: the kernel runs as it is, and its weights are computed once more beside it.

The kernel's own arguments say all that is needed: queries, keys, mask, causality, scale. A V on a
few rows against the kernel's output tells whether they were read rightly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Fused:
    """The arguments of a fused kernel, whatever its name.

    Attributes:
        query: `(b, heads, q, d)`.
        key: `(b, heads or groups, k, d)`.
        value: `(b, heads or groups, k, d_v)`.
        mask: Additive, or boolean with True where attention is allowed; None without.
        causal: Whether a query sees only keys up to its own number.
        scale: What multiplies q · kᵀ.
        dropout: The probability of dropout on the weights.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    scale: float
    dropout: float


def weights(fused: Fused, rows: Sequence[int] | Tensor | slice | None = None) -> Tensor:
    """`softmax(q kᵀ · scale + mask)`, `(b, heads, q, k)`, before dropout.

    Half precision is computed in float32. A row whose keys are all masked is zero, as in the
    kernel.

    Args:
        fused: The kernel's arguments.
        rows: Only these queries.
    """
    q, k = fused.query, fused.key
    if q.dtype in (torch.float16, torch.bfloat16):
        q, k = q.float(), k.float()
    mask = fused.mask
    picked = slice(None) if rows is None else rows
    if rows is not None:
        q = q[..., picked, :]
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., picked, :]
    k = _grouped(k, q.shape[-3])
    logits = (q * fused.scale) @ k.transpose(-2, -1)
    if fused.causal:
        allowed = causal(fused.query.shape[-2], k.shape[-2], q.device)[picked]
        logits = logits.masked_fill_(~allowed, -math.inf)
    if mask is None:
        return torch.softmax(logits, -1) if not fused.causal else _safe(logits)
    if mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -math.inf)
    else:
        logits = logits + mask.to(logits.dtype)
    return _safe(logits)


def causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """`(q, k)`, True where a query may look: at keys up to its own number."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril()


def discrepancy(fused: Fused, weights: Tensor, output: Tensor, *, rows: int = 3) -> float | None:
    """How far A V is from the kernel's output on a few rows, relative to the largest value."""
    n = fused.query.shape[-2]
    if fused.dropout or not n or not output.numel():
        return None
    picked = sorted({round(i * (n - 1) / max(1, rows - 1)) for i in range(rows)})
    values = _grouped(fused.value, weights.shape[-3]).to(weights.dtype)
    own = output[..., picked, :].to(weights.dtype)
    scale = own.abs().max()
    difference = (weights[..., picked, :] @ values - own).abs().max()
    return float(difference / scale.clamp_min(torch.finfo(weights.dtype).tiny))


def applied(fused: Fused, weights: Tensor, output: Tensor) -> Tensor:
    """What the kernel would have put out with other weights: A V, dropout included."""
    weights = torch.dropout(weights, fused.dropout, fused.dropout > 0)
    values = _grouped(fused.value, weights.shape[-3]).to(weights.dtype)
    mixed = (weights @ values).to(output.dtype)
    return torch.empty_like(output).copy_(mixed)


def _safe(logits: Tensor) -> Tensor:
    """Softmax whose rows are zero where every logit is −∞."""
    empty = logits.amax(-1, keepdim=True) == -math.inf
    return torch.softmax(logits, -1).masked_fill_(empty, 0.0)


def _grouped(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values repeated for grouped queries."""
    own = tensor.shape[-3]
    return tensor if own == heads else tensor.repeat_interleave(heads // own, dim=-3)
