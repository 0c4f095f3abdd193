"""Fused attention: the kernel runs as it is, and its weights are recomputed from its arguments.

These are queries, keys, mask, causality and scale. A V of a few rows is compared with the kernel's
output, which shows whether the arguments were read correctly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnviz.capture.attention_layout import Split

_CACHED = 1 << 17  # weights at once: half a megabyte, which a core's own cache holds
_LAUNCHED = 1 << 26  # the same elsewhere, where many small kernels cost more than memory
_TRUSTED = 1e-4


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
        factor: By which number queries and keys were multiplied before; NaN where not known.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    causal: bool = False
    scale: float = 1.0
    dropout: float = 0.0
    factor: float = 1.0

    @property
    def logit_scale(self) -> float | None:
        """What q · kᵀ is multiplied by in all, None where it is not a known number."""
        return None if math.isnan(self.factor) else self.scale * self.factor


def splitting(fused: Fused, by: Split) -> Callable[[Tensor], Tensor]:
    """How to part images and heads, along a kernel's two leading axes.

    Args:
        fused: The kernel's arguments.
        by: How rows along both axes become images and heads.
    """
    b, given = fused.query.shape[:2]
    heads = by.heads or 1
    if by.order is None and (b * given == b * heads or b * given % heads):
        return lambda tensor: tensor
    if by.order is None and b == 1:
        count = given // heads
        return lambda x: x if x.shape[1] == 1 else x[0].unflatten(0, (count, -1))

    def split(x: Tensor) -> Tensor:
        if x.shape[:2] == (1, 1):
            return x
        groups = x.shape[1]
        x = x.expand(b, -1, *x.shape[2:])
        if groups != given:
            x = x.repeat_interleave(given // groups, 1)
        return by.present(x.flatten(0, 1))

    return split


def split_operands(fused: Fused, split: Callable[[Tensor], Tensor]) -> Fused:
    """The arguments with images and heads apart."""
    q, k, v = (split(x) for x in (fused.query, fused.key, fused.value))
    mask = None if fused.mask is None or fused.mask.dim() < 4 else split(fused.mask)
    return replace(fused, query=q, key=k, value=v, mask=fused.mask if mask is None else mask)


def unpacked(fused: Fused) -> Fused:
    """Arguments `(b, groups, n, d)` whose `n` queries are the heads of a group, of one token.

    transformers packs queries so while it decodes, to spare itself the repetition of keys.
    """
    mask, count = fused.mask, fused.query.shape[-2]
    if mask is not None and mask.dim() == 4 and mask.shape[-2] == count:
        mask = one_token(mask.expand(-1, fused.query.shape[1], -1, -1))
    return replace(fused, query=one_token(fused.query), mask=mask)


def one_token(tensor: Tensor) -> Tensor:
    """From `(b, groups, n, d)` to `(b, groups · n, 1, d)`."""
    return tensor.flatten(1, 2).unsqueeze(2)


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


def from_sums(fused: Fused, logsumexp: Tensor) -> Tensor | None:
    """The weights from the kernel's own row sums: `exp(scale · q · k − logsumexp)`.

    Twice as fast as a second softmax, and written once: piece by piece, while it is in the cache.
    None where the sums cannot be used, see `_flat`.
    """
    flat = _flat(fused, logsumexp)
    if flat is None:
        return None
    q, k = flat
    weights = q.new_empty(*q.shape[:-1], k.shape[-1])
    for _ in _pieces(q, k, weights):
        pass
    weights = weights.view(*fused.query.shape[:-1], k.shape[-1])
    return weights if _sums_to_one(weights[..., some_rows(weights.shape[-2]), :]) else None


def column_means(fused: Fused, logsumexp: Tensor) -> Tensor | None:
    """What each key receives, `mean_q A[q, k]`, `(b, heads, k)`, without ever holding the weights.

    As `from_sums`, summed piece by piece.
    """
    flat = _flat(fused, logsumexp)
    if flat is None:
        return None
    q, k = flat
    total = q.new_zeros(len(q), 1, k.shape[-1])
    mean = q.new_full((1, 1, q.shape[-2]), 1 / max(1, q.shape[-2]))
    for heads, piece in _pieces(q, k):
        total[heads].baddbmm_(mean[..., : piece.shape[-2]].expand(len(piece), -1, -1), piece)
    means = total.view(*fused.query.shape[:2], -1)
    return means if _sums_to_one(means) else None


def _pieces(q: Tensor, k: Tensor, into: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Weights a few heads or rows at a time: which heads of all images, and `(heads, q, k)`.

    Args:
        q: Queries, see `_flat`.
        k: Keys.
        into: `(b · heads, q, k)`, where to write them; anywhere if not given.
    """
    rows, keys = max(1, q.shape[-2]), max(1, k.shape[-1])
    most = _CACHED if q.device.type == "cpu" else _LAUNCHED
    at_once, step = max(1, most // (rows * keys)), max(1, min(rows, most // keys))
    for head in range(0, len(q), at_once):
        heads = slice(head, head + at_once)
        for row in range(0, rows, step):
            some = heads, slice(row, row + step)
            out = None if into is None else into[some]
            yield heads, torch.bmm(q[some], k[heads], out=out).exp_()


def _flat(fused: Fused, logsumexp: Tensor) -> tuple[Tensor, Tensor] | None:
    """Queries `(b · heads, q, d + 1)` and keys `(b · heads, d + 1, k)`.

    Their product is `scale · q · k − logsumexp`: the row sums are one more entry of each query, and
    a one that of each key, which costs less than to subtract them. None where the kernel's sums say
    nothing of q · k alone: masks, dropout, padded sums.
    """
    q, k = fused.query, fused.key
    if fused.mask is not None or fused.causal or fused.dropout or logsumexp.shape != q.shape[:-1]:
        return None
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    k = grouped(k, q.shape[-3])
    longer = [x.new_empty(*x.shape[:-1], x.shape[-1] + 1, dtype=wide) for x in (q, k)]
    torch.mul(q.to(wide), fused.scale, out=longer[0][..., :-1])
    torch.neg(logsumexp, out=longer[0][..., -1])
    longer[1][..., :-1].copy_(k)
    longer[1][..., -1] = 1
    q, k = (x.flatten(0, 1) for x in longer)
    return q, k.transpose(-2, -1)


def _sums_to_one(rows: Tensor) -> bool:
    return not rows.numel() or float((rows.sum(-1) - 1).abs().max()) < _TRUSTED


def causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """`(q, k)`, True where a query may look: at keys up to its own number."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril()


def some_rows(count: int, rows: int = 3) -> list[int]:
    """A few row numbers, the first and the last among them."""
    return sorted({round(i * (count - 1) / max(1, rows - 1)) for i in range(rows)})


def discrepancy(fused: Fused, output: Tensor, given: Tensor | None = None) -> float | None:
    """How far A V is from the kernel's output, relative to the largest value.

    Looked at are three queries of the first and of the last image, the weights computed once more
    by `weights`, whatever way they were found otherwise.

    Returns:
        The largest difference; None after dropout or without queries.
    """
    n = fused.query.shape[-2]
    if fused.dropout or not n or not output.numel():
        return None
    rows, ends = some_rows(n), slice(None, None, max(1, len(output) - 1))
    q, k, v = (x[ends] for x in (fused.query, fused.key, fused.value))
    mask = fused.mask
    if mask is not None and mask.dim() == 4 and len(mask) > 1:
        mask = mask[ends]
    two = replace(fused, query=q, key=k, value=v, mask=mask)
    some = weights(two, rows) if given is None else given[ends][..., rows, :]
    own = output[ends][..., rows, :].to(some.dtype)
    difference = some @ grouped(v, some.shape[-3]).to(some.dtype) - own
    off, size = (x.abs().flatten(1).amax(1) for x in (difference, own))
    return float((off / size.clamp_min(torch.finfo(some.dtype).tiny)).max())


def joined(fused: Fused, weights: Tensor, given: Tensor, by: Split) -> Tensor:
    """What the kernel would have put out with other weights, A V, laid out as it was.

    Args:
        fused: Its arguments, images and heads apart.
        weights: The weights, the same.
        given: Its output.
        by: How images and heads were parted.
    """
    mixed = weights @ grouped(fused.value, weights.shape[-3]).to(weights.dtype)
    rows = mixed if by.order is None else by.restore(mixed)
    return torch.empty_like(given).copy_(rows.reshape(given.shape))


def slope(fused: Fused, gradient: Tensor) -> Tensor:
    """From the gradient of the output to that of the weights: `∂/∂O Vᵀ`, `(b, heads, q, k)`."""
    values = grouped(fused.value.detach(), gradient.shape[-3])
    return gradient @ values.to(gradient.dtype).transpose(-2, -1)


def grouped(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values repeated for grouped queries."""
    own = tensor.shape[-3]
    return tensor if own == heads else tensor.repeat_interleave(heads // own, dim=-3)
