"""What attention weights are: their axis, their sums, their scale, and whether they are used."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import Finding

SUM = 2e-2
"""How far a row may be from 1: a thousand bfloat16 weights add up to 1e-3 off."""

TEMPERATURE = 0.02
"""How far scale · √d_k may be from 1."""

UNIT = 0.02  # how far from 1 the median length of a normalised vector may be


def weight_findings(case: Examination) -> Iterator[Finding]:
    """Softmax missing, doubled or over the wrong axis; rows, scale."""
    for i, record in case.attention():
        if case.kinds[i].word == "images":
            continue
        taller = case.paired(case.taller)[i]
        found = next(_structure(record, taller), None)
        if found is not None:
            yield found
            continue
        yield from _empty(record)
        yield from _scaled(record)
        if case.kinds[i].word not in ("channels", "swapped"):
            yield from _temperature(record)


def applied_findings(case: Examination) -> Iterator[Finding]:
    """Weights of places that were computed and met nothing."""
    for record in case.base.seen.unused:
        if record.kind == "attention":
            yield finding("not-applied", record.name)
        else:
            yield finding("not-applied", record.name, "warning")


def normalised(record: Record) -> bool:
    """Whether queries and keys have length 1 (or any fixed length), by the median."""
    return any(_fixed_length(x) for x in (record.query, record.key) if x is not None)


def _fixed_length(x: Tensor) -> bool:
    lengths = x.float().norm(dim=-1)
    middle = float(lengths.median())
    return bool(((lengths / middle - 1).abs() < UNIT).float().mean() > 0.9) if middle else False


def _structure(record: Record, taller: Record | None) -> Iterator[Finding]:
    """Faults of which one explains the others."""
    if record.how == "linear" or (record.how == "unnormalised" and _stays(record, taller)):
        yield finding("linear-attention", record.name)
        return
    if record.weights is None:
        return
    sums = record.weights.float().sum(-1)
    low, high = float(sums.min()), float(sums.max())
    smallest = float(record.weights.min())
    if record.how == "unnormalised":
        yield finding("no-softmax", record.name, lowest=low, highest=high, smallest=smallest)
        return
    off = max(abs(low - 1), abs(high - 1)) > SUM and not record.mixed
    if record.axis not in (None, "k") and off:
        yield finding("wrong-axis", record.name, lowest=low, highest=high)
    elif record.double_softmax:
        yield _double(record)
    elif off and not _rescaled(record) and _of_filled_rows(sums) > SUM:
        yield finding("rows-not-one", record.name, lowest=low, highest=high, smallest=smallest)


def _stays(record: Record, taller: Record | None) -> bool:
    """Whether a map is as large for a larger image: channels × channels, not places."""
    return taller is not None and (taller.how == "linear" or taller.shape == (
        taller.shape[0], *record.shape[1:]))  # fmt: skip


def _double(record: Record) -> Finding:
    keys = record.shape[-1]
    e = 2.718281828459045
    return finding("double-softmax", record.name, keys=keys, ceiling=e / (e + keys - 1))


def _of_filled_rows(sums: Tensor) -> float:
    """How far the rows that are not empty are from 1."""
    filled = sums[sums != 0]
    return float((filled - 1).abs().max()) if len(filled) else 0.0


def _empty(record: Record) -> Iterator[Finding]:
    if record.weights is None:
        return
    empty = float((record.weights == 0).all(-1).float().mean())
    if empty:
        yield finding("empty-rows", record.name, share=empty)


def _scaled(record: Record) -> Iterator[Finding]:
    if _rescaled(record):
        yield finding("scaled-after-softmax", record.name, factor=record.factor)


def _rescaled(record: Record) -> bool:
    """Whether one number multiplies all weights after the softmax."""
    return abs(record.factor - 1) > 1e-3  # the factor is NaN where it was a tensor


def _temperature(record: Record) -> Iterator[Finding]:
    if record.how not in ("qk", "fused") or not record.logit_scale or not record.d_k:
        return
    ratio = record.logit_scale * record.d_k**0.5
    if abs(ratio - 1) <= TEMPERATURE or record.d_k == 1 or normalised(record):
        return
    word = "sharper" if ratio > 1 else "flatter"
    yield finding(
        "temperature",
        record.name,
        word=word,
        scale=record.logit_scale,
        ratio=ratio,
        d_k=record.d_k,
    )


def largest_logit(record: Record) -> float:
    """The largest |q · k| before any scale that follows the product."""
    if record.query is None or record.key is None:
        return 0.0
    q, k = record.query.float(), record.key.float()
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return float(torch.matmul(q, k.transpose(-2, -1)).abs().max())
