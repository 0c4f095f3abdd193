"""What every metric takes: maps and masks, checked once, cut into pieces, and flagged.

A metric never sees a whole data set. It sees a `Batch` of a few rows, small enough to stay in the
cache of a CPU, and asks it for what it needs: the rows as float64, their extrema, their sorted
order. Whatever several metrics need is made once per batch.

What makes an image impossible to score is decided here as well, by flags, so that a score is NaN
exactly where a flag of its metric is set, and the reason can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import IntFlag
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnviz.errors import InputError

if TYPE_CHECKING:
    from attnviz.metrics.curves import Curves

AnyMaps: TypeAlias = Float[Tensor, "b h w"] | Float[np.ndarray, "b h w"]
"""One raw map per image, as a tensor or an array, float16 to float64."""

AnyMasks: TypeAlias = Bool[Tensor, "b h w"] | Bool[np.ndarray, "b h w"]
"""Where the thing to be found is, as a tensor or an array."""

# Values per batch: 4 MiB stay near a core, as float32 for one metric, as float64 for many; who
# makes nothing as large as the values can take more at once; a GPU wants to be kept busy.
_VALUES_OF_ONE = 1 << 20
VALUES_OF_MANY = 1 << 19
VALUES_IN_PASSING = 1 << 22
_VALUES_ON_GPU = 1 << 25
# Values that a core's own cache holds as float32, so that a second pass finds them there; and as
# float64 with copies beside them.
_NEAR = 1 << 18
NEARER = 1 << 15
# Above this a sum of float64 may overflow; powers of two scale without rounding.
_HUGE, _SHRINK = 2.0**500, 2.0**-600


class Reason(IntFlag):
    """Why an image cannot be scored. Several may hold at once."""

    EMPTY_MASK = 1
    FULL_MASK = 2
    NAN = 4
    INF = 8
    CONSTANT = 16
    NO_POSITIVE = 32
    ALL_ZERO = 64

    @property
    def words(self) -> str:
        """The reasons in words, joined by a semicolon."""
        return "; ".join(_WORDS[flag] for flag in self)


_WORDS = {
    Reason.EMPTY_MASK: "the mask is empty",
    Reason.FULL_MASK: "the mask is full",
    Reason.NAN: "the map holds NaN",
    Reason.INF: "the map holds Inf",
    Reason.CONSTANT: "the map is constant",
    Reason.NO_POSITIVE: "the map has no positive value",
    Reason.ALL_ZERO: "the map is zero everywhere",
}

UNFIT = Reason.NAN | Reason.INF
"""A map that no metric can score."""

UNSCORABLE = UNFIT | Reason.EMPTY_MASK
"""What no comparison of a map with a mask can score."""


@dataclass(frozen=True)
class Batch:
    """A few maps and masks as rows.

    Attributes:
        values: The maps, (b, D), float32 or float64.
        labels: The masks, (b, D), bool.
        height: Rows of a map.
        width: Columns of a map.
    """

    values: Tensor
    labels: Tensor
    height: int
    width: int
    _kept: dict[Hashable, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What was made under this name before, or what is made now. Not to be written to."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    @property
    def pixels(self) -> int:
        """The number D of places in a map."""
        return self.height * self.width

    @cached_property
    def area(self) -> Tensor:
        """Places inside each mask, (b,) int64."""
        return count(self.labels)

    @cached_property
    def lowest(self) -> Tensor:
        """Each map's minimum, (b,); NaN where the map holds NaN."""
        return extreme(self.values, "min")

    @cached_property
    def highest(self) -> Tensor:
        """Each map's maximum, (b,); NaN where the map holds NaN."""
        return extreme(self.values, "max")

    @cached_property
    def largest(self) -> Tensor:
        """Each map's largest size, whatever its sign, (b,); NaN where the map holds NaN."""
        return torch.maximum(self.lowest.abs(), self.highest.abs())

    @cached_property
    def wide(self) -> Tensor:
        """The maps as float64, shrunk by a power of two where sums could overflow."""
        wide = self.values.double()
        return wide if self._factor is None else wide * self._factor[:, None]

    @cached_property
    def _factor(self) -> Tensor | None:
        return overflow_guard(self.largest) if self.values.dtype == torch.float64 else None

    @cached_property
    def scaled(self) -> Tensor:
        """Each map min-max scaled to [0, 1] in float64; NaN where it is constant."""
        factor = 1.0 if self._factor is None else self._factor
        lowest, highest = self.lowest.double() * factor, self.highest.double() * factor
        return shifted(self.wide, lowest).div_((highest - lowest)[:, None])

    @cached_property
    def inside(self) -> Tensor:
        """Where the masks are true when flattened, int64."""
        return true_places(self.labels.view(-1))

    @cached_property
    def curves(self) -> Curves:
        """The maps' values in descending order, with their labels."""
        from attnviz.metrics.curves import sort_curves

        return sort_curves(self.values, self.labels)

    def hits_among(self, k: Tensor) -> Tensor:
        """How many of the k highest places lie inside the mask, expected under fair ties, (b,).

        Counted from the curves where something else has sorted the maps; else, on a CPU, from the
        k-th highest value, which is selected without sorting the rest.

        Args:
            k: How many places of each map, (b,) int64, 1 to D; 0 counts as 1.

        Returns:
            The expectation of the count, float64. Without meaning for maps with NaN.
        """
        if self.values.is_cuda or "curves" in vars(self):
            return self.curves.hits_among(k)
        k = k.clamp(min=1)
        edge = nth_highest(self.values, k)
        owner, held = self.inside // self.pixels, self.values.view(-1)[self.inside]
        sure = torch.bincount(owner[held > edge[owner]], minlength=len(k))
        tied = torch.bincount(owner[held == edge[owner]], minlength=len(k))
        open_ = k - count(above(self.values, edge))
        share = open_.double() / count(equal(self.values, edge)).double()
        return sure.double() + tied.double() * share

    def holds(self, reason: Reason) -> Tensor:
        """Which images one reason keeps from a score, (b,) bool."""
        return self.once(reason, lambda: _HOLDS[reason](self))

    @cached_property
    def flags(self) -> Tensor:
        """The `Reason` flags of each image, (b,) int64."""
        found = torch.stack([self.holds(reason) for reason in Reason], 1)
        return (found * torch.tensor([int(reason) for reason in Reason]).to(found.device)).sum(1)


