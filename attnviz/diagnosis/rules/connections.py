"""Whether the output is connected to what attention, gates and layers compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import Severity
from attnviz.diagnosis.registry import Observation, observed, rule
from attnviz.diagnosis.rules.effects import NOTHING, measured_changes, randomly_scaled

_OF_THREE = 0.02  # how exactly two of three rows of a joint projection have no gradient
_LEAST = 2  # values per image from which a squashed tensor can be a gate


@rule(
    code="not-applied",
    severity="error",
    summary="Weights or a gate are computed and not used.",
    meaning="weights are computed and not used: the output has no gradient by them, and replacing "
    "them changes it by {change:.1g} of itself",
    evidence={"change": "relative change of the output under replaced weights"},
    threshold=f"no gradient, and a change below {NOTHING:g}",
    remedy="use what was computed: out = weights @ v, x = x * gate, and return it",
    appearance="A plausible heatmap of something that the model does not use.",
    cause="`weights` was returned for drawing while the output was computed without them, a name "
    "was assigned twice, or the product is not returned (`x * gate` without `x =`).",
    method="One backward pass gives no gradient by the result of the sigmoid, softmax or attention "
    f"kernel, and a run with replaced results changes the output by less than {NOTHING:g} of "
    "itself.",
)
def not_applied(case: Examination) -> Iterator[Observation]:
    for one in case.cached(_disconnected):
        if one.change < NOTHING:
            yield observed(one.where, change=one.change)


@rule(
    code="detached",
    severity="error",
    summary="No gradient passes through the attention weights or the gate.",
    meaning="replaced weights change the output by {change:.2g} of itself, but it has no gradient "
    "by them: what computes them is never trained",
    evidence={"change": "relative change of the output under replaced weights"},
    threshold=f"no gradient, and a change of {NOTHING:g} or more",
    remedy="remove .detach(), torch.no_grad() or the comparison between the weights and their use; "
    "for hard decisions pass the gradient straight through: hard + soft - soft.detach()",
    appearance="A map of random weights, however long the training.",
    cause="`weights.detach()`, `with torch.no_grad():`, `.data`, or a threshold or arg-max, which "
    "has no gradient.",
    method="One backward pass gives no gradient by the result of the sigmoid, softmax or attention "
    "kernel, or by the parameters of queries and keys, and replaced results change the output. A "
    "warning in trained models, whose inference it does not affect.",
    explained_by=("class-token-blind",),
)
def detached(case: Examination) -> Iterator[Observation]:
    severity: Severity = "warning" if case.trained else "error"
    found = {one.where: one.change for one in case.cached(_disconnected) if one.change >= NOTHING}
    for number, change in measured_changes(case).items():
        record = case.records[number]
        if record.kind == "attention" and change >= NOTHING and _untrained_part(case, record):
            found.setdefault(record.name, change)
    for where, change in found.items():
        yield observed(where, severity, change=change)


@rule(
    code="not-followed",
    severity="note",
    summary="A gate or attention is used in a way that is not followed.",
    meaning="a {word} is computed and reaches the output, but its way there is not followed from "
    "here: it has no record and no map",
    remedy="multiply by it directly (x * gate, weights @ values), or name its module and draw an "
    "attribution",
    appearance="No map of this gate.",
    cause="The result passes through an operation that the capture does not follow before it meets "
    "the data.",
    method="The capture lists it as computed and not applied, or has no record of a sigmoid of a "
    "gate's shape, `(b, 1, h, w)`, `(b, c, 1, 1)` or `(b, c)`, while the output has a gradient by "
    "it and does not contain it.",
    explained_by=("double-sigmoid",),
)
def not_followed(case: Examination) -> Iterator[Observation]:
    accused = {one.where for one in case.cached(_disconnected)}
    named = {record.name for record in case.base.seen.unused if record.name not in accused}
    for record in case.base.seen.unused:
        if record.name in named:
            yield observed(record.name, word=record.op or record.kind)
    for where in _unrecorded_gates(case):
        if where not in named | accused:
            named.add(where)
            yield observed(where, word="sigmoid")


@rule(
    code="no-gradient",
    severity="warning",
    summary="A layer that runs gets no gradient.",
    meaning="{parameters:,} parameters of a layer that runs get no gradient: the layer {word}",
    evidence={"parameters": "number of such parameters"},
    remedy="remove .detach(), .data or torch.no_grad() behind the layer, or set requires_grad "
    "where it was frozen by mistake",
    appearance="That of an untrained layer.",
    cause="`.detach()`, `.data` or `torch.no_grad()` behind the layer, a result that is not used, "
    "or parameters with `requires_grad=False`.",
    method="One backward pass of a random projection of the outputs gives no gradient by any "
    "parameter of a module that ran. A note in trained models, which may be frozen on purpose.",
)
def no_gradient(case: Examination) -> Iterator[Observation]:
    backward = case.backward
    if backward is None:
        return
    severity: Severity | None = "note" if case.trained else None
    explained = {one.where.partition("#")[0] for one in case.cached(_disconnected)}
    root = type(case.model).__name__ in explained
    owners = _owners(case)
    frozen = {name for name, (_, trainable) in owners.items() if not trainable}
    disconnected = {
        name for name in owners
        if name in backward.called and all(
            gradient is None for key, gradient in backward.parameters.items()
            if _owner(key) == name
        )
    }  # fmt: skip
    for name in sorted(disconnected):
        if not root and not any(_within(name, where) for where in explained):
            yield observed(
                name or "model", severity, parameters=owners[name][0],
                word="is not connected to the output",
            )  # fmt: skip
    if len(frozen) < len(owners):
        for name in sorted(frozen - disconnected):
            yield observed(
                name or "model", "note" if case.trained is not False else None,
                parameters=owners[name][0], word="is frozen, while others are trained",
            )  # fmt: skip


@dataclass(frozen=True)
class _Disconnected:
    """A call whose result the output has no gradient by.

    Attributes:
        where: The record's or the module's name.
        change: Relative change of the output under replaced results.
    """

    where: str
    change: float


def _disconnected(case: Examination) -> list[_Disconnected]:
    backward, calls = case.backward, case.calls
    plain = calls.output
    if backward is None or plain is None or len(backward.connected) != len(calls.calls):
        return []
    if case.is_random or not bool(plain.isfinite().all()) or not plain.any():
        return []
    found: dict[str, _Disconnected] = {}
    for number, call in enumerate(calls.calls):
        per_image = call.result.numel() / len(case.some)
        if backward.connected[number] or per_image < _LEAST or _constant(call.result):
            continue
        output = case.run_calls(case.some, {number: randomly_scaled}).output
        if output is None:
            continue
        where = _name(case, call.module, call.op, per_image)
        change = float((output - plain).norm() / plain.norm())
        if where not in found or change > found[where].change:
            found[where] = _Disconnected(where, change)
    return list(found.values())


def _name(case: Examination, module: str, op: str, per_image: float) -> str:
    """The name of the record that a call belongs to, else of its module."""
    for record in (*case.records, *case.base.seen.unused):
        inside = _inside(case, record)
        if record.op == op and _within(module, inside) and _size(case, record) == per_image:
            return record.name
    for record in case.records:
        if _within(module, _inside(case, record)) and record.kind == "attention":
            return record.name
    return module or type(case.model).__name__


def _within(module: str, where: str) -> bool:
    return not where or module == where or module.startswith(f"{where}.")


def _unrecorded_gates(case: Examination) -> Iterator[str]:
    """Modules with a sigmoid of a gate's shape that reaches the output and has no record."""
    backward, output = case.backward, case.calls.output
    if backward is None or output is None or len(backward.connected) != len(case.calls.calls):
        return
    for call, connected in zip(case.calls.calls, backward.connected, strict=True):
        shape = call.result.shape
        gate = len(shape) == 2 or (len(shape) == 4 and (shape[1] == 1) != (shape[2:] == (1, 1)))
        if call.op != "sigmoid" or not connected or not gate or _constant(call.result):
            continue
        size = call.result.numel() / len(case.some)
        if size < _LEAST or bool(torch.isin(call.result[0].float(), output[0]).all()):
            continue
        inside = [one for one in case.records if _within(call.module, _inside(case, one))]
        resized = sum(one.op == call.op for one in inside) >= sum(
            one.op == call.op and one.module == call.module for one in case.calls.calls
        )
        if not resized and all(_size(case, record) != size for record in inside):
            yield call.module or type(case.model).__name__


