"""Keeps records: chosen heads, reductions, device, type and, with `keep_graph`, the graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from attnviz.capture import fused_weights as fusion
from attnviz.capture import reductions
from attnviz.capture.blocks import Blocks
from attnviz.capture.capture import Capture
from attnviz.capture.fused_weights import Fused
from attnviz.capture.op_mode import differentiated
from attnviz.capture.options import Options
from attnviz.capture.provenance import storage_key
from attnviz.capture.record import Leaf, Record, changed
from attnviz.capture.steps import Pass
from attnviz.errors import InputError

_CHUNK = 1 << 19  # weights computed at once where only a reduction is kept; they stay in the cache
_TENSORS = ("weights", "scale", "query", "key", "features")


class Collector:
    """Puts records into a capture.

    Attributes:
        options: The options of the watch.
        seen: The capture.
        aliased: By storage, which fields of which records share it with the model.
    """

    def __init__(self, options: Options, seen: Capture) -> None:
        self.options = options
        self.seen = seen
        self.aliased: dict[int, list[tuple[int, str]]] = {}
        self._rollouts = [r for r in options.reduce.values() if isinstance(r, reductions.Rollout)]
        self._first = 0
        self._blocks = Blocks()
        self._steps_alone = all(name.partition(".")[0] == "steps" for name in options.reduce)

    @property
    def rolls(self) -> bool:
        """Whether something is followed through the layers of a forward pass."""
        return bool(self._rollouts)

    def shares(self, tensor: Any) -> bool:
        """Whether a record shares its values with a tensor that the model is about to change."""
        if not self.aliased or not isinstance(tensor, Tensor):
            return False
        if tensor.is_sparse or tensor.is_nested:
            return False
        return storage_key(tensor) in self.aliased

    def begin(self) -> None:
        """A forward pass begins."""
        self._first = len(self.seen)
        for rollout in self._rollouts:
            rollout.reset()

    def keep(self, record: Record, number: int | None = None) -> None:
        """Reduce a record and put it in, or in the place of another one."""
        values = record.weights if record.kind == "attention" else record.scale
        record = changed(record, shape=() if values is None else tuple(values.shape))
        if record.weights is not None and self.options.heads is not None:
            record = _heads(record, record.weights, self.options.heads)
        if not self.options.reduce:
            self.store(record, {}, number)
            return
        plain = changed(record, weights=_detached(record.weights), scale=_detached(record.scale))
        made = {name: way(plain) for name, way in self.options.reduce.items()}
        reduced = {name: _own(name, v, record) for name, v in made.items() if v is not None}
        self.store(changed(record, weights=None), reduced, number)

    def store(self, record: Record, reduced: dict[str, Tensor], number: int | None = None) -> None:
        """Put a record in, on the device and in the type that the options name."""
        changes: dict[str, Any] = {
            field: self._moved(tensor if self.options.keep_graph else tensor.detach())
            for field in _TENSORS
            if (tensor := getattr(record, field)) is not None
        }
        if not self.options.operands and self.options.reads_operands:
            changes |= {"query": None, "key": None, "value": None}
        if reduced and self._folded(record, reduced, number):
            return
        if reduced:
            changes["reduced"] = {name: self._moved(value) for name, value in reduced.items()}
            self._forget_rollout(reduced)
        if record.points is not None:
            changes["points"] = None if reduced else record.points.moved(self._moved)
        record = changed(record, **changes)
        if number is None:
            number = self.seen._add(record)
        else:
            self.seen._set(number, record)
        for field, tensor in changes.items():
            if isinstance(tensor, Tensor):
                self.aliased.setdefault(storage_key(tensor), []).append((number, field))

    def preserve(self, tensor: Tensor) -> None:
        """Copy what was kept of a tensor, now that the model is about to write into it."""
        for number, field in self.aliased.pop(storage_key(tensor), []):
            record = self.seen._records[number]
            kept = getattr(record, field)
            if kept is not None:
                self.seen._set(number, changed(record, **{field: kept.clone()}))

    def by_chunks(
        self, record: Record, fused: Fused, logsumexp: Tensor | None
    ) -> dict[str, Tensor] | None:
        """A fused kernel's weights, reduced a few queries at a time; None if needed whole."""
        asked = self.options.reduce
        ways = {name: reductions.parts(way) for name, way in asked.items()}
        if not asked or None in ways.values():
            return None
        by_rows = {name: way for name, way in asked.items() if ways[name] != "apart"}
        if self.options.heads is not None and by_rows:
            return None
        reduced: dict[str, Tensor] = {}
        for name, way in asked.items():
            value = self._apart(record, fused, way) if name not in by_rows else None
            if value is not None:
                reduced[name] = value
        if not by_rows:
            return reduced
        if logsumexp is not None and set(by_rows.values()) == {reductions.received}:
            means = fusion.column_means(fused, logsumexp)
            if means is not None:
                return reduced | dict.fromkeys(by_rows, means)
        pieces: dict[str, list[Tensor]] = {name: [] for name in by_rows}
        for chunk in _chunks(fused, first={ways[name] for name in by_rows} == {"first"}):
            part = changed(record, weights=fusion.weights(fused, chunk))
            share = (chunk.stop - chunk.start) / fused.query.shape[-2]
            for name, way in by_rows.items():
                value = way(part)
                if value is not None:
                    pieces[name].append(
                        value * share if ways[name] == "mean" else _own(name, value, part)
                    )
        return reduced | {
            name: _joined(ways[name], values) for name, values in pieces.items() if values
        }

    def _apart(self, record: Record, fused: Fused, way: reductions.Reduction) -> Tensor | None:
        """A reduction that reads no weights, or those of a few queries."""
        if not isinstance(way, reductions.Rows):
            return way(record)
        rows = fusion.weights(fused, way.queries(fused.query.shape[-2], record.name))
        chosen = self.options.heads
        return rows if chosen is None else _chosen(rows, record, chosen)

    def graph(self) -> AbstractContextManager[None]:
        """With `keep_graph`, switch autograd on again; within a rule it is off."""
        if self.options.keep_graph and torch.is_grad_enabled():
            return differentiated()
        return nullcontext()

    def leaf(self, tensor: Tensor, read: Callable[[Tensor], Tensor]) -> Leaf | None:
        """The tensor to differentiate by, with `keep_graph`; None without."""
        return Leaf(tensor, read) if self.options.keep_graph else None

    def finish(self) -> None:
        """A forward pass has ended."""
        self.aliased.clear()
        self._first = 0
        for rollout in self._rollouts:
            rollout.reset()

    def _forget_rollout(self, reduced: dict[str, Tensor]) -> None:
        """Only the last layer of a forward pass keeps the product of all of them."""
        for name, way in self.options.reduce.items():
            if not isinstance(way, reductions.Rollout) or name not in reduced:
                continue
            for number in range(self._first, len(self.seen)):
                earlier = self.seen._records[number]
                value = earlier.reduced.get(name)
                if value is not None and value.shape == reduced[name].shape:
                    kept = {key: v for key, v in earlier.reduced.items() if key != name}
                    self.seen._set(number, changed(earlier, reduced=kept))

    def _folded(self, record: Record, reduced: dict[str, Tensor], number: int | None) -> bool:
        """Whether a record only adds a forward pass to the first one of its module.

        That is so with `reduce="steps"` alone: a generation then has one record per module.
        """
        if number is not None or "steps" not in reduced or not self._steps_alone:
            return False
        codes = reduced.get("steps.keys")
        passes = self.seen._passes.setdefault(record.name, [])
        passes.append(
            Pass(
                record.shape,
                tuple(reduced["steps.queries"].tolist()),
                self._blocks.hold(self._moved(reduced["steps"].detach())),
                None if codes is None else self._blocks.hold(self._moved(codes)),
            )
        )
        return len(passes) > 1

    def _moved(self, tensor: Tensor) -> Tensor:
        if self.options.to is None and self.options.dtype is None:
            return tensor
        dtype = self.options.dtype if tensor.is_floating_point() else None
        with self.graph():
            return tensor.to(device=self.options.to, dtype=dtype)


