"""Maps and masks in batches of bounded size, and a metric's scores from them.

A metric computes the scores of a `Batch` of a few rows, small enough to stay in the cache of a CPU.
The batch makes what several metrics need once: rows as float64, extrema, sorted order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from attnviz.inputs import AnyBoxes, AnyMaps, AnyMasks, boxes_of_masks, maps_with_masks
from attnviz.metrics.reasons import Reason
from attnviz.metrics.row_kernels import (
    above,
    count,
    equal,
    extreme,
    nth_highest,
    overflow_guard,
    shifted,
    sort_rows,
    true_places,
)
from attnviz.metrics.sorted_curves import Curves, sort_curves

# Values per batch: 4 MiB as float32 stay near a core; more where nothing as large as the values is
# made; a GPU needs large batches.
_VALUES_OF_ONE = VALUES_OF_MANY = 1 << 20
VALUES_IN_PASSING = 1 << 22
_VALUES_ON_GPU = 1 << 25


@dataclass(frozen=True)
class Batch:
    """A few maps and masks as rows.

    Attributes:
        values: The maps, (b, D), float32 or float64.
        labels: The masks, (b, D), bool.
        places: The sizes of a map's place axes, such as (h, w) or (d, h, w).
        boxes: Annotated boxes per image, None where the mask's components are taken.
    """

    values: Tensor
    labels: Tensor
    places: tuple[int, ...]
    boxes: tuple[np.ndarray | None, ...] = ()
    _kept: dict[Hashable, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of this name, made at its first use. Not to be written to."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    @cached_property
    def pixels(self) -> int:
        """The number D of places in a map."""
        return prod(self.places)

    @property
    def maps(self) -> Tensor:
        """The maps in their own shape, (b, *places)."""
        return self.values.view(-1, *self.places)

    @property
    def masks(self) -> Tensor:
        """The masks in their own shape, (b, *places)."""
        return self.labels.view(-1, *self.places)

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

    def scaled_ascending(self) -> Tensor:
        """`scaled` in ascending order, (b, D); from the curves where these hold the values."""
        known = self.curves.ascending(slice(None))
        if known is None or self._factor is not None:
            return sort_rows(self.scaled)
        lowest, highest = self.lowest.double(), self.highest.double()
        return shifted(known.double(), lowest).div_((highest - lowest)[:, None])

    @cached_property
    def inside(self) -> Tensor:
        """Where the masks are true when flattened, int64."""
        return true_places(self.labels.view(-1))

    @cached_property
    def curves(self) -> Curves:
        """The maps' values in descending order, with their labels."""
        return sort_curves(self.values, self.labels)

    def ascending_sizes(self, part: slice) -> Tensor:
        """Some rows' sizes |a| in ascending order, (n, D), to be written to.

        From the curves where another metric has sorted the maps.
        """
        known = self.curves.ascending(part) if "curves" in vars(self) else None
        return sort_rows(self.values[part].abs()) if known is None else known

    def hits_among(self, k: Tensor) -> Tensor:
        """How many of the k highest places lie inside the mask, expected under fair ties, (b,).

        Counted from the curves where another metric has sorted the maps; else, on a CPU, from the
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


def batches(
    maps: AnyMaps,
    masks: AnyMasks,
    *,
    at_once: int = _VALUES_OF_ONE,
    boxes: AnyBoxes | None = None,
) -> Iterator[Batch]:
    """Check maps and masks and cut them into batches of bounded size, in order.

    Args:
        maps: One raw map per image, (b, *places), float16 to float64; a tensor or an array.
        masks: Where the object is, (b, *places), bool, on the same device.
        at_once: How many values a batch holds on a CPU, at least one map.
        boxes: Annotated boxes, one entry per image, or None.

    Yields:
        Batches that never share memory with what a metric writes.

    Raises:
        InputError: Wrong shape, dtype or device; maps of no places.
    """
    values, labels = maps_with_masks(maps, masks)
    annotated = () if boxes is None else boxes_of_masks(labels, boxes)
    places = tuple(values.shape[1:])
    pixels = prod(places)
    budget = _VALUES_ON_GPU if values.is_cuda else at_once
    step = max(1, budget // pixels)
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        rows = values[part].reshape(-1, pixels).contiguous()
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float()
        marks = labels[part].reshape(-1, pixels).contiguous()
        yield Batch(rows, marks, places, annotated[part])


def score(
    maps: AnyMaps,
    masks: AnyMasks,
    compute: Callable[[Batch], Tensor],
    *,
    blocked: Reason,
    at_once: int = _VALUES_OF_ONE,
    boxes: AnyBoxes | None = None,
) -> Tensor:
    """One score per image, NaN where a flag says that there can be none.

    Args:
        maps: One raw map per image, (b, *places).
        masks: Where the object is, (b, *places).
        compute: The metric of a batch, (b,) float64; its scores of blocked images are dropped.
        blocked: The reasons for which the metric has no score, except those for which `compute`
            gives NaN by itself.
        at_once: As in `batches`.
        boxes: As in `batches`.

    Returns:
        Scores, (b,) float64, on the device of the maps.
    """
    pieces = batches(maps, masks, at_once=at_once, boxes=boxes)
    return joined([hide(compute(batch), batch, blocked) for batch in pieces], torch.float64)


def hide(scores: Tensor, batch: Batch, blocked: Reason) -> Tensor:
    """The scores with NaN where one of the blocking reasons holds, (b,)."""
    for reason in blocked:
        scores = scores.masked_fill(batch.holds(reason), torch.nan)
    return scores


def joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The parts as one, or none as an empty tensor."""
    return torch.cat(parts) if parts else torch.empty(0, dtype=dtype)