def _inside(case: Examination, record: Record) -> str:
    name = record.name.partition("#")[0]
    return "" if name == type(case.model).__name__ else name


def _size(case: Examination, record: Record) -> float:
    return math.prod(record.shape) / len(case.few)


def _constant(result: Tensor) -> bool:
    """Whether a result is the same for all images: it was computed from parameters alone."""
    return len(result) < 2 or bool((result == result[:1]).all())


def _untrained_part(case: Examination, record: Record) -> bool:
    """Whether queries or keys get no gradient though other parameters of the layer do."""
    backward, where = case.backward, record.name.partition("#")[0]
    if backward is None:
        return False
    own = {
        key: gradient for key, gradient in backward.parameters.items()
        if where and _within(_owner(key), where)
    }  # fmt: skip
    if all(gradient is None for gradient in own.values()):
        return False
    for key, gradient in own.items():
        if gradient is None and key.endswith("weight") and _owner(key) in backward.called:
            return True
        if gradient is None or gradient.dim() < 2 or gradient.shape[0] % 3:
            continue
        silent = float((gradient.flatten(1) == 0).all(1).float().mean())
        if abs(silent - 2 / 3) < _OF_THREE:  # queries and keys of a joint projection
            return True
    return False


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _owners(case: Examination) -> dict[str, tuple[int, bool]]:
    """Modules with weights of their own: how many parameters, and whether any is trainable.

    Tables of biases are left out: some models (LeViT) cache them in evaluation mode.
    """
    owners = {}
    for name, module in case.model.named_modules():
        own = list(module.parameters(recurse=False))
        weighs = any(key.endswith("weight") for key, _ in module.named_parameters(recurse=False))
        if weighs and not any(isinstance(one, torch.nn.UninitializedParameter) for one in own):
            trainable = any(one.requires_grad for one in own)
            owners[name] = (sum(one.numel() for one in own), trainable)
    return owners
