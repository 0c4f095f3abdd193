"""Deformable attention whose weights meet the sampled values part by part.

A model may loop over levels, or over points, multiply each part of a softmax's result onto the
values that were sampled for it, and add these up. The parts of one softmax are one record; it is
complete if the weights of each query, all parts together, sum to one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from attnviz.capture import edits
from attnviz.capture.lineage import Labels, Samples
from attnviz.capture.op_mode import apart
from attnviz.capture.provenance import Squash, Tag
from attnviz.capture.record import Record, changed
from attnviz.capture.recorder import Recorder
from attnviz.capture.sampled_rows import SampledRows, joined, sampled_rows
from attnviz.errors import UnsupportedError

IN_PARTS = "its weights meet the sampled values in several parts"
"""The note of such a record."""

_UNKNOWN = f"{IN_PARTS}, which are not all known: no weights are at hand"
_WHOLE = 2e-3  # of a row's sum from one; half precision is as far


@dataclass(eq=False)
class Part:
    """A part of a softmax's result that was multiplied onto sampled values.

    Attributes:
        weights: Its values.
        shape: What it multiplies: its sizes, 1 along which the weights are repeated.
        labels: The labels of what it multiplies.
        keys: The axes that were summed afterwards; none where that was not seen.
    """

    weights: Tensor
    shape: tuple[int, ...]
    labels: Labels
    keys: tuple[int, ...] = ()

    def ways(self) -> Sequence[tuple[int, ...]]:
        """Which axes can be keys: those that were summed; or none, or any one of them."""
        return (
            [self.keys] if self.keys else [(), *((i,) for i, n in enumerate(self.shape) if n > 1)]
        )


class Read(NamedTuple):
    """The weights of a part, `(b, heads, q, k)`, and the points of their rows."""

    weights: Tensor
    rows: SampledRows


@dataclass(eq=False)
class Parts:
    """The parts of one softmax's result.

    Attributes:
        number: The number of their record.
        record: The record without its weights.
        images: How many images the model was given, where that is known.
        listed: The parts.
    """

    number: int
    record: Record
    images: int | None
    listed: list[Part] = field(default_factory=list)


class SampledParts:
    """Gathers the parts of softmax results, and makes records of them."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._parts: dict[Squash, Parts | None] = {}

    def holds(self, tag: Tag, operand: Tensor, values: Tensor) -> bool:
        """Whether an operand is a part of a softmax's result, and meets sampled values."""
        if tag.kind != "softmax" or tag.squash is None or tag.find(operand) is not None:
            return False
        distinct = prod(
            n for n, step in zip(operand.shape, operand.stride(), strict=True) if step
        )  # fmt: skip
        if distinct >= prod(tag.squash.shape):
            return False
        labels = self._recorder.lineage.labels(values) or ()
        return any(isinstance(one.space, Samples) for one in labels)

    @apart
    def add(
        self, tag: Tag, operand: Tensor, shape: tuple[int, ...], values: Tensor
    ) -> tuple[Tensor | None, Part | None]:
        """A part meets its values.

        Args:
            tag: The tag of the softmax's result.
            operand: The part.
            shape: The sizes of the product, 1 along axes that the weights are repeated along.
            values: What it multiplies, with as many axes.

        Returns:
            The tensor to put in the operand's place, if edited; and the part.
        """
        squash = tag.squash
        assert squash is not None  # `holds` has seen it
        squash.used = True
        if squash not in self._parts:
            self._parts[squash] = self._begun(tag, squash)
        parts = self._parts[squash]
        if parts is None:
            return None, None
        labels = self._recorder.lineage.labels(values) or ()
        part = Part(operand.detach().clone(), shape, labels)
        parts.listed.append(part)
        edit = self._recorder.edit_of(parts.record, squash.place, parts.number)
        if edit is None:
            return None, part
        if edit is not edits.zero:
            raise UnsupportedError(
                f"edit of {parts.record.name!r}: {IN_PARTS}, and cannot be replaced as a whole; "
                "only the edit 'zero' is possible"
            )
        part.weights.zero_()
        return torch.zeros_like(operand), part

    def _begun(self, tag: Tag, squash: Squash) -> Parts | None:
        recorder = self._recorder
        scope = recorder.scopes.at(squash.place, 1, squash.shape[-1])
        if not recorder.chosen("attention", scope, squash.place):
            return None
        record = recorder.placed(
            Record(scope.name, "attention", axis="k", how="pooled", op=squash.op,
                   factor=tag.factor, dropout=tag.raw is not None, note=_UNKNOWN),
            squash.place, scope,
        )  # fmt: skip
        number = len(recorder.seen)
        recorder.collector.store(record, {})
        return Parts(number, record, scope.shape.images)

    @apart
    def finish(self) -> None:
        """A forward pass has ended."""
        for squash, parts in self._parts.items():
            if parts is not None:
                self._finished(squash, parts)
        self._parts.clear()

    def _finished(self, squash: Squash, parts: Parts) -> None:
        recorder, number = self._recorder, parts.number
        edited = recorder.edit_of(parts.record, squash.place, number) is not None
        read = _whole(squash, parts, any_sum=edited or parts.record.dropout)
        if read is None:
            return
        record = changed(
            parts.record, weights=read.weights, heads=read.weights.shape[1], note=IN_PARTS,
            edited=edited,
        )  # fmt: skip
        recorder.collector.keep(
            recorder.at_points(record, None, read.rows, parts.images, number), number
        )


def _whole(squash: Squash, parts: Parts, *, any_sum: bool) -> Read | None:
    """All parts, keys after keys, in the only way in which each row sums to one."""
    found: list[Read] = []
    factor = parts.record.factor
    for ways in _alike(parts.listed):
        read = [
            _read(part, way, squash, parts.images)
            for part, way in zip(parts.listed, ways, strict=True)
        ]
        known = [one for one in read if one is not None]
        if len(known) < len(read) or len({one.weights.shape[:3] for one in known}) > 1:
            continue
        weights = torch.cat([one.weights for one in known], -1)
        if weights.numel() != prod(squash.shape):
            continue
        off = (weights.float().sum(-1) / factor - 1).abs().max()
        if any_sum or float(off) < _WHOLE:
            found.append(Read(weights, joined([one.rows for one in known])))
    return found[0] if len(found) == 1 else None


def _alike(listed: Sequence[Part]) -> Iterator[Sequence[tuple[int, ...]]]:
    """Keys of each part; parts of the same shape have the same."""
    shapes = list(dict.fromkeys((one.shape, one.keys) for one in listed))
    first = {(one.shape, one.keys): one for one in reversed(listed)}
    for ways in product(*(first[shape].ways() for shape in shapes)):
        by_shape = dict(zip(shapes, ways, strict=True))
        yield [by_shape[one.shape, one.keys] for one in listed]


def _read(part: Part, keys: tuple[int, ...], squash: Squash, images: int | None) -> Read | None:
    """A part as rows over its own keys; None where these are not sampled alike."""
    dims = len(part.shape)
    order = (*(i for i in range(dims) if i not in keys), *keys)
    rows = sampled_rows(part.labels, part.shape, order, len(keys), squash.shape[0], images)
    if rows is None:
        return None
    x = part.weights.reshape(*[1] * (dims - part.weights.dim()), *part.weights.shape)
    for i, size in enumerate(part.shape):
        x = x.narrow(i, 0, 1) if size == 1 and x.shape[i] > 1 else x
    x = x.permute(order)
    flat = x.reshape(-1, prod(x.shape[dims - len(keys) :]))
    return Read(rows.present(flat), rows)
