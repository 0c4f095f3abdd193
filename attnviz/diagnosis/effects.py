"""Whether what is computed matters: other weights are put in, and the output is compared."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.examination import Examination, Run
from attnviz.diagnosis.findings import Finding

NOTHING = 1e-6
"""A relative change of the output below which what was replaced does not reach it."""

LITTLE = 1e-3
"""A change, relative to that between two images, below which attention is not used."""


def effect_findings(case: Examination) -> Iterator[Finding]:
    """Attention and gates that do not reach the output, and attention that is not used."""
    plain = case.fewer.output
    if plain is None or case.is_random or not bool(plain.isfinite().all()) or not plain.any():
        return
    for i in case.chosen:
        record = case.records[i]
        other = jumbled_gate if record.kind == "gate" else far_away
        change = _change(_edited(case, i, other), plain)
        if change is None:
            continue
        if change < NOTHING:
            yield finding("no-effect", record.name, change=change)
        elif case.trained and record.kind == "attention" and len(case.some) > 1:
            yield from _used(case, i, record, plain)


def far_away(weights: Tensor) -> Tensor:
    """Each query looks at one key alone, another one for each query and head."""
    heads, q, k = weights.shape[1:]
    turn = torch.arange(heads, device=weights.device)[:, None] * 5
    # half of the keys are never looked at: a permutation would keep the mean over places
    key = (torch.arange(q, device=weights.device)[None] * 7 + 3 + turn) % max(1, (k + 1) // 2)
    rows = torch.nn.functional.one_hot(key, k).to(weights.dtype)
    return rows.expand_as(weights).clone()


def jumbled_gate(scale: Tensor) -> Tensor:
    """Each channel and place multiplied by another number between ¼ and 1."""
    noise = torch.Generator().manual_seed(scale[0].numel())
    factor = torch.rand(scale.shape[1:], generator=noise) * 0.75 + 0.25
    return scale * factor.to(scale)


def level(weights: Tensor) -> Tensor:
    """The same weight on every key that has any."""
    allowed = (weights != 0).to(weights.dtype)
    return allowed / allowed.sum(-1, keepdim=True).clamp_min(1)


def _edited(case: Examination, number: int, edit: object) -> Run:
    return case.attempt(case.some, edit={case.records[number].name: edit})


def _change(run: Run, plain: Tensor) -> float | None:
    """The relative change of the output, None if the edit could not be made."""
    if run.output is None or run.output.shape != plain.shape:
        return None
    return float((run.output - plain).norm() / plain.norm())


def _used(case: Examination, number: int, record: Record, plain: Tensor) -> Iterator[Finding]:
    """Whether uniform attention would do."""
    run = _edited(case, number, level)
    between = float((plain - plain.roll(1, 0)).norm())
    if run.output is None or not between:
        return
    change = float((run.output - plain).norm()) / between
    if change < LITTLE:
        yield finding("unfaithful", record.name, change=change)
