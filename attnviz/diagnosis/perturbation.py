"""Perturb one image patch and locate the change in every activation.

Attention is replaced by the identity and gates are held constant meanwhile, so that only the layout
of the tokens can move a change from one place to another. A permutation of the tokens, the usual
test of equivariance, cannot judge layers with 3 × 3 queries and keys or position embeddings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from attnviz.capture import Record

Grid = tuple[int, int]

PATCHES = ((0.34, 0.38), (0.62, 0.70), (0.70, 0.30))
"""Top left corners of the perturbed patches, as shares of height and width: off the borders, off
the centre, and apart from their own mirror images and transposes."""

_PART = 16  # a patch's side is this part of the image's
_SUPPORT = 0.99
WIDEST = 0.65
"""A region of more than this part of the grid says nothing: a change anywhere is mostly inside."""
_FINE = 12  # grids with fewer rows or columns than this are too coarse for a margin of two


@dataclass(frozen=True)
class Activation:
    """The change of one input or output of a module.

    Attributes:
        module: The module's dotted name.
        grid: Its places; None for tokens, whose grid does not follow from the shape.
        channels: How many features a place has.
        change: `(patches, features, h, w)` or `(patches, features, tokens)`: perturbed minus plain.
    """

    module: str
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
        return Activation(self.module, self.grid, self.channels, self.change - other.change)

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
        gates: For each gate the change of its values, `(patches, c, h, w)`, by record number.
        features: For each gate the change of what it multiplies, of the same shape.
    """

    records: Sequence[Record]
    activations: Sequence[Activation]
    moments: Mapping[int, int]
    blurred: int
    places: Sequence[tuple[float, float, float, float]]
    gates: Mapping[int, Tensor] = field(default_factory=dict)
    features: Mapping[int, Tensor] = field(default_factory=dict)

    def before(self, number: int) -> Iterator[Activation]:
        """Activations before a record, the latest first."""
        return reversed(self.activations[: self.moments.get(number, 0)])

    def after(self, number: int) -> Iterator[Activation]:
        """Activations after a record and before the next attention."""
        start = self.moments.get(number, len(self.activations))
        later = [
            moment for i, moment in self.moments.items()
            if moment > start and self.records[i].kind == "attention"
        ]  # fmt: skip
        return iter(self.activations[start : min(later, default=len(self.activations))])

    def behind(self, number: int) -> Perturbed:
        """The same with the activations `after` one record alone, which frees the others."""
        return replace(self, activations=list(self.after(number)), moments={number: 0})

    @property
    def size(self) -> int:
        """Memory of the activations, in bytes."""
        kept = {id(one.change): one.change for one in self.activations}.values()
        return sum(one.numel() * one.element_size() for one in kept)


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
        more than `WIDEST` of the grid.
    """
    if energy.shape != inside.shape or float(inside.float().mean()) > WIDEST:
        return None
    maps, regions = energy.double().flatten(1), inside.flatten(1)
    total = maps.sum(1)
    shares = ((maps * regions).sum(1) / total)[total > 0]
    return float(shares.median()) if len(shares) else None


def support(energy: Tensor, margin: int = 1) -> Tensor:
    """The support of a change: the fewest places that hold 99 % of it, and their neighbours.

    Args:
        energy: `(patches, h, w)`.
        margin: How far neighbours may be.

    Returns:
        `(patches, h, w)` booleans.
    """
    ordered, order = energy.double().flatten(1).sort(1, descending=True)
    before = ordered.cumsum(1) - ordered
    holds = before < _SUPPORT * ordered.sum(1, keepdim=True)
    inside = torch.zeros_like(ordered).scatter(1, order, holds.double()).view(energy.shape)
    side = 2 * margin + 1
    wider = torch.nn.functional.max_pool2d(inside[:, None], side, stride=1, padding=margin)
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

    Where queries lie on another grid than keys, each query gets the key at its own place. The batch
    holds one or more copies of the plain and perturbed images; in each, the attention of one record
    may be zero.

    Args:
        images: Images in a copy, the plain one first.
        activations: The activations recorded so far.
        silent: For each copy the record whose attention is zero, by its number among the edited.

    Attributes:
        moments: The number of activations before each edit.
        gates: For each edit of a gate, by its number, the change of its own values.
        blurred: The number of activations before the first attention that was held instead.
    """

    def __init__(
        self,
        images: int,
        activations: Sequence[Activation],
        silent: Sequence[int | None] = (None,),
    ) -> None:
        self.images, self.activations, self.silent = images, activations, silent
        self.moments: list[int] = []
        self.gates: dict[int, Tensor] = {}
        self.blurred: int | None = None

    def __call__(self, values: Tensor, record: Record) -> Tensor:
        """The values that replace the model's own."""
        number = len(self.moments)
        self.moments.append(len(self.activations))
        if record.kind == "gate":
            if len(values) == self.images * len(self.silent):
                self.gates[number] = values[1 : self.images].float() - values[:1].float()
            return held(values, self.images, len(self.silent))
        kept = self._identity(values, record)
        for copy, zero in zip(kept.chunk(len(self.silent)), self.silent, strict=False):
            if zero == number:
                copy.zero_()
        return kept

    def _identity(self, values: Tensor, record: Record) -> Tensor:
        q, k = values.shape[-2:]
        own = torch.arange(k) if q == k else None
        if own is None and record.windows is None:
            own = _own_keys(record, q, k)
        if own is None:
            if self.blurred is None:
                self.blurred = len(self.activations)
            return held(values, self.images, len(self.silent)).clone()
        rows = torch.nn.functional.one_hot(own, k).to(values)
        return rows.expand_as(values).clone()


