"""From groups to a `Comparison`: means, intervals, pairs, tests, and what must be said of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from attnviz.comparison.comparison import Comparison
from attnviz.comparison.groups import Group
from attnviz.comparison.resampling import (
    half_width,
    holm,
    image_draws,
    mean_of_valid,
    seed_weights,
    sign_flip,
    smallest_p,
)
from attnviz.definitions import LEVELS, is_lower_better, limits_of, metric_title

_TABLE = [
    *("variant", "metric", "mean", "low", "high", "valid", "n", "seeds"),
    *(*LEVELS, "accuracy", "p", "p_holm", "rank"),
]
_DIFFERENCES = [
    *("metric", "variant", "other", "difference", "low", "high", "clear"),
    *("images", "dropped", "seeds", "p", "p_holm"),
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
    rng = np.random.default_rng(seed)
    ordered = {metric: _ordered(groups, metric) for metric in groups[0].values}
    cells = [(metric, group) for metric, ranked in ordered.items() for group in ranked]
    pairs = [
        (metric, one, other)
        for metric, ranked in ordered.items()
        for one, other in combinations(ranked, 2)
    ]
    blocks = [group.values[metric] for metric, group in cells]
    blocks += [_paired(one, other, metric) for metric, one, other in pairs]
    widths = _half_widths(blocks, resamples=resamples, confidence=confidence, rng=rng)
    gaps = pd.DataFrame(
        [
            _gap(*pair, block, width, rng)
            for pair, block, width in zip(
                pairs, blocks[len(cells) :], widths[len(cells) :], strict=True
            )
        ],
        columns=_DIFFERENCES,
    )
    gaps["p_holm"] = holm(gaps["p"].to_numpy(dtype=np.float64))
    table = pd.DataFrame(
        [
            _row(metric, group, width, gaps, ordered[metric])
            for (metric, group), width in zip(cells, widths[: len(cells)], strict=True)
        ],
        columns=_TABLE,
    )
    return Comparison(
        primary=primary,
        table=table,
        differences=gaps,
        by_seed=pd.DataFrame([row for metric, group in cells for row in _seeds(metric, group)]),
        split=pd.DataFrame(
            [_right_and_wrong(metric, group) for metric, group in cells if _has_split(group)],
            columns=_SPLIT,
        ),
        notes=(*_notes(groups, table, gaps, primary), *notes),
        images=groups[0].images,
        confidence=confidence,
        resamples=resamples,
    )


def _mean(scores: np.ndarray) -> float:
    """The mean over seeds of each seed's mean over the images that it could score."""
    return float(mean_of_valid(mean_of_valid(scores)))


def _ordered(groups: Sequence[Group], metric: str) -> list[Group]:
    """Best first by one metric; ties in the order given, what has no score last."""
    return sorted(groups, key=lambda group: _badness(group, metric))


def _badness(group: Group, metric: str) -> float:
    mean = _mean(group.values[metric])
    if not np.isfinite(mean):
        return float("inf")
    return mean if is_lower_better(metric) else -mean


def _paired(one: Group, other: Group, metric: str) -> np.ndarray:
    """Differences per seed and image: over the seeds both have, else seed by seed in order."""
    a, b = one.values[metric], other.values[metric]
    common = [label for label in one.seeds if label in other.seeds]
    if not common:
        shorter = min(len(a), len(b))
        return np.asarray(a[:shorter] - b[:shorter])
    mine = [one.seeds.index(label) for label in common]
    theirs = [other.seeds.index(label) for label in common]
    return np.asarray(a[mine] - b[theirs])


def _half_widths(
    blocks: Sequence[np.ndarray], *, resamples: int, confidence: float, rng: np.random.Generator
) -> list[float]:
    """Half the interval of each block's mean, all of them under the same resamples."""
    blocks = [block[np.isfinite(block).any(axis=1)] for block in blocks]
    centres, draws = image_draws(np.concatenate(blocks), resamples=resamples, rng=rng)
    sizes = [len(block) for block in blocks]
    weights = {k: seed_weights(k, resamples=resamples, rng=rng) for k in sorted({*sizes} - {0})}
    widths, start = [], 0
    for block, k in zip(blocks, sizes, strict=True):
        mine = slice(start, start + k)
        boot = ((draws[:, mine] + centres[mine]) * weights[k]).sum(1) if k else np.empty(0)
        widths.append(half_width(block, boot, confidence))
        start += k
    return widths


