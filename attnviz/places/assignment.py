"""From motions to cells: one side of a record, all its tokens at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnviz.places.motion import Images, Motion, code_at
from attnviz.places.snapping import Snapped, agrees, row_by_row, snapped

DEAD = 1e-8
"""A token moves if its energy is above this share of the largest: rounding stays far below."""

_WIDE = 0.6  # of the spread of the whole image
_WIDER = 2.0  # times the usual spread of the other tokens
_CENTRAL = 0.15  # of the image's side, from its centre
_WHOLE = 0.1  # of an image's number
_ALIKE = 0.6  # cells between two measurements of the same tokens
_CHECKED = 1024  # tokens that are enough to compare
_AGREED = 0.7  # correlation with the field that the check is made of


@dataclass(slots=True)
class Tokens:
    """What was measured of all tokens of one side of a record.

    Attributes:
        shape: `(b, tokens)`.
        alive: Tokens that move, flat.
        wide: Those that the whole image moves.
        image: The image each lies on.
        points: Positions `(b · tokens, axes)`, 0 to 1.
        fields: The same by each noise field alone, `(fields, b · tokens, axes)`.
        spread: By axis the standard deviation of what a token sees.
        across: Along how many axes a token may see the image from end to end.
        coded: The mean of the check's field over what moves each token.
        mixed: Why nothing can be said of them.
        expected: A grid and cells that the watch saw, of one image.
        found: By image, what was found.
    """

    shape: tuple[int, int]
    alive: Tensor
    wide: Tensor
    image: Tensor
    points: Tensor
    fields: Tensor
    spread: list[float]
    across: int
    coded: Tensor | None
    mixed: str = ""
    expected: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    found: dict[int, Snapped] = field(default_factory=dict)

    @property
    def placed(self) -> Tensor:
        """Tokens that can be places, flat."""
        return self.alive & ~self.wide

    def of(self, image: int) -> Tensor:
        """The flat numbers of the tokens that can be places of one image."""
        return (self.placed & (self.image == image)).nonzero()[:, 0]

    @property
    def images(self) -> list[int]:
        """The images that its tokens lie on."""
        return sorted(set(self.image[self.placed].tolist()))

    @property
    def solved(self) -> bool:
        """Whether every token that moves has a place."""
        return not self.mixed and all(
            i in self.found and self.found[i].grid is not None for i in self.images
        )

    @property
    def reason(self) -> str:
        """Why not."""
        if self.mixed:
            return self.mixed
        return next((one.reason for one in self.found.values() if one.reason), "")


def tokens(motion: Motion, images: Images) -> Tokens:
    """The places of tokens from a motion."""
    axes, count = images.axes, len(images)
    energy = motion.energy.flatten()
    alive = energy > DEAD * energy.max().clamp_min(torch.finfo(energy.dtype).tiny)
    points = torch.stack([motion.mean(f"axis{i}").flatten() for i in range(axes)], -1)
    points = points.where(alive[:, None], 0.5)
    spread = torch.zeros_like(energy)
    if motion.spread is not None:
        spread = motion.spread.flatten().where(alive, 0.0)
    central = ((points - 0.5).abs() < _CENTRAL).all(-1)
    usual = float(spread[alive].median()) if bool(alive.any()) else 0.0
    wide = alive & central & (spread > max(_WIDE * axes / 12, _WIDER * usual))
    if usual > _WIDE * axes / 12:
        wide = alive  # channels and the like
    number, mixed = torch.zeros_like(energy), ""
    if "image" in motion.products:
        number = (motion.mean("image").flatten() * count - 1).where(alive, 0.0)
        if bool((number - number.round()).abs().max() > _WHOLE):
            mixed = "its tokens depend on several images"
    coded = motion.mean("code").flatten() if "code" in motion.products else None
    narrow = alive & ~wide
    deviation = _deviation(spread[narrow], images.sides[0])
    across = _across(deviation, images.sides[0])
    image = number.round().long().clamp(0, count - 1)
    if bool(narrow.any()) and not bool(points.isfinite().all()):
        mixed = "its tokens are not finite"
    b, n = motion.energy.shape
    fields = torch.stack([one.flatten(0, 1) for one in motion.fields.values()])
    return Tokens((b, n), alive, wide, image, points, fields, deviation, across, coded, mixed)


def _deviation(spread: Tensor, sides: Sequence[int]) -> list[float]:
    """From sums of variances to one standard deviation per axis, alike in pixels."""
    total = float(spread.clamp_min(0).median()) if len(spread) else 0.0
    shares = [1 / n**2 for n in sides]
    return [math.sqrt(total * share / sum(shares)) for share in shares]


def _across(deviation: Sequence[float], sides: Sequence[int]) -> int:
    """Along how many axes a token may see the image from end to end.

    Each of these adds 1/12 to the sum of the variances, pixels taken as squares.
    """
    return math.floor(12 * sum(d**2 for d in deviation) + sum(1 / n**2 for n in sides) + 0.5)


def assign(sides: Sequence[Tokens]) -> None:
    """Find cells: by each side's own positions, by those of its peers, then by expected orders.

    Args:
        sides: All sides of all records; `found` is filled in.
    """
    for one in sides:
        if not one.mixed and not one.solved:
            for image in one.images:
                _own(one, image)
    for one in sides:
        if one.mixed or one.solved:
            continue
        peers = [other for other in sides if other is not one and _peers(one, other)]
        points = torch.stack([side.points for side in (one, *peers)]).mean(0)
        least = min(len(side.fields) for side in (one, *peers))
        fields = torch.stack([side.fields[:least] for side in (one, *peers)]).mean(0)
        for image in one.images:
            if one.found[image].grid is None:
                _together(one, image, points, fields, peers)
    for one in sides:
        _check(one)


def _own(one: Tokens, image: int) -> None:
    one.found[image] = snapped(one.points[one.of(image)], one.spread, one.across)


def _peers(one: Tokens, other: Tokens) -> bool:
    """Whether two sides seem to hold the same tokens in the same order."""
    if one.shape != other.shape or not torch.equal(one.placed, other.placed):
        return False
    if other.mixed or not torch.equal(one.image[one.placed], other.image[other.placed]):
        return False
    count, axes = int(one.placed.sum()) / max(1, len(one.images)), one.points.shape[1]
    cell = count ** (-1 / axes)
    apart = (one.points - other.points)[one.placed].square().mean(0).sqrt()
    return bool((apart < _ALIKE * cell).all())


def _together(
    one: Tokens, image: int, points: Tensor, fields: Tensor, peers: Sequence[Tokens]
) -> None:
    """One image's tokens by the mean over all that seem to be the same, or an expected order."""
    chosen = one.of(image)
    here = points[chosen]
    found = snapped(here, one.spread, one.across)
    if found.grid is None:
        fits = [
            fit
            for grid, cell in _expected(one, image, len(chosen), peers)
            if (fit := agrees(here, fields[:, chosen], one.spread, grid, cell, one.across))
        ]
        known = {(fit.grid, fit.cell): fit for fit in fits}
        if len(known) == 1:
            found = next(iter(known.values()))
    if found.grid is not None:
        one.found[image] = found


