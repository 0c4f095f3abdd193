"""Faults of attention weights: their axis, their sums, their scale, their use."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.registry import Observation, observed, rule

SUM = 2e-2
"""How far a row's sum may be from 1: a thousand bfloat16 weights add up to 1e-3 off."""

TEMPERATURE = 0.02
"""How far scale · √d_k may be from 1."""

_UNIT = 0.02  # how far from 1 a normalised vector's length over the median length may be
_STRUCTURE = ("linear-attention", "no-softmax", "wrong-axis", "double-softmax", "rows-not-one")


@rule(
    code="linear-attention",
    severity="note",
    summary="Keys meet values first; weights between places never exist.",
    meaning="this is linear attention: keys meet values first, and weights between places never "
    "exist",
    remedy="draw an attribution instead: av.attribute(model, images, method=…)",
    appearance="None exists.",
    cause="By design: `q (kᵀ v)` costs O(n) instead of O(n²).",
    method="The product of keys and values is as large for a larger image.",
)
def linear_attention(case: Examination) -> Iterator[Observation]:
    for i, record in _within_images(case):
        if _is_linear(case, i, record):
            yield observed(record.name)


@rule(
    code="no-softmax",
    severity="error",
    summary="q · k meets the values without a softmax.",
    meaning="the product of queries and keys meets the values without a softmax: rows sum to "
    "{lowest:.3g} to {highest:.3g}, the smallest weight is {smallest:.3g}, and the rows grow with "
    "the number of places",
    evidence={
        "lowest": "smallest sum of a row",
        "highest": "largest sum of a row",
        "smallest": "smallest weight",
    },
    remedy="weights = (q @ k.transpose(-2, -1) * d_k**-0.5).softmax(dim=-1)",
    appearance="Weights of both signs: red and blue next to each other, and a scale that grows "
    "with the image.",
    cause="A self-attention that leaves the softmax out, or computes it and uses the scores. The "
    "output is a polynomial of the input whose size grows with the number of places.",
    method="The product of two data tensors meets a third one with no softmax between, and its "
    "size grows with the image, and it has negative weights or is the product itself. If it does "
    "not grow it is [linear attention](linear-attention.md); weights of another function are "
    "[not-a-distribution](not-a-distribution.md), and rows that sum to one are attention like any "
    "other (sparsemax, entmax).",
)
def no_softmax(case: Examination) -> Iterator[Observation]:
    for record in _unnormalised(case):
        if record.weights is None:
            continue
        low, high, smallest = _bounds(record.weights)
        if smallest < 0 or _is_product(record):
            yield observed(record.name, lowest=low, highest=high, smallest=smallest)


@rule(
    code="not-a-distribution",
    severity="note",
    summary="Weights that do not sum to one by design.",
    meaning="rows of the weights sum to {lowest:.3g} to {highest:.3g} and the smallest weight is "
    "{smallest:.3g}: another function than a softmax made them, a softmax of which some columns "
    "meet no value, or one softmax minus another. A map shows where they are large; its level "
    "differs from query to query",
    evidence={
        "lowest": "smallest sum of a row",
        "highest": "largest sum of a row",
        "smallest": "smallest weight",
    },
    threshold=f"a sum more than {SUM:g} from 1",
    remedy="nothing where it is meant; otherwise softmax last, over the keys that meet the values",
    appearance="Rows of different brightness; of a difference, weights of both signs.",
    cause="Sigmoid attention (Ramapuram et al. 2025) and ReLU attention (Wortsman et al. 2023) "
    "normalise nothing; an attention sink is a column of the softmax that meets no value; "
    "differential attention (Ye et al. 2025) subtracts one softmax from another. Dropping keys "
    "after the softmax looks the same.",
    method=f"Sums over keys differ from 1 by more than {SUM}, and either no softmax made the "
    "weights and they are neither negative nor the product of queries and keys itself, or they are "
    "a part of a softmax's columns, or all rows of a head have one sum, or weights between −1 and "
    "1 are negative.",
    explained_by=("linear-attention", "no-softmax"),
)
def not_a_distribution(case: Examination) -> Iterator[Observation]:
    designs = [one for _, one in _within_images(case) if one.softmax and _is_design(one)]
    for record in (*_unnormalised(case), *designs):
        if record.weights is None or record.mixed or _rescaled(record):
            continue
        low, high, smallest = _bounds(record.weights)
        raw = not record.softmax and (smallest < 0 or _is_product(record))
        if not raw and max(abs(low - 1), abs(high - 1)) > SUM:
            yield observed(record.name, lowest=low, highest=high, smallest=smallest)


