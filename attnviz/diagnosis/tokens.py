"""Who attends to whom, and whether tokens are in the order of their places.

Decided by what the model does, never by reading its source: one spot of the image is changed, and
the keys say where it went.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.axes import last_grid
from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import Finding
from attnviz.diagnosis.nudges import JUDGED, Grid, Nudged, share_near
from attnviz.diagnosis.weights import normalised

KEPT = 0.75
"""Tokens are in order if the change that stays near its place is this share of what stayed near
before the attention."""

_LEADING = 8  # more leading tokens than this are no class and register tokens, but padding


def token_findings(case: Examination) -> Iterator[Finding]:
    """Attention between images, between channels, and swapped axes."""
    told = case.kinds
    spatial = any(kind.word == "places" for kind in told.values())
    for i, kind in told.items():
        if kind.finding is None:
            continue
        meant = spatial or normalised(case.records[i])
        if kind.word == "channels" and meant:
            yield replace(kind.finding, severity="note")
        else:
            yield kind.finding


def order_findings(case: Examination) -> Iterator[Finding]:
    """Tokens in another order than places, before the attention or after it."""
    for i, _ in case.attention():
        nudged = case.nudged
        if nudged is None or case.kinds[i].word in ("channels", "swapped", "images"):
            continue
        record = nudged.records[i]
        limit = _limit(nudged, i, record)
        if limit is None:
            continue
        share = _lowest(nudged, _key_energy(record))
        if share is not None and share < limit:
            yield finding("scrambled-tokens", record.name, share=share, before=limit / KEPT)
        elif i in case.chosen and (off := case.nudge(silent=i)) is not None:
            share = _lowest(nudged, _branch(nudged, off, i, record))
            if share is not None and share < limit:
                yield finding("scrambled-output", record.name, share=share, before=limit / KEPT)


def _limit(nudged: Nudged, number: int, record: Record) -> float | None:
    """How much of a change has to stay near its place, None where that cannot be judged."""
    grid = record.key_grid if record.windows is None else record.windows.grid
    if grid is None or record.prefix > _LEADING or nudged.moments.get(number, 0) > nudged.blurred:
        return None
    last = last_grid(nudged, number)
    if last is not None and last.grid != grid:
        return None
    before = _near_before(nudged, number, grid, record.prefix)
    if before is None:
        return KEPT
    return None if before < JUDGED else KEPT * before


def _lowest(nudged: Nudged, energies: Iterator[Tensor]) -> float | None:
    """The smallest share of a change that stays near its place."""
    shares = (share_near(energy, nudged.places) for energy in energies)
    return min((share for share in shares if share is not None), default=None)


def _key_energy(record: Record) -> Iterator[Tensor]:
    """Where each head's keys changed, `(spots, h, w)`; heads that hardly change are left out."""
    if record.key is None or record.key_grid is None:
        return
    images = len(record.key)
    if record.windows is not None:
        images //= record.windows.count
    energy = _energy(record.key, images)
    if record.windows is not None:
        energy = record.on_image(energy.flatten(0, 1))
    else:
        n = record.key_grid[0] * record.key_grid[1]
        if energy.shape[-1] not in (n, n + record.prefix):
            return
        energy = energy[..., energy.shape[-1] - n :].unflatten(-1, record.key_grid).flatten(1, 1)
    totals = energy.sum((0, 2, 3))
    for head in range(energy.shape[1]):
        if totals[head] > 0.1 * totals.max():
            yield energy[:, head]


def _energy(key: Tensor, images: int) -> Tensor:
    """`(spots, [windows,] heads, tokens)`: the squared change of each key."""
    keys = key.float().unflatten(0, (images, -1))
    change: Tensor = (keys[1:] - keys[:1]).square().sum(-1)
    return change[:, 0] if change.shape[1] == 1 else change


def _near_before(nudged: Nudged, number: int, grid: Grid, prefix: int) -> float | None:
    """How local it was in the last feature map on the keys' grid, or in the first tokens on it."""
    first = None
    for event in nudged.before(number):
        if event.grid == grid:
            return share_near(event.energy, nudged.places)
        energy = event.at(grid, prefix)
        first = first if energy is None else energy
    return None if first is None else share_near(first, nudged.places)


def _branch(on: Nudged, off: Nudged, number: int, record: Record) -> Iterator[Tensor]:
    """Where the attention's own part of the change lies after it, `(spots, h, w)`.

    What changes with the attention switched off too, as a residual does, is taken out. Asked are
    the first tokens and the first feature map that lie on the queries' grid.
    """
    grid = record.query_grid
    if grid is None or grid != record.key_grid or record.windows is not None:
        return  # fewer keys than queries: each stands for several places
    asked: set[bool] = set()
    for event, other in zip(on.after(number), off.after(number), strict=False):
        own = event.without(other)
        energy = None if own is None else own.at(grid, record.prefix)
        if own is None or energy is None or not bool(energy.any()) or (own.grid is None) in asked:
            continue
        yield energy
        asked.add(own.grid is None)
        if own.grid is not None:
            return