def _chunks(fused: Fused, *, first: bool) -> list[slice]:
    """Slices of queries whose weights stay in the cache; the first query alone, if it is enough."""
    if first:
        return [slice(0, 1)]
    *lead, queries, _ = fused.query.shape
    step = max(1, _CHUNK // max(1, torch.Size(lead).numel() * fused.key.shape[-2]))
    return [slice(i, min(queries, i + step)) for i in range(0, queries, step)]


def _joined(how: str | None, values: list[Tensor]) -> Tensor:
    if how == "first":
        return values[0]
    return torch.stack(values).sum(0) if how == "mean" else torch.cat(values, -1)


def _own(name: str, value: Any, record: Record) -> Tensor:
    """A reduced value, that does not keep the weights alive by being a part of them."""
    if not isinstance(value, Tensor):
        raise InputError(
            f"reduce: {name!r} of {record.name!r} returned {type(value).__name__}; "
            "expected a tensor, or None where it does not apply"
        )
    weights = record.weights
    if weights is None or storage_key(value) != storage_key(weights):
        return value
    return value.clone()


def _heads(record: Record, weights: Tensor, chosen: tuple[int, ...]) -> Record:
    """The record with some heads alone, in its weights and in their gradient."""
    kept = _chosen(weights, record, chosen)
    leaf = record.leaf
    if leaf is not None:
        read = leaf.read
        leaf = Leaf(leaf.tensor, lambda slope: read(slope)[:, list(chosen)])
    points = None if record.points is None else record.points.of_heads(chosen)
    return changed(record, weights=kept, leaf=leaf, points=points)


def _chosen(weights: Tensor, record: Record, chosen: tuple[int, ...]) -> Tensor:
    if any(not -weights.shape[1] <= head < weights.shape[1] for head in chosen):
        raise InputError(
            f"watch: {record.name!r} has {weights.shape[1]} heads, got heads={chosen}; "
            "choose the modules that have them by where="
        )
    return weights[:, list(chosen)]


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
