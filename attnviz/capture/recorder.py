"""From what the rules find to records: chosen, edited, reduced, kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnviz.capture import fused as fusion
from attnviz.capture.gating import arrange
from attnviz.capture.grids import geometry
from attnviz.capture.layout import Layout, layout
from attnviz.capture.places import Call, Place
from attnviz.capture.record import Record
from attnviz.capture.seen import Capture
from attnviz.capture.tags import Squash, Tag

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher


class Recorder:
    """Makes the records of one watch."""

    def __init__(self, watcher: Watcher, seen: Capture) -> None:
        self.watcher = watcher
        self.options = watcher.options
        self.seen = seen
        self._made: list[Squash] = []

    def made(self, squash: Squash) -> None:
        """Remember a softmax or a gate until it is seen to be used."""
        self._made.append(squash)

    def attention(
        self, tag: Tag, operand: Tensor, query: int, key: int, values: Tensor
    ) -> Tensor | None:
        """A softmax's result meets values. Returns what shall take its place, if edited."""
        squash = tag.squash
        calls = self.watcher.calls()
        if squash is None or not calls:
            return None
        squash.used = True
        where = squash.place
        name, module = self._name(where, calls)
        if not self.options.wants("attention", (name, where.name), module):
            return None
        shape = geometry(calls, operand.shape[query], operand.shape[key])
        read = layout(operand, query, key, tag, module, shape.images)
        weights = read.present(_before_dropout(tag, operand))
        found = squash.scores
        self._keep(Record(
            name, "attention", weights, None, _axis_word(tag, operand, query, key, read),
            weights.shape[1], shape.query, shape.key, shape.prefix,
            "direct" if found is None else "qk", True, None, where.source, squash.op,
            type(module).__name__, double_softmax=squash.twice, factor=tag.factor,
            mixed=tag.mixed, dropout=tag.raw is not None,
            logit_scale=None if found is None else found.scale,
            d_k=None if found is None else found.width,
            query=None if found is None else _operand(found.query, weights),
            key=None if found is None else _operand(found.key, weights),
            images=shape.images, path=where.path, origin=where.name,
        ))  # fmt: skip
        return None

    def fused(self, fused: fusion.Fused, output: Tensor) -> Tensor | None:
        """A fused kernel has run. Returns what shall take its output's place, if edited."""
        calls = self.watcher.calls()
        where = self.watcher.place()
        if where is None:
            return None
        name, module = where.name, where.module
        if not self.options.wants("attention", (name,), module):
            return None
        shape = geometry(calls, fused.query.shape[-2], fused.key.shape[-2])
        weights = fusion.weights(fused)
        keep = self.options.operands
        self._keep(Record(
            name, "attention", weights, None, "k", weights.shape[1], shape.query, shape.key,
            shape.prefix, "fused", False, fusion.discrepancy(fused, weights, output),
            where.source, "scaled_dot_product_attention", type(module).__name__,
            dropout=fused.dropout > 0, logit_scale=fused.scale, d_k=fused.query.shape[-1],
            query=fused.query.detach() if keep else None,
            key=fused.key.detach() if keep else None,
            images=shape.images, path=where.path, origin=where.name,
        ))  # fmt: skip
        return None

    def gate(self, tag: Tag, gate: Tensor, other: Tensor, repeated: list[int]) -> Tensor | None:
        """A gate is laid over features. Returns what shall take its place, if edited."""
        squash = tag.squash
        calls = self.watcher.calls()
        if squash is None or not calls:
            return None
        squash.used = True
        where = squash.place
        name, module = self._name(where, calls)
        if not self.options.wants("gate", (name, where.name), module):
            return None
        read = arrange(gate, other, repeated)
        self._keep(Record(
            name, "gate", None, read.present(gate), read.axis, how="gate", source=where.source,
            op=squash.op, module=type(module).__name__, softmax=squash.op == "softmax",
            factor=tag.factor, features=other.detach() if self.options.features else None,
            images=other.shape[0], path=where.path, origin=where.name,
        ))  # fmt: skip
        return None

    def linear(self, tag: Tag, operand: Tensor, out: Tensor) -> None:
        """A product of products, without a softmax between."""

    def finish(self) -> None:
        """Close the books."""
        self._made.clear()

    def _name(self, where: Place, calls: list[Call]) -> tuple[str, torch.nn.Module]:
        """The module that attends: an activation's own module lends its parent's name."""
        module = where.module
        plain = not any(True for _ in module.children()) and not module._parameters
        if not plain or calls[0].module is module or not where.name:
            return where.name, module
        parent = where.name.rpartition(".")[0]
        return parent, self.watcher.model.get_submodule(parent)

    def _keep(self, record: Record) -> None:
        changes: dict[str, Any] = {"name": record.name or type(self.watcher.model).__name__}
        for field in ("weights", "scale", "query", "key"):
            tensor = getattr(record, field)
            if tensor is None:
                continue
            tensor = tensor.detach()
            if field == "weights":
                changes["shape"] = tuple(tensor.shape)
                if self.options.heads is not None:
                    chosen = self.options.heads
                    tensor = tensor[:, [chosen] if isinstance(chosen, int) else list(chosen)]
            elif field == "scale":
                changes["shape"] = tuple(tensor.shape)
            if self.options.to is not None or self.options.dtype is not None:
                tensor = tensor.to(device=self.options.to, dtype=self.options.dtype)
            changes[field] = tensor
        self.seen._add(_with(record, changes))


def _with(record: Record, changes: dict[str, Any]) -> Record:
    from dataclasses import replace

    return replace(record, **changes)


def _before_dropout(tag: Tag, operand: Tensor) -> Tensor:
    """The operand as it was before dropout, if that is known."""
    raw = tag.raw
    if raw is None or raw.stride() != tag.stride or tuple(raw.shape) != tag.shape:
        return operand
    offset = raw.storage_offset() + operand.storage_offset()
    return raw.as_strided(operand.shape, operand.stride(), offset)


def _axis_word(tag: Tag, operand: Tensor, query: int, key: int, read: Layout) -> str | None:
    """Which of b, heads, q, k sums to one."""
    axis = tag.find(operand)
    if axis == key or (axis is None and operand.shape[key] == 1):
        return "k"
    if axis == query:
        return "q"
    if tag.axis is None:
        return None
    size = tag.shape[tag.axis]
    if read.heads is not None and read.leading[read.heads] == size:
        return "heads"
    return "b"


def _operand(tensor: Tensor | None, weights: Tensor) -> Tensor | None:
    """Queries or keys `(n, tokens, d)` as `(b, heads, tokens, d)`, where that fits."""
    if tensor is None:
        return None
    b, heads = weights.shape[:2]
    lead = tensor.shape[:-2].numel()
    return tensor.reshape(b, heads, *tensor.shape[-2:]) if lead == b * heads else None
