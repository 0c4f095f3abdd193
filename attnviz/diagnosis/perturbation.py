"""One place of the image is changed, and every tensor is asked where it changed.

Attention is the identity and gates are held meanwhile, so that nothing but the way tokens are laid
out can carry a change from one place to another. Permuting the tokens instead, the usual test of
equivariance, says nothing about layers with 3 × 3 queries and keys or with position embeddings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.capture import Record

Grid = tuple[int, int]

SPOTS = ((0.34, 0.38), (0.62, 0.70), (0.70, 0.30))
"""Where the image is changed, as shares of its height and width: away from borders and centre."""

_PART = 16  # a spot's side is this part of the image's
_MOST_OF_IT = 0.99
_FINE = 12  # grids with fewer rows or columns than this are too coarse for a margin of two


@dataclass(frozen=True)
class Event:
    """A tensor that a module took or gave, and where it changed.

    Attributes:
        grid: Its places; None for tokens, whose grid the shape does not tell.
        channels: How many features a place has.
        change: `(spots, features, h, w)` or `(spots, features, tokens)`: nudged less plain.
    """

    grid: Grid | None
    channels: int
    change: Tensor

    @property
    def energy(self) -> Tensor:
        """`(spots, h, w)` or `(spots, tokens)`: the squared change, summed over features."""
        energy: Tensor = self.change.square().sum(1)
        return energy

    def without(self, other: Event) -> Event | None:
        """What changed here and not there; None for tensors of another shape."""
        if self.change.shape != other.change.shape or self.grid != other.grid:
            return None
        return Event(self.grid, self.channels, self.change - other.change)

    def at(self, grid: Grid, prefix: int) -> Tensor | None:
        """`(spots, h, w)` on a grid, None if the tensor does not lie on it."""
        if self.grid is not None:
            return self.energy if self.grid == grid else None
        n, count = grid[0] * grid[1], self.change.shape[-1]
        if count not in (n, n + prefix):
            return None
        map_: Tensor = self.energy[:, count - n :].unflatten(1, grid)
        return map_


@dataclass(frozen=True)
class Nudged:
    """What one run over an image and its nudged copies showed.

    Attributes:
        records: What was captured, in order, with queries and keys.
        events: Tensors at the modules' doors, in order.
        moments: For each record that could be held, how many events came before it.
        blurred: At how many events attention first had to be left as it was.
        places: What of the image was changed, one `(y0, x0, y1, x1)` per spot, as shares.
    """

    records: Sequence[Record]
    events: Sequence[Event]
    moments: Mapping[int, int]
    blurred: int
    places: Sequence[tuple[float, float, float, float]]

    def before(self, number: int) -> Iterator[Event]:
        """Events before a record, the latest first."""
        return reversed(self.events[: self.moments.get(number, 0)])

    def after(self, number: int) -> Iterator[Event]:
        """Events after a record and before the next one."""
        start = self.moments.get(number, len(self.events))
        later = [moment for moment in self.moments.values() if moment > start]
        return iter(self.events[start : min(later, default=len(self.events))])


def nudge(image: Tensor) -> tuple[Tensor, list[tuple[float, float, float, float]]]:
    """An image and its copies with one changed spot each.

    Args:
        image: `(1, c, h, w)`.

    Returns:
        `(1 + spots, c, h, w)` and the spots as shares of height and width.
    """
    h, w = image.shape[-2:]
    high, wide = max(1, round(h / _PART)), max(1, round(w / _PART))
    noise = torch.Generator().manual_seed(0)
    strength = float(image.float().std()) or 1.0
    copies, places = [image], []
    for y, x in SPOTS:
        top, left = min(int(y * h), h - high), min(int(x * w), w - wide)
        changed = image.clone()
        change = torch.randn(image.shape[1], high, wide, generator=noise) + 1
        changed[0, :, top : top + high, left : left + wide] += 2 * strength * change.to(image)
        copies.append(changed)
        places.append((top / h, left / w, (top + high) / h, (left + wide) / w))
    return torch.cat(copies), places


def share_near(energy: Tensor, places: Sequence[tuple[float, float, float, float]]) -> float | None:
    """Which share of a change stays within two places of where the image was changed.

    Args:
        energy: `(spots, h, w)`.
        places: The spots.

    Returns:
        As `share_inside`.
    """
    if len(energy) != len(places):
        return None
    h, w = energy.shape[-2:]
    margin = 2 if min(h, w) >= _FINE else 1
    near = torch.zeros(energy.shape, dtype=torch.bool, device=energy.device)
    for inside, (y0, x0, y1, x1) in zip(near, places, strict=True):
        inside[_span(y0, y1, h, margin), _span(x0, x1, w, margin)] = True
    return share_inside(energy, near)


def share_inside(energy: Tensor, inside: Tensor) -> float | None:
    """Which share of a change lies in a region.

    Args:
        energy: `(spots, h, w)`.
        inside: Booleans of the same shape.

    Returns:
        The median over the spots, 0 to 1. None where nothing changed, or where more than half of
        the grid is inside.
    """
    if energy.shape != inside.shape or float(inside.float().mean()) > 0.5:
        return None
    maps, regions = energy.double().flatten(1), inside.flatten(1)
    total = maps.sum(1)
    shares = ((maps * regions).sum(1) / total)[total > 0]
    return float(shares.median()) if len(shares) else None


def reached(energy: Tensor) -> Tensor:
    """Where a change is: the fewest places that hold 99 % of it, and those beside them.

    Args:
        energy: `(spots, h, w)`.

    Returns:
        `(spots, h, w)` booleans.
    """
    ordered, order = energy.double().flatten(1).sort(1, descending=True)
    before = ordered.cumsum(1) - ordered
    holds = before < _MOST_OF_IT * ordered.sum(1, keepdim=True)
    inside = torch.zeros_like(ordered).scatter(1, order, holds.double()).view(energy.shape)
    wider = torch.nn.functional.max_pool2d(inside[:, None], 3, stride=1, padding=1)
    return wider[:, 0] > 0


def count(energy: Tensor) -> float:
    """How many places share a change: `(Σe)² / Σe²`, the median over spots, `(spots, n)`."""
    maps = energy.double().flatten(1)
    return float((maps.sum(1).square() / maps.square().sum(1).clamp_min(1e-30)).median())


def _span(low: float, high: float, n: int, margin: int) -> slice:
    last = max(int(low * n), -int(-high * n // 1) - 1)
    return slice(max(0, int(low * n) - margin), min(n, last + 1 + margin))


class Still:
    """The edit that keeps places apart: each looks at itself alone, gates stay as in image 0.

    Where queries lie on another grid than keys, each looks at the key that lies where it does.

    Args:
        images: How many there are, the plain one first.
        events: What was overheard so far.
        silent: The record whose attention is switched off, by its number among the edited.

    Attributes:
        moments: At how many events each edit was asked.
        blurred: At how many events attention was first held instead.
    """

    def __init__(self, images: int, events: list[Event], silent: int | None = None) -> None:
        self.images, self.events, self.silent = images, events, silent
        self.moments: list[int] = []
        self.blurred: int | None = None

    def __call__(self, values: Tensor, record: Record) -> Tensor:
        """The values that take the model's own place."""
        self.moments.append(len(self.events))
        if len(self.moments) - 1 == self.silent:
            return torch.zeros_like(values)
        q, k = values.shape[-2:]
        own = None
        if record.kind == "attention" and q == k:
            own = torch.arange(k)
        elif record.kind == "attention" and record.windows is None:
            own = _beneath(record, q, k)
        if own is None:
            if record.kind == "attention" and self.blurred is None:
                self.blurred = len(self.events)
            return held(values, self.images)
        rows = torch.nn.functional.one_hot(own, k).to(values)
        return rows.expand_as(values).clone()