@rule(
    code="wrong-axis",
    severity="error",
    summary="The softmax runs over another axis than the one that meets the values.",
    meaning="the softmax runs over another axis than the one that meets the values: along the keys "
    "the weights sum to {lowest:.3g} to {highest:.3g} instead of 1",
    evidence={"lowest": "smallest sum over keys", "highest": "largest sum over keys"},
    threshold=f"a sum more than {SUM:g} from 1",
    remedy="softmax over the keys, the axis that the values are summed over: "
    "scores.softmax(dim=-1)",
    appearance="Columns instead of rows are normalised: every key gives away the same amount, so "
    "that *received* attention is the same everywhere, a flat map. Over heads or images it looks "
    "like noise.",
    cause="`softmax(dim=1)` is right for three axes and is the heads for four; `nn.Softmax()` "
    "without `dim` takes axis 0 or 1 by the number of axes.",
    method="The normalised axis is followed through views and permutes to the product, where it "
    f"must be the contracted one; the sums must differ from 1 by more than {SUM}. Layers that "
    "normalise over queries and then over keys sum to one and are not named.",
    explained_by=("linear-attention", "no-softmax"),
)
def wrong_axis(case: Examination) -> Iterator[Observation]:
    for _, record in _within_images(case):
        if record.weights is None or record.axis in (None, "k") or record.mixed:
            continue
        low, high, _ = _bounds(record.weights)
        if max(abs(low - 1), abs(high - 1)) > SUM:
            yield observed(record.name, lowest=low, highest=high)


@rule(
    code="double-softmax",
    severity="error",
    summary="A softmax runs on the result of a softmax.",
    meaning="a softmax runs on the result of a softmax: the largest weight over {keys} keys can be "
    "no more than {ceiling:.2g}, and every row is close to uniform",
    evidence={
        "keys": "number of keys",
        "ceiling": "e / (e + keys − 1), the largest weight possible",
    },
    remedy="remove one softmax",
    appearance="Flat: over 576 keys no weight can exceed 0.5 %.",
    cause="The layer applies one, and a module or a loss applies it again. Values between 0 and 1 "
    "go in, so weights differ by a factor of e at most.",
    method="Data flow: the softmax's input is a softmax's output. Exact.",
    explained_by=("linear-attention", "no-softmax", "wrong-axis"),
)
def double_softmax(case: Examination) -> Iterator[Observation]:
    for _, record in _within_images(case):
        if record.weights is not None and record.double_softmax:
            keys = record.shape[-1]
            yield observed(record.name, keys=keys, ceiling=math.e / (math.e + keys - 1))


