"""From what the rules find to records: chosen, edited, reduced, kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from attnviz.capture import fused as fusion
from attnviz.capture import reductions
from attnviz.capture.edits import checked
from attnviz.capture.fused import Fused
from attnviz.capture.gating import arrange, pooling
from attnviz.capture.grids import Geometry, geometry, token_counts
from attnviz.capture.kernels import as_called
from attnviz.capture.layout import Layout, layout
from attnviz.capture.places import Call, Place
from attnviz.capture.record import Leaf, Record, Windows, changed
from attnviz.capture.seen import Capture
from attnviz.capture.tags import Scores, Squash, Tag, storage_key
from attnviz.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

_CHUNK = 1 << 19  # weights computed at once where only a reduction is kept; they stay in the cache


P = ParamSpec("P")
T = TypeVar("T")


def apart(method: Callable[P, T]) -> Callable[P, T]:
    """What a watch computes for itself is not to be seen by another watch around it."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch._C._len_torch_dispatch_stack():
            return method(*args, **kwargs)
        with torch._C._DisableTorchDispatch():
            return method(*args, **kwargs)

    return run


class Look(NamedTuple):
    """Who attends, and on which grids."""

    name: str
    module: nn.Module
    shape: Geometry


class Recorder:
    """Makes the records of one watch."""

    def __init__(self, watcher: Watcher, seen: Capture) -> None:
        self.watcher = watcher
        self.options = watcher.options
        self.seen = seen
        self.edited: set[str] = set()
        self.passed_over: list[str] = []
        self.reached: list[str] = []
        self.plan: dict[Any, Any] | None = None
        self.batch: int | None = None
        self._looks: dict[Any, Any] = {}
        self._counts: Counter[Any] = Counter()
        self.aliased: dict[int, list[tuple[int, str]]] = {}
        self._made: list[Squash] = []
        self._guarded: list[Tensor] = []
        self._summed: set[int] = set()
        self._pooled: dict[int, tuple[Tag, Tensor, Tensor, list[int]]] = {}

    # what the rules report -------------------------------------------------------------------

    def made(self, squash: Squash) -> None:
        """Remember a softmax or a gate until it is seen to be used."""
        self._made.append(squash)

    @apart
    def attention(
        self, tag: Tag, operand: Tensor, query: int, key: int, values: Tensor, known: Tag | None
    ) -> Tensor | None:
        """A softmax's result meets values. Returns what shall take its place, if edited."""
        squash = tag.squash
        if squash is None:
            return None
        squash.used = True
        feature_map = known is not None and known.kind == "context" and squash.scores is None
        if feature_map and tag.find(operand) == key:
            return None  # linear attention's queries, softmaxed over channels, meet their context
        look = self._look(squash.place, operand.shape[query], operand.shape[key], squash)
        name, module, shape = look
        if not self._chosen("attention", name, squash.place, module):
            return None
        total = operand.numel() // max(1, operand.shape[query] * operand.shape[key])
        cut = self._cut(name, squash.place, shape.images, total, operand.shape[key])
        read = layout(operand, query, key, tag, module, shape.images, whole=cut)
        with self._graph():
            raw = _before_dropout(tag, operand)
            weights = read.present(raw)
        found = squash.scores
        record = Record(
            name, "attention", weights, None, _axis_word(tag, operand, query, key, read),
            weights.shape[1], op=squash.op, how=_how(found, operand.shape[query]),
            double_softmax=squash.twice, factor=tag.factor, mixed=tag.mixed,
            dropout=tag.raw is not None, logit_scale=squash.logit_scale,
            d_k=None if found is None else found.width,
            query=None if found is None else _operand(found.query, weights, -2),
            key=None if found is None else _operand(found.key, weights, -1),
            leaf=self._leaf(raw, read.present),
        )  # fmt: skip
        record = self._placed(record, squash.place, module, shape, weights)
        again = operand.storage_offset() in squash.numbers
        return self._finish(record, squash, operand, read.restore, keep=not again)

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
        where = self.watcher.place()
        if where is None or not self._chosen("attention", where.name, where, where.module):
            return None
        shape = self._look(where, fused.query.shape[-2], fused.key.shape[-2]).shape
        keep = self.options.operands
        record = Record(
            where.name, "attention", None, None, "k", fused.query.shape[-3], how="fused",
            exact=False, op="scaled_dot_product_attention", dropout=fused.dropout > 0,
            logit_scale=fused.scale, d_k=fused.query.shape[-1],
            query=fused.query if keep else None, key=fused.key if keep else None,
            leaf=self._leaf(output, lambda slope: fusion.slope(fused, slope)),
        )  # fmt: skip
        record = self._placed(record, where, where.module, shape, None)
        edit = self._edit(record, where)
        known = weights is not None
        if edit is None and not known and self._only_reduced(record, fused, output, logsumexp):
            return None
        if weights is None and logsumexp is not None and not self.options.keep_graph:
            weights = fusion.from_sums(fused, logsumexp)
        if weights is None:
            with self._graph():
                weights = fusion.weights(fused)
        given = weights if known else None
        check = None if self.watcher.trusted else fusion.discrepancy(fused, output, given)
        record = changed(
            self._windowed(record, weights.shape, shape.images), weights=weights, check=check
        )
        if edit is None:
            self._keep(record)
            return None
        edited = self._edited(record, edit)
        assert edited.weights is not None
        self._keep(edited)
        return fusion.applied(fused, edited.weights, output)

    @apart
    def projected(
        self, fused: Fused, output: Tensor, finished: Callable[[Tensor, Any], Tensor]
    ) -> Tensor | None:
        """A kernel that projects, too. `finished` makes its output from A V of some rows."""
        where = self.watcher.place()
        if where is None or not self._chosen("attention", where.name, where, where.module):
            return None
        shape = self._look(where, fused.query.shape[-2], fused.key.shape[-2]).shape
        weights = fusion.weights(fused)

        def out(weights: Tensor, rows: Any) -> Tensor:
            mixed = weights[..., rows, :].to(fused.value.dtype) @ fused.value
            return finished(mixed.transpose(1, 2).flatten(2), rows)

        rows = fusion.some_rows(weights.shape[-2])
        own = output[:, rows]
        difference = (out(weights, rows) - own).abs().max()
        record = Record(
            where.name, "attention", weights, None, "k", weights.shape[1], how="fused",
            exact=False, check=float(difference / own.abs().max().clamp_min(1e-30)),
            op="fast path", logit_scale=fused.scale, d_k=fused.query.shape[-1],
            query=fused.query if self.options.operands else None,
            key=fused.key if self.options.operands else None,
        )  # fmt: skip
        record = self._placed(record, where, where.module, shape, weights)
        edit = self._edit(record, where)
        if edit is None:
            self._keep(record)
            return None
        record = self._edited(record, edit)
        assert record.weights is not None
        self._keep(record)
        return torch.empty_like(output).copy_(out(record.weights, slice(None)))

    def unreadable(self, op: str, note: str) -> None:
        """A kernel attended, and its weights cannot be told."""
        where = self.watcher.place()
        if where is None or not self._chosen("attention", where.name, where, where.module):
            return
        record = Record(where.name, "attention", axis="k", how="fused", exact=False, op=op,
                        note=note)  # fmt: skip
        self._refuse_edit(record, where)
        self._keep(self._placed(record, where, where.module, Geometry(), None))

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
        offset = gate.storage_offset()
        weighted: Tag | None = None
        pool = None
        if squash.op == "softmax" and tag.axis is not None:
            size = tag.shape[tag.axis]
            pool = pooling(gate, other, repeated, tag.find(gate), size)
        name, module, shape = self._look(
            squash.place, 1, 0 if pool is None or tag.axis is None else tag.shape[tag.axis], squash
        )
        kind = "gate"
        if pool is not None:
            number = len(self.seen)
            weighted = Tag("weighted", extra=(number, pool.keys))
            kind = "attention" if len(repeated) == 1 else "gate"
        elif squash.op == "softmax" and repeated:
            return self._branch(tag, gate, other, name, module, shape), None
        if not self._chosen(kind, name, squash.place, module):
            return None, None
        again = offset in squash.numbers
        if kind == "attention" and pool is not None:
            with self._graph():
                weights = pool.present(_before_dropout(tag, gate))
            record = Record(
                name, "attention", weights, None, "k", weights.shape[1], how="pooled",
                op=squash.op, factor=tag.factor, mixed=tag.mixed, dropout=tag.raw is not None,
                leaf=self._leaf(gate, pool.present),
            )  # fmt: skip
            record = self._placed(record, squash.place, module, shape, weights)
            if not again:
                self._pooled[number] = (tag, gate, other, repeated)
            return self._finish(record, squash, gate, pool.restore, keep=not again), weighted
        record, restore = self._gate_record(tag, gate, other, repeated, name, shape)
        record = self._placed(record, squash.place, module, bare(shape), None)
        if weighted is not None and not again:
            self._pooled[number] = (tag, gate, other, repeated)
        return self._finish(record, squash, gate, restore, keep=not again), weighted

    @apart
    def pooled(self, tag: Tag, axes: set[int]) -> None:
        """What a softmax weighted is summed over some axes: attention, if they are its own."""
        number, keys = tag.extra
        if not set(keys) <= axes or number not in self._pooled:
            return
        self._summed.add(number)
        record = self.seen._records[number]
        if record.kind == "attention" or record.axis == "branch" or record.scale is None:
            return
        old, gate, other, repeated = self._pooled[number]
        assert old.axis is not None
        pool = pooling(gate, other, repeated, old.find(gate), old.shape[old.axis])
        if pool is None:
            return
        weights = pool.present(gate)
        shape = geometry(self.watcher.calls(), 1, weights.shape[-1])
        self._keep(changed(
            record, kind="attention", weights=weights, scale=None, axis="k", how="pooled",
            heads=weights.shape[1], key_grid=shape.key, prefix=shape.prefix, features=None,
        ), number)  # fmt: skip

    @apart
    def linear(self, tag: Tag, operand: Tensor, other: Tensor) -> None:
        """A product of a product, without a softmax between."""
        scores = tag.scores
        where = self.watcher.place()
        if scores is None or where is None or operand.dim() < 2:
            return
        calls = self.watcher.calls()
        rows, columns = scores.shape[-2:]
        places, sequences = token_counts(calls)
        tokens = {*places, *sequences}
        plain = {rows, columns} <= tokens if scores.width in tokens or rows in tokens else (
            scores.width < min(rows, columns))  # fmt: skip
        if not self._chosen("attention", where.name, where, where.module):
            return
        shape = self._look(where, rows, columns).shape
        if not plain:
            record = Record(where.name, "attention", how="linear", op="product", softmax=False,
                            note="q (kᵀ v): no weights exist")  # fmt: skip
            self._refuse_edit(record, where)
            self._keep(self._placed(record, where, where.module, bare(shape), None))
            return
        weights = operand.detach()
        weights = weights.reshape(-1, 1, *weights.shape[-2:])
        factor = None if tag.factor != tag.factor else scores.scale * tag.factor
        record = Record(
            where.name, "attention", weights, None, None, how="unnormalised", op="product",
            softmax=False, logit_scale=factor, d_k=scores.width,
            note="q · kᵀ reaches the values without a softmax",
        )  # fmt: skip
        self._refuse_edit(record, where)
        self._keep(self._placed(record, where, where.module, shape, weights))

    def guard(self, output: Tensor) -> None:
        """Let a backward pass through an edit fail: it would be that of the model unedited."""
        self._flush()
        if torch.is_grad_enabled():
            self._guarded.append(output)

    def finish(self) -> None:
        """Close the books of one forward pass."""
        self._flush()
        for number, (tag, gate, other, repeated) in self._pooled.items():
            record = self.seen._records[number]
            if number not in self._summed and record.kind == "attention":
                shape = Geometry(record.images, record.image)
                made, _ = self._gate_record(tag, gate, other, repeated, record.name, shape)
                self._keep(changed(
                    record, kind="gate", scale=made.scale, weights=None, axis=made.axis,
                    how="gate", heads=1, query_grid=None, key_grid=None, prefix=0, reduced={},
                ), number)  # fmt: skip
        self._counts.clear()
        self.seen.unused = [self._unused(squash) for squash in self._made if _matters(squash)]
        self._made.clear()
        self._pooled.clear()
        self._summed.clear()
        self.aliased.clear()
        for reduction in self.options.reduce.values():
            if isinstance(reduction, reductions.Rollout):
                reduction.reset()

    # where it happens ------------------------------------------------------------------------

    def _look(self, where: Place, queries: int, keys: int, squash: Squash | None = None) -> Look:
        """Who attends or gates, and on which grids; read once per place in a stream."""
        key = (where.name, where.source, queries, keys)
        if self.plan is not None:
            known = self.plan.get((*key, self._count(key)))
            if known is not None:
                look: Look = known
                if look.shape.images is None or self.batch is None:
                    return look
                return look._replace(shape=replace(look.shape, images=self.batch))
        calls = self.watcher.calls()
        name, module = self._name(where, calls)
        look = Look(name, module, geometry(calls, queries, keys))
        if self.plan is None and self.watcher.learning:
            self._learn(squash, calls)
            self._looks[(*key, self._count(key))] = look
        return look

    def _count(self, key: tuple[Any, ...]) -> int:
        self._counts[key] += 1
        return self._counts[key]

    def _learn(self, squash: Squash | None, calls: list[Call]) -> None:
        """Note the innermost module that runs from the logits to the product."""
        running = [call.name for call in calls]
        for earlier in [] if squash is None else [squash.running, squash.scores_running]:
            if earlier is not None:
                running = [name for name in running if name in earlier]
        self.reached.append(running[0] if running else "")

    # how a record is made --------------------------------------------------------------------

    def _name(self, where: Place, calls: list[Call]) -> tuple[str, nn.Module]:
        """The module that attends: an activation's own module lends its parent's name."""
        module = where.module
        plain = not module._modules and not module._parameters
        if not plain or not where.name or (calls and calls[0].module is module):
            return where.name, module
        parent = where.name.rpartition(".")[0]
        return parent, self.watcher.modules[parent]

    def _chosen(self, kind: str, name: str, where: Place, module: nn.Module) -> bool:
        chosen = self.options.wants(kind, self._names(name, where), module)
        if not chosen:
            self.passed_over.append(name or self._root)
        return chosen

    def _names(self, name: str, where: Place) -> tuple[str, ...]:
        return (name or self._root, where.name or self._root)

    @property
    def _root(self) -> str:
        return type(self.watcher.model).__name__

    def _placed(
        self, record: Record, where: Place, module: nn.Module, shape: Geometry,
        weights: Tensor | None,
    ) -> Record:  # fmt: skip
        record = changed(
            record, name=record.name or self._root, source=where.source, path=where.path,
            origin=where.name or self._root, module=type(module).__name__, images=shape.images,
            image=shape.image, query_grid=shape.query, key_grid=shape.key, prefix=shape.prefix,
        )  # fmt: skip
        return record if weights is None else self._windowed(record, weights.shape, shape.images)

    def _windowed(self, record: Record, sizes: Sequence[int], images: int | None) -> Record:
        """Windows, where as many of them were cut as these weights have, and more than images."""
        b, _, q, k = sizes
        if images is None or b == images or q > k or (k - q > 1 and q > 1):
            return record
        windows = self._windows(record, b // images, q, k, b)
        if windows is None or b != images * windows.count:
            return record
        prefix = k - windows.size[0] * windows.size[1]
        query = windows.size if q == k else None
        return changed(
            record, windows=windows, query_grid=query, key_grid=windows.size, prefix=prefix
        )

    def _windows(self, record: Record, count: int, q: int, k: int, b: int) -> Windows | None:
        key = ("windows", record.name, record.source, count, q, k)
        if self.plan is not None:
            return self.plan.get((*key, self._count(key)))
        windows = self.watcher.windows.find(b, k) or self.watcher.windows.find(b, q)
        if self.watcher.learning and windows is not None:
            self._looks[(*key, self._count(key))] = windows
        return windows

    def _cut(self, name: str, where: Place, images: int | None, total: int, k: int) -> bool:
        """Whether an operand's leading axis is exactly the windows of all images."""
        if not images or total == images:
            return False
        key = ("cut", name, where.source, total // images, k)
        if self.plan is not None:
            return bool(self.plan.get((*key, self._count(key))))
        found = self.watcher.windows.find(total, k) is not None
        if self.watcher.learning:
            self._looks[(*key, self._count(key))] = found
        return found

    def learned(self) -> None:
        """From now on, places and grids are those of the forward pass just seen."""
        self.plan = self._looks

    def _gate_record(
        self, tag: Tag, gate: Tensor, other: Tensor, repeated: list[int], name: str,
        shape: Geometry,
    ) -> tuple[Record, Callable[[Tensor, Tensor], Tensor]]:  # fmt: skip
        squash = tag.squash
        assert squash is not None
        read = arrange(gate, other, repeated, shape.image)
        with self._graph():
            scale = read.present(gate)
        features = read.arrange(other) if self.options.features else None
        record = Record(
            name, "gate", None, scale, read.axis, how="gate", op=squash.op,
            softmax=squash.op == "softmax", factor=tag.factor, features=features,
            leaf=self._leaf(gate, read.gather),
        )  # fmt: skip
        return record, read.restore

    def _branch(
        self, tag: Tag, gate: Tensor, other: Tensor, name: str, module: nn.Module, shape: Geometry
    ) -> Tensor | None:
        """One branch's part of a softmax over branches: one record for all of them."""
        squash = tag.squash
        assert squash is not None
        if not self._chosen("gate", name, squash.place, module):
            return None
        whole = gate.as_strided(tag.shape, tag.stride, 0)
        record = Record(
            name, "gate", None, whole, "branch", how="gate", op="softmax", factor=tag.factor,
            features=other if self.options.features else None,
        )  # fmt: skip
        record = self._placed(record, squash.place, module, bare(shape), None)

        def restore(values: Tensor, like: Tensor) -> Tensor:
            return values.contiguous().as_strided(like.shape, like.stride(), like.storage_offset())

        return self._finish(record, squash, gate, restore, keep=not squash.numbers)

    def _finish(
        self, record: Record, squash: Squash, operand: Tensor,
        restore: Callable[[Tensor, Tensor], Tensor], *, keep: bool,
    ) -> Tensor | None:  # fmt: skip
        """Edit where asked, keep what was applied; the edited operand, if any."""
        edit = self._edit(record, squash.place)
        if edit is not None:
            if record.dropout:
                raise UnsupportedError(
                    f"edit of {record.name!r}: dropout follows its weights, and an edit would "
                    "undo it; call model.eval() or set the dropout to 0"
                )
            record = self._edited(record, edit)
        if keep:
            squash.numbers[int(operand.storage_offset())] = len(self.seen)
            self._keep(record)
        if edit is None:
            return None
        values = record.weights if record.kind == "attention" else record.scale
        assert values is not None
        return restore(values, operand).to(operand.dtype)

    def _edit(self, record: Record, where: Place) -> Any:
        if not self.options.edit:
            return None
        count = sum(other.name == record.name for other in self.seen._records)
        names = (*self._names(record.name, where), f"{record.name}#{count}")
        found = self.options.edit_of(names)
        if found is None:
            return None
        self.edited.add(found[0])
        return found[1]

    def _refuse_edit(self, record: Record, where: Place) -> None:
        if self._edit(record, where) is not None:
            raise UnsupportedError(
                f"edit of {record.name!r}: it holds no weights to replace "
                f"({record.how}{': ' + record.note if record.note else ''}); "
                "choose another module, or edit its gates"
            )

    def _edited(self, record: Record, edit: Any) -> Record:
        if record.weights is not None:
            weights = checked(edit, record.weights.detach(), record)
            return changed(record, weights=weights, edited=True, leaf=None)
        assert record.scale is not None
        return changed(record, scale=checked(edit, record.scale.detach(), record), edited=True,
                       leaf=None)  # fmt: skip

    def _only_reduced(
        self, record: Record, fused: Fused, output: Tensor, logsumexp: Tensor | None
    ) -> bool:
        """Reduce a fused kernel's weights a few queries at a time, if its reductions allow."""
        asked = self.options.reduce
        if not asked or any(way not in reductions.BY_CHUNKS for way in asked.values()):
            return False
        if self.options.heads is not None:
            return False
        means = None
        if logsumexp is not None and all(way is reductions.received for way in asked.values()):
            means = fusion.column_means(fused, logsumexp)
        if means is not None:
            self._reduced(record, fused, output, dict.fromkeys(asked, means))
            return True
        parts: dict[str, list[Tensor]] = {name: [] for name in asked}
        q, k = fused.query.shape[-2], fused.key.shape[-2]
        first = all(reductions.BY_CHUNKS[way] == "first" for way in asked.values())
        step = 1 if first else max(1, min(q, _CHUNK // max(1, fused.query.shape[:-2].numel() * k)))
        for start in range(0, 1 if first else q, step):
            chunk = slice(start, min(q, start + step))
            part = changed(record, weights=fusion.weights(fused, chunk))
            for name, way in asked.items():
                if start and reductions.BY_CHUNKS[way] == "first":
                    continue
                value = way(part)
                assert value is not None
                if reductions.BY_CHUNKS[way] == "mean":
                    value = value * ((chunk.stop - chunk.start) / q)
                parts[name].append(value)
        reduced = {name: _joined(asked[name], values) for name, values in parts.items()}
        self._reduced(record, fused, output, reduced)
        return True

    def _reduced(
        self, record: Record, fused: Fused, output: Tensor, reduced: dict[str, Tensor]
    ) -> None:
        """Keep what a kernel's weights were reduced to."""
        shape = (*fused.query.shape[:-1], fused.key.shape[-2])
        record = self._windowed(record, shape, record.images)
        check = None if self.watcher.trusted else fusion.discrepancy(fused, output)
        self._store(changed(record, check=check, shape=shape), reduced)

    # how a record is kept --------------------------------------------------------------------

    def _keep(self, record: Record, number: int | None = None) -> None:
        values = record.weights if record.kind == "attention" else record.scale
        record = changed(record, shape=() if values is None else tuple(values.shape))
        reduced: dict[str, Tensor] = {}
        if record.weights is not None and self.options.heads is not None:
            record = changed(record, weights=_heads(record, self.options.heads))
        if self.options.reduce:
            plain = changed(record, weights=_detached(record.weights),
                            scale=_detached(record.scale))  # fmt: skip
            for name, way in self.options.reduce.items():
                value = way(plain)
                if value is not None:
                    reduced[name] = value
            record = changed(record, weights=None)
        self._store(record, reduced, number)

    def _store(self, record: Record, reduced: dict[str, Tensor], number: int | None = None) -> None:
        keep_graph = self.options.keep_graph
        changes: dict[str, Any] = {}
        for field in ("weights", "scale", "query", "key", "features"):
            tensor = getattr(record, field)
            if tensor is not None:
                changes[field] = self._moved(tensor if keep_graph else tensor.detach())
        if reduced:
            changes["reduced"] = {name: self._moved(value) for name, value in reduced.items()}
            self._forget_rollout(reduced)
        if record.name == "":
            changes["name"] = self._root
        record = changed(record, **changes)
        if number is None:
            number = self.seen._add(record)
        else:
            self.seen._set(number, record)
        for field, tensor in changes.items():
            if isinstance(tensor, Tensor):
                key = storage_key(tensor)
                self.aliased.setdefault(key, []).append((number, field))

    @apart
    def preserve(self, tensor: Any) -> None:
        """Copy what was kept of a tensor, now that the model is about to write into it."""
        if not isinstance(tensor, Tensor) or tensor.is_sparse or tensor.is_nested:
            return
        for number, field in self.aliased.pop(storage_key(tensor), []):
            record = self.seen._records[number]
            kept = getattr(record, field)
            if kept is not None:
                self.seen._set(number, changed(record, **{field: kept.clone()}))

    def _forget_rollout(self, reduced: dict[str, Tensor]) -> None:
        """Only the last layer keeps the product of all of them."""
        for name, way in self.options.reduce.items():
            if not isinstance(way, reductions.Rollout) or name not in reduced:
                continue
            for number, earlier in enumerate(self.seen._records):
                value = earlier.reduced.get(name)
                if value is not None and value.shape == reduced[name].shape:
                    kept = {key: v for key, v in earlier.reduced.items() if key != name}
                    self.seen._set(number, changed(earlier, reduced=kept))

    def _moved(self, tensor: Tensor) -> Tensor:
        if self.options.to is None and self.options.dtype is None:
            return tensor
        with self._graph():
            return tensor.to(device=self.options.to, dtype=self.options.dtype)

    def _graph(self) -> Any:
        """Within a rule nothing is differentiated; this opens the graph again, where asked."""
        if self.options.keep_graph and torch.is_grad_enabled():
            return as_called()
        return nullcontext()

    def _leaf(self, tensor: Tensor, read: Callable[[Tensor], Tensor]) -> Leaf | None:
        return Leaf(tensor, read) if self.options.keep_graph else None

    def _flush(self) -> None:
        for output in self._guarded:
            if output.requires_grad and not output.is_leaf:
                output.register_hook(_refuse_gradient)
        self._guarded.clear()

    def _unused(self, squash: Squash) -> Record:
        where = squash.place
        return Record(
            where.name or self._root, "gate" if squash.op != "softmax" else "attention",
            source=where.source, path=where.path, op=squash.op, shape=squash.shape,
            softmax=squash.op == "softmax", origin=where.name or self._root,
            module=type(where.module).__name__, how="not applied",
            note="computed, and never multiplied with data",
        )  # fmt: skip


def bare(shape: Geometry) -> Geometry:
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


def _refuse_gradient(_: Tensor) -> None:
    raise UnsupportedError(
        "backward through an edited watch: the gradients would be those of the model unedited; "
        "run it under torch.no_grad()"
    )


def _heads(record: Record, chosen: tuple[int, ...]) -> Tensor:
    weights = record.weights
    assert weights is not None
    if any(not -weights.shape[1] <= head < weights.shape[1] for head in chosen):
        raise InputError(
            f"watch: {record.name!r} has {weights.shape[1]} heads, got heads={chosen}; "
            "choose the modules that have them by where="
        )
    return weights[:, list(chosen)]


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _joined(way: Any, values: list[Tensor]) -> Tensor:
    how = reductions.BY_CHUNKS[way]
    if how == "first":
        return values[0]
    return torch.stack(values).sum(0) if how == "mean" else torch.cat(values, -1)


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