def _beneath(record: Record, queries: int, keys: int) -> Tensor | None:
    """For each query the key at its place, leading tokens each to their own."""
    if record.query_grid is None or record.key_grid is None:
        return None
    (h, w), (y, x), p = record.query_grid, record.key_grid, record.prefix
    if queries not in (h * w, h * w + p) or keys not in (y * x, y * x + p):
        return None
    lead = queries - h * w
    rows, columns = torch.arange(h) * y // h, torch.arange(w) * x // w
    places = (rows[:, None] * x + columns).flatten() + keys - y * x
    return torch.cat([torch.arange(lead).clamp(max=keys - 1), places])


def held(values: Tensor, images: int) -> Tensor:
    """The first image's values for all images; windows of an image lie together."""
    if values.shape[0] % images:
        return values
    own = values.shape[0] // images
    return values[:own].repeat(images, *(1,) * (values.dim() - 1))


@contextmanager
def overheard(
    model: nn.Module, images: Tensor, besides: Collection[Grid] = ()
) -> Iterator[list[Event]]:
    """Every tensor that a module takes or gives for these images, as events, in order.

    Args:
        model: Is given hooks, and is rid of them on exit.
        images: The plain one first.
        besides: Queries × keys of its attention, which are no grids of places.
    """
    events: list[Event] = []

    def hear(value: Any) -> None:
        if isinstance(value, Tensor):
            event = _event(value, len(images), images.shape[-2] / images.shape[-1])
            if event is not None and event.grid not in besides:
                events.append(event)
        elif isinstance(value, tuple | list):
            for one in value:
                hear(one)

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(lambda _module, args: hear(args)))
        handles.append(module.register_forward_hook(lambda _module, _args, out: hear(out)))
    try:
        yield events
    finally:
        for handle in handles:
            handle.remove()


def _event(x: Tensor, images: int, aspect: float) -> Event | None:
    if not x.is_floating_point() or x.shape[0] != images or x.dim() not in (3, 4):
        return None
    change = x[1:].detach().float() - x[:1].detach().float()
    a, *rest = x.shape[1:]
    if x.dim() == 3:
        return Event(None, rest[0], change.transpose(1, 2))
    b, c = rest
    if _like(b, c, aspect) and not (_like(a, b, aspect) and abs(a - b) < abs(b - c)):
        return Event((b, c), a, change)
    if _like(a, b, aspect):
        return Event((a, b), c, change.permute(0, 3, 1, 2))
    return None  # heads × tokens × features, and the like


def _like(h: int, w: int, aspect: float) -> bool:
    """Whether two sizes are in an image's proportion, but for rounding."""
    return abs(h - w * aspect) <= max(1.0, aspect)