@rule(
    code="rows-not-one",
    severity="error",
    summary="The weights were changed after the softmax.",
    meaning="rows of the weights sum to {lowest:.3g} to {highest:.3g} and the smallest weight is "
    "{smallest:.3g}: they are no distribution over places",
    evidence={
        "lowest": "smallest sum of a row",
        "highest": "largest sum of a row",
        "smallest": "smallest weight",
    },
    threshold=f"a sum more than {SUM:g} from 1",
    remedy="softmax last, over the keys: only dropout between it and the values",
    appearance="Rows of different brightness; a query near the border may have nearly none.",
    cause="A mask, a threshold or a distance kernel multiplied onto the weights after the softmax, "
    "without normalising again.",
    method=f"Sums over keys differ from 1 by more than {SUM}; rows that are all zero are not "
    "counted. Heads mixed by parameters (talking heads, CaiT) are not judged; what known designs "
    "do to the sums is [not-a-distribution](not-a-distribution.md).",
    explained_by=("linear-attention", "no-softmax", "wrong-axis", "double-softmax"),
)
def rows_not_one(case: Examination) -> Iterator[Observation]:
    for _, record in _within_images(case):
        if record.weights is None or record.mixed or _rescaled(record):
            continue
        if not record.softmax or _is_design(record):
            continue
        sums = record.weights.float().sum(-1)
        filled = sums[sums != 0]
        if len(filled) and float((filled - 1).abs().max()) > SUM:
            low, high, smallest = _bounds(record.weights)
            yield observed(record.name, lowest=low, highest=high, smallest=smallest)


@rule(
    code="empty-rows",
    severity="warning",
    summary="Some queries attend to nothing.",
    meaning="{share:.1%} of the queries attend to nothing: all their keys are masked",
    evidence={"share": "share of rows that are all zero, 0 to 1"},
    remedy="let each query see itself at least, and check that True means allowed in "
    "scaled_dot_product_attention and masked in nn.MultiheadAttention",
    appearance="Black rows; a map that averages over queries is darker by their share.",
    cause="All keys of these queries are masked. Masks have opposite meanings: True is *allowed* "
    "in `F.scaled_dot_product_attention` and *masked* in `nn.MultiheadAttention`.",
    method="Rows whose weights are all exactly zero.",
    explained_by=_STRUCTURE,
)
def empty_rows(case: Examination) -> Iterator[Observation]:
    for _, record in _within_images(case):
        if record.weights is None:
            continue
        empty = float((record.weights == 0).all(-1).float().mean())
        if empty:
            yield observed(record.name, share=empty)


@rule(
    code="scaled-after-softmax",
    severity="warning",
    summary="The scale comes after the softmax.",
    meaning="the weights are multiplied by {factor:.3g} after the softmax: that shrinks the output "
    "and leaves the weights as flat or sharp as they were",
    evidence={"factor": "the number that multiplies the weights"},
    threshold="factor more than 0.001 from 1",
    remedy="scale the logits instead: (q @ k.transpose(-2, -1) * d_k**-0.5).softmax(dim=-1)",
    appearance="As sharp or flat as without any scale; the numbers beside it are too small.",
    cause="`softmax(q @ k.T) / d**0.5` instead of `softmax(q @ k.T / d**0.5)`.",
    method="A number other than 1 multiplies the weights between softmax and values.",
    explained_by=_STRUCTURE,
)
def scaled_after_softmax(case: Examination) -> Iterator[Observation]:
    for _, record in _within_images(case):
        if _rescaled(record):
            yield observed(record.name, factor=record.factor)


@rule(
    code="temperature",
    severity="warning",
    summary="Logits are not scaled by 1/√d_k.",
    meaning="logits are multiplied by {scale:.3g}, which is {ratio:.3g} times 1/√{d_k}: rows start "
    "out {word} than scaled dot-product attention",
    evidence={
        "scale": "product of all numbers that multiply q, k or q · k",
        "ratio": "scale times √d_k, 1 for scaled dot-product attention",
        "d_k": "width of one head",
    },
    threshold=f"ratio more than {TEMPERATURE:g} from 1",
    remedy="scale by the width of one head: q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5",
    appearance="Too large a scale gives a few bright spots, too small a one a grey map; both fade "
    "as training adapts.",
    cause="Dividing by √ of the full width instead of one head's, by d instead of √d, or not at "
    "all. A network can learn around it, more slowly. Some designs mean it (T5, learned "
    "temperatures); torchvision's `maxvit_t` divides by √channels.",
    method=f"The ratio differs from 1 by more than {TEMPERATURE:.0%}. Not judged where queries or "
    "keys have one fixed length (cosine attention).",
    explained_by=(*_STRUCTURE, "channel-attention", "swapped-axes"),
)
def temperature(case: Examination) -> Iterator[Observation]:
    for _, record in _within_images(case):
        if record.how not in ("qk", "fused") or not record.logit_scale or not record.d_k:
            continue
        ratio = record.logit_scale * record.d_k**0.5
        if abs(ratio - 1) <= TEMPERATURE or record.d_k == 1 or normalised(record):
            continue
        width = record.d_k - _empty(record)
        ratio = record.logit_scale * width**0.5
        if abs(ratio - 1) <= TEMPERATURE:
            continue
        word = "sharper" if ratio > 1 else "flatter"
        scale = record.logit_scale
        yield observed(record.name, word=word, scale=scale, ratio=ratio, d_k=width)


