"""Records of attention: softmax weights that meet values, fused kernels, bare q · k products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.capture import fused_weights as fusion
from attnviz.capture.attention_layout import (
    UNSPLIT,
    Layout,
    Split,
    divided_kernel,
    heads_beside,
    layout,
)
from attnviz.capture.call_stack import Place
from attnviz.capture.fused_weights import Fused
from attnviz.capture.grids import Geometry, token_counts
from attnviz.capture.op_mode import apart
from attnviz.capture.proven_places import Even, numbered
from attnviz.capture.provenance import Scores, Squash, Tag
from attnviz.capture.record import Record, changed
from attnviz.capture.recorder import Recorder, before_dropout
from attnviz.capture.sampled_parts import SampledParts
from attnviz.capture.sampled_rows import SampledRows, sampled_rows
from attnviz.capture.scopes import Scope

_UNNORMALISED = "q · kᵀ reaches the values without a softmax"
_SQUARED = (
    "its values are attention weights too: the model applies the product, which is not recorded"
)


class AttentionRecords:
    """Makes the records of attention. Each method is called by the rule of an op.

    Methods that return a tensor return what an edit puts in the place of the model's own, or None.
    """

    def __init__(self, recorder: Recorder, parts: SampledParts) -> None:
        self._recorder, self._parts = recorder, parts
        self._scopes, self._collector = recorder.scopes, recorder.collector

    @apart
    def product(
        self,
        tag: Tag,
        operand: Tensor,
        query: int,
        key: int,
        known: Tag | None,
        values: Tensor | None = None,
    ) -> Tensor | None:
        """A softmax's result is contracted with values.

        Args:
            tag: The tag of the softmax's result.
            operand: The factor of the product that holds it.
            query: The operand's axis of queries.
            key: The operand's axis of keys, the one that is contracted.
            known: The tag of the values, if they have one.
            values: The values, `(…, keys, d)`.
        """
        squash = tag.squash
        if squash is None:
            return None
        if values is not None and operand.shape[query] == 1 and (
            self._parts.holds(tag, operand, values)
        ):  # fmt: skip
            return self._in_parts(tag, operand, key, values)
        squash.used = True
        met_context = known is not None and known.kind == "context" and squash.scores is None
        if met_context and tag.find(operand) == key:
            return None  # linear attention's queries, softmaxed over channels, meet their context
        lineage, shape = self._recorder.lineage, operand.shape
        beside = heads_beside(operand, query, tag, squash.place.module, lineage)
        if beside is not None:
            operand, query, key = beside.apart(operand, query, key)
        queries, keys = operand.shape[query], operand.shape[key]
        width = None if squash.scores is None else squash.scores.width
        scope = self._scopes.at(squash.place, queries, keys, width)
        if not self._recorder.chosen("attention", scope, squash.place):
            return None
        total = operand.numel() // max(1, queries * keys)
        whole = self._scopes.cut(scope, squash.place, total, keys)
        images = scope.shape.images
        read = layout(
            operand, query, key, tag, scope.module, images, lineage, values=values, whole=whole
        )
        rows = self._sampled(values, queries, squash, images)
        present, restore = read.present, read.restore
        if rows is not None:
            present = partial(rows.of_operand, order=read.order)
            restore = partial(rows.to_operand, order=read.order)
        with self._collector.graph():
            raw = before_dropout(tag, operand)
            weights = present(raw)
        found = squash.scores if rows is None else None
        asked, given = (None, None) if found is None else (found.query, found.key)
        if beside is not None:
            asked, given, values = (
                beside.queries(asked, lineage), beside.keys(given), beside.keys(values),
            )  # fmt: skip
        keeps_values = self._recorder.options.operands and rows is None
        plain = tag.kind == "softmax"
        record = Record(
            scope.name, "attention", weights, None, _axis_word(tag, operand, query, key, read),
            weights.shape[1], op=squash.op, how=_how(found, queries) if plain else "unnormalised",
            softmax=plain, note=_note(read.split, _doubt(tag, known)),
            double_softmax=squash.twice, factor=tag.factor, mixed=tag.mixed,
            dropout=tag.raw is not None, logit_scale=squash.logit_scale,
            d_k=None if found is None else found.width,
            query=read.operand(asked, queries), key=read.operand(given, keys),
            value=read.operand(values, keys) if keeps_values else None,
            leaf=self._collector.leaf(raw, present),
        )  # fmt: skip
        record = self._recorder.placed(record, squash.place, scope)
        if rows is not None:
            record = self._recorder.at_points(record, None, rows, images)
            return self._recorder.apply(record, squash, operand, restore)
        record = self._in_product(record, operand, query, key, read, images, values)
        part = 0 < keys < squash.size
        replaced = self._recorder.apply(record, squash, operand, restore, part=part)
        self._recorder.part(values, squash, int(operand.storage_offset()), read.split)
        return None if replaced is None else replaced.reshape(shape)

    def _in_parts(self, tag: Tag, operand: Tensor, key: int, values: Tensor) -> Tensor | None:
        """A part of a softmax's result is contracted with values at sampling points."""
        width = values.dim() - 1
        shape = (*values.shape[:width], 1)
        weights = operand if key == operand.dim() - 1 else operand.mT
        replaced, part = self._parts.add(tag, weights.mT, shape, values)
        if part is not None:
            part.keys = (width - 1,)
        if replaced is None:
            return None
        return replaced.mT if key == operand.dim() - 1 else replaced

    def _sampled(
        self, values: Tensor | None, queries: int, squash: Squash, images: int | None
    ) -> SampledRows | None:
        """How weights are to be read that meet values at sampling points, of each query its own."""
        labels = None if values is None or queries != 1 else self._recorder.lineage.labels(values)
        if not labels or values is None:
            return None
        lead = range(values.dim() - 2)
        order = (*lead, values.dim() - 1, values.dim() - 2)
        shape = (*values.shape[:-1], 1)
        return sampled_rows(labels, shape, order, 1, squash.shape[0], images)

    def _in_product(
        self, record: Record, operand: Tensor, query: int, key: int, read: Layout,
        images: int | None, values: Tensor | None = None,
    ) -> Record:  # fmt: skip
        """The record with the places of its tokens, read off the axes of its weights.

        Where these do not tell those of the keys, as of a part of a softmax over several sets of
        keys, the values do, one for each key.
        """
        lineage, lead = self._recorder.lineage, list(read.order[:-2])
        queries, keys = (numbered(lineage, operand, [axis], lead, read) for axis in (query, key))
        if keys is None and values is not None:
            outer = range(values.dim() - 2)
            if values.shape[: len(outer)] == tuple(operand.shape[i] for i in lead):
                keys = numbered(lineage, values, [len(outer)], outer, read)
        return self._recorder.lies(record, queries, keys, images)

    def _in_kernel(
        self, record: Record, queries: Tensor, keys: Tensor, images: int | None,
        split: Split | None = None,
    ) -> Record:  # fmt: skip
        """The record with the places of a kernel's queries and keys `(b, heads, tokens, d)`."""
        sides = [
            numbered(self._recorder.lineage, x, [x.dim() - 2], list(range(x.dim() - 2)),
                     split or Even(images=x.shape[0]))
            for x in (queries, keys)
        ]  # fmt: skip
        return self._recorder.lies(record, sides[0], sides[1], images)

    @apart
    def fused(
        self,
        fused: Fused,
        output: Tensor,
        logsumexp: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor | None:
        """A fused kernel has run.

        Args:
            fused: Its arguments.
            output: Its output.
            logsumexp: Its row sums, where it returned them.
            weights: Its weights, where they are known already.

        Returns:
            The tensor to put in the output's place, if edited.
        """
        found = self._ran(fused)
        if found is None:
            return None
        place, scope = found
        images = None if self._one_row(fused, scope) else scope.shape.images
        lineage = self._recorder.lineage
        by = divided_kernel(fused.query, fused.value, scope.module, images, lineage)
        given, whole = output, fused
        split = fusion.splitting(fused, by)
        fused, output = fusion.split_operands(fused, split), split(output)
        logsumexp = None if logsumexp is None else split(logsumexp)
        if weights is None and self._one_token(fused, scope):
            split = partial(_composed, fusion.one_token, split)
            fused, output, logsumexp = fusion.unpacked(fused), fusion.one_token(output), None
        record = Record(
            place.name, "attention", None, None, "k", fused.query.shape[-3], how="fused",
            exact=False, op="scaled_dot_product_attention", dropout=fused.dropout > 0,
            leaf=self._collector.leaf(given, lambda slope: fusion.slope(fused, split(slope))),
            note=_note(by, ""),
        )  # fmt: skip
        record = self._recorder.placed(self._with_operands(record, fused), place, scope)
        if by.order is None:
            record = self._in_kernel(record, fused.query, fused.key, scope.shape.images)
        else:
            record = self._in_kernel(record, whole.query, whole.key, scope.shape.images, by)
        edit = self._recorder.edit_of(record, place)
        if not self._recorder.trusted:
            record = changed(record, check=fusion.discrepancy(fused, output, weights))
        if edit is None and weights is None:
            shape = (*fused.query.shape[:-1], fused.key.shape[-2])
            bare = changed(record, shape=shape)
            reduced = self._collector.by_chunks(bare, fused, logsumexp)
            if reduced is not None:
                self._collector.store(bare, reduced)
                return None
        weights = self._recomputed(fused, logsumexp) if weights is None else weights
        record = self._recorder.keep(changed(record, weights=weights), edit)
        if edit is None or record.weights is None:
            return None
        return fusion.joined(fused, record.weights, given, by)

    @apart
    def projected(
        self,
        fused: Fused,
        output: Tensor,
        finished: Callable[[Tensor, Any], Tensor],
        sources: tuple[Tensor, Tensor],
    ) -> Tensor | None:
        """A kernel has run that projects its operands and its output as well.

        Args:
            fused: The projected operands.
            output: The kernel's output.
            finished: Called with A V of some rows and these rows; returns the kernel's output.
            sources: Queries and keys before they were projected, `(b, tokens, width)`.
        """
        found = self._ran(fused, fast=True)
        if found is None:
            return None
        place, scope = found
        weights = fusion.weights(fused)

        def out(weights: Tensor, rows: Any) -> Tensor:
            mixed = weights[..., rows, :].to(fused.value.dtype) @ fused.value
            return finished(mixed.transpose(1, 2).flatten(2), rows)

        rows = fusion.some_rows(weights.shape[-2])
        own = output[:, rows]
        off = (out(weights, rows) - own).abs().max() / own.abs().max().clamp_min(1e-30)
        record = Record(
            scope.name, "attention", weights, None, "k", weights.shape[1], how="fused",
            exact=False, check=float(off), op="fast path",
        )  # fmt: skip
        record = self._recorder.placed(self._with_operands(record, fused), place, scope)
        record = self._in_kernel(record, *sources, scope.shape.images)
        edit = self._recorder.edit_of(record, place)
        record = self._recorder.keep(record, edit)
        if edit is None or record.weights is None:
            return None
        return torch.empty_like(output).copy_(out(record.weights, slice(None)))

    @apart
    def unreadable(self, op: str, note: str) -> None:
        """A kernel has attended, and its weights cannot be computed."""
        place = self._recorder.stack.place()
        if place is None:
            return
        scope = Scope(place.name, place.module, Geometry())
        place = _attending(place) if op == "fast path" else place
        if self._recorder.chosen("attention", scope, place):
            record = Record(scope.name, "attention", axis="k", how="fused", exact=False, op=op,
                            note=note)  # fmt: skip
            self._recorder.without_weights(record, place, scope)

    @apart
    def linear(self, tag: Tag, operand: Tensor, query: int, key: int) -> Tensor | None:
        """A product of data with data is contracted with data again, without a softmax between."""
        scores, place = tag.scores, self._recorder.stack.place()
        if scores is None or place is None or operand.dim() < 2:
            return None
        rows, columns = operand.shape[query], operand.shape[key]
        tokens = set().union(*token_counts(self._recorder.stack.calls()))
        if scores.width in tokens or rows in tokens:
            plain = {rows, columns} <= tokens
        else:
            plain = scores.width < min(rows, columns)
        scope = self._scopes.at(place, rows, columns, scores.width)
        if not self._recorder.chosen("attention", scope, place):
            return None
        if not plain:
            record = Record(place.name, "attention", how="linear", op="product", softmax=False,
                            note="q (kᵀ v): no weights exist")  # fmt: skip
            self._recorder.without_weights(record, place, scope)
            return None
        lineage = self._recorder.lineage
        read = layout(operand, query, key, tag, scope.module, scope.shape.images, lineage)
        with self._collector.graph():
            weights = read.present(operand)
        factor = scores.scale * tag.factor
        record = Record(
            place.name, "attention", weights, None, None, weights.shape[1], how="unnormalised",
            op="product", softmax=False, logit_scale=None if factor != factor else factor,
            d_k=scores.width, leaf=self._collector.leaf(operand, read.present),
            note=_note(read.split, _UNNORMALISED),
        )  # fmt: skip
        squash = Squash("product", place, tuple(operand.shape))
        record = self._recorder.placed(record, place, scope)
        record = self._in_product(record, operand, query, key, read, scope.shape.images)
        return self._recorder.apply(record, squash, operand, read.restore)

    def _ran(self, fused: Fused, *, fast: bool = False) -> tuple[Place, Scope] | None:
        """Place and scope of a kernel, if the watched model ran it and it was chosen.

        Args:
            fused: The kernel's arguments.
            fast: Whether it does more than to attend, as an encoder layer's fast path does.
        """
        place = self._recorder.stack.place()
        if place is None:
            return None
        q, width = fused.query.shape[-2:]
        scope = self._scopes.at(place, q, fused.key.shape[-2], width)
        scope = scope._replace(name=place.name, module=place.module)
        place = _attending(place) if fast else place
        return (place, scope) if self._recorder.chosen("attention", scope, place) else None

    def _one_row(self, fused: Fused, scope: Scope) -> bool:
        """Whether a kernel's single row is one for the module as well, whatever images there are.

        Several images in one prompt are such a row; images folded into the heads are not.
        """
        queries, images = fused.query.shape[-2], scope.shape.images
        if fused.query.shape[0] != 1 or not images or images == 1:
            return False
        for call in self._recorder.stack.calls():
            rows = [shape[0] for shape in call.shapes if len(shape) == 3 and shape[1] == queries]
            if rows:
                return rows[0] == 1
        return False

    def _one_token(self, fused: Fused, scope: Scope) -> bool:
        """Whether a kernel's queries are the heads of each group, for a module given one token."""
        b, _, count = fused.query.shape[:3]
        if count == 1 or getattr(scope.module, "num_key_value_groups", None) != count:
            return False
        for call in self._recorder.stack.calls():
            tokens = [shape[1] for shape in call.shapes if len(shape) == 3 and shape[0] == b]
            if call.module is scope.module and tokens:
                return tokens[0] == 1
        return False

    def _with_operands(self, record: Record, fused: Fused) -> Record:
        keep = self._recorder.options.reads_operands
        return changed(
            record, logit_scale=fused.logit_scale, d_k=fused.query.shape[-1],
            query=fused.query if keep else None, key=fused.key if keep else None,
            value=fused.value if keep else None,
        )  # fmt: skip

    def _recomputed(self, fused: Fused, logsumexp: Tensor | None) -> Tensor:
        if logsumexp is not None and not self._recorder.options.keep_graph:
            weights = fusion.from_sums(fused, logsumexp)
            if weights is not None:
                return weights
        with self._collector.graph():
            return fusion.weights(fused)


def _attending(place: Place) -> Place:
    """The place of an encoder layer's own attention, whose work its fast path does as well.

    The record keeps the name of the layer, which ran; its origin is where it comes from on every
    other path.
    """
    inner = getattr(place.module, "self_attn", None)
    if not isinstance(inner, nn.MultiheadAttention):
        return place
    name = f"{place.name}.self_attn" if place.name else "self_attn"
    return replace(place, name=name, module=inner)


def _composed(
    outer: Callable[[Tensor], Tensor], inner: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    return outer(inner(x))


def _doubt(tag: Tag, known: Tag | None) -> str:
    """What is to be noted of weights, from their tag and that of their values."""
    if tag.kind != "softmax":
        return _UNNORMALISED
    squash = None if known is None or known.kind != "softmax" else known.squash
    return "" if squash is None or squash.scores is None else _SQUARED


def _note(split: Split, note: str) -> str:
    return "; ".join(one for one in (note, UNSPLIT if split.unsplit else "") if one)


def _how(scores: Scores | None, queries: int) -> str:
    if scores is not None:
        return "qk"
    return "pooled" if queries == 1 else "direct"


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
    if read.heads == size:
        return "heads"
    return "b" if size in read.leading else None
