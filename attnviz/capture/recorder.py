"""The steps that records of attention and of gates share: choice, place, edit, keeping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attnviz.capture.attention_layout import Split, divided, followed_images
from attnviz.capture.call_stack import CallStack, Place
from attnviz.capture.capture import Capture
from attnviz.capture.collector import Collector
from attnviz.capture.edits import Edit, checked
from attnviz.capture.grids import Geometry
from attnviz.capture.lineage import Lineage, Numbers
from attnviz.capture.options import Options
from attnviz.capture.proven_places import Numbered, proven
from attnviz.capture.provenance import Squash, Tag, storage_key
from attnviz.capture.record import Record, changed
from attnviz.capture.sampled_rows import SampledRows
from attnviz.capture.scopes import Scope, Scopes
from attnviz.errors import UnsupportedError
from attnviz.token_places import Places, RecordPlaces, Role

UNPROVEN = "it was not followed from a feature map"
"""Why places are unknown, while watching."""

Restore = Callable[[Tensor, Tensor], Tensor]
"""From values as a record shows them, and the model's operand, to values in the operand's shape."""


class Part(NamedTuple):
    """Which rows of a tensor of values one attention was applied to.

    Attributes:
        storage: The tensor's storage.
        start: The first row.
        stop: The row after the last one.
        whole: How many rows the tensor has.
        images: The image of each of its rows; None where that is not known.
        split: How these rows became the images and heads of the record.
    """

    storage: int
    start: int
    stop: int
    whole: int
    images: Numbers | None
    split: Split


class Recorder:
    """Chooses, places, edits and keeps the records of one watch.

    Attributes:
        options: The watch's options.
        stack: The running modules.
        scopes: Modules and grids.
        collector: Keeps the records.
        lineage: Which elements of tensors are which places.
        edited: The names and globs of edits that were applied.
        passed_over: Names that `where=` did not choose.
        trusted: Whether recomputed weights were checked before, on the same model.
    """

    def __init__(
        self,
        options: Options,
        stack: CallStack,
        scopes: Scopes,
        collector: Collector,
        lineage: Lineage,
    ) -> None:
        self.lineage = lineage
        self._sides: dict[int, tuple[Numbered | None, Numbered | None, int | None]] = {}
        self.options = options
        self.stack = stack
        self.scopes = scopes
        self.collector = collector
        self.edited: set[str] = set()
        self.passed_over: dict[str, None] = {}
        self.trusted = False
        self._parts: dict[int, Part] = {}
        self._edits: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: list[Squash] = []
        self._guarded: list[Tensor] = []
        self._call: object = None

    @property
    def seen(self) -> Capture:
        """The capture that is being filled."""
        return self.collector.seen

    def made(self, squash: Squash) -> None:
        """Note a softmax or a gate's function; those that are never applied are listed at last."""
        self._made.append(squash)

    def chosen(self, kind: str, scope: Scope, place: Place) -> bool:
        """Whether `where=` chooses a record of this kind in this scope."""
        chosen = self.options.wants(kind, self._names(scope.name, place), scope.module)
        if not chosen:
            self.passed_over[scope.name or self._root] = None
        return chosen

    def placed(self, record: Record, place: Place, scope: Scope) -> Record:
        """The record with its source line, its module and the number and size of the images."""
        shape = scope.shape
        return changed(
            record, name=record.name or self._root, source=place.source, path=place.path,
            origin=place.name or self._root, module=type(scope.module).__name__,
            images=shape.images, image=shape.image,
        )  # fmt: skip

    def without_weights(self, record: Record, place: Place, scope: Scope) -> None:
        """Keep a record that holds no weights, and therefore has no grids.

        Raises:
            UnsupportedError: It was to be edited.
        """
        bare = scope._replace(shape=Geometry(scope.shape.images, scope.shape.image))
        record = self.placed(record, place, bare)
        if self.edit_of(record, place) is not None:
            raise UnsupportedError(
                f"edit of {record.name!r}: it holds no weights to replace ({record.how}: "
                f"{record.note}); choose another module, or edit its gates"
            )
        self.collector.keep(record)

    def apply(
        self, record: Record, squash: Squash, operand: Tensor, restore: Restore,
        *, once: bool = False, part: bool = False,
    ) -> Tensor | None:  # fmt: skip
        """Edit a record, if an edit names it, and keep it once for each part of a softmax's result.

        Args:
            record: The record, with the values that the model is about to apply.
            squash: The function that made them.
            operand: The tensor that holds them.
            restore: From edited values to a tensor shaped like the operand.
            once: Whether all parts of the result make one record.
            part: Whether these are weights of some of its keys, with a record of their own.

        Returns:
            The tensor to put in the operand's place, if the record was edited.
        """
        offset: Any = int(operand.storage_offset())
        if part:
            offset = storage_key(operand), offset
        known = squash.numbers.get(offset)
        if known is None and once and squash.numbers:
            known = min(squash.numbers.values())
        edit, plain = self.edit_of(record, squash.place, known), _values(record)
        if known is None:
            known = squash.numbers[offset] = len(self.seen)
            record = self.keep(record, edit)
            new = _values(record)
            if edit is not None and plain is not None and new is not None:
                self._edits[known] = plain.detach().clone(), new
        if edit is None or plain is None:
            return None
        if squash.early:
            raise UnsupportedError(
                f"edit of {record.name!r}: its weights met learned values before they met the "
                "values of an image, and were not edited there; change the order in the model's "
                "code"
            )
        before, after = self._edits[known]
        if same(before, plain):
            return restore(after, operand).to(operand.dtype)
        return _again(before, after, operand, record.name).to(operand.dtype)

    def used_again(self, squash: Squash, operand: Tensor) -> Tensor | None:
        """Weights meet something else than the values: edited ones, where their record was edited.

        Args:
            squash: The function that made them.
            operand: The tensor that holds them.
        """
        number = min(squash.numbers.values(), default=None)
        squash.early = squash.early or number is None
        if number not in self._edits:
            return None
        name = self.seen._records[number].name
        return _again(*self._edits[number], operand, name).to(operand.dtype)

    def keep(self, record: Record, edit: Edit | None) -> Record:
        """Keep a record as it is applied, after its edit."""
        if self.collector.rolls and (call := self.stack.call()) is not self._call:
            self._call = call
            self.collector.begin()
        record = record if edit is None else edited(record, edit)
        self.collector.keep(record)
        return record

    def part(self, values: Tensor | None, squash: Squash, offset: int, split: Split) -> None:
        """Note which part of its values one record was applied to, along their first axis.

        Attention may be computed slice by slice, a few images and heads at a time.
        """
        number = squash.numbers.get(offset)
        if number is None or values is None or values.dim() != 3 or not values.stride(0):
            return
        start = int(values.storage_offset()) // values.stride(0)
        whole = values.untyped_storage().nbytes() // (values.element_size() * values.stride(0))
        if len(values) < whole:
            images = followed_images(self.lineage, values, [0])
            part = start, start + len(values), whole
            self._parts[number] = Part(storage_key(values), *part, images, split)

    def _join_parts(self) -> set[int]:
        """Put the slices of one attention together; the numbers of those but the first."""
        joined: set[int] = set()
        for run in _runs(self._parts, self.seen._records):
            records = [self.seen._records[i] for i in run]
            parts = [self._parts[i] for i in run]
            known = [one.images for one in parts if one.images is not None]
            images = np.concatenate(known) if len(known) == len(parts) else None
            split = divided((parts[0].whole,), None, records[0].images, images)
            own = [one.split for one in parts]
            whole = _joined(records, own, split)
            if whole is None:
                continue
            sides = [self._sides.get(i, (None, None, None)) for i in run]
            queries, keys = (_rows([one[n] for one in sides], own, split) for n in (0, 1))
            bare = changed(whole, places=None, query_grid=None, key_grid=None, prefix=0)
            self.seen._set(run[0], self._with_places(bare, queries, keys, whole.images))
            joined.update(run[1:])
        return joined

    def edit_of(self, record: Record, place: Place, number: int | None = None) -> Edit | None:
        """The edit of a record, or of one that was kept before under some number.

        Raises:
            UnsupportedError: Dropout follows the weights.
        """
        if not self.options.edit:
            return None
        earlier = self.seen._records[:number]
        count = sum(other.name == record.name for other in earlier)
        names = (*self._names(record.name, place), f"{record.name}#{count}")
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

    def guard(self, output: Tensor) -> None:
        """Make a backward pass through an edited output fail: it would be the unedited model's."""
        self._flush()
        if torch.is_grad_enabled():
            self._guarded.append(output)

    def lies(
        self,
        record: Record,
        queries: Numbered | None,
        keys: Numbered | None,
        images: int | None,
        number: int | None = None,
    ) -> Record:
        """The record with the places of its tokens, where they were followed from a feature map.

        Args:
            record: The record.
            queries: Numbers of its queries' places.
            keys: Numbers of its keys' places.
            images: How many images there are.
            number: Which record it is; the next one if not given.
        """
        self._sides[len(self.seen) if number is None else number] = queries, keys, images
        record = self._with_places(record, queries, keys, images)
        if keys is None or record.places is None or record.places.keys.grid is None:
            return record
        windows = self.scopes.windows(record.places.keys, keys.numbers.shape[1])
        if windows is None:
            return record
        query = windows.size if record.places.queries.cell == record.places.keys.cell else None
        return changed(
            record, windows=windows, query_grid=query, key_grid=windows.size,
            prefix=keys.numbers.shape[1] - windows.cells.shape[1],
        )  # fmt: skip

    def _with_places(
        self, record: Record, queries: Numbered | None, keys: Numbered | None, images: int | None
    ) -> Record:
        places = tuple(proven(side, images, self.lineage) for side in (queries, keys))
        if places == (None, None):
            return record
        of = [one or Places(reason=UNPROVEN) for one in places]
        record = changed(record, places=RecordPlaces(*of))
        if record.windows is not None:  # once more, after the forward pass
            return record
        query, key = (_grid(one) for one in places)
        prefix = _lead(places[1]) or _lead(places[0])
        return changed(record, query_grid=query, key_grid=key, prefix=prefix)

    def at_points(
        self,
        record: Record,
        queries: Numbered | None,
        rows: SampledRows,
        images: int | None,
        number: int | None = None,
    ) -> Record:
        """The record with the sampling points that are its keys; the arguments are as in `lies`."""
        record = self.lies(record, queries, None, images, number)
        count = rows.points.shape[-1]
        point: Role = "point"
        keys = Places(
            None, (-1,) * count, (point,) * count, status="proven", reason="sampling points"
        )
        own = Places(reason=UNPROVEN) if record.places is None else record.places.queries
        return changed(
            record, places=RecordPlaces(own, keys), key_grid=None, prefix=0,
            points=rows.sampling_points(),
        )  # fmt: skip

    def finish(self, dropped: Set[int] = frozenset()) -> None:
        """Finish one forward pass: list what was not applied, and reset.

        Args:
            dropped: Numbers of records that turned out to be none.
        """
        self._flush()
        for number, sides in self._sides.items():
            known = [
                side for side in sides[:2] if side is not None and self.lineage.alone(side.space)
            ]
            kept = self.seen._records[number] if number < len(self.seen) else None
            if known and kept is not None and kept.points is None:  # the head has read its token
                self.seen._set(number, self._with_places(kept, *sides))
        dropped = dropped | self._join_parts()
        self._sides.clear()
        self._parts.clear()
        self._edits.clear()
        if dropped:
            self.seen._drop(dropped)
        self.seen.unused = [self._unused(squash) for squash in self._made if _matters(squash)]
        self._made.clear()
        self._call = None
        self.scopes.finish()
        self.collector.finish()

    def _unused(self, squash: Squash) -> Record:
        place = squash.place
        record = Record(
            place.name, "gate" if squash.op != "softmax" else "attention", op=squash.op,
            shape=squash.shape, softmax=squash.op == "softmax", how="not applied",
            note="computed, and never multiplied with data, as far as its way is followed",
        )  # fmt: skip
        return self.placed(record, place, Scope(place.name, place.module, Geometry()))

    def _flush(self) -> None:
        for output in self._guarded:
            if output.requires_grad and not output.is_leaf:
                output.register_hook(_refuse_gradient)
        self._guarded.clear()

    def _names(self, name: str, place: Place) -> tuple[str, ...]:
        return (name or self._root, place.name or self._root)

    @property
    def _root(self) -> str:
        return type(self.stack.model).__name__


