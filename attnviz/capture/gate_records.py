"""Records of gates, and of softmax weights that are multiplied onto values and summed."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
from torch import Tensor

from attnviz.capture.attention_layout import head_count
from attnviz.capture.gate_layout import Arrangement, Pooling, arrange, pooling, spanned
from attnviz.capture.grids import Geometry
from attnviz.capture.op_mode import apart
from attnviz.capture.proven_places import Even, Numbered, numbered, proven
from attnviz.capture.provenance import Squash, Tag
from attnviz.capture.record import Record, changed
from attnviz.capture.recorder import (
    UNPROVEN,
    Recorder,
    Restore,
    before_dropout,
    edited,
    same,
)
from attnviz.capture.sampled_parts import Part, SampledParts
from attnviz.capture.sampled_rows import SampledRows
from attnviz.capture.scopes import Scope
from attnviz.errors import UnsupportedError
from attnviz.token_places import NO_QUERIES, Places, RecordPlaces

UNTOLD = (
    "which of its axes are heads and which are queries was not followed: all of them count as "
    "heads; give the module that attends its number of heads, as num_heads"
)
"""The note of records whose queries may be counted as heads."""

Weighing = tuple[Tag, Tensor, Tensor, list[int]]


class GateRecords:
    """Makes the records of gates. Each method is called by the rule of an op."""

    def __init__(self, recorder: Recorder, parts: SampledParts) -> None:
        self._recorder, self._parts = recorder, parts
        self._scopes, self._collector = recorder.scopes, recorder.collector
        self._weighed: dict[int, Weighing] = {}
        self._summed: set[int] = set()
        self._coordinates: set[int] = set()

    @apart
    def gate(
        self, tag: Tag, gate: Tensor, other: Tensor, repeated: list[int]
    ) -> tuple[Tensor | None, Tag | None]:
        """A gate is multiplied onto features.

        Args:
            tag: The gate's tag.
            gate: The gate.
            other: The features.
            repeated: The axes of the features along which the gate is repeated.

        Returns:
            The tensor to put in the gate's place, if edited; and a tag for the product, if a sum
            over it would make this pooled attention.
        """
        squash = tag.squash
        if squash is None:
            return None, None
        if self._parts.holds(tag, gate, other):
            replaced, part = self._parts.add(tag, gate, spanned(gate, other, repeated), other)
            return replaced, None if part is None else Tag("weighted", extra=(part, ()))
        squash.used = True
        pool, size = self._pooling(tag, gate, other, repeated)
        count = 1 if pool is None else prod(pool.shape[i] for i in pool.queries)
        scope = self._scopes.at(squash.place, count, size if pool is not None else 0)
        if pool is not None:
            labels = self._recorder.lineage.labels(other) or ()
            pool = pool.of_queries(labels, squash.shape[0], scope.shape.images)
        if pool is None and tag.axis is not None and repeated:
            return self._branch(tag, squash, gate, other, scope), None
        attends = pool is not None and len(repeated) == 1
        if not self._recorder.chosen("attention" if attends else "gate", scope, squash.place):
            return None, None
        number = len(self._recorder.seen)
        if pool is not None and gate.storage_offset() not in squash.numbers:
            self._weighed[number] = (tag, gate, other, repeated)
        if attends and pool is not None:
            record = self._recorder.placed(
                self._pooled_record(tag, squash, gate, pool, scope.name), squash.place, scope
            )
            record = self._in_pool(record, gate, pool, scope.shape.images)
            replaced = self._recorder.apply(record, squash, gate, pool.restore)
        else:
            record, restore = self._gate_record(tag, squash, gate, other, repeated, scope)
            replaced = self._recorder.apply(record, squash, gate, restore)
        weighted = None if pool is None else Tag("weighted", extra=(number, pool.keys))
        return replaced, weighted

    def _pooling(
        self, tag: Tag, gate: Tensor, other: Tensor, repeated: list[int]
    ) -> tuple[Pooling | None, int]:
        """How softmax weights are summed, if they are, and how many there are in a row.

        Axes of other places than the keys' are queries, and so are those beside the one that has as
        many entries as the module names heads.
        """
        if tag.kind != "softmax" or tag.axis is None or tag.squash is None:
            return None, 0
        size = tag.shape[tag.axis]
        pool = pooling(gate, other, repeated, tag.find(gate), size)
        if pool is None:
            return None, size
        lead = other.dim() - gate.dim()
        free = [a for a in pool.rest[1:] if a >= lead and pool.shape[a] > 1]
        labels = self._recorder.lineage.labels(gate) or ()
        of_queries = [one for one in labels if not any(one.along(a - lead) for a in pool.keys)]
        queries = [a for a in free if any(one.along(a - lead) for one in of_queries)]
        named = [a for a in free if pool.shape[a] == head_count(tag.squash.place.module)]
        if not queries and len(free) > len(named) == 1:
            queries = [a for a in free if a not in named]
        untold = not queries and len(free) > 1
        return replace(pool, queries=tuple(queries), untold=untold), size

    @apart
    def pooled(self, tag: Tag, axes: set[int]) -> None:
        """Softmax weights times values are summed over some axes: attention, over its own axes."""
        number, keys = tag.extra
        if isinstance(number, Part):
            number.keys = tuple(sorted(i for i in axes if number.shape[i] > 1))
            return
        if not set(keys) <= axes or number not in self._weighed:
            return
        self._summed.add(number)
        record = self._recorder.seen._records[number]
        old, gate, other, repeated = self._weighed[number]
        pool, _ = self._pooling(old, gate, other, repeated)
        if record.kind == "attention" or record.axis == "branch" or pool is None:
            return
        weights = pool.present(gate)
        record = self._in_pool(record, gate, pool, record.images, number)
        self._collector.keep(changed(
            record, kind="attention", weights=weights, scale=None, axis="k", how=_how(pool),
            heads=weights.shape[1], features=None, note=UNTOLD if pool.untold else "",
        ), number)  # fmt: skip

    def _in_pool(
        self, record: Record, gate: Tensor, pool: Pooling, images: int | None,
        number: int | None = None,
    ) -> Record:  # fmt: skip
        """The record with the places of its keys, read off the axes of its weights."""
        if pool.sampled is not None:
            return self._at_points(record, gate, pool.sampled, images, number)
        lead = len(pool.shape) - gate.dim()
        keys = [a - lead for a in pool.keys if a >= lead]
        rest = [a - lead for a in pool.rest if a >= lead and pool.shape[a] > 1]
        asking = [a - lead for a in pool.queries]
        split = Even(images=gate.shape[rest[0]] if rest else 1)
        lineage = self._recorder.lineage
        sides = [
            numbered(lineage, gate, tokens, [a for a in rest if a not in tokens], split)
            for tokens in (asking, keys)
        ]
        queries, found = (
            Numbered(side.space, np.repeat(side.numbers, images, 0))
            if side is not None and images and len(side.numbers) == 1
            else side
            for side in sides
        )
        return self._recorder.lies(record, queries if asking else None, found, images, number)

    def _at_points(
        self, record: Record, gate: Tensor, rows: SampledRows, images: int | None,
        number: int | None,
    ) -> Record:  # fmt: skip
        """The record of deformable attention: its keys are sampling points, on no grid."""
        queries = None
        if gate.dim() > 2 and rows.order is None:
            queries = numbered(self._recorder.lineage, gate, [2], [0], Even(heads=rows.heads))
        return self._recorder.at_points(record, queries, rows, images, number)

    def scales_coordinates(self, squash: Squash) -> None:
        """What a function's result multiplied were coordinates: it is no gate."""
        self._coordinates.update(squash.numbers.values())

    @apart
    def finish(self) -> None:
        """Finish one forward pass: softmax weights that were never summed are gates."""
        for number in set(self._weighed) - self._summed:
            record = self._recorder.seen._records[number]
            if record.kind == "attention":
                self._not_pooled(number, record)
        self._weighed.clear()
        self._summed.clear()

    def no_gates(self) -> set[int]:
        """The numbers of records that are no gates; those of a next forward pass begin anew."""
        found = {
            number for number in self._coordinates
            if self._recorder.seen._records[number].kind == "gate"
        }  # fmt: skip
        self._coordinates.clear()
        return found

    def _not_pooled(self, number: int, record: Record) -> None:
        tag, gate, other, repeated = self._weighed[number]
        shape = Geometry(record.images, record.image)
        scope = Scope(record.name, self._recorder.stack.model, shape)
        assert tag.squash is not None
        made, restore = self._gate_record(tag, tag.squash, gate, other, repeated, scope)
        edit = self._recorder.edit_of(made, tag.squash.place, number) if record.edited else None
        if edit is not None:
            made = edited(made, edit)
            pool, _ = self._pooling(tag, gate, other, repeated)
            assert pool is not None
            assert made.scale is not None
            assert record.weights is not None
            if not same(restore(made.scale, gate), pool.restore(record.weights, gate)):
                raise UnsupportedError(
                    f"edit of {made.name!r}: it is a gate over places {tuple(made.scale.shape)}, "
                    f"and was edited as attention {tuple(record.weights.shape)}, which gives "
                    "other values; use an edit that does not depend on the shape, or change the "
                    "model's code"
                )
        self._collector.keep(changed(made, module=record.module), number)

    def _gate_record(
        self,
        tag: Tag,
        squash: Squash,
        gate: Tensor,
        other: Tensor,
        repeated: list[int],
        scope: Scope,
    ) -> tuple[Record, Restore]:
        read = arrange(gate, other, repeated, self._recorder.lineage.labels(other) or ())
        with self._collector.graph():
            scale = read.present(gate)
        features = read.arrange(other) if self._recorder.options.features else None
        record = Record(
            scope.name, "gate", None, scale, read.axis, how="gate", op=squash.op,
            softmax=tag.kind == "softmax", factor=tag.factor, features=features,
            leaf=self._collector.leaf(gate, read.gather),
        )  # fmt: skip
        record = self._recorder.placed(record, squash.place, scope)
        return self._in_features(record, other, read), read.restore

    def _in_features(self, record: Record, other: Tensor, read: Arrangement) -> Record:
        """The record with the places of what a gate multiplies, if it can be drawn at all."""
        drawn = record.features is not None or (
            record.scale is not None and record.scale.shape[2:].numel() > 1
        )
        if not drawn or record.axis == "branch":
            return record
        tokens, batch = sorted(read.order[2:]), Even(images=len(other))
        lineage = self._recorder.lineage
        side = numbered(lineage, other, tokens, [0], batch)
        keys = proven(side, record.images, lineage) or Places(reason=UNPROVEN)
        return changed(record, places=RecordPlaces(Places(reason=NO_QUERIES), keys))

    def _pooled_record(
        self, tag: Tag, squash: Squash, gate: Tensor, pool: Pooling, name: str
    ) -> Record:
        with self._collector.graph():
            weights = pool.present(before_dropout(tag, gate))
        return Record(
            name, "attention", weights, None, "k", weights.shape[1], how=_how(pool), op=squash.op,
            factor=tag.factor, mixed=tag.mixed, dropout=tag.raw is not None,
            leaf=self._collector.leaf(gate, pool.present), note=UNTOLD if pool.untold else "",
        )  # fmt: skip

    def _branch(
        self, tag: Tag, squash: Squash, gate: Tensor, other: Tensor, scope: Scope
    ) -> Tensor | None:
        """One branch's part of a softmax over branches: one record for all of them."""
        if not self._recorder.chosen("gate", scope, squash.place):
            return None
        whole = gate.as_strided(tag.shape, tag.stride, 0)
        record = Record(
            scope.name, "gate", None, whole, "branch", how="gate", op="softmax", factor=tag.factor,
            features=other if self._recorder.options.features else None,
        )  # fmt: skip

        def restore(values: Tensor, like: Tensor) -> Tensor:
            return values.contiguous().as_strided(like.shape, like.stride(), like.storage_offset())

        record = self._recorder.placed(record, squash.place, scope)
        return self._recorder.apply(record, squash, gate, restore, once=True)


def _how(pool: Pooling) -> str:
    return "direct" if pool.queries else "pooled"
