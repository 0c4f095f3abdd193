"""Where attention goes: to the thing that the masks show, and not to padding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from attnviz.capture import Record, watch
from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.examination import FEW, Examination
from attnviz.diagnosis.findings import Finding
from attnviz.maps import class_row, gate_map, received

ATTENDED = 0.01
"""Share of the attention of real places that padding may get."""

ABOVE = 1.02
"""How many times chance the lower end of the interval must reach: flat maps reach 1.00."""

_ENOUGH = 8  # images with a mask below which an interval says nothing
_STRIP = 16  # a border of one colour counts as padding from this part of the image on
_Z = 1.96


def padding_findings(case: Examination) -> Iterator[Finding]:
    """Real places that attend to padding."""
    given = case.padding is not None
    padding = plain_borders(case.few) if case.padding is None else case.padding[: len(case.few)]
    if len(padding) < len(case.few):  # a single image is examined beside its mirror image
        padding = torch.cat([padding, padding.flip(-1)])
    if not bool(padding.any()):
        return
    for i, record in case.attention():
        if case.kinds[i].word in ("channels", "swapped", "images"):
            continue
        share = _to_padding(record, padding)
        if share is not None and share > ATTENDED:
            yield finding("padding-attention", record.name, None if given else "note", share=share)


def plain_borders(images: Tensor) -> Tensor:
    """`(b, h, w)`: rows and columns of one colour at an image's edges, from 1/16 of it on."""
    h, w = images.shape[-2:]
    rows, columns = _edges(images), _edges(images.transpose(-2, -1))
    rows = _thick(rows, h // _STRIP)
    columns = _thick(columns, w // _STRIP)
    both = rows[:, :, None] | columns[:, None, :]
    return both & ~both.flatten(1).all(1)[:, None, None]


def _edges(images: Tensor) -> Tensor:
    """`(b, n)`: rows that continue the first or last row and are all of its colour."""
    first, last = images[..., :1, :1], images[..., -1:, -1:]
    from_top = (images == first).all(-1).all(1).long().cumprod(1).bool()
    from_bottom = (images == last).all(-1).all(1).flip(1).long().cumprod(1).bool().flip(1)
    return torch.stack([from_top, from_bottom], 0)


def _thick(edges: Tensor, least: int) -> Tensor:
    """Edges that are thick enough, both together."""
    wide = edges.sum(2, keepdim=True) >= max(1, least)
    return (edges & wide).any(0)


def _to_padding(record: Record, padding: Tensor) -> float | None:
    """The share of attention that goes from real places to padding."""
    weights, grid = record.weights, record.key_grid
    if weights is None or grid is None or record.windows is not None or record.query_grid != grid:
        return None
    n = grid[0] * grid[1]
    if weights.shape[0] != len(padding) or weights.shape[-1] != n + record.prefix:
        return None
    covered = F.adaptive_avg_pool2d(padding.float()[:, None], grid).flatten(1)
    filled, real = covered > 0.999, covered < 1e-3
    if not bool(filled.any()):
        return None
    rows = weights[..., record.prefix :, record.prefix :].float().mean(1)
    if rows.shape[-2] != n:
        return None
    to = (rows * filled[:, None, :]).sum(-1)
    padded = real & filled.any(1)[:, None]
    return float(to[padded].mean()) if bool(padded.any()) else None


def aim_findings(case: Examination) -> Iterator[Finding]:
    """Attention that is no better than chance at the masks, judged by its best layer."""
    if case.masks is None or not case.trained:
        return
    lifts = _lifts(case)
    judged = {name: _interval(lift) for name, lift in lifts.items() if len(lift) >= _ENOUGH}
    if not judged:
        return
    best = max(judged, key=lambda name: judged[name][0])
    lift, low, high = judged[best]
    images = len(lifts[best])
    if high < 1:
        yield finding("outside-mask", best, lift=lift, low=low, high=high, images=images)
    elif low <= ABOVE:
        yield finding("not-above-chance", best, lift=lift, low=low, high=high, images=images)


def _lifts(case: Examination) -> dict[str, Tensor]:
    """For each record `(images,)`: the share of its map inside the mask over the mask's area."""
    masks = case.masks
    if masks is None:
        return {}
    found: dict[str, list[Tensor]] = {}
    some = masks.flatten(1).any(1) & ~masks.flatten(1).all(1)
    images, masks = case.images[some], masks[some]
    for start in range(0, len(images), FEW):
        part, inside = images[start : start + FEW], masks[start : start + FEW]
        for name, map_ in _maps(case, part).items():
            mass = map_.clamp_min(0).flatten(1)
            covered = inside.flatten(1).to(mass)
            share = (mass * covered).sum(1) / mass.sum(1) / covered.mean(1)
            found.setdefault(name, []).append(share[share.isfinite()])
    return {name: torch.cat(parts) for name, parts in found.items()}


def _maps(case: Examination, images: Tensor) -> dict[str, Tensor]:
    """One map per record that points at places, by name."""
    size = (images.shape[-2], images.shape[-1])
    with watch(case.model, empty=True) as seen:
        case.model(images)
    maps = {}
    for i, (name, record) in enumerate(seen.items()):
        map_ = _map(record, size, case.kinds[i].word if i in case.kinds else "")
        if map_ is not None and len(map_) == len(images):
            maps[name] = map_
    return maps


def _map(record: Record, size: tuple[int, int], word: str) -> Tensor | None:
    if record.kind == "gate":
        return gate_map(record, size=size) if record.axis == "spatial" else None
    if record.weights is None or record.key_grid is None or word in ("channels", "swapped"):
        return None
    if record.prefix:
        return class_row(record, size=size)
    return received(record, size=size)


def _interval(values: Tensor) -> tuple[float, float, float]:
    """Mean and a normal 95 % interval, which ends at 0."""
    mean = float(values.double().mean())
    half = _Z * float(values.double().std()) / len(values) ** 0.5
    return mean, max(0.0, mean - half), mean + half
