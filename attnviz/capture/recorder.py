"""From what the rules find to records: chosen, read, edited, and handed to the keeper."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnviz.capture import fused_weights as fusion
from attnviz.capture.attention_layout import Layout, head_count, layout
from attnviz.capture.call_stack import Place
from attnviz.capture.capture import Capture
from attnviz.capture.collector import Keeper
from attnviz.capture.edits import Edit, checked
from attnviz.capture.fused_weights import Fused
from attnviz.capture.gate_layout import Pooling, arrange, pooling
from attnviz.capture.grids import Geometry, geometry, token_counts
from attnviz.capture.op_mode import apart
from attnviz.capture.provenance import Scores, Squash, Tag
from attnviz.capture.record import Record, changed
from attnviz.capture.scopes import Look, Looks
from attnviz.errors import UnsupportedError

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

Restore = Callable[[Tensor, Tensor], Tensor]
_UNNORMALISED = "q · kᵀ reaches the values without a softmax"
Weighing = tuple[Tag, Tensor, Tensor, list[int]]


class Recorder:
    """Makes the records of one watch. Each rule calls one method, which returns an edit or None.

    Attributes:
        keeper: Keeps the records.
        looks: Knows places and grids.
        edited: The names and globs of edits that met something.
        passed_over: Names that `where=` did not choose.
    """

    def __init__(self, watcher: Watcher, seen: Capture) -> None:
        self.watcher = watcher
        self.options = watcher.options
        self.keeper = Keeper(watcher.options, seen)
        self.looks = Looks(watcher)
        self.edited: set[str] = set()
        self.passed_over: dict[str, None] = {}
        self._made: list[Squash] = []
        self._guarded: list[Tensor] = []
        self._weighed: dict[int, Weighing] = {}
        self._summed: set[int] = set()
        self._call: object = None

    @property
    def seen(self) -> Capture:
        """The capture that is being filled."""
        return self.keeper.seen

    def made(self, squash: Squash) -> None:
        """Remember a softmax or a gate until it is seen to be used."""
        self._made.append(squash)

    @apart
    def attention(
        self, tag: Tag, operand: Tensor, query: int, key: int, known: Tag | None
    ) -> Tensor | None:
        """A softmax's result meets values, of which something may be known, too."""
        squash = tag.squash
        if squash is None:
            return None
        squash.used = True
        met_context = known is not None and known.kind == "context" and squash.scores is None
        if met_context and tag.find(operand) == key:
            return None  # linear attention's queries, softmaxed over channels, meet their context
        queries, keys = operand.shape[query], operand.shape[key]
        width = None if squash.scores is None else squash.scores.width
        look = self.looks.at(squash.place, queries, keys, squash, width)
        if not self._chosen("attention", look, squash.place):
            return None
        total = operand.numel() // max(1, queries * keys)
        whole = self.looks.cut(look, squash.place, total, keys)
        images = look.shape.images
        read = layout(operand, query, key, tag, look.module, images, whole=whole)
        with self.keeper.graph():
            raw = _before_dropout(tag, operand)
            weights = read.present(raw)
        found = squash.scores
        plain = tag.kind == "softmax"
        record = Record(
            look.name, "attention", weights, None, _axis_word(tag, operand, query, key, read),
            weights.shape[1], op=squash.op, how=_how(found, queries) if plain else "unnormalised",
            softmax=plain, note="" if plain else _UNNORMALISED, double_softmax=squash.twice,
            factor=tag.factor, mixed=tag.mixed, dropout=tag.raw is not None,
            logit_scale=squash.logit_scale,
            d_k=None if found is None else found.width,
            query=None if found is None else _operand(found.query, weights, -2),
            key=None if found is None else _operand(found.key, weights, -1),
            leaf=self.keeper.leaf(raw, read.present),
        )  # fmt: skip
        record = self._placed(record, squash.place, look, weights)
        return self._finish(record, squash, operand, read.restore)

    @apart
    def fused(
        self,
        fused: Fused,
        output: Tensor,
        logsumexp: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor | None:
        """A fused kernel has run, and its weights may already be known.

        Returns:
            What shall take its output's place, if edited.
        """
        found = self._ran(fused)
        if found is None:
            return None
        where, look = found
        given, split = output, fusion.splitting(fused, look.shape.images, head_count(look.module))
        fused, output = fusion.split_operands(fused, split), split(output)
        logsumexp = None if logsumexp is None else split(logsumexp)
        record = Record(
            where.name, "attention", None, None, "k", fused.query.shape[-3], how="fused",
            exact=False, op="scaled_dot_product_attention", dropout=fused.dropout > 0,
            leaf=self.keeper.leaf(given, lambda slope: fusion.slope(fused, split(slope))),
        )  # fmt: skip
        record = self._placed(self._with_operands(record, fused), where, look, None)
        edit = self._edit(record, where)
        if not self.watcher.trusted:
            record = changed(record, check=fusion.discrepancy(fused, output, weights))
        if edit is None and weights is None:
            reduced = self.keeper.by_chunks(record, fused, logsumexp)
            if reduced is not None:
                shape = (*fused.query.shape[:-1], fused.key.shape[-2])
                record = self.looks.windowed(record, shape, look.shape.images)
                self.keeper.store(changed(record, shape=shape), reduced)
                return None
        weights = self._recomputed(fused, logsumexp) if weights is None else weights
        record = self.looks.windowed(record, weights.shape, look.shape.images)
        record = self._applied(changed(record, weights=weights), edit)
        if edit is None or record.weights is None:
            return None
        return fusion.applied(fused, record.weights, output).view_as(given)

    @apart
    def projected(
        self, fused: Fused, output: Tensor, finished: Callable[[Tensor, Any], Tensor]
    ) -> Tensor | None:
        """A kernel that projects, too. `finished` makes its output from A V of some rows."""
        found = self._ran(fused)
        if found is None:
            return None
        where, look = found
        weights = fusion.weights(fused)

        def out(weights: Tensor, rows: Any) -> Tensor:
            mixed = weights[..., rows, :].to(fused.value.dtype) @ fused.value
            return finished(mixed.transpose(1, 2).flatten(2), rows)

        rows = fusion.some_rows(weights.shape[-2])
        own = output[:, rows]
        off = (out(weights, rows) - own).abs().max() / own.abs().max().clamp_min(1e-30)
        record = Record(
            where.name, "attention", weights, None, "k", weights.shape[1], how="fused",
            exact=False, check=float(off), op="fast path",
        )  # fmt: skip
        record = self._placed(self._with_operands(record, fused), where, look, weights)
        edit = self._edit(record, where)
        record = self._applied(record, edit)
        if edit is None or record.weights is None:
            return None
        return torch.empty_like(output).copy_(out(record.weights, slice(None)))

    @apart
    def unreadable(self, op: str, note: str) -> None:
        """A kernel attended, and its weights cannot be told."""
        where = self.watcher.place()
        if where is None:
            return
        look = Look(where.name, where.module, Geometry())
        if self._chosen("attention", look, where):
            record = Record(where.name, "attention", axis="k", how="fused", exact=False, op=op,
                            note=note)  # fmt: skip
            self._without_weights(record, where, look)

    @apart
    def gate(
        self, tag: Tag, gate: Tensor, other: Tensor, repeated: list[int]
    ) -> tuple[Tensor | None, Tag | None]:
        """A gate is laid over features.

        Returns:
            What shall take its place, if edited; and a tag for the product, if a sum over it
            would make this pooled attention.
        """
        squash = tag.squash
        if squash is None:
            return None, None
        squash.used = True
        pool, size = _pooling(tag, gate, other, repeated)
        look = self.looks.at(squash.place, 1, size if pool is not None else 0, squash)
        if pool is None and tag.axis is not None and repeated:
            return self._branch(tag, squash, gate, other, look), None
        attends = pool is not None and len(repeated) == 1
        if not self._chosen("attention" if attends else "gate", look, squash.place):
            return None, None
        number = len(self.seen)
        if pool is not None and gate.storage_offset() not in squash.numbers:
            self._weighed[number] = (tag, gate, other, repeated)
        if attends and pool is not None:
            record = self._placed(self._pooled_record(tag, squash, gate, pool, look.name),
                                  squash.place, look, None)  # fmt: skip
            replaced = self._finish(record, squash, gate, pool.restore)
        else:
            record, restore = self._gate_record(tag, squash, gate, other, repeated, look)
            replaced = self._finish(record, squash, gate, restore)
        weighted = None if pool is None else Tag("weighted", extra=(number, pool.keys))
        return replaced, weighted

    @apart
    def pooled(self, tag: Tag, axes: set[int]) -> None:
        """What a softmax weighted is summed over some axes: attention, if they are its own."""
        number, keys = tag.extra
        if not set(keys) <= axes or number not in self._weighed:
            return
        self._summed.add(number)
        record = self.seen._records[number]
        old, gate, other, repeated = self._weighed[number]
        pool, _ = _pooling(old, gate, other, repeated)
        if record.kind == "attention" or record.axis == "branch" or pool is None:
            return
        weights = pool.present(gate)
        shape = geometry(self.watcher.calls(), 1, weights.shape[-1])
        self.keeper.keep(changed(
            record, kind="attention", weights=weights, scale=None, axis="k", how="pooled",
            heads=weights.shape[1], key_grid=shape.key, prefix=shape.prefix, features=None,
        ), number)  # fmt: skip

    @apart
    def linear(self, tag: Tag, operand: Tensor, query: int, key: int) -> Tensor | None:
        """A product of data with data meets data again, without a softmax between."""
        scores, where = tag.scores, self.watcher.place()
        if scores is None or where is None or operand.dim() < 2:
            return None
        rows, columns = operand.shape[query], operand.shape[key]
        tokens = set().union(*token_counts(self.watcher.calls()))
        if scores.width in tokens or rows in tokens:
            plain = {rows, columns} <= tokens
        else:
            plain = scores.width < min(rows, columns)
        look = self.looks.at(where, rows, columns, width=scores.width)
        if not self._chosen("attention", look, where):
            return None
        if not plain:
            record = Record(where.name, "attention", how="linear", op="product", softmax=False,
                            note="q (kᵀ v): no weights exist")  # fmt: skip
            self._without_weights(record, where, look)
            return None
        read = layout(operand, query, key, tag, look.module, look.shape.images)
        with self.keeper.graph():
            weights = read.present(operand)
        factor = scores.scale * tag.factor
        record = Record(
            where.name, "attention", weights, None, None, weights.shape[1], how="unnormalised",
            op="product", softmax=False, logit_scale=None if factor != factor else factor,
            d_k=scores.width, leaf=self.keeper.leaf(operand, read.present),
            note=_UNNORMALISED,
        )  # fmt: skip
        squash = Squash("product", where, tuple(operand.shape))
        record = self._placed(record, where, look, weights)
        return self._finish(record, squash, operand, read.restore)

    def guard(self, output: Tensor) -> None:
        """Let a backward pass through an edit fail: it would be that of the model unedited."""
        self._flush()
        if torch.is_grad_enabled():
            self._guarded.append(output)

    def finish(self) -> None:
        """Close the books of one forward pass."""
        self._flush()
        for number in set(self._weighed) - self._summed:
            record = self.seen._records[number]
            if record.kind == "attention":
                self._not_pooled(number, record)
        self.seen.unused = [self._unused(squash) for squash in self._made if _matters(squash)]
        self._made.clear()
        self._weighed.clear()
        self._summed.clear()
        self._call = None
        self.looks.finish()
        self.keeper.finish()

    # how a record is made --------------------------------------------------------------------

    def _ran(self, fused: Fused) -> tuple[Place, Look] | None:
        """Who ran a kernel, if it is the watched model and was chosen."""
        where = self.watcher.place()
        if where is None:
            return None
        q, width = fused.query.shape[-2:]
        look = self.looks.at(where, q, fused.key.shape[-2], width=width)
        look = look._replace(name=where.name, module=where.module)
        return (where, look) if self._chosen("attention", look, where) else None

    def _chosen(self, kind: str, look: Look, where: Place) -> bool:
        chosen = self.options.wants(kind, self._names(look.name, where), look.module)
        if chosen:
            self.looks.chosen()
        else:
            self.passed_over[look.name or self._root] = None
        return chosen

    def _names(self, name: str, where: Place) -> tuple[str, ...]:
        return (name or self._root, where.name or self._root)

    @property
    def _root(self) -> str:
        return type(self.watcher.model).__name__

    def _placed(self, record: Record, where: Place, look: Look, weights: Tensor | None) -> Record:
        """The record with all that is known of where it was made."""
        shape, attends = look.shape, record.kind == "attention"
        record = changed(
            record, name=record.name or self._root, source=where.source, path=where.path,
            origin=where.name or self._root, module=type(look.module).__name__,
            images=shape.images, image=shape.image,
            query_grid=shape.query if attends else None, key_grid=shape.key if attends else None,
            prefix=shape.prefix if attends else 0,
        )  # fmt: skip
        if weights is None:
            return record
        return self.looks.windowed(record, weights.shape, shape.images)

    def _with_operands(self, record: Record, fused: Fused) -> Record:
        keep = self.options.operands
        return changed(
            record, logit_scale=fused.scale, d_k=fused.query.shape[-1],
            query=fused.query if keep else None, key=fused.key if keep else None,
        )  # fmt: skip

    def _recomputed(self, fused: Fused, logsumexp: Tensor | None) -> Tensor:
        if logsumexp is not None and not self.options.keep_graph:
            weights = fusion.from_sums(fused, logsumexp)
            if weights is not None:
                return weights
        with self.keeper.graph():
            return fusion.weights(fused)

    def _gate_record(
        self, tag: Tag, squash: Squash, gate: Tensor, other: Tensor, repeated: list[int], look: Look
    ) -> tuple[Record, Restore]:
        read = arrange(gate, other, repeated, look.shape.image)
        with self.keeper.graph():
            scale = read.present(gate)
        features = read.arrange(other) if self.options.features else None
        record = Record(
            look.name, "gate", None, scale, read.axis, how="gate", op=squash.op,
            softmax=tag.kind == "softmax", factor=tag.factor, features=features,
            leaf=self.keeper.leaf(gate, read.gather),
        )  # fmt: skip
        return self._placed(record, squash.place, look, None), read.restore

    def _pooled_record(
        self, tag: Tag, squash: Squash, gate: Tensor, pool: Pooling, name: str
    ) -> Record:
        with self.keeper.graph():
            weights = pool.present(_before_dropout(tag, gate))
        return Record(
            name, "attention", weights, None, "k", weights.shape[1], how="pooled", op=squash.op,
            factor=tag.factor, mixed=tag.mixed, dropout=tag.raw is not None,
            leaf=self.keeper.leaf(gate, pool.present),
        )  # fmt: skip

    def _branch(
        self, tag: Tag, squash: Squash, gate: Tensor, other: Tensor, look: Look
    ) -> Tensor | None:
        """One branch's part of a softmax over branches: one record for all of them."""
        if not self._chosen("gate", look, squash.place):
            return None
        whole = gate.as_strided(tag.shape, tag.stride, 0)
        record = Record(
            look.name, "gate", None, whole, "branch", how="gate", op="softmax", factor=tag.factor,
            features=other if self.options.features else None,
        )  # fmt: skip

        def restore(values: Tensor, like: Tensor) -> Tensor:
            return values.contiguous().as_strided(like.shape, like.stride(), like.storage_offset())

        record = self._placed(record, squash.place, look, None)
        return self._finish(record, squash, gate, restore, once=True)

    def _not_pooled(self, number: int, record: Record) -> None:
        """What a softmax weighted was never summed: it is a gate."""
        tag, gate, other, repeated = self._weighed[number]
        look = Look(record.name, self.watcher.model, Geometry(record.images, record.image))
        assert tag.squash is not None
        made, _ = self._gate_record(tag, tag.squash, gate, other, repeated, look)
        self.keeper.keep(changed(made, module=record.module, edited=record.edited), number)

    def _without_weights(self, record: Record, where: Place, look: Look) -> None:
        record = self._placed(record, where, look._replace(shape=_bare(look.shape)), None)
        if self._edit(record, where) is not None:
            raise UnsupportedError(
                f"edit of {record.name!r}: it holds no weights to replace ({record.how}: "
                f"{record.note}); choose another module, or edit its gates"
            )
        self.keeper.keep(record)

    def _unused(self, squash: Squash) -> Record:
        where = squash.place
        record = Record(
            where.name, "gate" if squash.op != "softmax" else "attention", op=squash.op,
            shape=squash.shape, softmax=squash.op == "softmax", how="not applied",
            note="computed, and never multiplied with data",
        )  # fmt: skip
        return self._placed(record, where, Look(where.name, where.module, Geometry()), None)

    # how it is edited ------------------------------------------------------------------------

    def _finish(
        self, record: Record, squash: Squash, operand: Tensor, restore: Restore,
        *, once: bool = False,
    ) -> Tensor | None:  # fmt: skip
        """Edit where asked, keep what was applied, once for each part of a squashed tensor."""
        offset = int(operand.storage_offset())
        known = squash.numbers.get(offset)
        if known is None and once and squash.numbers:
            known = min(squash.numbers.values())
        edit = self._edit(record, squash.place, known)
        if known is not None:
            record = record if edit is None else _edited(record, edit)
        else:
            squash.numbers[offset] = len(self.seen)
            record = self._applied(record, edit)
        values = record.weights if record.kind == "attention" else record.scale
        if edit is None or values is None:
            return None
        return restore(values, operand).to(operand.dtype)

    def _applied(self, record: Record, edit: Edit | None) -> Record:
        """Keep a record as it is applied."""
        if self.keeper.rolls and (call := self.watcher.call()) is not self._call:
            self._call = call
            self.keeper.begin()
        record = record if edit is None else _edited(record, edit)
        self.keeper.keep(record)
        return record

    def _edit(self, record: Record, where: Place, number: int | None = None) -> Edit | None:
        """What is asked of a record, or of one that was kept before, under some number."""
        if not self.options.edit:
            return None
        earlier = self.seen._records[:number]
        count = sum(other.name == record.name for other in earlier)
        names = (*self._names(record.name, where), f"{record.name}#{count}")
        found = self.options.edit_of(names)
        if found is None:
            return None
        self.edited.add(found[0])
        if record.dropout:
            raise UnsupportedError(
                f"edit of {record.name!r}: dropout follows its weights, and an edit would "
                "undo it; call model.eval() or set the dropout to 0"
            )
        return found[1]

    def _flush(self) -> None:
        for output in self._guarded:
            if output.requires_grad and not output.is_leaf:
                output.register_hook(_refuse_gradient)
        self._guarded.clear()


def _edited(record: Record, edit: Edit) -> Record:
    """The record with edited values, which have no graph."""
    field = "weights" if record.weights is not None else "scale"
    values = checked(edit, getattr(record, field).detach(), record)
    return changed(record, edited=True, leaf=None, **{field: values})


def _refuse_gradient(_: Tensor) -> None:
    raise UnsupportedError(
        "backward through an edited watch: the gradients would be those of the model unedited; "
        "run it under torch.no_grad()"
    )


def _bare(shape: Geometry) -> Geometry:
    """The same without grids."""
    return Geometry(shape.images, shape.image)


def _matters(squash: Squash) -> bool:
    """Whether an unused result looks as if it was meant for something."""
    if squash.used:
        return False
    if squash.op == "softmax":
        return squash.scores is not None
    return len(squash.shape) == 4 and (squash.shape[2:] == (1, 1) or squash.shape[1] == 1)


def _how(scores: Scores | None, queries: int) -> str:
    if scores is not None:
        return "qk"
    return "pooled" if queries == 1 else "direct"


def _pooling(
    tag: Tag, gate: Tensor, other: Tensor, repeated: list[int]
) -> tuple[Pooling | None, int]:
    """How softmax weights are summed, if they are, and how many there are in a row."""
    if tag.kind != "softmax" or tag.axis is None:
        return None, 0
    size = tag.shape[tag.axis]
    return pooling(gate, other, repeated, tag.find(gate), size), size


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
    return "b" if size in read.leading else None


def _operand(tensor: Tensor | None, weights: Tensor, axis: int) -> Tensor | None:
    """Queries or keys `(n, tokens, d)` as `(b, heads, tokens, d)`, where that fits."""
    if tensor is None or tensor.shape[-2] != weights.shape[axis]:
        return None
    b, heads = weights.shape[:2]
    lead = tensor.shape[:-2].numel()
    return tensor.reshape(b, heads, *tensor.shape[-2:]) if lead == b * heads else None
