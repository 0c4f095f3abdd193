"""How attention is spread: uniform, saturated, collapsed onto one key, the same in two heads.

All of it is normal in a model with random weights, so a model that is not trained is not judged,
and one of which that is not known gets notes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import Finding, Severity

UNIFORM = 0.995
"""Entropy over log N above which a row is called uniform."""

SHARP, ROWS = 0.99, 0.9
"""A head is saturated if this share of its rows (second) has a weight above the first."""

COLLAPSED = 0.9
"""A head is collapsed if one key gets this share of the attention of every image."""

SAME = 0.02
"""Heads are the same if they are nearer to each other than this part of their way to uniform."""

_NEAREST = 1e-4  # total variation below which heads are the same in any case
_FEWEST = 4  # keys below which these numbers mean little


def spread_findings(case: Examination) -> Iterator[Finding]:
    """What the rows of trained attention look like."""
    if case.trained is False:
        return
    severity: Severity = "warning" if case.trained else "note"
    for i, record in case.attention():
        weights = record.weights
        if weights is None or weights.shape[-1] < _FEWEST or case.kinds[i].word == "images":
            continue
        weights = weights.float()
        if not bool(weights.isfinite().all()):
            continue
        yield from _uniform(record, weights, severity)
        yield from _saturated(record, weights, severity)
        yield from _collapsed(record, weights, severity)
        yield from _duplicates(record, weights, severity)
        yield from _class_token(record, weights, severity)


def _uniform(record: Record, weights: Tensor, severity: Severity) -> Iterator[Finding]:
    entropy = float(torch.special.entr(weights.clamp_min(0)).sum(-1).mean())
    allowed = float((weights > 0).sum(-1).float().clamp_min(2).log().mean())
    relative = entropy / allowed
    if relative > UNIFORM:
        keys = round(math.exp(allowed))
        yield finding("near-uniform", record.name, severity, entropy=relative, keys=keys)


def _saturated(record: Record, weights: Tensor, severity: Severity) -> Iterator[Finding]:
    share = (weights.amax(-1) > SHARP).float().mean((0, 2))
    heads = int((share > ROWS).sum())
    if heads:
        yield finding(
            "saturated-heads", record.name, severity,
            heads=heads, of=len(share), share=float(share[share > ROWS].mean()),
        )  # fmt: skip


def _collapsed(record: Record, weights: Tensor, severity: Severity) -> Iterator[Finding]:
    if weights.shape[-2] < 2:
        return
    received = weights.mean((0, 2)).amax(-1)
    heads = int((received > COLLAPSED).sum())
    if heads:
        yield finding(
            "collapsed-heads", record.name, severity,
            heads=heads, of=len(received), share=float(received[received > COLLAPSED].mean()),
        )  # fmt: skip


def _duplicates(record: Record, weights: Tensor, severity: Severity) -> Iterator[Finding]:
    heads = weights.shape[1]
    flat = weights[:2].transpose(0, 1).flatten(2).flatten(1) / weights.shape[-2]
    images = min(2, weights.shape[0])
    apart = torch.cdist(flat[None], flat[None], p=1)[0] / (2 * images)
    uniform = 1 / weights.shape[-1] / weights.shape[-2]
    away = (flat - uniform).abs().sum(1) / (2 * images)
    limit = (SAME * torch.minimum(away[:, None], away[None])).clamp_min(_NEAREST)
    pairs = (apart < limit).triu(1)
    # heads that are uniform are equal for that reason alone
    pairs &= (away > 10 * _NEAREST)[:, None]
    if heads > 1 and bool(pairs.any()):
        yield finding(
            "duplicate-heads", record.name, severity,
            pairs=int(pairs.sum()), distance=float(apart[pairs].max()),
        )  # fmt: skip


def _class_token(record: Record, weights: Tensor, severity: Severity) -> Iterator[Finding]:
    p = record.prefix
    places = weights.shape[-1] - p
    if not p or places < _FEWEST or weights.shape[-2] <= p:
        return
    share = float(weights[:, :, p:, :p].sum(-1).mean())
    if share > COLLAPSED:
        yield finding("class-token-only", record.name, severity, share=share, prefix=p)
