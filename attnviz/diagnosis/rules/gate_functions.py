"""Faults of the function that makes a gate, and of its position on the features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.registry import Observation, observed, rule

SIGMOID_OF_ONE = 0.7310585786300049
"""The sigmoid of 1; a sigmoid of a sigmoid lies between ½ and this."""

GROWN = 5.0
"""A factor is unbounded if it grows this many times with images 1000 times as bright."""

OFF, ON = 0.15, 0.06
"""Mean distance, in image sides, from which a gate is misplaced, and below which it is placed."""

_ROUNDING = 1e-4
_SIDE = 6  # places in a row from which positions can be told


@rule(
    code="double-sigmoid",
    severity="error",
    summary="The gate is a sigmoid of a sigmoid.",
    meaning="the gate stays between {lowest:.3f} and {highest:.3f} even for images 30 times as "
    "bright: a sigmoid of a sigmoid lies between 0.5 and 0.731, it can neither open nor close",
    evidence={"lowest": "smallest value", "highest": "largest value"},
    remedy="remove one sigmoid, or nn.Sigmoid() at the end of the branch",
    appearance="Grey; scaled to its maximum it looks right.",
    cause="The branch ends with a sigmoid, and the gate applies another.",
    method="On plain images, images 1000 times as bright and their negatives all values lie "
    "between the sigmoid of 0 and the sigmoid of 1, and they vary.",
)
def double_sigmoid(case: Examination) -> Iterator[Observation]:
    extreme = case.paired(case.extreme) if case.gates() else []
    for i, record in case.gates():
        other = extreme[i]
        if record.op not in ("sigmoid", "") or record.scale is None or other is None:
            continue
        if other.scale is None:
            continue
        low = min(float(record.scale.min()), float(other.scale.min()))
        high = max(float(record.scale.max()), float(other.scale.max()))
        within = low >= 0.5 - _ROUNDING and high <= SIGMOID_OF_ONE + _ROUNDING
        if within and high - low > 1e-3:
            yield observed(record.name, lowest=low, highest=high)


@rule(
    code="gate-inverted",
    severity="warning",
    summary="The features are multiplied by 1 − gate.",
    meaning="the features are multiplied by one minus the sigmoid ({distance:.1g} apart), and by "
    "nothing else: what the branch scores high is suppressed",
    evidence={"distance": "largest difference of the factor from 1 − sigmoid"},
    remedy="multiply by the gate, x * gate; keep 1 − gate for a second branch only",
    appearance="Dark on the object.",
    cause="`x * (1 - gate)`, copied from a model that splits features between two branches.",
    method="The factor equals one minus the result of a sigmoid, and no other gate of the same "
    "size equals that result.",
)
def inverted(case: Examination) -> Iterator[Observation]:
    scales = [(record, record.scale.float()) for record in case.fewer.records
              if record.kind == "gate" and record.scale is not None]  # fmt: skip
    for call in case.calls.calls if scales else []:
        if call.op != "sigmoid":
            continue
        values = call.result.float().flatten()
        same = [(one, scale.flatten()) for one, scale in scales if scale.numel() == len(values)]
        apart = [(one, float((1 - values - flat).abs().max())) for one, flat in same]
        direct = any(torch.allclose(flat, values, atol=1e-5) for _, flat in same)
        for record, distance in apart:
            if distance < 1e-5 and not direct:
                yield observed(record.name, distance=distance)


@rule(
    code="missing-sigmoid",
    severity="warning",
    summary="Features are multiplied by a factor without a sigmoid.",
    meaning="features are multiplied by a factor from {lowest:.3g} to {highest:.3g}, which is "
    "{grown:.3g} times as large for images 1000 times as bright: there is no sigmoid",
    evidence={
        "lowest": "smallest value",
        "highest": "largest value",
        "grown": "largest magnitude for bright images over that for plain ones",
    },
    remedy="x * gate.sigmoid()",
    appearance="Positive and negative values; no record and no map of it.",
    cause="The sigmoid was left out, or the logits were used instead of the gate.",
    method="A feature map is multiplied by a factor that is broadcast over channels or places, "
    "depends on the image, takes both signs, and grows more than "
    f"{GROWN:g} times with images 1000 times as bright.",
)
def missing_sigmoid(case: Examination) -> Iterator[Observation]:
    products = case.calls.products
    if not any(_signed(one.factor) for one in products):
        return
    bright = case.extreme_calls.products
    if len(bright) != len(products):
        return
    named = set()
    for plain, other in zip(products, bright, strict=True):
        size = float(plain.factor.abs().max())
        grown = float(other.factor.abs().max()) / size if size else 0.0
        if _signed(plain.factor) and grown > GROWN and plain.module not in named:
            named.add(plain.module)
            low, high = float(plain.factor.min()), float(plain.factor.max())
            where = plain.module or type(case.model).__name__
            yield observed(where, lowest=low, highest=high, grown=grown)


@rule(
    code="gate-misplaced",
    severity="error",
    summary="The gate lies on the features transposed, flipped or shifted.",
    meaning="perturbing an image patch changes the gate {distance:.2f} image sides from where the "
    "features change; {word}, it is {mended:.2f}",
    evidence={
        "distance": "mean distance between the gate's change and that of the features, in sides",
        "mended": "the same after the named transformation",
    },
    remedy="keep the axes in the order of the features: (b, 1, h, w); undo flips, rolls and "
    "transposes before the product",
    appearance="The map is the right one, on its head, mirrored or beside the object.",
    cause="`transpose`, `permute` or `reshape` in the branch, coordinates in the order (x, y), a "
    "flip for augmentation, or a roll of windows that is not undone.",
    method="Three image patches are perturbed while attention is the identity. The centres of the "
    "gate's change are compared with those of the features that it multiplies; the finding is a "
    f"mean distance above {OFF} that one transformation brings below {ON}.",
)
def misplaced(case: Examination) -> Iterator[Observation]:
    perturbed = case.perturbed
    if perturbed is None:
        return
    for i, features in perturbed.features.items():
        centres = _centres(features, perturbed.gates[i])
        if centres is None:
            continue
        own, gate = centres
        if (distance := _distance(own, gate)) < OFF:
            continue
        best = min(_TRANSFORMS, key=lambda word: _distance(own, _TRANSFORMS[word](own, gate)))
        mended = _distance(own, _TRANSFORMS[best](own, gate))
        if mended < ON:
            yield observed(case.records[i].name, word=best, distance=distance, mended=mended)


def _signed(factor: Tensor) -> bool:
    """Whether a factor depends on the image and takes both signs."""
    size = float(factor.abs().max())
    depends = len(factor) > 1 and float((factor - factor[:1]).abs().max()) > 1e-3 * size
    return depends and float(factor.min()) < -0.05 * size and float(factor.max()) > 0


_TRANSFORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "transposed": lambda own, gate: gate.flip(1),
    "flipped left to right": lambda own, gate: torch.stack([gate[:, 0], 1 - gate[:, 1]], 1),
    "flipped top to bottom": lambda own, gate: torch.stack([1 - gate[:, 0], gate[:, 1]], 1),
    "rotated by half a turn": lambda own, gate: 1 - gate,
    "rotated to the left": lambda own, gate: torch.stack([1 - gate[:, 1], gate[:, 0]], 1),
    "rotated to the right": lambda own, gate: torch.stack([gate[:, 1], 1 - gate[:, 0]], 1),
    "shifted": lambda own, gate: (gate - _shift(own, gate)) % 1,
}
"""From the centres of features and gate to those of the gate with a transformation undone."""


def _shift(own: Tensor, gate: Tensor) -> Tensor:
    """The displacement of the first patch, with which the others must agree."""
    return (gate - own)[:1]


def _distance(one: Tensor, other: Tensor) -> float:
    """Mean distance of `(patches, 2)` centres on a torus, in image sides."""
    apart = (one - other).abs()
    return float(torch.minimum(apart, 1 - apart).norm(dim=1).mean())


def _centres(features: Tensor, change: Tensor) -> tuple[Tensor, Tensor] | None:
    """Centres of the change of features and gate, `(patches, 2)`; None where it is not local."""
    spatial = features.dim() == change.dim() == 4 and change.shape[1] == 1
    if not spatial or features.shape[-2:] != change.shape[-2:] or min(change.shape[-2:]) < _SIDE:
        return None
    own, gate = (_peaks(one.square().sum(1)) for one in (features, change))
    return None if own is None or gate is None else (own, gate)


def _peaks(energy: Tensor) -> Tensor | None:
    """The centre of the largest change on a torus, `(patches, 2)` in sides, None if spread.

    A map that was rolled has its change on both sides of an edge.
    """
    h, w = energy.shape[1:]
    blurred = torch.nn.functional.pad(energy[:, None].double(), (1, 1, 1, 1), mode="circular")
    peak = torch.nn.functional.avg_pool2d(blurred, 3, stride=1).flatten(1).argmax(1)
    rows = _around(peak // w, h)
    columns = _around(peak % w, w)
    near = (rows.abs() <= max(2, h // 5))[:, :, None] & (columns.abs() <= max(2, w // 5))[:, None]
    weights = energy * near
    total, inside = energy.flatten(1).sum(1), weights.flatten(1).sum(1)
    if not bool((total > 0).all()) or bool((inside < 0.8 * total).any()):
        return None
    row = peak // w + 0.5 + (weights.sum(2) * rows).sum(1) / inside
    column = peak % w + 0.5 + (weights.sum(1) * columns).sum(1) / inside
    return torch.stack([row / h, column / w], 1).float() % 1


def _around(centre: Tensor, n: int) -> Tensor:
    """Signed distance of n cells from a centre on a circle, `(patches, n)`."""
    return (torch.arange(n) - centre[:, None] + n // 2) % n - n // 2