def _runs(parts: Mapping[int, Part], records: Sequence[Record]) -> Iterator[list[int]]:
    """Numbers of records that follow each other along one tensor of values, from end to end."""
    run: list[int] = []
    for number, part in sorted(parts.items()):
        before = parts.get(run[-1]) if run else None
        follows = before is not None and (
            (before.storage, before.stop) == (part.storage, part.start)
            and records[run[-1]].name == records[number].name
            and records[run[-1]].source == records[number].source
        )
        run = [*run, number] if follows else [number]
        if len(run) > 1 and parts[run[0]].start == 0 and part.stop == part.whole:
            yield run
            run = []


def _joined(records: Sequence[Record], parts: Sequence[Split], split: Split) -> Record | None:
    """One record of several slices along images and heads; None where weights were not kept."""
    first = records[0]
    if split.unsplit or not first.images or any(one.weights is None for one in records):
        return None

    def whole(name: str) -> Tensor | None:
        found = [getattr(one, name) for one in records]
        if any(one is None for one in found):
            return None
        return split.present(torch.cat([
            part.restore(one) for part, one in zip(parts, found, strict=True)
        ]))  # fmt: skip

    weights = whole("weights")
    if weights is None or len(weights) != first.images:
        return None
    return changed(
        first, weights=weights, query=whole("query"), key=whole("key"), value=whole("value"),
        shape=tuple(weights.shape), heads=weights.shape[1], leaf=None, note="",
    )  # fmt: skip


