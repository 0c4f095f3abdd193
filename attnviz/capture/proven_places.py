"""From places that were followed to the places of a record's queries and keys."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from attnviz.capture.lineage import PADDED, Label, Line, Lineage, Numbers, Space
from attnviz.token_places import Places, Role

FARTHEST = 0.5
"""The largest distance of a token from the centre of its cell, in cells."""

_APART = 1.5  # cells: neighbouring rows of a coarser grid are nearer to each other

TOLD = "the positions that its model computes for its tokens"
"""The reason of places that were read off position ids."""


@runtime_checkable
class Split(Hashable, Protocol):
    """How images and heads lie along a tensor's leading axes."""

    def rows(self, flat: Numbers) -> Numbers:
        """Values along the leading axes, flat, as `(b, heads)`."""
        ...


class Even(NamedTuple):
    """So many images, or so many heads, whose number divides the leading axes.

    Attributes:
        images: How many images; −1 for as many as there are heads to.
        heads: How many heads; the same.
    """

    images: int = -1
    heads: int = -1

    def rows(self, flat: Numbers) -> Numbers:
        """Values along the leading axes, flat, as `(b, heads)`."""
        return flat.reshape(self)


@dataclass(frozen=True, slots=True, eq=False)
class Numbered:
    """The numbers of the tokens of one side of a record.

    Attributes:
        space: The grid that they are numbers on.
        numbers: `(b, tokens)`, cells, and numbers below zero for tokens that are no places.
        found: The places that were read off them, by the number of images and the tokens that a
            layer has read alone.
    """

    space: Space
    numbers: Numbers
    found: dict[Any, Places | None] = field(default_factory=dict, repr=False)


def numbered(
    lineage: Lineage, tensor: Tensor, tokens: Sequence[int], lead: Sequence[int], split: Split
) -> Numbered | None:
    """The numbers of tokens along some axes of weights, queries or keys; None where not known.

    Args:
        lineage: What is known.
        tensor: The tensor.
        tokens: Its axes of tokens, slowest first.
        lead: Its leading axes.
        split: How images and heads lie along the leading axes.
    """
    shape, tokens, lead = tuple(tensor.shape), tuple(tokens), tuple(lead)
    count = math.prod(shape[i] for i in tokens)
    for label in lineage.labels(tensor) or ():
        along = {i for i in range(len(shape)) if label.along(i)}
        if (
            not label.space.raw
            and along <= {*tokens, *lead}
            and (along & set(tokens) or count == 1)
        ):
            key = shape, tokens, lead, split
            if key not in label.sides:
                numbers = _presented(label, shape, tokens, lead, split)
                label.sides[key] = None if numbers is None else Numbered(label.space, numbers)
            side: Numbered | None = label.sides[key]
            return side
    return None


def _presented(
    label: Label, shape: Sequence[int], tokens: Sequence[int], lead: Sequence[int], split: Split
) -> Numbers | None:
    """`(b, tokens)`; None where heads lie at different places."""
    order = (*lead, *tokens, *(i for i in range(len(shape)) if i not in {*lead, *tokens}))
    numbers = label.numbers.transpose(order)
    numbers = numbers.reshape(numbers.shape[: len(lead) + len(tokens)])
    inner = [shape[i] for i in tokens]
    outer = [shape[i] for i in lead]
    rows = split.rows(np.arange(math.prod(outer), dtype=np.int64))
    if all(n == 1 for n in numbers.shape[: len(lead)]):
        own = np.broadcast_to(numbers.reshape(numbers.shape[len(lead) :]), inner).reshape(1, -1)
        return np.broadcast_to(own, (len(rows), own.shape[1]))
    flat = np.broadcast_to(numbers, (*outer, *inner)).reshape(math.prod(outer), -1)
    found: Numbers = flat[rows[:, 0]]
    for head in range(1, rows.shape[1]):
        if not np.array_equal(flat[rows[:, head]], found):
            return None
    return found


