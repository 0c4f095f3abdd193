"""Attention sinks and high-norm tokens at places of the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean, median

from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.registers import FEWEST, NULL, SINK, sinks_of, without_sinks
from attnviz.diagnosis.registry import Observation, observed, rule

OUTLIER = 4.0
"""A token is an outlier if its norm is this many times the median's."""


@rule(
    code="attention-sink",
    severity="note",
    summary="One place of an image takes a large part of the attention, whatever the query.",
    meaning="in {heads} of {of} heads one place takes {share:.0%} of the attention: a {word}; its "
    "value is {value:.2g} times as long as the median value, it makes {contribution:.0%} of the "
    "attention's output, and the model's output changes by {change:.2g} of itself without it",
    evidence={
        "heads": "number of such heads",
        "of": "number of heads",
        "share": "share of the attention, and of the map, that the place takes, 0 to 1",
        "value": "norm of its value over the median norm",
        "contribution": "share · value over the sum of weight · value, 0 to 1",
        "change": "relative change of the output with its weight moved to a register of value 0",
    },
    threshold=f"share above {SINK:g}",
    remedy="leave the place out of the map, with an edit that gives its weight to a register: "
    "av.watch(model, edit={name: av.diagnosis.without_sinks()}), compare with "
    "attnviz.diagnosis.try_registers(model, images, masks), list heads with "
    "attnviz.diagnosis.attention_sinks(model, images), or train with register tokens",
    appearance="One bright place, often in the background or a corner; the rest is faint.",
    cause="A softmax must put its weight somewhere. A head with nothing to add attends to a key "
    "with a small value (a null operation); a head that adds the same vector to all tokens attends "
    "to a key with a large one (a broadcast).",
    method=f"In an image one key that is no class or register token gets more than {SINK:.0%} of "
    "the attention of all queries (mean over images). The type is read off the values: it is a "
    f"null operation if its contribution is below {NULL:.0%}, else a broadcast. Not judged in "
    "untrained models.",
    explained_by=("wrong-axis", "no-softmax", "causal-mask"),
)
def attention_sink(case: Examination) -> Iterator[Observation]:
    sinks = [] if case.trained is False else list(_sinks(case))
    changes = case.changes({one.number: without_sinks() for one in sinks}) if sinks else {}
    for one in sinks:
        yield observed(
            case.records[one.number].name, heads=one.heads, of=one.of, share=one.share,
            value=one.value, contribution=one.contribution,
            change=changes.get(one.number, float("nan")),
            word="null operation" if one.contribution < NULL else "broadcast of its value",
        )  # fmt: skip


@rule(
    code="high-norm-tokens",
    severity="note",
    summary="Some places of an image have tokens with an outlying norm.",
    meaning="{share:.1%} of the places have tokens more than {limit:g} times as long as the median "
    "(up to {largest:.3g} times): the model keeps global information there",
    evidence={
        "share": "share of such places, 0 to 1",
        "limit": "norm over the median from which a token counts",
        "largest": "largest norm over the median",
    },
    threshold=f"norm above {OUTLIER:g} times the median",
    remedy="train with register tokens (Darcet et al. 2024), or leave these places out of maps "
    "with attnviz.diagnosis.without_sinks()",
    appearance="Bright places without an object, the same in all heads.",
    cause="A large, long trained model re-uses tokens of uninformative places for global "
    "information where it has no register tokens.",
    method="The norm of a place's keys, over all heads, in the last attention is above "
    f"{OUTLIER:g} times the median over the image's places; class and register tokens are not "
    "counted. Not judged in untrained models.",
)
def high_norm_tokens(case: Examination) -> Iterator[Observation]:
    last = next((one for _, one in reversed(case.attention()) if one.key is not None), None)
    if case.trained is False or last is None or last.key is None or last.windows is not None:
        return
    places = last.key[:, :, last.prefix :].float().norm(dim=-1).square().sum(1).sqrt()
    if places.shape[1] < FEWEST:
        return
    ratio = places / places.median(1, keepdim=True).values.clamp_min(1e-30)
    share = float((ratio > OUTLIER).float().mean())
    if share:
        yield observed(last.name, share=share, limit=OUTLIER, largest=float(ratio.max()))


@dataclass(frozen=True)
class _Sink:
    """A sink of one attention, averaged over the heads that have it."""

    number: int
    heads: int
    of: int
    share: float
    value: float
    contribution: float


def _sinks(case: Examination) -> Iterator[_Sink]:
    for i, record in case.attention():
        weights, value = record.weights, record.value
        if weights is None or value is None or value.shape[:2] != weights.shape[:2]:
            continue
        if record.windows is not None or case.tokens[i].axis in ("channels", "swapped", "images"):
            continue
        if weights.shape[-1] - record.prefix < FEWEST or not bool(weights.isfinite().all()):
            continue
        found = sinks_of(record)
        if found:
            yield _Sink(
                i, len(found), weights.shape[1], _mean(one.share for one in found),
                float(median(one.value for one in found)),
                _mean(one.contribution for one in found),
            )  # fmt: skip


def _mean(values: Iterable[float]) -> float:
    return float(fmean(values))