def _own_keys(record: Record, queries: int, keys: int) -> Tensor | None:
    """For each query the key at its place; leading tokens keep their own."""
    own, others = record.row_grids
    if own is None or others is None:
        return None
    (h, w), (y, x), p = own, others, record.prefix
    if queries not in (h * w, h * w + p) or keys not in (y * x, y * x + p):
        return None
    lead = queries - h * w
    rows, columns = torch.arange(h) * y // h, torch.arange(w) * x // w
    places = (rows[:, None] * x + columns).flatten() + keys - y * x
    return torch.cat([torch.arange(lead).clamp(max=keys - 1), places])


def held(values: Tensor, images: int, copies: int = 1) -> Tensor:
    """The first image's values for all images; windows of an image lie together."""
    if values.shape[0] % (images * copies):
        return values
    own = values.shape[0] // (images * copies)
    return values[:own].repeat(images * copies, *(1,) * (values.dim() - 1))


@contextmanager
def recorded_activations(
    model: nn.Module, images: Tensor, besides: Collection[Grid] = (), *, copies: int = 1
) -> Iterator[list[list[Activation]]]:
    """Record the change of every input and output of a module, in order, for each copy.

    Args:
        model: Gets forward hooks, which are removed on exit.
        images: The images of one copy, the plain one first.
        besides: Queries × keys of its attention, which are no grids of places.
        copies: How many times the batch holds these images.
    """
    recorded: list[list[Activation]] = [[] for _ in range(copies)]
    aspect, n = images.shape[-2] / images.shape[-1], len(images)
    known: dict[int, tuple[ReferenceType[Tensor], int, list[Activation | None]]] = {}

    def changes(name: str, value: Tensor) -> list[Activation | None]:
        """Of each copy; what one module puts out and the next takes in is kept once."""
        of, version, made = known.get(id(value), (None, 0, []))
        if of is None or of() is not value or version != value._version:
            made = [_activation(name, part, aspect) for part in value.split(n)]
            known[id(value)] = (ref(value), value._version, made)
        return [None if one is None else replace(one, module=name) for one in made]

    def record(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            if value.is_floating_point() and value.dim() in (3, 4) and len(value) == n * copies:
                made = changes(name, value)
                if made[0] is not None and made[0].grid not in besides:
                    for to, one in zip(recorded, made, strict=True):
                        to.extend([one] if one is not None else [])
        elif isinstance(value, tuple | list):
            for one in value:
                record(name, one)

    handles = []
    for name, module in model.named_modules():
        before = partial(lambda name, _, args: record(name, args), name)
        after = partial(lambda name, _, _args, out: record(name, out), name)
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _activation(module: str, x: Tensor, aspect: float) -> Activation | None:
    change = x[1:].detach().float() - x[:1].detach().float()
    a, *rest = x.shape[1:]
    if x.dim() == 3:
        return Activation(module, None, rest[0], change.transpose(1, 2))
    b, c = rest
    if _like(b, c, aspect) and not (_like(a, b, aspect) and abs(a - b) < abs(b - c)):
        return Activation(module, (b, c), a, change)
    if _like(a, b, aspect):
        return Activation(module, (a, b), c, change.permute(0, 3, 1, 2))
    return None  # heads × tokens × features, and the like


def _like(h: int, w: int, aspect: float) -> bool:
    """Whether two sizes have an image's aspect ratio, up to rounding."""
    return abs(h - w * aspect) <= max(1.0, aspect)
