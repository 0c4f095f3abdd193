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
from attnviz.diagnosis.perturbation import Nudged, count, reached, share_inside
from attnviz.diagnosis.weights import normalised

KEPT = 0.75
"""Tokens are in order if this share of a change stays where the features changed before."""

MORE = 4.0
"""Tokens of windows are in order if not more than this many times as many change."""

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
        region = _region(nudged, i, record)
        if region is None:
            continue
        share = _windowed(record, region) if record.windows else _lowest(_keys(record), region)
        if share is not None and share < KEPT:
            yield finding("scrambled-tokens", record.name, share=share)
        elif i in case.chosen and (off := case.nudge(silent=i)) is not None:
            share = _lowest(_branch(nudged, off, i, record), region)
            if share is not None and share < KEPT:
                yield finding("scrambled-output", record.name, share=share)


def _region(nudged: Nudged, number: int, record: Record) -> Tensor | None:
    """Where features changed before the attention, `(spots, h, w)`; None if it cannot be judged."""
    grid = record.key_grid if record.windows is None else record.windows.grid
    if grid is None or record.prefix > _LEADING or nudged.moments.get(number, 0) > nudged.blurred:
        return None
    last = last_grid(nudged, number)
    if last is not None:
        return reached(last.energy) if last.grid == grid else None
    tokens = [event.at(grid, record.prefix) for event in nudged.before(number)]
    first = next((energy for energy in reversed(tokens) if energy is not None), None)
    return None if first is None else reached(first)


def _lowest(energies: Iterator[Tensor], region: Tensor) -> float | None:
    """The smallest share of a change that stays where it was."""
    shares = (share_inside(energy, region) for energy in energies)
    return min((share for share in shares if share is not None), default=None)


def _keys(record: Record) -> Iterator[Tensor]:
    """Where each head's keys changed, `(spots, h, w)`; heads that hardly change are left out."""
    if record.key is None or record.key_grid is None:
        return
    energy = _energy(record.key)
    n = record.key_grid[0] * record.key_grid[1]
    if energy.shape[-1] not in (n, n + record.prefix):
        return
    energy = energy[..., energy.shape[-1] - n :].unflatten(-1, record.key_grid)
    totals = energy.sum((0, 2, 3))
    for head in range(energy.shape[1]):
        if totals[head] > 0.1 * totals.max():
            yield energy[:, head]


def _windowed(record: Record, region: Tensor) -> float | None:
    """The same for windows, by how many tokens change: their places need not be known."""
    if record.key is None or record.windows is None or float(region.float().mean()) > 0.5:
        return None
    keys = record.key.unflatten(0, (-1, record.windows.count))
    if len(keys) != len(region) + 1:
        return None
    energy = _energy(keys.flatten(1, 2))
    changed = count(energy)
    heads = record.key.shape[1]
    allowed = float(region.flatten(1).sum(1).float().median()) * heads * MORE
    return 1.0 if changed <= allowed else allowed / MORE / changed


def _energy(key: Tensor) -> Tensor:
    """`(spots, heads, tokens)`: the squared change of each key."""
    change: Tensor = (key[1:].float() - key[:1].float()).square().sum(-1)
    return change


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
