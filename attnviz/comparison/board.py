"""Variants against several metrics at once: means, ranks, and scores no better than chance.

One metric answers one question. A variant may lie first by the share of its map on the object and
last by how well the map's values separate object and surroundings; the board shows that, and
`answer` says it in the sentence that names the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from attnviz.comparison.comparison import Comparison
from attnviz.comparison.groups import Group
from attnviz.comparison.ranking import FEW_GROUPS
from attnviz.comparison.text import begun
from attnviz.definitions import is_localization, is_lower_better, metric_title, short_title
from attnviz.statistics.variance import mean_of_valid

MOST = 6
"""Metrics on a board."""

_FIRST = (
    *("energy_pointing_game", "pointing_game", "max_iou", "pixel_auroc", "pixel_ap"),
    *("relevance_rank_accuracy", "oracle_iou"),
)


def board_metrics(known: Sequence[str], primary: str) -> list[str]:
    """The metrics of a board, at most `MOST`: the well-known ones and the primary one.

    Args:
        known: The metrics that every variant has.
        primary: The metric that ranks; always among them.
    """
    others = [name for name in known if is_localization(name) and name not in _FIRST]
    order = [name for name in (*_FIRST, *others) if name in known]
    kept = order[:MOST] if primary in order[:MOST] else [primary, *order[: MOST - 1]]
    return kept or [primary]


def board(groups: Sequence[Group], metrics: Sequence[str]) -> pd.DataFrame:
    """Means, ranks and chance of variants by several metrics.

    Args:
        groups: The variants, measured on the same images.
        metrics: Which metrics.

    Returns:
        A row per metric and variant: variant, metric, mean (over seeds of each seed's mean over
        images), rank (equal means share one; NaN without a mean), chance (NaN where not known),
        below (whether the mean is no better than chance), seeds.
    """
    rows = []
    for metric in metrics:
        means = {group.variant: _mean(group, metric) for group in groups}
        sign = 1 if is_lower_better(metric) else -1
        known = [sign * mean for mean in means.values() if np.isfinite(mean)]
        for group in groups:
            mean = means[group.variant]
            chance = group.levels.get(metric, {}).get("chance", float("nan"))
            better = sum(other < sign * mean for other in known)
            rows.append(
                {
                    "variant": group.variant,
                    "metric": metric,
                    "mean": mean,
                    "rank": 1 + better if np.isfinite(mean) else float("nan"),
                    "chance": chance,
                    "below": bool(sign * mean >= sign * chance),
                    "seeds": len(group.seeds),
                }
            )
    return pd.DataFrame(rows)


def _mean(group: Group, metric: str) -> float:
    if metric not in group.values:
        return float("nan")
    return float(mean_of_valid(mean_of_valid(group.values[metric])))


def answer(comparison: Comparison, table: pd.DataFrame) -> str:
    """The comparison's sentence, then what the other metrics say of the first, then on what.

    Args:
        comparison: The ranking by one metric.
        table: The `board` of the same variants.
    """
    first = comparison.variants[0]
    said = _others(first, table, comparison.primary)
    sentence = comparison.sentence
    if said and not said.startswith("first"):  # no sentence that the table contradicts
        title = metric_title(comparison.primary)
        looks = f"looks at the {comparison.thing} most"
        sentence = sentence.replace(looks, f"ranks first by {title}", 1)
    parts = [begun(sentence, comparison.variants)]
    if said:
        parts.append(f"By other metrics {first} is {said}.")
    parts.append(_measured(comparison))
    return " ".join(parts)


def _others(first: str, table: pd.DataFrame, primary: str) -> str:
    """Where the first in rank stands by the other metrics: `5th of 6 by IoU, below chance by …`."""
    mine = table[(table["variant"] == first) & (table["metric"] != primary)]
    mine = mine[np.isfinite(mine["mean"].to_numpy(dtype=float))]
    count = table["variant"].nunique()
    if mine.empty or count < 2:
        return ""
    ranks: dict[int, list[str]] = {}
    for row in mine.itertuples():
        ranks.setdefault(int(row.rank), []).append(short_title(str(row.metric)))
    below = [short_title(str(row.metric)) for row in mine.itertuples() if row.below]
    behind = {rank: names for rank, names in sorted(ranks.items()) if rank > 1}
    parts = [f"{ordinal(rank)} of {count} by {_listed(names)}" for rank, names in behind.items()]
    if ranks.get(1):
        parts.insert(0, f"first by {_listed(ranks[1])}" if behind else "first as well")
    if below:
        parts.append(f"no better than chance by {_listed(below)}")
    if behind and ranks.get(1):  # what differs comes first
        parts = [*parts[1:], parts[0]]
    return ", ".join(parts)


def _measured(comparison: Comparison) -> str:
    """On what was measured, and what that leaves open."""
    images, groups = comparison.images, comparison.groups
    marked = f"{images} images with a marked {comparison.thing}"
    if not groups:
        return f"Measured on {marked}; no groups are named, so each image counts as independent."
    if groups < FEW_GROUPS:
        return (
            f"Measured on {marked} of {groups} group{'s' if groups > 1 else ''} (photographs, "
            "patients, scenes) only: images of others may turn the order round."
        )
    return f"Measured on {marked} of {groups} groups."


def ordinal(number: int) -> str:
    """A rank in words: 1st, 2nd, 3rd, 4th, 11th."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(
        number % 10, "th"
    )  # fmt: skip
    return f"{number}{ending}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
