"""From measured positions to the cells of the grid that they form.

Nothing is assumed of the order of tokens. A full grid is found by rank: sorted along each axis, the
tokens fall into equal groups, and a grid is right if every cell then holds exactly one token and
the groups lie where its rows and columns do. Where only some cells are there (a masked
autoencoder's), the coarsest grid is taken on whose centres all of them lie.

Rows of a part of the image fit a grid of fewer rows as well. What a token sees tells them apart: a
grid of one row is taken only of tokens that see the image from end to end, some cells as those of a
grid only if they lie in most of its rows or if tokens see as much as a cell, and no grid whose rows
leave room for another one.

A token that sees far sees less beyond the border, where the image ends, and its measured position
moves inwards: rows and columns are expected at the mean of a normal distribution that is cut off
there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FARTHEST = 0.45
"""The largest distance from a cell's centre, in cells, at which a token is given a place."""

_SHIFT = 0.55  # cells: strided convolutions see up to half a cell above and to the left
_DRIFT = 0.25  # cells that rows may move from the first to the last
_NARROW = 0.6  # cells: the deviation of what a token sees that tells rows apart from others
_OWN = 0.2, 0.4  # cells: the same of a token that sees its own cell; 0.29 where it sees all alike
_ROOM = 0.25  # rows: from the centre of one more to the image's end
_CLOSEST = 0.3  # cells between two rows: those at the border draw near to each other
_MANY = 16  # tokens whose distances can be compared with the noise
_EXCESS = 0.1  # square cells
_FEWEST = 8  # tokens that determine a grid of which they are a part
_FINEST = 64  # sides of a grid of which only some cells are there


@dataclass(frozen=True, slots=True)
class Snapped:
    """Tokens on a grid.

    Attributes:
        grid: Its sides; None where none was found.
        cell: For each token its cell, row by row.
        error: The largest distance of a token from the centre of its cell, in cells.
        reason: Why there is none.
    """

    grid: tuple[int, ...] | None
    cell: tuple[int, ...] = ()
    error: float = math.nan
    reason: str = ""


def snapped(points: Tensor, spread: Sequence[float], across: int = 0) -> Snapped:
    """Find the grid that some points form.

    Args:
        points: `(tokens, axes)`, positions from 0 to 1.
        spread: By axis the standard deviation of what a token sees.
        across: Along how many axes a token may see the image from end to end.
    """
    known = Ranks()
    sides = _factors(len(points), points.shape[1])
    grids = [grid for grid in sides if grid.count(1) <= across]
    found = [one for grid in grids if (one := _full(points, grid, spread, known))]
    found.sort(key=lambda one: one[0])
    if not found:
        return _part(points, spread) or Snapped(None, reason="the measured positions form no grid")
    (fit, best), *others = found
    if others and others[0][0] < 2 * fit:
        grids_ = " and ".join("×".join(map(str, one.grid or ())) for _, one in found[:2])
        return Snapped(None, reason=f"the measured positions fit the grids {grids_}")
    return best


def agrees(
    points: Tensor,
    fields: Tensor,
    spread: Sequence[float],
    grid: tuple[int, ...],
    cell: Tensor,
    across: int = 0,
) -> Snapped | None:
    """Whether noisy positions agree with cells that are expected, None where they do not.

    Rows and columns, each taken as a whole, have to lie where they are expected. Of single tokens
    nine in ten have to lie within half a cell of their own and none farther than one and a half; or
    their distances are no larger than the noise, which shows in how much the noise fields differ:
    an order that is wrong for a tenth of the tokens moves these by a cell at least.

    Args:
        points: `(tokens, axes)`, positions from 0 to 1.
        fields: `(fields, tokens, axes)`, the same from each noise field alone.
        spread: By axis the standard deviation of what a token sees.
        grid: The expected grid.
        cell: For each token its expected cell.
        across: Along how many axes a token may see the image from end to end.
    """
    if len(cell) != len(points) or grid.count(1) > across:
        return None
    rest, far = cell, torch.zeros(len(points), dtype=points.dtype)
    error, excess = 0.0, 0.0
    for axis in reversed(range(len(grid))):
        side = grid[axis]
        index, rest = rest % side, rest // side
        shift = float((points[:, axis] * side - 0.5 - index).median())
        off = (points[:, axis] - _lines(side, shift, spread[axis])[index]) * side
        if abs(shift) > _SHIFT:
            return None
        sums = torch.zeros(side, dtype=off.dtype).index_add_(0, index, off)
        count = index.bincount(minlength=side)
        error = max(error, float((sums / count.clamp_min(1)).abs().max()))
        if error > FARTHEST:
            return None
        if bool(count.all()):
            sums = torch.zeros(side, dtype=off.dtype).index_add_(0, index, points[:, axis])
            if not _from_end_to_end(sums / count, spread[axis]):
                return None
        far = torch.maximum(far, off.abs())
        excess = max(excess, float(off.square().mean()) - _noise(fields[..., axis] * side))
    near = float((far < 0.5).double().mean()) >= 0.9 and float(far.max()) <= 1.5
    if not near and (len(points) < _MANY or excess > _EXCESS):
        return None
    if len(cell.unique()) != len(cell):
        return None
    return Snapped(grid, tuple(cell.tolist()), error)


