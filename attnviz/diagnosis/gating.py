"""What is wrong with a gate: shut, open, constant, blind, or normalised over the wrong things."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from attnviz.capture import Record
from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import Finding, Severity

CLOSED, OPEN = 0.02, 0.98
"""A gate below the first everywhere is shut, above the second it is open."""

FLAT = 5e-3
"""Standard deviation over everything below which a gate is a constant."""

BLIND = 1e-4
"""Standard deviation between images below which a gate does not look at them."""


def gate_findings(case: Examination) -> Iterator[Finding]:
    """Findings of each gate, then of the gates together."""
    for _, record in case.gates():
        if record.scale is None or not bool(record.scale.isfinite().all()):
            continue
        scale = record.scale.float()
        over = _over_batch(record, scale)
        if over is not None:
            yield over
            continue
        yield from _softmax(record, scale)
        yield from _bounds(record, scale)
        if case.trained is not False:
            yield from _alive(record, scale, "warning" if case.trained else "note")
    yield from _nothing_spatial(case)


def _over_batch(record: Record, scale: Tensor) -> Finding | None:
    """A softmax whose sum over the images is 1."""
    b = len(scale)
    if record.op != "softmax" or b < 2 or b != record.images:
        return None
    sums = scale.sum(0)
    if float((sums - 1).abs().max()) > 1e-3 or float(scale.std()) == 0:
        return None
    return finding("gate-over-batch", record.name, total=float(sums.mean()), images=b)


def _softmax(record: Record, scale: Tensor) -> Iterator[Finding]:
    """Channels that compete for one unit of signal."""
    if record.op != "softmax" or record.axis != "channel" or scale.shape[1] < 4:
        return
    if float((scale.sum(1) - 1).abs().max()) < 1e-3:
        yield finding("softmax-gate", record.name, channels=scale.shape[1])


def _bounds(record: Record, scale: Tensor) -> Iterator[Finding]:
    low, high = float(scale.min()), float(scale.max())
    if low < -1e-3 or high > 1 + 1e-3:
        yield finding("unbounded-gate", record.name, lowest=low, highest=high)


def _alive(record: Record, scale: Tensor, severity: Severity) -> Iterator[Finding]:
    """The worst of what a dead gate can be."""
    low, high = float(scale.min()), float(scale.max())
    if record.op == "softmax":
        return
    if high < CLOSED and low >= 0:
        yield finding("gate-closed", record.name, severity, highest=high)
    elif low > OPEN and high <= 1 + 1e-3:
        yield finding("gate-open", record.name, severity, lowest=low)
    elif scale.numel() > 1 and (spread := float(scale.std())) < FLAT:
        mean = float(scale.mean())
        yield finding("gate-constant", record.name, severity, mean=mean, spread=spread)
    elif len(scale) > 1 and (between := float(scale.std(0).mean())) < BLIND:
        yield finding("gate-blind", record.name, severity, spread=between)


def _nothing_spatial(case: Examination) -> Iterator[Finding]:
    gates = [record for _, record in case.gates()]
    if not gates or case.attention() or any(one.axis != "channel" for one in gates):
        return
    for one in gates:
        holder = _switched_off(case.model, one.name)
        if holder is not None:
            yield finding("nothing-spatial", holder, "warning", gates=len(gates))
            return
    yield finding("nothing-spatial", gates[0].name, gates=len(gates))


def _switched_off(model: nn.Module, name: str) -> str | None:
    """The module around a gate that has a switch for a spatial half, and has it off."""
    parts = name.split(".")
    for n in range(len(parts), -1, -1):
        path = ".".join(parts[:n])
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        for key, value in vars(module).items():
            negative = key.startswith(("no_", "without_", "skip_", "disable_"))
            if "spatial" in key and isinstance(value, bool) and value == negative:
                return path or type(model).__name__
    return None
