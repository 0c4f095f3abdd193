"""What the tokens of an attention are: places, channels, or images of the batch.

A larger image says which axes are places, a smaller batch which are images. Where the model refuses
a larger image, one changed spot tells: in attention over places it moves one key, in attention
over channels every key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.findings import Finding
from attnviz.diagnosis.perturbation import Event, Nudged, share_near

if TYPE_CHECKING:
    from attnviz.diagnosis.examination import Examination

SPREAD = 0.25
"""A change of one place that reaches this share of the keys evenly is in all of them."""

LOCAL = 0.4
"""A change is local if this share of it stays near its place."""


@dataclass(frozen=True)
class Kind:
    """What the tokens of an attention are.

    Attributes:
        word: `"places"`, `"channels"`, `"swapped"`, `"images"`, `"unknown"`.
        finding: What is to be said of it, if anything.
    """

    word: str
    finding: Finding | None = None


def kinds(case: Examination) -> dict[int, Kind]:
    """What the tokens of each attention are, by record number."""
    fewer, taller = case.paired(case.fewer), case.paired(case.taller)
    return {i: _kind(case, i, one, fewer[i], taller[i]) for i, one in case.attention()}


def _kind(
    case: Examination, number: int, base: Record, fewer: Record | None, taller: Record | None
) -> Kind:
    keys = base.shape[-1] if base.shape else 0
    if fewer is not None and fewer.shape and fewer.shape[-1] != keys:
        images, some = len(case.few), len(case.some)
        if keys * some == fewer.shape[-1] * images:
            leak = finding(
                "batch-attention", base.name,
                images=some, keys=fewer.shape[-1], more=images, grown=keys,
            )  # fmt: skip
            return Kind("images", leak)
    if taller is not None and taller.shape:
        if taller.shape[-1] > keys:
            return Kind("places")
        if taller.d_k and base.d_k and taller.d_k > base.d_k and taller.shape[-1] == keys:
            return Kind("channels", finding("channel-attention", base.name, keys=keys))
        if _per_image(taller, 1) > _per_image(base, len(case.few)):
            return Kind("places")
    found = _channels(case, number, base)
    return Kind("unknown") if found is None else found


def _per_image(record: Record, images: int) -> float:
    """How many windows an image has."""
    return record.shape[0] / images


def _channels(case: Examination, number: int, base: Record) -> Kind | None:
    """Keys as many as channels, each of which holds the whole image."""
    nudged = case.nudged
    if nudged is None or base.windows is not None:
        return None
    record, before = nudged.records[number], last_grid(nudged, number)
    if before is None or record.key is None or before.grid is None:
        return None
    (h, w), heads = before.grid, record.key.shape[1]
    keys = record.key.shape[-2]
    if keys == h * w + record.prefix or before.channels not in (keys, keys * heads):
        return None
    change = (record.key[1:] - record.key[:1]).float().square()
    if _evenness(change.sum((1, 3))) < SPREAD:
        return None
    along = change.sum((1, 2))
    near = (
        share_near(along.unflatten(1, (h, w)), nudged.places) if along.shape[1] == h * w else None
    )
    if near is not None and near > LOCAL:
        return Kind("channels", finding("channel-attention", base.name, keys=keys))
    if case.taller.output is None and keys == before.channels:
        return Kind("swapped", finding("swapped-axes", base.name, keys=keys, places=h * w))
    return None


def last_grid(nudged: Nudged, number: int) -> Event | None:
    """The last feature map before an attention."""
    return next((one for one in nudged.before(number) if one.grid is not None), None)


def _evenness(energy: Tensor) -> float:
    """`(Σe)² / (n Σe²)` of `(spots, n)`, averaged: 1 if all n change alike, 1/n if one does."""
    total = energy.sum(1).square()
    squares = energy.square().sum(1) * energy.shape[1]
    return float((total / squares.clamp_min(1e-30)).mean())
