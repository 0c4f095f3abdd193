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
from attnviz.diagnosis.nudges import JUDGED, Nudged, share_near
from attnviz.diagnosis.weights import normalised

KEPT = 0.75
"""Tokens are in order if the change that stays near its place is this share of what stayed near
before the attention."""


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
    nudged = case.nudged
    if nudged is None:
        return
    for i, _ in case.attention():
        if case.kinds[i].word in ("channels", "swapped", "images"):
            continue
        yield from _order(nudged, i, nudged.records[i])


def _order(nudged: Nudged, number: int, record: Record) -> Iterator[Finding]:
    if record.key_grid is None or _padded(nudged, number, record):
        return
    before = _near_before(nudged, number, record)
    if before is not None and before < JUDGED:
        return
    limit = KEPT * (1.0 if before is None else before)
    for energy in _key_energy(record):
        share = share_near(energy, nudged.places)
        if share is not None and share < limit:
            yield finding("scrambled-tokens", record.name, share=share, before=before or 1.0)
            return
    after = _near_after(nudged, number, record)
    if after is not None and after < limit:
        yield finding("scrambled-output", record.name, share=after, before=before or 1.0)


def _padded(nudged: Nudged, number: int, record: Record) -> bool:
    """Whether windows lie on another grid than the features they were cut from."""
    last = last_grid(nudged, number)
    return record.windows is not None and (last is None or last.grid != record.windows.grid)


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


def _near_before(nudged: Nudged, number: int, record: Record) -> float | None:
    """How local the change was before: in the last feature map, or the first tokens, on the grid."""
    grid = record.key_grid
    if grid is None:
        return None
    first = None
    for event in nudged.before(number):
        if event.grid == grid:
            return share_near(event.energy, nudged.places)
        energy = event.at(grid, record.prefix)
        first = first if energy is None else energy
    return None if first is None else share_near(first, nudged.places)


def _near_after(nudged: Nudged, number: int, record: Record) -> float | None:
    """How local it is in the first tensor after the attention that lies on the queries' grid."""
    if record.query_grid is None or record.key_grid is None or record.windows is not None:
        return None
    for event in nudged.after(number):
        energy = event.at(record.query_grid, record.prefix)
        if energy is not None and bool(energy.any()):
            return share_near(energy, nudged.places)
    return None
