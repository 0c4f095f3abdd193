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
    mask: Tensor | None = None
    causal: bool = False
    scale: float = 1.0
    dropout: float = 0.0


def weights(fused: Fused, rows: slice | Sequence[int] | None = None) -> Tensor:
    """`softmax(q kᵀ · scale + mask)`, `(b, heads, q, k)`, before dropout.

    Half precision is computed in float32. A row whose keys are all masked is zero, as in the
    kernel.

    Args:
        fused: The kernel's arguments.
        rows: Only these queries.
    """
    q, k, mask = fused.query, fused.key, fused.mask
    if q.dtype in (torch.float16, torch.bfloat16):
        q, k = q.float(), k.float()
    if rows is not None:
        q = q[..., rows, :]
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., rows, :]
    logits = (q * fused.scale) @ grouped(k, q.shape[-3]).transpose(-2, -1)
    if fused.causal:
        allowed = causal(fused.query.shape[-2], k.shape[-2], q.device)
        logits = logits.masked_fill(~(allowed if rows is None else allowed[rows]), -math.inf)
    if mask is None:
        return torch.softmax(logits, -1)  # causal rows see their own number at least
    if mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -math.inf)
    else:
        logits = logits + mask.to(logits.dtype)
    empty = logits.amax(-1, keepdim=True) == -math.inf
    return torch.softmax(logits, -1).masked_fill(empty, 0.0)


def causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """`(q, k)`, True where a query may look: at keys up to its own number."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril()


def some_rows(count: int, rows: int = 3) -> list[int]:
    """A few row numbers, the first and the last among them."""
    return sorted({round(i * (count - 1) / max(1, rows - 1)) for i in range(rows)})


def discrepancy(fused: Fused, output: Tensor, whole: Tensor | None = None) -> float | None:
    """How far A V is from the kernel's output on a few rows, relative to the largest value.

    Args:
        fused: The kernel's arguments.
        output: What it put out.
        whole: All the weights, where they are at hand.

    Returns:
        The largest difference; None after dropout or without rows.
    """
    n = fused.query.shape[-2]
    if fused.dropout or not n or not output.numel():
        return None
    rows = some_rows(n)
    some = weights(fused, rows) if whole is None else whole[..., rows, :]
    own = output[..., rows, :].to(some.dtype)
    values = grouped(fused.value, some.shape[-3]).to(some.dtype)
    difference = (some @ values - own).abs().max()
    return float(difference / own.abs().max().clamp_min(torch.finfo(some.dtype).tiny))


def applied(fused: Fused, weights: Tensor, like: Tensor) -> Tensor:
    """What the kernel would have put out with other weights: A V."""
    values = grouped(fused.value, weights.shape[-3]).to(weights.dtype)
    return torch.empty_like(like).copy_(weights @ values)


def slope(fused: Fused, gradient: Tensor) -> Tensor:
    """From the gradient of the output to that of the weights: `∂/∂O Vᵀ`, `(b, heads, q, k)`."""
    values = grouped(fused.value.detach(), gradient.shape[-3])
    return gradient @ values.to(gradient.dtype).transpose(-2, -1)


def grouped(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values repeated for grouped queries."""
    own = tensor.shape[-3]
    return tensor if own == heads else tensor.repeat_interleave(heads // own, dim=-3)