_HOLDS: dict[Reason, Callable[[Batch], Tensor]] = {
    Reason.EMPTY_MASK: lambda batch: batch.area == 0,
    Reason.FULL_MASK: lambda batch: batch.area == batch.pixels,
    Reason.NAN: lambda batch: batch.lowest.isnan(),
    Reason.INF: lambda batch: batch.lowest.isinf() | batch.highest.isinf(),
    Reason.CONSTANT: lambda batch: batch.lowest == batch.highest,
    Reason.NO_POSITIVE: lambda batch: batch.highest <= 0,
    Reason.ALL_ZERO: lambda batch: (batch.lowest == 0) & (batch.highest == 0),
}


def overflow_guard(largest: Tensor) -> Tensor:
    """What to multiply rows of float64 with so that their sums stay finite: one, or a power of two.

    Args:
        largest: The largest size in each row, (b,).
    """
    return torch.ones_like(largest).masked_fill_(largest > _HUGE, _SHRINK)


def batches(maps: AnyMaps, masks: AnyMasks, *, at_once: int = _VALUES_OF_ONE) -> Iterator[Batch]:
    """Check maps and masks and cut them into batches of bounded size, in order.

    Args:
        maps: One raw map per image, (b, h, w), float16 to float64; a tensor or an array.
        masks: Where the thing to be found is, (b, h, w), bool, on the same device.
        at_once: How many values a batch holds on a CPU, at least one map.

    Yields:
        Batches that never share memory with what a metric writes.

    Raises:
        InputError: Wrong shape, dtype or device; maps of no places.
    """
    values, labels = checked(maps, masks)
    count_, height, width = values.shape
    budget = _VALUES_ON_GPU if values.is_cuda else at_once
    step = max(1, budget // (height * width))
    for start in range(0, count_, step):
        part = slice(start, start + step)
        rows = values[part].reshape(-1, height * width).contiguous()
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float()
        marks = labels[part].reshape(-1, height * width).contiguous()
        yield Batch(rows, marks, height, width)


def checked(maps: Any, masks: Any) -> tuple[Tensor, Tensor]:
    """The same maps and masks as tensors on one device, or an error that says what came.

    Args:
        maps: One raw map per image, (b, h, w), floating point.
        masks: Where the thing to be found is, (b, h, w), bool.

    Returns:
        Both as detached tensors, sharing memory with the caller's wherever that is possible.

    Raises:
        InputError: Wrong type, shape, dtype or device; maps of no places.
    """
    values, labels = as_tensor(maps, "maps"), as_tensor(masks, "masks")
    if not values.is_floating_point():
        raise InputError(
            f"maps: expected floating point, got {values.dtype}; convert with maps.float()"
        )
    if labels.dtype != torch.bool:
        raise InputError(
            f"masks: expected bool, got {labels.dtype}; say which values count, as in masks > 0"
        )
    if values.ndim != 3:
        raise InputError(
            f"maps: expected (b, h, w), got {tuple(values.shape)}; a single map is maps[None]"
        )
    if values.shape != labels.shape:
        raise InputError(
            f"masks: expected the shape of the maps, {tuple(values.shape)}, "
            f"got {tuple(labels.shape)}; {_towards(values, labels)}"
        )
    if values.shape[1] * values.shape[2] == 0:
        raise InputError(f"maps: expected at least one place, got {tuple(values.shape)}")
    if values.device != labels.device:
        raise InputError(
            f"masks: expected them on {values.device} with the maps, got {labels.device}; "
            "move one with .to(device)"
        )
    return values, labels


def _towards(values: Tensor, labels: Tensor) -> str:
    """How masks of another shape than the maps' may be made to fit."""
    if labels.ndim == 4 and labels.shape[1] == 1:
        return "take the channel axis away with masks[:, 0]"
    if labels.ndim == 3 and len(labels) == len(values):
        return "resize the maps to the masks first, with size= or attnviz.maps.resized"
    return "one mask per map"


def as_tensor(array: Any, what: str) -> Tensor:
    """A tensor on the same memory, or a copy where torch cannot share it.

    Args:
        array: A tensor or a numpy array.
        what: What it is, for the message.

    Returns:
        A detached tensor, not to be written to. Devices without float64 are left for the CPU.

    Raises:
        InputError: It is neither, or of a dtype torch does not know.
    """
    if isinstance(array, Tensor):
        tensor = array.detach()
        return tensor.cpu() if tensor.device.type == "mps" else tensor
    if not isinstance(array, np.ndarray):
        raise InputError(f"{what}: expected a tensor or a numpy array, got {type(array).__name__}")
    if array.dtype.kind not in "bfiu" or array.dtype.itemsize > 8:
        raise InputError(f"{what}: expected float16 to float64 or bool, got {array.dtype}")
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


# On a CPU numpy makes each of the following passes in a fraction of the time that torch takes with
# one thread, and makes them row by row: torch splits a long reduction among threads when the batch
# is small, which rounds differently.


def count(rows: Tensor) -> Tensor:
    """How many are true in each row, (b, D) bool to (b,) int64."""
    if rows.is_cuda:
        return rows.sum(1)
    return torch.tensor([np.count_nonzero(row) for row in rows.numpy()], dtype=torch.int64)


def stretches(rows: Tensor, at_once: int = _NEAR) -> list[slice]:
    """The rows in order, as many at a time as a CPU is quick to look at again; on a GPU all."""
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


def score(
    maps: AnyMaps,
    masks: AnyMasks,
    compute: Callable[[Batch], Tensor],
    *,
    blocked: Reason,
    at_once: int = _VALUES_OF_ONE,
) -> Tensor:
    """One score per image, NaN where a flag says that there can be none.

    Args:
        maps: One raw map per image, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).
        compute: The metric of a batch, (b,) float64; what it says of a blocked image is dropped.
        blocked: The reasons for which the metric has no score, but for those for which it says
            NaN by itself.
        at_once: As in `batches`.

    Returns:
        Scores, (b,) float64, on the device of the maps.
    """
    pieces = batches(maps, masks, at_once=at_once)
    return joined([hide(compute(batch), batch, blocked) for batch in pieces], torch.float64)


def hide(scores: Tensor, batch: Batch, blocked: Reason) -> Tensor:
    """The scores with NaN where one of the blocking reasons holds, (b,)."""
    for reason in blocked:
        scores = scores.masked_fill(batch.holds(reason), torch.nan)
    return scores


def sort_rows(rows: Tensor) -> Tensor:
    """Each row in ascending order, (b, D)."""
    # numpy sorts with vector instructions, 43 µs for 9,216 integers where torch takes 413.
    return rows.sort(1).values if rows.is_cuda else torch.from_numpy(np.sort(rows.numpy(), axis=1))


def no_masks(maps: AnyMaps) -> Tensor:
    """Empty masks of the shape of the maps, for metrics that need none."""
    device = maps.device if isinstance(maps, Tensor) else None
    return torch.zeros(maps.shape, dtype=torch.bool, device=device)


def joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The parts as one, or none as an empty tensor."""
    return torch.cat(parts) if parts else torch.empty(0, dtype=dtype)
