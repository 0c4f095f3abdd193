"""From the shape that meets the values to `(b, heads, q, k)`, and back.

A product sees `(b · heads, q, k)` or some transposition of it. Which part of the first axis is the
batch and which the heads is read off the softmax's own result, whose axes are still apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor, nn

from attnviz.capture.lineage import Numbers
from attnviz.capture.provenance import Tag

_HEADS = ("num_heads", "heads", "n_heads", "num_attention_heads", "nhead", "n_head", "nheads")


@dataclass(frozen=True, slots=True)
class Layout:
    """How an operand's axes are to be read.

    Attributes:
        order: The operand's axes as (leading …, query, key).
        leading: Sizes of the leading axes, slowest first, once they are split.
        heads: Which of `leading` are heads; None where there is no such axis.
    """

    order: tuple[int, ...]
    leading: tuple[int, ...]
    heads: int | None

    def present(self, operand: Tensor) -> Tensor:
        """The operand as `(b, heads, q, k)`."""
        x = operand.permute(self.order)
        q, k = x.shape[-2:]
        if self.heads is None:
            return x.reshape(-1, 1, q, k)
        heads = self.leading[self.heads]
        x = x.reshape(*self.leading, q, k).movedim(self.heads, -3)
        return x.reshape(-1, heads, q, k)

    def operand(self, tensor: Tensor | None, tokens: int) -> Tensor | None:
        """Queries or keys `(n, tokens, d)` as `(b, heads, tokens, d)`, split as the weights are.

        None where they were not kept, or do not fit.
        """
        if tensor is None or tensor.shape[-2] != tokens:
            return None
        if tensor.shape[:-2].numel() != prod(self.leading):
            return None
        x = tensor.reshape(*self.leading, *tensor.shape[-2:])
        if self.heads is None:
            return x.reshape(-1, 1, *tensor.shape[-2:])
        x = x.movedim(self.heads, -3)
        return x.reshape(-1, *x.shape[-3:])

    def rows(self, sums: Numbers) -> Numbers:
        """Values along the operand's leading axes as `(b, heads)`."""
        if self.heads is None:
            return sums.reshape(-1, 1)
        x = np.moveaxis(sums.reshape(self.leading), self.heads, -1)
        return x.reshape(-1, self.leading[self.heads])

    def restore(self, weights: Tensor, like: Tensor) -> Tensor:
        """Weights `(b, heads, q, k)` in the operand's own shape."""
        q, k = weights.shape[-2:]
        x = weights
        if self.heads is not None:
            rest = [n for i, n in enumerate(self.leading) if i != self.heads]
            x = x.reshape(*rest, self.leading[self.heads], q, k).movedim(-3, self.heads)
        x = x.reshape([like.shape[i] for i in self.order])
        return x.permute([self.order.index(i) for i in range(len(self.order))])


def layout(
    operand: Tensor,
    query: int,
    key: int,
    tag: Tag,
    module: nn.Module,
    images: int | None,
    *,
    whole: bool = False,
) -> Layout:
    """Read an operand whose query and key axes are known, the rest from the softmax's result.

    Args:
        operand: What meets the values.
        query: Its axis of queries.
        key: Its axis of keys.
        tag: What is known of the softmax.
        module: The module of the attention, for its number of heads.
        images: The batch size, if it is known.
        whole: Whether a single leading axis holds no heads.
    """
    lead = [i for i in range(operand.dim()) if i not in (query, key)]
    order = (*lead, query, key)
    total = prod(operand.shape[i] for i in lead)
    axes = _leading(operand, query, key, tag)
    sizes = tuple(tag.shape[i] for i in axes)
    if not axes or prod(sizes) != total:
        sizes = tuple(operand.shape[i] for i in lead)
    if whole and len(sizes) == 1:
        return Layout(order, sizes, None)
    return Layout(order, *_split(sizes, total, module, images))


def _leading(operand: Tensor, query: int, key: int, tag: Tag) -> list[int]:
    """The tagged tensor's axes that are neither queries nor keys, slowest first."""
    inner: set[int] = set()
    for axis in (query, key):
        inner |= _inside(operand.shape[axis], operand.stride(axis), tag, inner)
    rest = [i for i in range(len(tag.shape)) if i not in inner]
    return sorted(rest, key=lambda i: -tag.stride[i]) if all(tag.stride) else rest


def _inside(size: int, stride: int, tag: Tag, taken: set[int]) -> set[int]:
    """The tagged tensor's axes that one axis of a view runs through."""
    shape, strides = tag.shape, tag.stride
    if size == 1:
        ones = [i for i, n in enumerate(shape) if n == 1 and i not in taken and i != tag.axis]
        return set(ones[-1:])
    hits = [i for i, n in enumerate(shape) if n == size and strides[i] == stride]
    if hits:
        return {hits[-1]}
    return {i for i, n in enumerate(shape) if n > 1 and stride <= strides[i] < stride * size}


def _split(
    sizes: tuple[int, ...], total: int, module: nn.Module, images: int | None
) -> tuple[tuple[int, ...], int | None]:
    """Which of the leading sizes are heads; a single one is split where its parts are known."""
    heads = head_count(module)
    if images and images > 1 and total == images and heads in (None, 1):
        return (total,), None
    if len(sizes) == 1:
        if heads and total % heads == 0 and total != images:
            return (total // heads, heads), 1
        if images and total % images == 0 and total != images:
            return (images, total // images), 1
        return sizes, None
    if not sizes:
        return sizes, None
    if heads in sizes[1:]:
        return sizes, len(sizes) - 1 - sizes[::-1].index(heads)
    return sizes, len(sizes) - 1


def head_count(module: nn.Module) -> int | None:
    """The number of heads by a module's own attributes."""
    for name in _HEADS:
        value = getattr(module, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
