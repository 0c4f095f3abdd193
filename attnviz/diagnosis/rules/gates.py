"""Faults of gates: closed, open, constant, independent of the image, wrongly normalised."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from attnviz.capture import Record
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.registry import Observation, observed, rule

CLOSED, OPEN = 0.02, 0.98
"""A gate is closed if all its values are below the first, open if all are above the second."""

FLAT = 5e-3
"""A gate is constant if its standard deviation over everything is below this."""

BLIND = 1e-4
"""A gate does not depend on the image if its standard deviation between images is below this."""

_BOUND = 1e-3  # how far from 0 and 1 a value may be by rounding


@rule(
    code="gate-over-batch",
    severity="error",
    summary="The gate is normalised over the images of a batch.",
    meaning="the gate is normalised over the images of the batch, its values sum to {total:.3g} "
    "over {images} of them: an image's gate depends on the other images",
    evidence={"total": "sum over the images", "images": "images in the batch"},
    threshold="sums within 0.001 of 1",
    remedy="normalise within an image: nn.Softmax(dim=1), or a sigmoid",
    appearance="Brighter or darker with the batch's other images.",
    cause="`nn.Softmax(dim=0)`, or `nn.Softmax()` on a tensor of one axis per image.",
    method="A softmax gate whose values sum to 1 over the images.",
)
def over_batch(case: Examination) -> Iterator[Observation]:
    for record, scale in _scales(case):
        if _over_batch(record, scale):
            yield observed(record.name, total=float(scale.sum(0).mean()), images=len(scale))


@rule(
    code="softmax-gate",
    severity="warning",
    summary="A softmax over channels is used as a gate.",
    meaning="the gate is a softmax over {channels} channels: its values sum to 1, so that the "
    "features shrink about {channels} times and channels compete",
    evidence={"channels": "number of channels"},
    threshold="sums within 0.001 of 1",
    remedy="use a sigmoid for a gate: x * gate.sigmoid()",
    appearance="For channels: one or two bright bars, the rest dark.",
    cause="A softmax was taken in place of a sigmoid. A softmax over branches (SK-Net, ResNeSt) "
    "is another thing and right.",
    method="A channel gate that sums to 1 over channels.",
    explained_by=("gate-over-batch",),
)
def softmax_gate(case: Examination) -> Iterator[Observation]:
    for record, scale in _scales(case):
        if record.op != "softmax" or record.axis != "channel" or scale.shape[1] < 4:
            continue
        if float((scale.sum(1) - 1).abs().max()) < 1e-3:
            yield observed(record.name, channels=scale.shape[1])


@rule(
    code="unbounded-gate",
    severity="note",
    summary="The gate leaves 0 to 1.",
    meaning="the gate leaves 0 to 1: it reaches {lowest:.3g} to {highest:.3g}",
    evidence={"lowest": "smallest value", "highest": "largest value"},
    threshold=f"a value more than {_BOUND:g} outside 0 to 1",
    remedy="read its map as a factor, not as a share",
    appearance="Usable, but the scale is no share.",
    cause="`1 + tanh`, ReLU or a product without a squashing function.",
    method=f"Values below 0 or above 1 by more than {_BOUND}.",
    explained_by=("gate-over-batch",),
)
def unbounded(case: Examination) -> Iterator[Observation]:
    for record, scale in _scales(case):
        low, high = float(scale.min()), float(scale.max())
        if low < -_BOUND or high > 1 + _BOUND:
            yield observed(record.name, lowest=low, highest=high)


@rule(
    code="gate-closed",
    severity="warning",
    summary="The gate is closed: next to nothing passes.",
    meaning="the gate is closed: it is {highest:.3g} at most, and next to nothing passes",
    evidence={"highest": "largest value over images, channels and places, 0 to 1"},
    threshold=f"largest value below {CLOSED:g}",
    remedy="check its bias and its input; add the residual around it: x + x * gate",
    appearance="Black.",
    cause="A bias far below zero, or a sigmoid driven into saturation.",
    method=f"The largest value is below {CLOSED}, or features are multiplied by a broadcast factor "
    "that is 0 throughout. Trained models; a note where that is not known.",
    explained_by=("gate-over-batch",),
)
def closed(case: Examination) -> Iterator[Observation]:
    found = dict[str, float]()
    for record, scale in _trained_scales(case):
        low, high = float(scale.min()), float(scale.max())
        if high < CLOSED and low >= 0:
            found[record.name] = high
    if case.trained is not False:
        dead = (one.module for one in case.calls.products if not one.factor.any())
        found |= {module or type(case.model).__name__: 0.0 for module in dead}
    for where, high in found.items():
        yield observed(where, case.trained_severity, highest=high)


@rule(
    code="gate-open",
    severity="warning",
    summary="The gate is open everywhere.",
    meaning="the gate is open everywhere: it is {lowest:.3g} at least and selects nothing",
    evidence={"lowest": "smallest value over images, channels and places, 0 to 1"},
    threshold=f"smallest value above {OPEN:g}",
    remedy="check its bias, and that its input is normalised; a saturated sigmoid has no gradient",
    appearance="White.",
    cause="A bias far above zero; inputs that were not normalised saturate the sigmoid, and it "
    "gets no gradient.",
    method=f"The smallest value is above {OPEN}. Trained models; a note where that is not known.",
    explained_by=("gate-over-batch",),
)
def open_everywhere(case: Examination) -> Iterator[Observation]:
    for record, scale in _trained_scales(case):
        low, high = float(scale.min()), float(scale.max())
        if low > OPEN and high <= 1 + _BOUND:
            yield observed(record.name, case.trained_severity, lowest=low)


@rule(
    code="gate-constant",
    severity="warning",
    summary="The gate is one number.",
    meaning="the gate is the same everywhere, {mean:.3g} ± {spread:.1g}: it scales the features "
    "and selects nothing",
    evidence={
        "mean": "mean over images, channels and places",
        "spread": "standard deviation over the same",
    },
    threshold=f"standard deviation below {FLAT:g}",
    remedy="check that its last layer is not zero and is trained; 0.5 is the sigmoid of zero",
    appearance="One grey; scaled to its maximum it shows rounding noise.",
    cause="Its last layer is zero (½ is the sigmoid of zero), is not in the optimiser, or was "
    "never trained.",
    method=f"The standard deviation is below {FLAT}. Trained models; a note where that is not "
    "known.",
    explained_by=("gate-over-batch", "gate-closed", "gate-open"),
)
def constant(case: Examination) -> Iterator[Observation]:
    for record, scale in _trained_scales(case):
        if scale.numel() > 1 and (spread := float(scale.std())) < FLAT:
            mean = float(scale.mean())
            yield observed(record.name, case.trained_severity, mean=mean, spread=spread)


@rule(
    code="gate-blind",
    severity="warning",
    summary="The gate is the same for every image.",
    meaning="the gate is the same for every image, it varies by {spread:.1g} between them: it is a "
    "learned constant",
    evidence={"spread": "standard deviation between images, mean over channels and places"},
    threshold=f"standard deviation between images below {BLIND:g}",
    remedy="check its input: features that are pooled away, or a branch that is disconnected",
    appearance="The same picture under every image.",
    cause="Its input is a constant, or features that were pooled until nothing was left; with few "
    "images and a simple task a channel gate may also learn a constant.",
    method=f"The spread is below {BLIND}. Trained models; a note where that is not known.",
    explained_by=("gate-over-batch", "gate-closed", "gate-open", "gate-constant"),
)
def blind(case: Examination) -> Iterator[Observation]:
    for record, scale in _trained_scales(case):
        if len(scale) > 1 and (spread := float(scale.std(0).mean())) < BLIND:
            yield observed(record.name, case.trained_severity, spread=spread)


@rule(
    code="nothing-spatial",
    severity="note",
    summary="No attention and no gate of this model has a weight for a place.",
    meaning="every gate ({gates} in all) is per channel and no attention is over places: no map of "
    "this model's own shows a place",
    evidence={"gates": "number of gates"},
    remedy="draw av.channel_gated or an attribution; a CBAM has a spatial half, "
    "CBAM(channels, spatial=True)",
    appearance="None of its own. A channel gate times its features can be drawn "
    "(`av.channel_gated`) and is an attribution.",
    cause="Channel gates only (SE, ECA), by design, or since the spatial half of a CBAM is off: "
    "published code has `no_spatial=True` as its default.",
    method="All gates range over channels and there is no attention. A warning where the module "
    "around the gate has an option named for a spatial half, and has it off.",
)
def nothing_spatial(case: Examination) -> Iterator[Observation]:
    gates = [record for _, record in case.gates()]
    if not gates or case.attention() or any(one.axis != "channel" for one in gates):
        return
    for one in gates:
        holder = _switched_off(case.model, one.name)
        if holder is not None:
            yield observed(holder, "warning", gates=len(gates))
            return
    yield observed(gates[0].name, gates=len(gates))


def _scales(case: Examination) -> Iterator[tuple[Record, Tensor]]:
    """Gates with finite values."""
    for _, record in case.gates():
        if record.scale is not None and bool(record.scale.isfinite().all()):
            yield record, record.scale.float()


def _trained_scales(case: Examination) -> Iterator[tuple[Record, Tensor]]:
    """Gates that may be judged by their values: squashed, and not surely untrained."""
    if case.trained is not False:
        yield from ((record, scale) for record, scale in _scales(case) if record.op != "softmax")


def _over_batch(record: Record, scale: Tensor) -> bool:
    """Whether a softmax sums to 1 over the images."""
    if record.op != "softmax" or len(scale) < 2 or len(scale) != record.images:
        return False
    return float((scale.sum(0) - 1).abs().max()) <= 1e-3 and float(scale.std()) > 0


def _switched_off(model: nn.Module, name: str) -> str | None:
    """The module around a gate that has an option for a spatial half, and has it off."""
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