def _empty(record: Record) -> int:
    """How many features add nothing to any q · k but a constant: kernels are given padded heads.

    They are zero in all queries or in all keys, or as a bias is, one number in all of either.
    """
    if record.query is None or record.key is None:
        return 0
    flat = [x.float().flatten(0, -2) for x in (record.query, record.key)]
    if any(len(x) < 2 for x in flat):
        return 0
    query, key = ((x == x[:1]).all(0) for x in flat)
    count = int((query | key).sum())
    return count if count < len(query) else 0


def normalised(record: Record) -> bool:
    """Whether queries or keys have one fixed length."""
    return any(_fixed_length(x) for x in (record.query, record.key) if x is not None)


def _fixed_length(x: Tensor) -> bool:
    lengths = x.float().norm(dim=-1)
    middle = float(lengths.median())
    return bool(((lengths / middle - 1).abs() < _UNIT).float().mean() > 0.9) if middle else False


def _within_images(case: Examination) -> Iterator[tuple[int, Record]]:
    """Attention that does not run over the images of the batch."""
    return ((i, one) for i, one in case.attention() if case.tokens[i].axis != "images")


def _is_linear(case: Examination, number: int, record: Record) -> bool:
    """Whether no weights between places exist: a product as large for a larger image."""
    if record.how == "linear":
        return True
    taller = case.paired(case.taller)[number]
    if record.how != "unnormalised" or taller is None:
        return False
    return taller.how == "linear" or taller.shape == (taller.shape[0], *record.shape[1:])


def _unnormalised(case: Examination) -> Iterator[Record]:
    """Attention whose weights no softmax made and that grow with the image."""
    for i, record in _within_images(case):
        if record.how == "unnormalised" and not _is_linear(case, i, record):
            yield record


def _is_product(record: Record) -> bool:
    """Whether the weights are q · kᵀ times a number, with nothing between."""
    if record.query is None or record.key is None or record.weights is None:
        return False
    product = record.query.float() @ record.key.float().transpose(-2, -1)
    weights = record.weights.float()
    if product.shape != weights.shape:
        return False
    part = (weights * product).sum() / product.square().sum().clamp_min(1e-30) * product
    return bool((weights - part).norm() <= 1e-3 * weights.norm())


def _is_design(record: Record) -> bool:
    """Whether weights of a softmax miss the sum as known designs do, and as no mask does."""
    if record.weights is None or record.axis is None:
        return record.axis is None  # some columns were cut off
    weights = record.weights.float()
    sums = weights.sum(-1)
    even = (sums.amax((0, -1)) - sums.amin((0, -1))).max()
    signed = float(weights.min()) < -1e-6 and float(weights.abs().max()) <= 1
    return bool(even <= SUM / 2) or signed


def _bounds(weights: Tensor) -> tuple[float, float, float]:
    """Smallest and largest sum of a row, and the smallest weight."""
    sums = weights.float().sum(-1)
    return float(sums.min()), float(sums.max()), float(weights.min())


def _rescaled(record: Record) -> bool:
    """Whether one number multiplies all weights after the softmax."""
    return abs(record.factor - 1) > 1e-3  # the factor is NaN where it was a tensor
