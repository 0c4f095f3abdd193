"""How the model runs: the same twice, each image by itself, finite in every precision."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import Finding
from attnviz.diagnosis.weights import largest_logit

DIFFERENT = 1e-3
"""Relative difference between outputs that batch size and rounding do not explain."""

_FLOAT16 = 65504.0


def running_findings(case: Examination) -> Iterator[Finding]:
    """Findings that need no attention."""
    if case.left_in_training and case.trained:
        yield finding("left-in-training", "model", modules=case.left_in_training)
    broken = list(_not_finite(case))
    yield from broken
    if broken:
        return
    if case.is_random:
        dropped = (one.name for one in case.records if one.dropout)
        yield finding("random-in-eval", next(dropped, "model"), difference=case.randomness)
    yield from _half(case)
    yield from _overflow(case)


def leak_findings(case: Examination) -> Iterator[Finding]:
    """Images that depend on their neighbours; asked last, as other faults explain it better."""
    whole, part = case.base.output, case.fewer.output
    if whole is None or part is None or case.is_random:
        return
    difference = relative(part, whole[: len(part)])
    if difference > DIFFERENT:
        yield finding("batch-leak", "model", difference=difference)


def relative(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    if one.shape != other.shape or not one.numel():
        return 0.0
    scale = float(other.abs().max())
    return float((one - other).abs().max()) / scale if scale else 0.0


def _not_finite(case: Examination) -> Iterator[Finding]:
    for record in case.records:
        values = record.weights if record.kind == "attention" else record.scale
        if values is not None and not bool(values.isfinite().all()):
            share = 1 - float(values.isfinite().float().mean())
            yield finding("not-finite", record.name, share=share)
            return
    output = case.base.output
    if output is not None and not bool(output.isfinite().all()):
        yield finding("not-finite", "model", share=1 - float(output.isfinite().float().mean()))


def _half(case: Examination) -> Iterator[Finding]:
    device = case.images.device.type
    with torch.autocast(device, dtype=torch.bfloat16):
        run = case.attempt(case.some)
    if run.output is None or bool(run.output.isfinite().all()):
        return
    share = 1 - float(run.output.isfinite().float().mean())
    where = next(
        (one.name for one in run.records if one.weights is not None
         and not bool(one.weights.isfinite().all())), "model"
    )  # fmt: skip
    yield finding("half-precision", where, share=share)


def _overflow(case: Examination) -> Iterator[Finding]:
    for _, record in case.attention():
        largest = largest_logit(record)
        if largest > _FLOAT16:
            yield finding("float16-overflow", record.name, largest=largest)