def _rows(sides: Sequence[Any], parts: Sequence[Split], split: Split) -> Numbered | None:
    """The numbers of slices put together, one row per image."""
    known = [side for side in sides if isinstance(side, Numbered)]
    if len(known) < len(sides) or any(one.space is not known[0].space for one in known):
        return None
    numbers = np.concatenate([
        one.numbers[part.images(len(one.numbers))] for one, part in zip(known, parts, strict=True)
    ])  # fmt: skip
    by_head = numbers[split.rows(np.arange(len(numbers), dtype=np.int64))]
    return Numbered(known[0].space, by_head[:, 0]) if (by_head == by_head[:, :1]).all() else None


def _grid(places: Places | None) -> tuple[int, ...] | None:
    """The grid of which each cell holds a token; None of other places."""
    grid = None if places is None else places.grid
    if places is None or grid is None:
        return None
    return grid if sum(c >= 0 for c in places.cell) % math.prod(grid) == 0 else None


def _lead(places: Places | None) -> int:
    """How many tokens precede places that lie row by row; 0 for others."""
    if places is None or places.grid is None:
        return 0
    lead = next(i for i, cell in enumerate(places.cell) if cell >= 0)
    return lead if places.row_by_row_from(lead) else 0


def before_dropout(tag: Tag, operand: Tensor) -> Tensor:
    """The operand as it was before dropout, if that is known."""
    raw = tag.raw
    if raw is None or raw.stride() != tag.stride or tuple(raw.shape) != tag.shape:
        return operand
    offset = raw.storage_offset() + operand.storage_offset()
    return raw.as_strided(operand.shape, operand.stride(), offset)


