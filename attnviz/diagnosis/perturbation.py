"""Perturb one image patch and locate the change in every activation.

Attention is replaced by the identity and gates are held constant meanwhile, so that only the layout
of the tokens can move a change from one place to another. A permutation of the tokens, the usual
test of equivariance, cannot judge layers with 3 × 3 queries and keys or position embeddings.
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

PATCHES = ((0.34, 0.38), (0.62, 0.70), (0.70, 0.30))
"""Top left corners of the perturbed patches, as shares of height and width: off the borders, off
the centre, and apart from their own mirror images and transposes."""

_PART = 16  # a patch's side is this part of the image's
_SUPPORT = 0.99
_FINE = 12  # grids with fewer rows or columns than this are too coarse for a margin of two


@dataclass(frozen=True)
class Activation:
    """The change of one input or output of a module.

    Attributes:
        grid: Its places; None for tokens, whose grid the shape does not tell.
        channels: How many features a place has.
        change: `(patches, features, h, w)` or `(patches, features, tokens)`: perturbed minus plain.
    """

    grid: Grid | None
    channels: int
    change: Tensor

    @property
    def energy(self) -> Tensor:
        """`(patches, h, w)` or `(patches, tokens)`: the squared change, summed over features."""
        energy: Tensor = self.change.square().sum(1)
        return energy

    def without(self, other: Activation) -> Activation | None:
        """The difference of two changes; None for tensors of another shape."""
        if self.change.shape != other.change.shape or self.grid != other.grid:
            return None
        return Activation(self.grid, self.channels, self.change - other.change)

    def at(self, grid: Grid, prefix: int) -> Tensor | None:
        """`(patches, h, w)` on a grid, None if the tensor does not lie on it."""
        if self.grid is not None:
            return self.energy if self.grid == grid else None
        n, count = grid[0] * grid[1], self.change.shape[-1]
        if count not in (n, n + prefix):
            return None
        map_: Tensor = self.energy[:, count - n :].unflatten(1, grid)
        return map_


@dataclass(frozen=True)
class Perturbed:
    """One run over an image and its perturbed copies.

    Attributes:
        records: What was captured, in order, with queries and keys.
        activations: Inputs and outputs of the modules, in order.
        moments: For each edited record, how many activations came before it.
        blurred: The number of activations before the first attention that could only be held, not
            replaced by the identity; later changes have spread.
        places: The patches, one `(y0, x0, y1, x1)` each, as shares of height and width.
    """

    records: Sequence[Record]
    activations: Sequence[Activation]
    moments: Mapping[int, int]
    blurred: int
    places: Sequence[tuple[float, float, float, float]]

    def before(self, number: int) -> Iterator[Activation]:
        """Activations before a record, the latest first."""
        return reversed(self.activations[: self.moments.get(number, 0)])

    def after(self, number: int) -> Iterator[Activation]:
        """Activations after a record and before the next one."""
        start = self.moments.get(number, len(self.activations))
        later = [moment for moment in self.moments.values() if moment > start]
        return iter(self.activations[start : min(later, default=len(self.activations))])


def perturb_patches(image: Tensor) -> tuple[Tensor, list[tuple[float, float, float, float]]]:
    """An image and its copies with one perturbed patch each.

    Args:
        image: `(1, c, h, w)`.

    Returns:
        `(1 + patches, c, h, w)` and the patches as shares of height and width.
    """
    h, w = image.shape[-2:]
    high, wide = max(1, round(h / _PART)), max(1, round(w / _PART))
    noise = torch.Generator().manual_seed(0)
    strength = float(image.float().std()) or 1.0
    copies, places = [image], []
    for y, x in PATCHES:
        top, left = min(int(y * h), h - high), min(int(x * w), w - wide)
        changed = image.clone()
        change = torch.randn(image.shape[1], high, wide, generator=noise) + 1
        changed[0, :, top : top + high, left : left + wide] += 2 * strength * change.to(image)
        copies.append(changed)
        places.append((top / h, left / w, (top + high) / h, (left + wide) / w))
    return torch.cat(copies), places


def share_near(energy: Tensor, places: Sequence[tuple[float, float, float, float]]) -> float | None:
    """The share of a change within two places of the perturbed patch.

    Args:
        energy: `(patches, h, w)`.
        places: The patches.

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
    """The share of a change inside a region.

    Args:
        energy: `(patches, h, w)`.
        inside: Booleans of the same shape.

    Returns:
        The median over the patches, 0 to 1. None where nothing changed, or where the region is
        more than half of the grid.
    """
    if energy.shape != inside.shape or float(inside.float().mean()) > 0.5:
        return None
    maps, regions = energy.double().flatten(1), inside.flatten(1)
    total = maps.sum(1)
    shares = ((maps * regions).sum(1) / total)[total > 0]
    return float(shares.median()) if len(shares) else None