def _noise(fields: Tensor) -> float:
    """The variance of the mean over noise fields, from how much they differ."""
    if len(fields) < 2:
        return 0.0
    return float(fields.var(0).mean()) / len(fields)


def row_by_row(count: int, axes: int) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """All grids of so many cells, with the cells in their own order."""
    for grid in _factors(count, axes):
        yield grid, torch.arange(count)


def _lines(side: int, shift: float, spread: float) -> Tensor:
    """Where the rows of a grid are measured, 0 to 1, given how far each token sees.

    The mean of a normal distribution between 0 and 1, `μ + σ (φ(a) − φ(b)) / (Φ(b) − Φ(a))`.
    """
    middle = (torch.arange(side, dtype=torch.float64) + 0.5 + shift) / side
    if spread < 1e-6:
        return middle
    low, high = -middle / spread, (1 - middle) / spread
    density = (-low.square() / 2).exp() - (-high.square() / 2).exp()
    inside = (torch.erf(high / math.sqrt(2)) - torch.erf(low / math.sqrt(2))) / 2
    return middle + spread * density / (math.sqrt(2 * math.pi) * inside.clamp_min(1e-12))


def _factors(count: int, axes: int) -> Iterator[tuple[int, ...]]:
    """All grids of so many cells."""
    if axes == 1:
        yield (count,)
        return
    for side in range(1, count + 1):
        if count % side == 0:
            for rest in _factors(count // side, axes - 1):
                yield (side, *rest)


@dataclass(frozen=True, slots=True)
class Ranked:
    """Tokens sorted into rows along one axis.

    Attributes:
        row: For each token its row on the image.
        count: How many rows the image has; more than hold tokens where a rest of it makes none.
        fit: The largest distance of a token from its row's mean, in cells.
        error: The largest distance of a row from the centre of its cells.
    """

    row: Tensor
    count: int
    fit: float
    error: float


Ranks = dict[tuple[int, int], Ranked | None]
"""By axis and number of rows, the row of each token; None where they form no such rows."""


def _full(
    points: Tensor, grid: tuple[int, ...], spread: Sequence[float], known: Ranks
) -> tuple[float, Snapped] | None:
    """The points as all cells of a grid, and how well they fit, None where they are not."""
    ranked: list[Ranked] = []
    for axis, side in enumerate(grid):
        if (axis, side) not in known:
            known[axis, side] = _ranked(points[:, axis], side, spread[axis])
        one = known[axis, side]
        if one is None:
            return None
        ranked.append(one)
    index = torch.zeros(len(points), dtype=torch.long)
    for one in ranked:
        index = index * one.count + one.row
    if len(index.unique()) != len(index):
        return None
    counts, error = tuple(one.count for one in ranked), max(one.error for one in ranked)
    return max(one.fit for one in ranked), Snapped(counts, tuple(index.tolist()), error)


def _ranked(along: Tensor, side: int, spread: float) -> Ranked | None:
    """The tokens as so many rows that are equally filled, None where they are not."""
    rank = along.argsort(stable=True).argsort(stable=True) // (len(along) // side)
    lines = torch.zeros(side, dtype=along.dtype).index_add_(0, rank, along)
    lines /= len(along) // side
    fit = float((along - lines[rank]).abs().max()) * side
    if fit > FARTHEST:
        return None
    return _on_rows(rank, lines, side, spread, fit) or _on_more_rows(rank, lines, side, spread, fit)


def _on_rows(rank: Tensor, lines: Tensor, side: int, spread: float, fit: float) -> Ranked | None:
    """Rows that lie where those of a grid over the whole image are measured.

    All of them may be shifted alike; rows that move away from theirs step by step may not.
    """
    if side == 1:
        error = abs(float(lines[0]) - 0.5)
        return Ranked(rank, 1, fit, error) if error < 0.25 else None
    nominal = (torch.arange(side, dtype=lines.dtype) + 0.5) / side
    shift = float(((lines - nominal) * side).median())
    off = (lines - _lines(side, shift, spread)) * side
    error = float(((lines - _lines(side, 0.0, spread)) * side).abs().max())
    drift = abs(_slope(off)) * (side - 1)
    good = (
        abs(shift) < _SHIFT
        and float(off.abs().max()) < FARTHEST
        and float(lines.diff().min()) * side > _CLOSEST
        and (drift < _DRIFT or error < FARTHEST)
        and _from_end_to_end(lines, spread)
    )
    return Ranked(rank, side, fit, error) if good else None


def _from_end_to_end(lines: Tensor, spread: float) -> bool:
    """Whether the image has no room for another row before the first or behind the last one.

    It is not known of rows that see more than their own cells: they draw near to each other.
    """
    if len(lines) < 2:
        return True
    step = float(lines.diff().median())
    if step <= 0 or spread / step > _OWN[1]:
        return True
    return max(float(lines[0]), 1 - float(lines[-1])) < (1 + _ROOM) * step


def _on_more_rows(
    rank: Tensor, lines: Tensor, side: int, spread: float, fit: float
) -> Ranked | None:
    """Rows that lie on a grid of more rows, as where patches do not divide the image."""
    if side < 3:
        return None
    count = round(1 / max(float(lines.diff().median()), 1e-3))
    if not side < count <= 2 * side or spread * count > _NARROW:
        return None  # rows that see far draw near to each other
    row = (lines * count - 0.5).round().long().clamp(0, count - 1)
    off = ((lines - _lines(count, 0.0, spread)[row]) * count).abs()
    if float(off.max()) >= FARTHEST or bool((row.diff() != 1).any()):
        return None
    return Ranked(row[rank], count, fit, float(off.max()))


def _slope(values: Tensor) -> float:
    """The slope of the straight line through values at 0, 1, 2, …, by least squares."""
    at = torch.arange(len(values), dtype=values.dtype)
    at = at - at.mean()
    return float((at * values).sum() / at.square().sum())


def _part(points: Tensor, spread: Sequence[float]) -> Snapped | None:
    """The points as some cells of a grid, the coarsest that holds them."""
    if len(points) < _FEWEST:
        return None
    grid: list[int] = []
    index = torch.zeros(len(points), dtype=torch.long)
    error = 0.0
    for axis in range(points.shape[1]):
        side = _side(points[:, axis])
        if side is None or spread[axis] * side > _NARROW:
            return None
        grid.append(side)
        at = points[:, axis] * side - 0.5
        row = at.round().long().clamp(0, side - 1)
        most = 2 * len(row.unique()) > side > 3
        if not most and spread[axis] * side < _OWN[0]:
            return None
        error = max(error, float((at - at.round()).abs().max()))
        index = index * side + row
    if len(index.unique()) != len(index):
        return None
    return Snapped(tuple(grid), tuple(index.tolist()), error)


def _side(along: Tensor) -> int | None:
    """The smallest number of cells on whose centres all positions lie; None if a second one fits.

    There are no more rows than tokens, and up to twice as many no other number may fit half as
    well.
    """
    fits: list[int] = []
    for side in range(1, min(len(along), _FINEST) + 1):
        at = along * side - 0.5
        off = (at - at.round()).abs()
        usual = float(off.square().mean().sqrt())
        if not fits and usual < 0.1 and float(off.max()) < 0.3:
            fits.append(side)
        elif fits and side < 2 * fits[0] and usual < 0.15:
            return None
    return fits[0] if fits else None