def proven(side: Numbered | None, images: int | None, lineage: Lineage) -> Places | None:
    """Places from numbers; None where these do not tell them.

    Each image's tokens are looked for in the data: a cell stands once for each of them. None where
    images differ, or where the cells lie farther than half a cell from where a grid over the image
    has them.

    Args:
        side: The numbers of one side of a record.
        images: How many images there are, where that is known.
        lineage: Knows which tokens a layer has read alone.
    """
    if side is None or not side.numbers.size:
        return None
    alone = lineage.alone(side.space)
    key = images, alone
    if key not in side.found:
        side.found[key] = _proven(side, images, alone)
    return side.found[key]


def _proven(side: Numbered, images: int | None, alone: Set[int]) -> Places | None:
    numbers = side.numbers
    count = _images(numbers)
    if count is None or (images and count != images and not side.space.told):
        return None
    cell = numbers.reshape(count, -1)[0]
    placed = cell[cell >= 0]
    found = _grid(placed, side.space.lines)
    if found is None:
        return None
    grid, inside, error = found
    cells = np.full(len(cell), -1)
    cells[cell >= 0] = inside
    roles: list[Role] = [_role(int(n), alone) for n in cell]
    return Places(
        grid, tuple(int(c) for c in cells), tuple(roles), status="proven",
        reason=TOLD if side.space.told else "followed from a feature map", error=error,
    )  # fmt: skip


def _role(number: int, alone: Set[int]) -> Role:
    if number >= 0:
        return "place"
    if number == PADDED:
        return "padding"
    return "class" if number in alone else "other"


def _images(numbers: Numbers) -> int | None:
    """How many images rows of tokens hold, one after the other; None where images differ."""
    placed = numbers[numbers >= 0]
    if not len(placed):
        return None
    count = int((placed == placed[0]).sum())
    if len(numbers) % count:
        return None
    each = numbers.reshape(count, -1)
    first = each[0][each[0] >= 0]
    if len(np.unique(first)) != len(first) or not (each == each[:1]).all():
        return None
    return count


def _grid(placed: Numbers, lines: Sequence[Line]) -> tuple[tuple[int, ...], Numbers, float] | None:
    """The grid that cells fill, their numbers on it, and the largest distance in cells.

    Rows and columns of a coarser feature map over the image are a grid of their own; other cells
    are a part of the whole grid, or of one with more rows where those end before the image does.
    """
    index: list[Numbers] = []
    rest = placed
    for line in reversed(lines):
        index.append(rest % line.size)
        rest = rest // line.size
    index = index[::-1]
    rows = [np.unique(one) for one in index]
    if math.prod(map(len, rows)) == len(placed) and all(map(_coarser, rows, lines)):
        error = max(line.off(one.tolist()) for line, one in zip(lines, rows, strict=True))
        if error < FARTHEST:
            cells = np.zeros(len(placed), np.int64)
            for one, own in zip(index, rows, strict=True):
                cells = cells * len(own) + np.searchsorted(own, one)
            return tuple(map(len, rows)), cells, error
    laid = [line.on_image() for line in lines]
    error = max(off for _, _, off in laid)
    if error >= FARTHEST:
        return None
    cells = np.zeros(len(placed), np.int64)
    for one, (count, first, _) in zip(index, laid, strict=True):
        cells = cells * count + one + first
    return tuple(count for count, _, _ in laid), cells, error


def _coarser(rows: Numbers, line: Line) -> bool:
    """Whether some rows are those of a coarser feature map: every so many, from end to end.

    One row of several is none, nor are rows at the ends alone, which leave out what lies between.
    """
    if len(rows) == 1:
        return line.size == 1
    step, *others = np.diff(rows)
    return bool(
        all(other == step for other in others)
        and rows[0] < step
        and rows[-1] + step >= line.size
        and step * len(rows) < _APART * line.size
    )