def support(energy: Tensor) -> Tensor:
    """The support of a change: the fewest places that hold 99 % of it, and their neighbours.

    Args:
        energy: `(patches, h, w)`.

    Returns:
        `(patches, h, w)` booleans.
    """
    ordered, order = energy.double().flatten(1).sort(1, descending=True)
    before = ordered.cumsum(1) - ordered
    holds = before < _SUPPORT * ordered.sum(1, keepdim=True)
    inside = torch.zeros_like(ordered).scatter(1, order, holds.double()).view(energy.shape)
    wider = torch.nn.functional.max_pool2d(inside[:, None], 3, stride=1, padding=1)
    return wider[:, 0] > 0


def effective_count(energy: Tensor) -> float:
    """Effective number of changed places, `(Σe)² / Σe²`, the median over patches.

    Args:
        energy: `(patches, n)`.
    """
    maps = energy.double().flatten(1)
    return float((maps.sum(1).square() / maps.square().sum(1).clamp_min(1e-30)).median())


def _span(low: float, high: float, n: int, margin: int) -> slice:
    last = max(int(low * n), -int(-high * n // 1) - 1)
    return slice(max(0, int(low * n) - margin), min(n, last + 1 + margin))


class IdentityAttention:
    """Edit that keeps places apart: attention becomes the identity, gates those of image 0.

    Where queries lie on another grid than keys, each query gets the key at its own place.

    Args:
        images: How many there are, the plain one first.
        activations: The activations recorded so far.
        silent: The record whose attention is set to zero, by its number among the edited.

    Attributes:
        moments: The number of activations before each edit.
        blurred: The number of activations before the first attention that was held instead.
    """

    def __init__(
        self, images: int, activations: list[Activation], silent: int | None = None
    ) -> None:
        self.images, self.activations, self.silent = images, activations, silent
        self.moments: list[int] = []
        self.blurred: int | None = None

    def __call__(self, values: Tensor, record: Record) -> Tensor:
        """The values that replace the model's own."""
        self.moments.append(len(self.activations))
        if len(self.moments) - 1 == self.silent:
            return torch.zeros_like(values)
        q, k = values.shape[-2:]
        own = None
        if record.kind == "attention" and q == k:
            own = torch.arange(k)
        elif record.kind == "attention" and record.windows is None:
            own = _own_keys(record, q, k)
        if own is None:
            if record.kind == "attention" and self.blurred is None:
                self.blurred = len(self.activations)
            return held(values, self.images)
        rows = torch.nn.functional.one_hot(own, k).to(values)
        return rows.expand_as(values).clone()


def _own_keys(record: Record, queries: int, keys: int) -> Tensor | None:
    """For each query the key at its place; leading tokens keep their own."""
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
def recorded_activations(
    model: nn.Module, images: Tensor, besides: Collection[Grid] = ()
) -> Iterator[list[Activation]]:
    """Record the change of every input and output of a module, in order.

    Args:
        model: Gets forward hooks, which are removed on exit.
        images: The plain one first.
        besides: Queries × keys of its attention, which are no grids of places.
    """
    activations: list[Activation] = []

    def record(value: Any) -> None:
        if isinstance(value, Tensor):
            activation = _activation(value, len(images), images.shape[-2] / images.shape[-1])
            if activation is not None and activation.grid not in besides:
                activations.append(activation)
        elif isinstance(value, tuple | list):
            for one in value:
                record(one)

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(lambda _module, args: record(args)))
        handles.append(module.register_forward_hook(lambda _module, _args, out: record(out)))
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


def _activation(x: Tensor, images: int, aspect: float) -> Activation | None:
    if not x.is_floating_point() or x.shape[0] != images or x.dim() not in (3, 4):
        return None
    change = x[1:].detach().float() - x[:1].detach().float()
    a, *rest = x.shape[1:]
    if x.dim() == 3:
        return Activation(None, rest[0], change.transpose(1, 2))
    b, c = rest
    if _like(b, c, aspect) and not (_like(a, b, aspect) and abs(a - b) < abs(b - c)):
        return Activation((b, c), a, change)
    if _like(a, b, aspect):
        return Activation((a, b), c, change.permute(0, 3, 1, 2))
    return None  # heads × tokens × features, and the like


def _like(h: int, w: int, aspect: float) -> bool:
    """Whether two sizes have an image's aspect ratio, up to rounding."""
    return abs(h - w * aspect) <= max(1.0, aspect)
