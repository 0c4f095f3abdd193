"""Faults of the function that makes a gate, and of its position on the features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.perturbation import WIDEST, effective_count, support
from attnviz.diagnosis.registry import Observation, observed, rule
from attnviz.diagnosis.token_axes import SPREAD

SIGMOID_OF_ONE = 0.7310585786300049
"""The sigmoid of 1; a sigmoid of a sigmoid lies between ½ and this."""

GROWN = 5.0
"""A factor is unbounded if it grows this many times with images 1000 times as bright."""

OFF, ON = 0.15, 0.06
"""Mean distance, in image sides, from which a gate is misplaced, and below which it is placed."""

ELSEWHERE = 0.5
"""Change of a gate far from that of the features, as a part of its largest: it is scrambled."""

LINE = 0.1
"""Distance of a gate over rows or columns from the features, from which it is misplaced."""

_NEAR = 3  # places around the features' change that a gate's own convolution may reach
_CHANGED = 0.01  # part of the largest squared change from which a place counts as changed
_ROUNDING = 1e-4
_SIDE = 6  # places in a row from which positions can be told
_SPREAD = 1e-10  # variance of a gate below which its slope cannot be told


@rule(
    code="double-sigmoid",
    severity="error",
    summary="The gate is a sigmoid of a sigmoid.",
    meaning="the gate stays between {lowest:.3f} and {highest:.3f} even for images 30 times as "
    "bright: a sigmoid of a sigmoid lies between 0.5 and 0.731, it can neither open nor close",
    evidence={"lowest": "smallest value", "highest": "largest value"},
    threshold="all values from 0.5 to 0.731",
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
    meaning="the features are multiplied by a factor that falls by {slope:.2g} as the sigmoid goes "
    "from 0 to 1, and by none that rises: what the branch scores high is suppressed",
    evidence={"slope": "slope of the factor over the sigmoid, −1 for 1 − gate"},
    threshold="within 1e-05 of a falling line",
    remedy="multiply by the gate, x * gate; keep 1 − gate for a second branch only",
    appearance="Dark on the object.",
    cause="`x * (1 - gate)`, copied from a model that splits features between two branches.",
    method="The factor falls as the result of a sigmoid rises, exactly along a line, and no other "
    "factor of the same size rises with it.",
)
def inverted(case: Examination) -> Iterator[Observation]:
    factors = [(one.module, one.factor.float()) for one in case.calls.products]
    sizes = {factor.numel() for _, factor in factors}
    factors += [
        (record.name, record.scale.float()) for record in case.fewer.records
        if record.kind == "gate" and record.scale is not None and record.scale.numel() not in sizes
    ]  # fmt: skip
    for call in case.calls.calls if factors else []:
        if call.op != "sigmoid" or call.result.dim() < 2:
            continue
        slopes = [(where, _slope(factor, call.result)) for where, factor in factors]
        if any(slope > 0 for _, slope in slopes):
            continue
        for where, slope in slopes:
            if slope < 0:
                yield observed(where or type(case.model).__name__, slope=slope)


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
    threshold=f"both signs, and grown more than {GROWN:g} times",
    remedy="x * gate.sigmoid()",
    appearance="Positive and negative values; no record and no map of it.",
    cause="The sigmoid was left out, or the logits were used instead of the gate.",
    method="Features are multiplied by a factor that is repeated over channels or places, "
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
    threshold=f"distance above {OFF:g}, and below {ON:g} transformed",
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


@rule(
    code="gate-scrambled",
    severity="note",
    summary="The gate changes far from where the features change.",
    meaning="perturbing an image patch changes the gate at few places, of which some are far from "
    "where the features change: the change there is {outside:.0%} of the largest one",
    evidence={"outside": "largest change far from the features' change over the largest change"},
    threshold=f"a change above {ELSEWHERE:g} of the largest, {_NEAR} places away",
    remedy="invert every reshape of the branch, in the opposite order: gate.view(b, 1, h, w) of "
    "places that were flattened from (h, w); nothing, if dilated convolutions make the gate",
    appearance="Fragments of the right map, in stripes or blocks.",
    cause="Windows that were cut and put together in another order, or a reshape between. Dilated "
    "convolutions (BAM) have gaps between the places that they read, by design.",
    method="As [gate-misplaced](gate-misplaced.md): of a patch a change of "
    f"{ELSEWHERE:.0%} of the gate's largest is more than {_NEAR} places from where the features "
    "changed, and not joined to it by changed places, though the gate does not change at more "
    "places than there.",
    explained_by=("gate-misplaced",),
)
def scrambled(case: Examination) -> Iterator[Observation]:
    perturbed = case.perturbed
    for i, features in perturbed.features.items() if perturbed is not None else ():
        change = perturbed.gates[i] if perturbed is not None else features
        if not _over_places(features, change):
            continue
        gate, near = change.square().sum(1), support(features.square().sum(1), _NEAR)
        if float(near.float().mean()) > WIDEST:
            continue
        few = effective_count(gate.flatten(1)) <= float(near.flatten(1).sum(1).float().median())
        apart = gate * ~_reached(gate, near)
        outside = apart.flatten(1).amax(1) / gate.flatten(1).amax(1).clamp_min(1e-30)
        if few and (largest := float(outside.max().sqrt())) > ELSEWHERE:
            yield observed(case.records[i].name, outside=largest)


@rule(
    code="gate-swapped-axes",
    severity="warning",
    summary="The gate multiplies rows or columns by what was meant for another axis.",
    meaning="{word}, {distance:.2f} image sides from where the features change",
    evidence={"distance": "mean distance of the change from that of the features, in sides"},
    threshold=f"distance above {LINE:g}, or evenness above {SPREAD:g}",
    remedy="give the gate the axes of what it was computed from: (b, c, 1, 1) of channels, "
    "(b, c, h, 1) of rows, (b, c, 1, w) of columns",
    appearance="Stripes that do not follow the object.",
    cause="As many channels as rows, or as many rows as columns, let a wrong axis broadcast.",
    method="An image patch is perturbed. A gate over rows changes where the columns of the "
    f"features do, or reversed (a mean distance above {LINE}, and less than half of it from the "
    "other axis); or a gate over rows has as many values as there are channels, and all of them "
    "change alike.",
)
def swapped_axes_of_gate(case: Examination) -> Iterator[Observation]:
    perturbed = case.perturbed
    for i, features in perturbed.features.items() if perturbed is not None else ():
        change = perturbed.gates[i] if perturbed is not None else features
        axis = {"rows": 2, "columns": 3}.get(case.records[i].axis or "")
        if axis is None or features.dim() != 4 or change.dim() != 4:
            continue
        lines = change.square().sum([one for one in (1, 2, 3) if one != axis])
        if len(lines) != len(features) or lines.shape[1] != features.shape[axis] < _SIDE:
            continue
        found = _swapped(features, lines, axis, "rows" if axis == 2 else "columns")
        if found is not None:
            yield observed(case.records[i].name, word=found[0], distance=found[1])


@rule(
    code="gate-of-other-features",
    severity="note",
    summary="The gate is computed from other features than it multiplies.",
    meaning="the gate is computed from other features than those that it multiplies: its map says "
    "what these are weighted by, not what is in them",
    remedy="multiply what the gate was computed from, y * gate(y), unless two branches are meant "
    "to gate each other",
    appearance="Where the other branch is bright.",
    cause="The gate of a branch multiplies the shortcut, or reversed. Highway networks and gated "
    "fusions mean it.",
    method="In the graph of the backward pass the gate does not depend on what it multiplies, or "
    "it does by way of features that reach the output by themselves.",
)
def gate_of_other_features(case: Examination) -> Iterator[Observation]:
    for module in case.backward.crossed if case.backward is not None else ():
        yield observed(module or type(case.model).__name__)


@rule(
    code="softmax-of-one",
    severity="error",
    summary="The gate is a softmax over a single element, which is 1.",
    meaning="the gate is a softmax over an axis with one element: all its {values:,} values are 1, "
    "whatever it is given",
    evidence={"values": "number of values"},
    remedy="a sigmoid for a gate of one channel, gate.sigmoid(); or a softmax over places, "
    "gate.flatten(2).softmax(-1)",
    appearance="White.",
    cause="`softmax(dim=1)` of `(b, 1, h, w)`, or of one logit.",
    method="Data flow: the gate is the result of a softmax, and every value is exactly 1.",
)
def softmax_of_one(case: Examination) -> Iterator[Observation]:
    for _, record in case.gates():
        scale = record.scale
        if record.op == "softmax" and scale is not None and bool((scale == 1).all()):
            yield observed(record.name, values=scale.numel())


def _slope(factor: Tensor, gate: Tensor) -> float:
    """Slope of a factor over a gate of its size, 0 if it is not on a line."""
    if factor.numel() != gate.numel():
        return 0.0
    x, y = gate.double().flatten(), factor.double().flatten()
    x, y = x - x.mean(), y - y.mean()
    spread = float(x.square().sum())
    if not spread > _SPREAD * x.numel():
        return 0.0
    slope = float((x * y).sum()) / spread
    return slope if float((y - slope * x).abs().max()) < 1e-5 else 0.0


def _signed(factor: Tensor) -> bool:
    """Whether a factor over channels or places depends on the image and takes both signs."""
    varies = {axis for axis in range(1, factor.dim()) if factor.shape[axis] > 1}
    if varies not in ({1}, {2}, {3}, {1, 2}, {2, 3}) or (factor.dim() == 4 and varies == {2}):
        return False
    size = float(factor.abs().max())
    depends = len(factor) > 1 and float((factor - factor[:1]).abs().max()) > 1e-3 * size
    return depends and float(factor.min()) < -0.05 * size and float(factor.max()) > 0


def _over_places(features: Tensor, change: Tensor) -> bool:
    """Whether a gate over places was perturbed with its features, on a grid that tells places."""
    spatial = features.dim() == change.dim() == 4 and change.shape[1] == 1
    return spatial and features.shape[-2:] == change.shape[-2:] and min(change.shape[-2:]) >= _SIDE


def _reached(energy: Tensor, start: Tensor) -> Tensor:
    """Places that a region reaches by way of changed places, as those of a coarse gate are."""
    changed = energy > _CHANGED * energy.flatten(1).amax(1)[:, None, None]
    region = start.clone()
    for _ in range(max(energy.shape[-2:])):
        wider = torch.nn.functional.max_pool2d(region.float()[:, None], 3, 1, 1)[:, 0] > 0
        region = start | (wider & changed)
    return region


def _swapped(features: Tensor, lines: Tensor, axis: int, word: str) -> tuple[str, float] | None:
    """What is wrong with a gate over lines `(patches, n)`, and how far off it is; None if right."""
    own = _peaks(features.square().sum(1))
    if own is None:
        return None
    n = lines.shape[1]
    even = float((lines.sum(1).square() / (n * lines.square().sum(1)).clamp_min(1e-30)).mean())
    channels = features.shape[1] == n
    if even > SPREAD:
        middle = float((own[:, axis - 2] - 0.5).abs().mean())
        said = f"a gate of as many values as channels multiplies {word}, and all of them change"
        return (said, middle) if channels else None
    at = (lines.argmax(1) + 0.5) / n
    distance, other = (float((at - own[:, one]).abs().mean()) for one in (axis - 2, 3 - axis))
    if distance > LINE and other < distance / 2:
        return f"the gate over {word} changes where the features' other axis does", distance
    return None


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
    if not _over_places(features, change):
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
