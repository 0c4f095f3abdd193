"""Compute a `Comparison` from groups: means, intervals, pairs, tests and notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from attnviz.comparison.comparison import Comparison
from attnviz.comparison.groups import Group, thing_of
from attnviz.comparison.text import number
from attnviz.definitions import LEVELS, is_lower_better, metric_title
from attnviz.statistics.intervals import Interval, gap_intervals, interval
from attnviz.statistics.kinds import Kinds
from attnviz.statistics.pairs import FEWEST, Adjusted, Pairs, adjusted, all_pairs
from attnviz.statistics.variance import mean_of_valid, sampled

FEW_GROUPS = 4
"""Number of image groups below which a note warns of few groups."""

LEAST_RESAMPLES = 5000
"""Minimum number of simulated studies; with fewer, Monte Carlo error dominates the adjustment."""

_TABLE = [
    *("variant", "metric", "mean", "low", "high", "valid", "n", "seeds"),
    *(*LEVELS, "accuracy", "p", "p_adjusted", "p_holm", "rank"),
]
_DIFFERENCES = [
    *("metric", "variant", "other", "difference", "low", "high", "clear"),
    *("images", "dropped", "seeds", "p", "p_adjusted", "p_holm"),
]
_SPLIT = ["metric", "variant", "right", "wrong", "n_right", "n_wrong"]


def rank(
    groups: Sequence[Group],
    *,
    primary: str,
    resamples: int,
    confidence: float,
    seed: int,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compare groups measured on the same images; see `attnviz.compare`."""
    metrics, resamples = list(groups[0].values), max(resamples, LEAST_RESAMPLES)
    beside = max(len(metrics) - 1, 1)
    found = {
        metric: _ranked(
            groups,
            metric,
            tests=1 if metric == primary else beside,
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
        for metric in metrics
    }
    gaps = pd.DataFrame([row for one in found.values() for row in one.gaps], columns=_DIFFERENCES)
    table = pd.DataFrame([row for one in found.values() for row in one.rows], columns=_TABLE)
    cells = [(metric, group) for metric, one in found.items() for group in one.groups]
    return Comparison(
        primary=primary,
        table=table,
        differences=gaps,
        by_seed=pd.DataFrame([row for metric, group in cells for row in _seeds(metric, group)]),
        split=pd.DataFrame(
            [_right_and_wrong(metric, group) for metric, group in cells if _has_split(group)],
            columns=_SPLIT,
        ),
        notes=(*_notes(groups, table, found[primary]), *notes),
        images=groups[0].images,
        groups=len(set(groups[0].grouping or ())),
        thing=thing_of(groups),
        confidence=confidence,
        resamples=resamples,
    )


@dataclass(frozen=True, eq=False)
class _Ranked:
    """One metric's variants, best first.

    Attributes:
        groups: The variants.
        rows: Of the table, one per variant.
        gaps: Of the differences, one per pair.
        intervals: One per variant.
        paired: Whether seeds are paired.
    """

    groups: list[Group]
    rows: list[dict[str, Any]]
    gaps: list[dict[str, Any]]
    intervals: list[Interval]
    paired: bool


def _ranked(
    groups: Sequence[Group],
    metric: str,
    *,
    tests: int,
    resamples: int,
    confidence: float,
    seed: int,
) -> _Ranked:
    """Means, intervals and pairs of one metric."""
    ordered = _ordered(groups, metric)
    clusters = ordered[0].clusters
    scores = [group.values[metric] for group in ordered]
    samples = [sampled(rows, clusters) for rows in scores]
    intervals = [
        interval(metric, rows, groups=clusters, confidence=confidence, sample=sample)
        for rows, sample in zip(scores, samples, strict=True)
    ]
    pairs = all_pairs(scores, [group.seeds for group in ordered], clusters, samples)
    tested = adjusted(pairs, level=1 - confidence, tests=tests, resamples=resamples, seed=seed)
    low, high = gap_intervals(metric, scores, samples, pairs, tested)
    gaps = [
        _gap(metric, ordered, pairs, tested, k, float(low[k]), float(high[k]), 1 - confidence)
        for k in range(len(pairs.one))
    ]
    rows = [
        _row(metric, group, found, gaps, ordered)
        for group, found in zip(ordered, intervals, strict=True)
    ]
    return _Ranked(ordered, rows, gaps, intervals, pairs.paired)


def _ordered(groups: Sequence[Group], metric: str) -> list[Group]:
    """Best first by one metric; ties in the order given, what has no score last."""
    return sorted(groups, key=lambda group: _badness(group, metric))


def _badness(group: Group, metric: str) -> float:
    mean = float(mean_of_valid(mean_of_valid(group.values[metric])))
    if not np.isfinite(mean):
        return float("inf")
    return mean if is_lower_better(metric) else -mean


def _gap(
    metric: str,
    ordered: Sequence[Group],
    pairs: Pairs,
    tested: Adjusted,
    k: int,
    low: float,
    high: float,
    level: float,
) -> dict[str, Any]:
    """One pair on one metric: the row of `differences`."""
    enough = pairs.seeds[k] >= FEWEST
    p = float(pairs.p[k]) if enough else float("nan")
    p_adjusted = float(tested.p[k]) if enough else float("nan")
    return {
        "metric": metric,
        "variant": ordered[pairs.one[k]].variant,
        "other": ordered[pairs.other[k]].variant,
        "difference": float(pairs.difference[k]),
        "low": low,
        "high": high,
        "clear": bool(p_adjusted <= level),
        "images": int(pairs.images[k]),
        "dropped": ordered[0].images - int(pairs.images[k]),
        "seeds": int(pairs.seeds[k]),
        "p": p,
        "p_adjusted": p_adjusted,
        "p_holm": p_adjusted,
    }


def _row(
    metric: str,
    group: Group,
    found: Interval,
    gaps: Sequence[Mapping[str, Any]],
    ordered: Sequence[Group],
) -> dict[str, Any]:
    """One variant on one metric: the row of `table`."""
    scores, nan = group.values[metric], float("nan")
    lead = {gap["other"]: gap for gap in gaps if gap["variant"] == ordered[0].variant}
    against = lead.get(group.variant, {})
    better = sum(_badness(other, metric) < _badness(group, metric) for other in ordered)
    return {
        "variant": group.variant,
        "metric": metric,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "valid": int(np.isfinite(scores).sum()),
        "n": scores.size,
        "seeds": len(group.seeds),
        **{level: group.levels.get(metric, {}).get(level, nan) for level in LEVELS},
        "accuracy": float(mean_of_valid(np.asarray(group.accuracy))),
        **{name: against.get(name, nan) for name in ("p", "p_adjusted", "p_holm")},
        "rank": 1 + better,
    }


def _seeds(metric: str, group: Group) -> Iterable[dict[str, Any]]:
    for label, mean in zip(group.seeds, mean_of_valid(group.values[metric]), strict=True):
        yield {"metric": metric, "variant": group.variant, "seed": label, "mean": float(mean)}


def _has_split(group: Group) -> bool:
    return group.correct is not None


def _right_and_wrong(metric: str, group: Group) -> dict[str, Any]:
    """The mean over the correct predictions of all seeds, and over the incorrect ones."""
    scores, correct = group.values[metric], np.asarray(group.correct)
    right, wrong = scores[correct == 1], scores[correct == 0]
    return {
        "metric": metric,
        "variant": group.variant,
        "right": float(mean_of_valid(right)),
        "wrong": float(mean_of_valid(wrong)),
        "n_right": int(np.isfinite(right).sum()),
        "n_wrong": int(np.isfinite(wrong).sum()),
    }


def _notes(groups: Sequence[Group], table: pd.DataFrame, primary: _Ranked) -> Iterable[str]:
    """Notes on the ranking: seeds, groups, kinds of trainings, missing scores."""
    yield from _few_seeds(groups)
    yield from _few_groups(groups[0])
    for group, found in zip(primary.groups, primary.intervals, strict=True):
        if found.kinds is not None:
            yield _two_kinds(group.variant, found.kinds)
    fewest = min(len(group.seeds) for group in groups)
    if fewest >= FEWEST:
        share = 100 * (1 - 0.05 ** (1 / fewest))
        yield (
            f"the intervals take trainings to spread like a bell; {fewest} that did not fail leave "
            f"open that up to {share:.0f} % of others do"
        )
    if primary.paired:
        yield "seeds are paired: seeds of the same name score alike in all variants"
    yield from _unscored(table)


def _few_seeds(groups: Sequence[Group]) -> Iterable[str]:
    """One note on variants of one seed, one on those of two."""
    for count, word in ((1, "one seed"), (2, "two seeds")):
        few = [group.variant for group in groups if len(group.seeds) == count]
        who = "each" if len(few) == len(groups) else f"for {', '.join(few)}"
        if few and count == 1:
            what = "intervals speak" if who == "each" else "interval speaks"
            yield f"{word} {who}: the {what} of these images alone, not of another training"
        elif few:
            yield f"{word} {who}: no difference is tested below {FEWEST} seeds"


def _few_groups(group: Group) -> Iterable[str]:
    """One note where images come in fewer than `FEW_GROUPS` groups."""
    names = list(dict.fromkeys(map(str, group.grouping or ())))
    if len(names) == 1:
        yield (
            f"all images are of one group ({names[0]}): the intervals speak of it alone, "
            "not of another"
        )
    elif 0 < len(names) < FEW_GROUPS:
        yield (
            f"{len(names)} groups of images ({', '.join(names)}): expected at least {FEW_GROUPS} "
            "for an interval that covers other groups"
        )


def _two_kinds(variant: str, kinds: Kinds) -> str:
    low, high = (
        f"{len(one)} near {number(float(np.mean(one)))}" for one in (kinds.low, kinds.high)
    )
    seeds = ", ".join(number(value) for value in (*kinds.low, *kinds.high))
    return (
        f"{variant}: trainings of two kinds, {low} and {high} (seeds: {seeds}); its mean is of "
        "neither, its interval is wide for that"
    )


def _unscored(table: pd.DataFrame) -> Iterable[str]:
    """One note on all the scores that are missing, by metric and variant."""
    incomplete = []
    for metric, rows in table[table["valid"] < table["n"]].groupby("metric", sort=False):
        missing = (f"{row['variant']} {row['n'] - row['valid']}" for _, row in rows.iterrows())
        incomplete.append(
            f"{metric_title(str(metric))} ({', '.join(missing)} of {rows['n'].max()})"
        )
    if incomplete:
        listed = "; ".join(incomplete)
        yield f"scores that cannot be computed, left out of means and pairs: {listed}"
