"""Passes over rows of values, each the fastest that the device has.

On a CPU numpy makes them in a fraction of the time that torch takes with one thread, and makes them
row by row: torch splits a long reduction among threads when the batch is small, which rounds
differently.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

# Values that a core's own cache holds as float32, so that a second pass finds them there; and as
# float64 with copies beside them.
_NEAR = 1 << 18
_NEARER = 1 << 15
_LONG = 1 << 15  # integers that torch sorts by radix
# Above this a sum of float64 may overflow; powers of two scale without rounding.
_HUGE, _SHRINK = 2.0**500, 2.0**-600


def count(rows: Tensor) -> Tensor:
    """How many are true in each row, (b, D) bool to (b,) int64."""
    if rows.is_cuda:
        return rows.sum(1)
    return torch.tensor([np.count_nonzero(row) for row in rows.numpy()], dtype=torch.int64)


def stretches(rows: Tensor, *, copied: bool = False) -> list[slice]:
    """The rows in order, as many at a time as fit a CPU's cache; on a GPU all.

    Args:
        rows: (b, D).
        copied: Whether copies of them as float64 shall fit beside them.
    """
    at_once = _NEARER if copied else _NEAR
    step = max(1, len(rows) if rows.is_cuda else at_once // rows.shape[1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def row_sum(rows: Tensor) -> Tensor:
    """The sum of each row in float64, (b, D) to (b,)."""
    if rows.is_cuda:
        return rows.sum(1, dtype=torch.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # only of rows that are not scored
        return torch.from_numpy(np.add.reduce(rows.numpy(), axis=1, dtype=np.float64))


def extreme(rows: Tensor, which: Literal["min", "max"]) -> Tensor:
    """The minimum or maximum of each row, NaN where it holds NaN, (b, D) to (b,)."""
    if rows.is_cuda:
        return rows.amin(1) if which == "min" else rows.amax(1)
    find = np.minimum if which == "min" else np.maximum
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(find.reduce(rows.numpy(), axis=1))


def peaks(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the rows, as one, have their row's maximum, (n,) int64; all minima and maxima, (b,)."""
    if rows.is_cuda:
        lowest, highest = rows.aminmax(dim=1)
        return true_places((rows == highest[:, None]).view(-1)), lowest, highest
    found: tuple[list[np.ndarray], ...] = ([], [], [])
    with np.errstate(invalid="ignore"):
        for part in stretches(rows):
            near = rows.numpy()[part]
            lowest, highest = (find.reduce(near, axis=1) for find in (np.minimum, np.maximum))
            places = np.flatnonzero(near == highest[:, None]) + part.start * rows.shape[1]
            for kept, new in zip(found, (places, lowest, highest), strict=True):
                kept.append(new)
    places, lowest, highest = (torch.from_numpy(np.concatenate(kept)) for kept in found)
    return places, lowest, highest


def equal(rows: Tensor, values: Tensor) -> Tensor:
    """Where each row has its own value, (b, D) and (b,) to (b, D) bool."""
    if rows.is_cuda:
        return rows == values[:, None]
    return torch.from_numpy(rows.numpy() == values.numpy()[:, None])


def above(rows: Tensor, values: Tensor) -> Tensor:
    """Where each row exceeds its own value, (b, D) and (b,) to (b, D) bool; on the CPU."""
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(rows.numpy() > values.numpy()[:, None])


def nth_highest(rows: Tensor, n: Tensor) -> Tensor:
    """Each row's n-th highest value, (b, D) and (b,) int64 from 1 to D, to (b,); on the CPU."""
    selected = rows.numpy().copy()
    places = selected.shape[1] - n.numpy()
    for row, place in zip(selected, places, strict=True):
        row.partition(place)
    return torch.from_numpy(selected[np.arange(len(selected)), places])


def at_least(rows: Tensor, threshold: float) -> Tensor:
    """Where the rows reach a value, (b, D) to (b, D) bool; NaN never does."""
    if rows.is_cuda:
        return rows >= threshold
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(rows.numpy() >= threshold)


def shifted(rows: Tensor, values: Tensor) -> Tensor:
    """Each row less its own value, (b, D) and (b,) to (b, D)."""
    if rows.is_cuda:
        return rows - values[:, None]
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(rows.numpy() - values.numpy()[:, None])


def true_places(flat: Tensor) -> Tensor:
    """Where a flat tensor is not zero, int64."""
    if flat.is_cuda:
        return torch.nonzero(flat).view(-1)
    return torch.from_numpy(np.flatnonzero(flat.numpy().astype(bool, copy=False)))


def sort_rows(rows: Tensor) -> Tensor:
    """Each row in ascending order, (b, D)."""
    if rows.is_cuda:
        return rows.sort(1).values
    if rows.shape[1] >= _LONG and rows.dtype == torch.int32 and _radix_is_quicker():
        return torch.stack([row.sort().values for row in rows])
    # numpy sorts with vector instructions, 43 µs for 9,216 integers where torch takes 413.
    return torch.from_numpy(np.sort(rows.numpy(), axis=1))


@cache
def _radix_is_quicker() -> bool:
    """Whether torch's radix sort of one long row is quicker than numpy's sort; tried once.

    numpy sorts with AVX-512 where a processor has it, which is slower than AVX2 on AMD's Zen 4
    (numpy/x86-simd-sort, issue 6), and there slower than torch, which sorts a single row of at
    least 2^15 integers by radix. Both give the same bits.
    """
    draw = torch.Generator().manual_seed(0)
    row = torch.randint(-(2**31), 2**31, (2 * _LONG,), dtype=torch.int32, generator=draw)

    def seconds(sort: Callable[[], Any]) -> float:
        taken = []
        for _ in range(4):
            start = perf_counter()
            sort()
            taken.append(perf_counter() - start)
        return min(taken)

    return seconds(row.sort) < seconds(partial(np.sort, row.numpy()))


def overflow_guard(largest: Tensor) -> Tensor:
    """What to multiply rows of float64 with so that their sums stay finite: one, or a power of two.

    Args:
        largest: The largest size in each row, (b,).
    """
    return torch.ones_like(largest).masked_fill_(largest > _HUGE, _SHRINK)
