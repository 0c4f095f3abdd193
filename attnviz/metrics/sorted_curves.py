"""AUROC, average precision, best IoU, rank accuracy and top-k, all from one sort of a map.

Each place becomes one integer: the value's bits, mapped so that integers descend where values do,
and its label in the lowest bit. One sort of integers then replaces an argsort and a gather, and
ties need no care: places of the same value stand together, those inside the mask last.

All five curves change only where a place inside the mask is passed, so after the sort only those
places are looked at: a *step* is one distinct value that occurs inside the mask. Counts are int64
and exact; a division happens once, at the end.

Method: T. Fawcett, "An introduction to ROC analysis", 2006 (one pass over sorted scores); the
packing is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attnviz.metrics.row_kernels import sort_rows, true_places

_CENTRE = 0x3FFFFFFF


@dataclass(frozen=True)
class Curves:
    """Maps in descending order, and the steps at which their curves change.

    `s` counts the steps of all maps together, in the order of the maps and of falling values.

    Attributes:
        keys: Packed value and label, (b, D), ascending integers, so values descend.
        places: Where the places inside the masks ended up in `keys` when flattened, (P,) int64.
        offsets: How many of `places` belong to earlier maps, (b,) int64.
        area: Places inside each mask, (b,) int64.
        row: The map of each step, (s,) int64.
        start: Places strictly above the step's value, (s,) int64.
        end: Places at or above it, (s,) int64.
        before: Of the former, those inside the mask, (s,) int64.
        hits: Of the latter, those inside the mask, (s,) int64.
    """

    keys: Tensor
    places: Tensor
    offsets: Tensor
    area: Tensor
    row: Tensor
    start: Tensor
    end: Tensor
    before: Tensor
    hits: Tensor

    def auroc(self) -> Tensor:
        """Mann–Whitney: how often a place inside beats one outside, ties counting half; (b,)."""
        outside = self.keys.shape[1] - self.area
        above, passed = self.start - self.before, self.end - self.hits
        twice = (self.hits - self.before) * (2 * outside[self.row] - above - passed)
        wins = torch.zeros_like(self.area).index_add_(0, self.row, twice)
        return wins.double() / (2 * self.area * outside).double()

    def average_precision(self) -> Tensor:
        """Precision summed over the steps of recall, (b,)."""
        precision = self.hits.double() / self.end.double()
        gain = precision * (self.hits - self.before).double()
        total = torch.zeros_like(self.area, dtype=torch.float64).index_add_(0, self.row, gain)
        return total / self.area.double()

    def best_iou(self) -> Tensor:
        """The largest IoU of the mask with {a ≥ t} over all thresholds t, (b,)."""
        iou = self.hits.double() / (self.end + self.area[self.row] - self.hits).double()
        best = torch.zeros_like(self.area, dtype=torch.float64)
        return best.scatter_reduce_(0, self.row, iou, "amax")

    def ascending(self, part: slice) -> Tensor | None:
        """Some maps' values in ascending order, (n, D); None where the keys do not hold them."""
        if self.keys.dtype != torch.int32:  # see `_packed`
            return None
        return (self.keys[part].flip(1) >> 1).neg_().add_(_CENTRE).view(torch.float32)

    def hits_among(self, k: Tensor) -> Tensor:
        """How many of the k highest places lie inside the mask, expected under fair ties, (b,).

        Args:
            k: How many places of each map, (b,) int64, 1 to D; 0 counts as 1.

        Returns:
            The expectation of the count, float64.
        """
        edge = self.keys.gather(1, (k - 1).clamp(min=0)[:, None]) >> 1
        first = torch.searchsorted(self.keys, edge << 1)[:, 0]
        last = torch.searchsorted(self.keys, (edge << 1) | 1, right=True)[:, 0]
        sure, reach = self._hits_before(first), self._hits_before(last)
        share = (k - first).double() / (last - first).double()
        return sure.double() + (reach - sure).double() * share

    def _hits_before(self, position: Tensor) -> Tensor:
        rows = torch.arange(len(position), device=position.device)
        flat = rows * self.keys.shape[1] + position
        return torch.searchsorted(self.places, flat) - self.offsets


def sort_curves(values: Tensor, labels: Tensor) -> Curves:
    """Sort maps once and find the steps of their curves.

    Args:
        values: Maps as rows, (b, D), float32 or float64.
        labels: Masks as rows, (b, D), bool.

    Returns:
        The curves. Rows that hold NaN or Inf give numbers without meaning.
    """
    keys = sort_rows(_packed(values, labels))
    pixels = keys.shape[1]
    places = true_places(keys.view(-1) & 1)
    owner = places // pixels
    area = torch.bincount(owner, minlength=len(keys))
    offsets = area.cumsum(0) - area
    held = keys.view(-1)[places]

    new = torch.ones(len(places) + 1, dtype=torch.bool, device=keys.device)
    new[1:-1] = (held[1:] != held[:-1]) | (owner[1:] != owner[:-1])
    bounds = true_places(new)
    first, last = bounds[:-1], bounds[1:] - 1
    row = owner[first]
    base = row * pixels
    start = _tie_start(keys.view(-1), places[first], base, held[first])
    return Curves(
        keys=keys,
        places=places,
        offsets=offsets,
        area=area,
        row=row,
        start=start - base,
        end=places[last] + 1 - base,
        before=first - offsets[row],
        hits=last + 1 - offsets[row],
    )


def _packed(values: Tensor, labels: Tensor) -> Tensor:
    """Value and label in one integer, (b, D): int32 if no value is negative, else int64."""
    if values.dtype != torch.float32 or bool((values < 0).any()):
        return (descending(values) << 1).bitwise_or_(labels)
    # Without a sign a value has 31 bits, less than 2^31 - 2^23 of them in use: centred around
    # zero they leave the lowest bit of 32 to the label.
    bits = (values + 0.0).view(torch.int32)  # -0.0 + 0.0 is +0.0: they are the same value
    return bits.neg_().add_(_CENTRE).bitwise_left_shift_(1).bitwise_or_(labels)


def descending(values: Tensor) -> Tensor:
    """Integers that fall as values rise and are equal where values are, (b, D) int64.

    float32 keeps its bits. A float64 leaves no bits for the label, so its dense rank within
    the row takes the place of its bits.
    """
    if values.dtype == torch.float32:
        bits = (values + 0.0).view(torch.int32)
        return (~(bits ^ ((bits >> 31) & 0x7FFFFFFF))).long()
    if len(values) > 1 and torch.equal(values[1:], values[:1].expand_as(values[1:])):
        return descending(values[:1]).expand_as(values)  # one map for several masks
    ordered, places = _argsort(values)
    new = torch.zeros_like(places)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(places).scatter_(1, places, -new.cumsum(1))


def _argsort(values: Tensor) -> tuple[Tensor, Tensor]:
    if values.is_cuda:
        found = values.sort(1)
        return found.values, found.indices
    places = np.argsort(values.numpy(), axis=1)
    return torch.from_numpy(np.take_along_axis(values.numpy(), places, 1)), torch.from_numpy(places)


def _tie_start(flat: Tensor, place: Tensor, base: Tensor, held: Tensor) -> Tensor:
    """Where each run of equal values starts; `place` is its first place inside the mask."""
    start = place.clone()
    tied = (place > base) & (flat[(place - 1).clamp(min=0)] == held - 1)
    unsure = true_places(tied)
    low, high, outside = base[unsure], place[unsure] - 1, held[unsure] - 1
    while bool((low < high).any()):
        middle = (low + high) // 2
        below = flat[middle] < outside
        low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
    start[unsure] = high
    return start