def _expected(
    one: Tokens, image: int, count: int, peers: Sequence[Tokens]
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Grids and cells that tokens may be expected to have."""
    for peer in peers:
        known = peer.found.get(image)
        if known is not None and known.grid is not None:
            yield known.grid, torch.as_tensor(known.cell)
    if one.expected is not None:
        grid, cell = one.expected
        inside = [c for c in cell if c >= 0]
        if len(inside) == count:
            yield grid, torch.as_tensor(inside)
    yield from row_by_row(count, one.points.shape[1])


def _check(one: Tokens) -> None:
    """Refuse what a field that was not used to find the places does not confirm."""
    if one.coded is None:
        return
    for image, found in one.found.items():
        if found.grid is None:
            continue
        some = torch.arange(0, len(found.cell), max(1, len(found.cell) // _CHECKED))
        cell = torch.as_tensor(found.cell)[some]
        wanted = expected_code(cell_centres(found.grid, cell), one.spread)
        came = one.coded[one.of(image)][some]
        if len(wanted) < 9 or float(wanted.std()) < 1e-3:
            continue
        agreed = float(torch.corrcoef(torch.stack([wanted, came]))[0, 1])
        if not agreed > _AGREED:
            one.found[image] = Snapped(
                None, reason=f"a second measurement agrees by {agreed:.2f} only"
            )


def expected_code(centres: Tensor, spread: Sequence[float]) -> Tensor:
    """The mean of the check's field over what a token at each of these places sees."""
    axes = centres.shape[1]
    step = 24 if axes == 2 else 10
    line = (torch.arange(step, dtype=torch.float64) + 0.5) / step
    mesh = torch.stack(torch.meshgrid(*[line] * axes, indexing="ij"), -1).flatten(0, -2)
    values = code_at(mesh)
    width = torch.tensor([max(one, 1 / step) for one in spread], dtype=torch.float64)
    means = []
    for part in centres.split(1024):
        away = ((part[:, None] - mesh) / width).square().sum(-1)
        weight = (-away / 2).softmax(-1)
        means.append(weight @ values)
    return torch.cat(means)


def cell_centres(grid: Sequence[int], cell: Tensor) -> Tensor:
    """The centres of cells, `(tokens, axes)`, 0 to 1."""
    rest = cell
    columns = []
    for side in reversed(grid):
        columns.append((rest % side + 0.5) / side)
        rest = rest // side
    return torch.stack(columns[::-1], -1).double()
