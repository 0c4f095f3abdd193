"""Whether attention and gates reach the output: their values are replaced, outputs compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.examination import Edit, Examination
from attnviz.diagnosis.registry import Observation, observed, rule

NOTHING = 1e-6
"""A relative change of the output below which the replaced values do not reach it."""

ROUNDING = 1e-5
"""A spread that rounding explains: the values are equal."""

LITTLE = 1e-3
"""A change, relative to that between two images, below which attention is not used."""


@rule(
    code="no-effect",
    severity="error",
    summary="Whatever the weights are, the output is the same.",
    meaning="replacing the weights by entirely different ones changes the model's output by "
    "{change:.1g} of itself: what is computed here does not reach it",
    evidence={"change": "relative change of the output"},
    threshold=f"change below {NOTHING:g}",
    remedy="follow its result to the output: a missing assignment, a branch multiplied by zero, or "
    "values that are the same at all places",
    appearance="A heatmap of something that does not matter.",
    cause="The result is not returned (`self.attention(x)` without `x =`), the branch is "
    "multiplied by a parameter that is zero, or the values are the same at all places.",
    method="Each query attends to one other key alone, or each gate is multiplied by random "
    f"factors, and the output changes by less than {NOTHING:g} of itself. In models not known to "
    "be trained, parameters that are all zero are replaced by small numbers first, so that "
    "zero-initialised branches are not named. A note where the values are one learned vector for "
    "all keys and images, as in the first decoder layer of DETR, where a gate is closed by its "
    f"weights (below {NOTHING:g} throughout), or where the output does change "
    "once every other attention, too, has single keys: then the weights make the values equal, not "
    "the code. Attention with one key is not judged: its weight is 1.",
    explained_by=("not-applied", "batch-attention", "output-constant", "gate-closed"),
)
def no_effect(case: Examination) -> Iterator[Observation]:
    found = {i: change for i, change in measured_changes(case).items() if change < NOTHING}
    elsewhere = _changes_elsewhere(case, list(found)) if found else {}
    for i, change in found.items():
        record = case.records[i]
        if record.kind == "attention" and record.shape[-1] == 1:
            continue  # one key has the weight 1, whatever the code
        weak = _of_constants(record) or _closed(record) or elsewhere.get(i, 0.0) >= NOTHING
        yield observed(record.name, "note" if weak else None, change=change)


@rule(
    code="unfaithful",
    severity="warning",
    summary="The output does not depend on where the layer attends.",
    meaning="uniform attention changes the output by {change:.2g} of the change between two "
    "images: the model does not use where it attends, whatever the map shows",
    evidence={"change": "change of the output over that between two images"},
    threshold=f"change below {LITTLE:g} of that between images",
    remedy="do not read the map as a reason; compare with a model without this layer, and use an "
    "attribution",
    appearance="Any: the map may even be on the object.",
    cause="The residual carries the signal, or later layers read something that all places share.",
    method=f"Uniform weights change the output by less than {LITTLE:g} of what another image does. "
    "Trained models only.",
    explained_by=("no-effect",),
)
def unfaithful(case: Examination) -> Iterator[Observation]:
    plain = case.fewer.output
    if not case.trained or plain is None or len(case.some) < 2:
        return
    between = float((plain - plain.roll(1, 0)).norm() / plain.norm())
    changes = measured_changes(case)
    used = [i for i, change in changes.items() if change >= NOTHING]
    attention = [i for i in used if case.records[i].kind == "attention"]
    for i, change in case.changes(dict.fromkeys(attention, uniform)).items() if between else ():
        if change / between < LITTLE:
            yield observed(case.records[i].name, change=change / between)


def _of_constants(record: Record) -> bool:
    """Whether the values are one learned vector, for all keys and images, as of DETR's queries."""
    value = record.value
    if value is None or not len(value):
        return False
    apart = float((value - value[:1, :, :1]).abs().max())
    return apart <= ROUNDING * float(value.abs().max())


def _closed(record: Record) -> bool:
    """Whether a gate lets nothing pass, so that no other value of it could be noticed."""
    return record.scale is not None and float(record.scale.abs().max()) < NOTHING


def _changes_elsewhere(case: Examination, numbers: Sequence[int]) -> dict[int, float]:
    """Relative change of the output by other weights, while all attention has single keys.

    Records whose run failed are left out.
    """
    attention = [i for i in case.editable if case.records[i].kind == "attention"]
    edits: dict[str, Edit] = {case.records[i].name: single_keys for i in attention}
    plain = case.attempt(case.some, edit=edits).output
    found: dict[int, float] = {}
    if plain is None:
        return found
    for i in numbers:
        name = case.records[i].name
        other = case.attempt(case.some, edit=edits | {name: other_keys}).output
        if other is not None and name in edits:
            found[i] = float((other - plain).norm() / plain.norm())
    return found


def single_keys(weights: Tensor) -> Tensor:
    """Each query attends to one key alone, another one for each query and head."""
    heads, q, k = weights.shape[1:]
    turn = torch.arange(heads, device=weights.device)[:, None] * 5
    # half of the keys only: a permutation would keep the mean over places
    key = (torch.arange(q, device=weights.device)[None] * 7 + 3 + turn) % max(1, (k + 1) // 2)
    rows = torch.nn.functional.one_hot(key, k).to(weights.dtype)
    return rows.expand_as(weights).clone()


def other_keys(weights: Tensor) -> Tensor:
    """As `single_keys`, with the next key for each query."""
    return single_keys(weights).roll(1, -1)


def randomly_scaled(scale: Tensor) -> Tensor:
    """Each channel and place multiplied by another number between ¼ and 1."""
    noise = torch.Generator().manual_seed(scale[0].numel())
    factor = torch.rand(scale.shape[1:], generator=noise) * 0.75 + 0.25
    return scale * factor.to(scale)


def uniform(weights: Tensor) -> Tensor:
    """The same weight on every key that has any."""
    allowed = (weights != 0).to(weights.dtype)
    return allowed / allowed.sum(-1, keepdim=True).clamp_min(1)


def measured_changes(case: Examination) -> dict[int, float]:
    """Relative change of the output under replaced weights or gates, by record number."""
    return case.cached(_measure_changes)


def _measure_changes(case: Examination) -> dict[int, float]:
    plain = case.fewer.output
    if plain is None or case.is_random or not bool(plain.isfinite().all()) or not plain.any():
        return {}
    return case.changes({i: _other_values(case.records[i]) for i in case.chosen})


def _other_values(record: Record) -> Edit:
    return randomly_scaled if record.kind == "gate" else single_keys
