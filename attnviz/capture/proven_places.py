"""From places that were followed to the places of a record's queries and keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from attnviz.capture.lineage import PADDED, Label, Line, Lineage, Numbers, Space
from attnviz.token_places import Places, Role

FARTHEST = 0.5
"""The largest distance of a token from the centre of its cell, in cells."""

Present = Callable[[Numbers], Numbers]
"""From values along a tensor's leading axes, flat, to `(b, heads)`."""


@dataclass(slots=True)
class Numbered:
    """The numbers of the tokens of one side of a record.

    Attributes:
        space: The grid that they are numbers on.
        numbers: `(b, tokens)`, cells, and numbers below zero for tokens that are no places.
    """

    space: Space
    numbers: Numbers


def numbered(
    lineage: Lineage, tensor: Tensor, tokens: Sequence[int], lead: Sequence[int], present: Present
) -> Numbered | None:
    """The numbers of tokens along some axes of weights, queries or keys; None where not known.

    Args:
        lineage: What is known.
        tensor: The tensor.
        tokens: Its axes of tokens, slowest first.
        lead: Its leading axes.
        present: How images and heads lie along the leading axes.
    """
    count = math.prod(tensor.shape[i] for i in tokens)
    for label in lineage.labels(tensor) or ():
        along = {i for i in range(tensor.dim()) if label.along(i)}
        if (
            not label.space.raw
            and along <= {*tokens, *lead}
            and (along & set(tokens) or count == 1)
        ):
            numbers = _presented(label, tensor, tokens, lead, present)
            return None if numbers is None else Numbered(label.space, numbers)
    return None


def _presented(
    label: Label, tensor: Tensor, tokens: Sequence[int], lead: Sequence[int], present: Present
) -> Numbers | None:
    """`(b, tokens)`; None where heads lie at different places."""
    order = (*lead, *tokens, *(i for i in range(tensor.dim()) if i not in {*lead, *tokens}))
    numbers = label.numbers.transpose(order)
    numbers = numbers.reshape(numbers.shape[: len(lead) + len(tokens)])
    inner = [tensor.shape[i] for i in tokens]
    outer = [tensor.shape[i] for i in lead]
    rows = present(np.arange(math.prod(outer), dtype=np.int64))
    if all(n == 1 for n in numbers.shape[: len(lead)]):
        own = np.broadcast_to(numbers.reshape(numbers.shape[len(lead) :]), inner).reshape(1, -1)
        return np.broadcast_to(own, (len(rows), own.shape[1]))
    flat = np.broadcast_to(numbers, (*outer, *inner)).reshape(math.prod(outer), -1)
    found: Numbers = flat[rows[:, 0]]
    for head in range(1, rows.shape[1]):
        if not np.array_equal(flat[rows[:, head]], found):
            return None
    return found


def proven(side: Numbered | None, images: int | None) -> Places | None:
    """Places from numbers; None where these do not tell them.

    Each image's tokens are looked for in the data: a cell stands once for each of them. None where
    images differ, or where the cells lie farther than half a cell from where a grid over the image
    has them.

    Args:
        side: The numbers of one side of a record.
        images: How many images there are, where that is known.
    """
    if side is None or not side.numbers.size:
        return None
    numbers = side.numbers
    count = _images(numbers)
    if count is None or (images and images % count and count % images):
        return None
    if images and count != images:
        return None
    cell = numbers.reshape(count, -1)[0]
    placed = cell[cell >= 0]
    found = _grid(placed, side.space.lines)
    if found is None:
        return None
    grid, inside, error = found
    cells = np.full(len(cell), -1)
    cells[cell >= 0] = inside
    roles: list[Role] = [_role(int(n), side.space) for n in cell]
    return Places(
        grid, tuple(int(c) for c in cells), tuple(roles), status="proven",
        reason="followed from a feature map", error=error,
    )  # fmt: skip


def _role(number: int, space: Space) -> Role:
    if number >= 0:
        return "place"
    if number == PADDED:
        return "padding"
    return "class" if number in space.read else "other"


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

    Evenly spaced rows and columns are a grid of their own if they cover the image; other cells are
    a part of the whole grid.
    """
    index: list[Numbers] = []
    rest = placed
    for line in reversed(lines):
        index.append(rest % line.size)
        rest = rest // line.size
    index = index[::-1]
    rows = [np.unique(one) for one in index]
    if math.prod(map(len, rows)) == len(placed) and all(map(_even, rows)):
        error = max(line.off(one.tolist()) for line, one in zip(lines, rows, strict=True))
        if error < FARTHEST:
            cells = np.zeros(len(placed), np.int64)
            for one, own in zip(index, rows, strict=True):
                cells = cells * len(own) + np.searchsorted(own, one)
            return tuple(map(len, rows)), cells, error
    error = max(line.off() for line in lines)
    return (tuple(line.size for line in lines), placed, error) if error < FARTHEST else None


def _even(rows: Numbers) -> bool:
    return len(rows) < 3 or len(np.unique(np.diff(rows))) == 1