def _gap(
    metric: str,
    one: Group,
    other: Group,
    block: np.ndarray,
    width: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """One pair on one metric: the row of `differences`."""
    gap, valid = _mean(block), np.isfinite(block).any(axis=0)
    seeds = mean_of_valid(block)
    return {
        "metric": metric,
        "variant": one.variant,
        "other": other.variant,
        "difference": gap,
        "low": gap - width,
        "high": gap + width,
        "clear": abs(gap) > width,
        "images": int(valid.sum()),
        "dropped": int((~valid).sum()),
        "seeds": int(np.isfinite(seeds).sum()),
        "p": sign_flip(seeds, rng=rng),
    }


def _row(
    metric: str, group: Group, width: float, gaps: pd.DataFrame, ranked: Sequence[Group]
) -> dict[str, Any]:
    """One variant on one metric: the row of `table`."""
    scores, mean = group.values[metric], _mean(group.values[metric])
    lead = gaps[(gaps["metric"] == metric) & (gaps["variant"] == ranked[0].variant)]
    against = lead[lead["other"] == group.variant]
    better = sum(_badness(other, metric) < _badness(group, metric) for other in ranked)
    nan = float("nan")
    least, most = limits_of(metric)
    return {
        "variant": group.variant,
        "metric": metric,
        "mean": mean,
        "low": max(mean - width, min(mean, least)),
        "high": min(mean + width, max(mean, most)),
        "valid": int(np.isfinite(scores).sum()),
        "n": scores.size,
        "seeds": len(group.seeds),
        **{level: group.levels.get(metric, {}).get(level, nan) for level in LEVELS},
        "accuracy": float(mean_of_valid(np.asarray(group.accuracy))),
        "p": float(against["p"].iloc[0]) if len(against) else nan,
        "p_holm": float(against["p_holm"].iloc[0]) if len(against) else nan,
        "rank": 1 + better,
    }


def _seeds(metric: str, group: Group) -> Iterable[dict[str, Any]]:
    for label, mean in zip(group.seeds, mean_of_valid(group.values[metric]), strict=True):
        yield {"metric": metric, "variant": group.variant, "seed": label, "mean": float(mean)}


def _has_split(group: Group) -> bool:
    return group.correct is not None


def _right_and_wrong(metric: str, group: Group) -> dict[str, Any]:
    """The mean over all seeds' images classified rightly, and wrongly."""
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


def _notes(
    groups: Sequence[Group], table: pd.DataFrame, gaps: pd.DataFrame, primary: str
) -> Iterable[str]:
    """What the numbers alone do not say: seeds, tests, images that were left out."""
    alone = [group.variant for group in groups if len(group.seeds) == 1]
    if len(alone) == len(groups):
        yield "one seed each: the intervals speak of these images alone, not of another training"
    elif alone:
        yield (
            f"one seed for {', '.join(alone)}: the interval speaks of these images alone, "
            "not of another training"
        )
    tested = gaps[(gaps["metric"] == primary) & np.isfinite(gaps["p"].astype(float))]
    for seeds in sorted(set(tested["seeds"])):
        yield (
            f"{seeds} paired seeds: the smallest two-sided p that the sign-flip test can reach "
            f"is {smallest_p(seeds):.4g}"
        )
    if any(not set(a.seeds) & set(b.seeds) for a, b in combinations(groups, 2)):
        yield "variants without a seed in common are paired seed by seed in order"
    yield from _few_in_common(groups, gaps, primary)
    yield from _unscored(table)


def _few_in_common(groups: Sequence[Group], gaps: pd.DataFrame, primary: str) -> Iterable[str]:
    """One note on the differences that stand on a single seed of several."""
    several = {group.variant for group in groups if len(group.seeds) > 1}
    alone = gaps[(gaps["metric"] == primary) & (gaps["seeds"] == 1)]
    told = [
        f"{one} and {other}"
        for one, other in zip(alone["variant"], alone["other"], strict=True)
        if {one, other} <= several
    ]
    if told:
        yield (
            f"one seed in common: {', '.join(told)}: the paired interval speaks of these images "
            "alone, not of another training"
        )


def _unscored(table: pd.DataFrame) -> Iterable[str]:
    """One note on all the scores that are missing, by metric and variant."""
    told = []
    for metric, rows in table[table["valid"] < table["n"]].groupby("metric", sort=False):
        missing = (f"{row['variant']} {row['n'] - row['valid']}" for _, row in rows.iterrows())
        told.append(f"{metric_title(str(metric))} ({', '.join(missing)} of {rows['n'].max()})")
    if told:
        yield f"scores that cannot be computed, left out of means and pairs: {'; '.join(told)}"
