"""How attention weights are distributed: uniform, saturated, collapsed, equal in two heads.

All of it is normal for random weights, so untrained models are not judged, and findings are notes
where that is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attnviz.capture import Record
from attnviz.capture.gate_records import UNTOLD
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.registry import Observation, observed, rule

UNIFORM = 0.995
"""Entropy over log N above which rows are uniform."""

SHARP, ROWS = 0.99, 0.9
"""A head is saturated if this share of its rows (second) has a weight above the first."""

COLLAPSED = 0.9
"""A head is collapsed if one key gets this share of the attention of every image."""

SAME = 0.02
"""Heads are equal if their distance is below this part of their distance to uniform."""

EQUAL = 1e-5
"""Rows are equal if they differ by less than this part of the largest weight."""

_NEAREST = 1e-4  # total variation below which heads are equal in any case
_FEWEST = 4  # keys below which these numbers mean little
_JUDGED = "Judged with trained weights; a note where that is not known."


@rule(
    code="near-uniform",
    severity="warning",
    summary="Every place gets the same attention.",
    meaning="rows are nearly uniform, their entropy is {entropy:.4f} of log {keys}: every place "
    "gets the same attention, and the map is noise",
    evidence={"entropy": "mean entropy over log N, 0 to 1", "keys": "N, number of keys"},
    threshold=f"entropy above {UNIFORM:g} of log keys",
    remedy="check the temperature, and that queries and keys are trained (a learning rate, a "
    "warm-up, a positional encoding); a plain mean would do the same",
    appearance="Grey, or (scaled to its own maximum) noise that looks like structure.",
    cause="Logits too small: queries and keys hardly trained, too small a temperature, tokens that "
    "are all alike, a second softmax.",
    method=f"Mean entropy above {UNIFORM:.1%} of the logarithm of the number of keys with any "
    "weight, of rows that are divided by their sum where that is not 1. Weights of which some are "
    f"negative are not judged. {_JUDGED}",
)
def near_uniform(case: Examination) -> Iterator[Observation]:
    for record, weights in _shares(case):
        rows = weights.flatten(0, 2)
        rows = rows[rows.sum(-1) > 0]
        if not len(rows):
            continue
        entropy = float(torch.special.entr(rows / rows.sum(-1, keepdim=True)).sum(-1).mean())
        allowed = float((rows > 0).sum(-1).float().clamp_min(2).log().mean())
        if entropy / allowed > UNIFORM:
            keys = round(math.exp(allowed))
            yield observed(record.name, case.trained_severity, entropy=entropy / allowed, keys=keys)


@rule(
    code="saturated-heads",
    severity="warning",
    summary="Rows put everything on one key.",
    meaning="in {heads} of {of} heads {share:.0%} of the rows give more than 99 % to one key: "
    "hardly any gradient reaches queries and keys",
    evidence={
        "heads": "number of such heads",
        "of": "number of heads",
        "share": "share of such rows in these heads, 0 to 1",
    },
    threshold=f"more than {ROWS:.0%} of rows above {SHARP:g}",
    remedy="scale the logits by d_k**-0.5, normalise queries and keys, or lower the learning rate",
    appearance="Single bright dots that jump between images.",
    cause="Logits too large. The softmax's gradient vanishes there, and queries and keys stop "
    "learning.",
    method=f"In a head more than {ROWS:.0%} of the rows have a weight above {SHARP}. {_JUDGED}",
    explained_by=("collapsed-heads",),
)
def saturated(case: Examination) -> Iterator[Observation]:
    for record, weights in _shares(case):
        share = (weights.amax(-1) > SHARP).float().mean((0, 2))
        high = share[share > ROWS]
        if len(high):
            yield observed(
                record.name, case.trained_severity,
                heads=len(high), of=len(share), share=float(high.mean()),
            )  # fmt: skip


@rule(
    code="collapsed-heads",
    severity="warning",
    summary="One key gets the attention of all queries in all images.",
    meaning="in {heads} of {of} heads the same key gets {share:.0%} of the attention of every "
    "query, in every image",
    evidence={
        "heads": "number of such heads",
        "of": "number of heads",
        "share": "share of the attention that the key gets, 0 to 1",
    },
    threshold=f"share above {COLLAPSED:g}",
    remedy="inspect that key: padding, a register token or a corner that serves as a sink; leave "
    "it out of the map, or give the model register tokens",
    appearance="The same dot in every image, often a corner.",
    cause="A sink: padding, a class or register token, or an empty place. Softmax must put the "
    "weight somewhere.",
    method=f"The largest key's share, averaged over images and queries, is above {COLLAPSED:.0%}. "
    f"{_JUDGED}",
)
def collapsed(case: Examination) -> Iterator[Observation]:
    for record, weights in _shares(case):
        if weights.shape[-2] < 2:
            continue
        received = weights.mean((0, 2)).amax(-1)
        high = received[received > COLLAPSED]
        if len(high):
            yield observed(
                record.name, case.trained_severity,
                heads=len(high), of=len(received), share=float(high.mean()),
            )  # fmt: skip


@rule(
    code="duplicate-heads",
    severity="warning",
    summary="Heads have the same weights.",
    meaning="{pairs} pairs of heads have the same weights, {distance:.2g} apart in total "
    "variation: one of each would do",
    evidence={
        "pairs": "number of pairs",
        "distance": "largest total variation of such a pair, 0 to 1",
    },
    threshold=f"distance below {SAME:g} of that to uniform",
    remedy="initialise heads differently, or use fewer",
    appearance="Two tiles of the head grid are the same picture.",
    cause="Initialised alike (a parameter expanded, not copied), or collapsed onto each other in "
    "training.",
    method=f"Total variation between two heads below the larger of {_NEAREST:g} and {SAME:.0%} of "
    f"the distance to uniform. Uniform heads are equal for that reason and not counted. {_JUDGED}",
    explained_by=("near-uniform", "collapsed-heads"),
)
def duplicates(case: Examination) -> Iterator[Observation]:
    for record, weights in _trained_weights(case):
        if UNTOLD in record.note:  # queries may be counted as heads, and two may well be alike
            continue
        apart = _equal_pairs(weights)
        if len(apart):
            yield observed(
                record.name, case.trained_severity, pairs=len(apart), distance=float(apart.max())
            )


@rule(
    code="class-token-only",
    severity="warning",
    summary="Places attend to the class token and next to nothing else.",
    meaning="places give {share:.0%} of their attention to the {prefix} leading tokens and next to "
    "none to other places",
    evidence={
        "share": "share of the attention of places on the leading tokens, 0 to 1",
        "prefix": "number of leading tokens",
    },
    threshold=f"share above {COLLAPSED:g}",
    remedy="draw the class token's own row (av.class_row); if places should exchange information, "
    "train longer or pool over places instead of a class token",
    appearance="The class token's row may be right; the map of attention received is empty but for "
    "the corner that the class token was cut off from.",
    cause="Leading tokens take the attention that is not needed, most of all in late layers. If "
    "all layers do so, places do not exchange information.",
    method="The mean over images, heads and places of the weight on the leading tokens is above "
    f"{COLLAPSED:.0%}. {_JUDGED}",
)
def class_token_only(case: Examination) -> Iterator[Observation]:
    for record, weights in _shares(case):
        p = record.prefix
        if not p or weights.shape[-1] - p < _FEWEST or weights.shape[-2] <= p:
            continue
        share = float(weights[:, :, p:, :p].sum(-1).mean())
        if share > COLLAPSED:
            yield observed(record.name, case.trained_severity, share=share, prefix=p)


@rule(
    code="equal-rows",
    severity="warning",
    summary="All queries have the same weights.",
    meaning="all {queries} queries have the same weights, {distance:.1g} apart: every token gets "
    "the same sum of values, whatever its place",
    evidence={
        "queries": "number of queries",
        "distance": "largest difference of a weight between two queries",
    },
    threshold=f"difference below {EQUAL:g} of the largest",
    remedy="make a query of each token, or, if one is meant, pool with it: one query, and one row "
    "of weights",
    appearance="The map of any query is that of all.",
    cause="One query was expanded over all tokens, or queries are the same for all tokens: a "
    "learned vector, or tokens that are alike.",
    method=f"The rows of every head and image differ by less than {EQUAL:g} of the largest weight, "
    "and they are not uniform. Attention that is pooled by one query is not judged.",
    explained_by=("near-uniform", "collapsed-heads"),
)
def equal_rows(case: Examination) -> Iterator[Observation]:
    for i, record in case.attention():
        weights = record.weights
        if weights is None or min(weights.shape[-2:]) < _FEWEST or record.how == "pooled":
            continue
        if case.tokens[i].axis == "images" or not bool(weights.isfinite().all()):
            continue
        largest = float(weights.abs().max())
        distance = float((weights - weights[:, :, :1]).abs().max())
        row = weights[:, :, 0]
        if distance < EQUAL * largest < float(row.amax() - row.amin()):
            yield observed(record.name, queries=weights.shape[-2], distance=distance)


def _trained_weights(case: Examination) -> Iterator[tuple[Record, Tensor]]:
    """Finite weights over enough keys of a model that is not surely untrained."""
    if case.trained is False:
        return
    for i, record in case.attention():
        weights = record.weights
        if weights is None or weights.shape[-1] < _FEWEST or case.tokens[i].axis == "images":
            continue
        if bool(weights.isfinite().all()):
            yield record, weights.float()


def _shares(case: Examination) -> Iterator[tuple[Record, Tensor]]:
    """The same as shares of each row: rows that sum to more than 1 divided by their sum.

    Records with negative weights are left out.
    """
    for record, weights in _trained_weights(case):
        if not bool((weights < 0).any()):
            yield record, weights / weights.sum(-1, keepdim=True).clamp_min(1)


def _equal_pairs(weights: Tensor) -> Tensor:
    """Total variation of each pair of heads that are equal, `(pairs,)`."""
    images = min(2, weights.shape[0])
    flat = weights[:images].transpose(0, 1).flatten(2).flatten(1) / weights.shape[-2]
    apart = torch.cdist(flat[None], flat[None], p=1)[0] / (2 * images)
    uniform = 1 / weights.shape[-1] / weights.shape[-2]
    away = (flat - uniform).abs().sum(1) / (2 * images)
    limit = (SAME * torch.minimum(away[:, None], away[None])).clamp_min(_NEAREST)
    pairs = (apart < limit).triu(1) & (away > 10 * _NEAREST)[:, None]
    return apart[pairs]