def edited(record: Record, edit: Edit) -> Record:
    """The record with edited values, which have no graph."""
    field = "weights" if record.weights is not None else "scale"
    values = checked(edit, getattr(record, field).detach(), record)
    return changed(record, edited=True, leaf=None, **{field: values})


def _values(record: Record) -> Tensor | None:
    return record.weights if record.kind == "attention" else record.scale


def same(one: Tensor, other: Tensor) -> bool:
    """Whether values are equal to the last bit; NaN is as large as NaN."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _again(before: Tensor, after: Tensor, operand: Tensor, name: str) -> Tensor:
    """Edited values for a second use of the same ones, in another order of their axes.

    A gate g may come as 1 - g as well, as where it chooses between two branches.

    Raises:
        UnsupportedError: They were changed in between, or could lie in more than one order.
    """
    found: list[Tensor] = []
    for order in permutations(range(before.dim())):
        if before.numel() != operand.numel():
            break
        plain, new = (x.permute(order).reshape(operand.shape) for x in (before, after))
        plain = plain.to(operand.dtype)
        if same(plain, operand):
            found.append(new)
        if same(1 - plain, operand) or same(plain, 1 - operand):
            found.append(1 - new)
    if not found or not all(same(one, found[0]) for one in found):
        raise UnsupportedError(
            f"edit of {name!r}: its values are used a second time, and are "
            f"{'in an order that is not known' if found else 'others'} there, as "
            f"{tuple(operand.shape)}; what the edit makes of them is not known: edit another "
            "record, or change the model's code"
        )
    return found[0]


def _refuse_gradient(_: Tensor) -> None:
    raise UnsupportedError(
        "backward through an edited watch: the gradients would be those of the model unedited; "
        "run it under torch.no_grad()"
    )


def _matters(squash: Squash) -> bool:
    """Whether an unused result is a softmax of q · k or has the shape of a gate."""
    if squash.used:
        return False
    if squash.op == "softmax":
        return squash.scores is not None
    return len(squash.shape) == 4 and (squash.shape[2:] == (1, 1) or squash.shape[1] == 1)
