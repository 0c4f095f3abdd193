"""Summary of one column of scores, for a run's summary and the table of one run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from attnviz.errors import InputError
from attnviz.statistics.clusters import clusters, labelled
from attnviz.statistics.intervals import interval


def summarised(
    metric: str,
    scores: np.ndarray,
    levels: Mapping[str, float] | None = None,
    *,
    group: Any = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Mean and interval over the images, with how many counted, beside the reference levels.

    Args:
        metric: Its key; an interval ends where the metric's range does.
        scores: One per image, `(n,)`, NaN where it cannot be scored.
        levels: Reference levels, such as `{"chance": …, "redrawn": …}`.
        group: Each image's group (photograph, patient, video), `(n,)`; each its own if None.
        confidence: The interval's level.

    Returns:
        `mean`, `low`, `high`, `valid`, `n` and the levels; None for what is not finite.

    Raises:
        InputError: There is not one group for each image.
    """
    column = np.asarray(scores, dtype=np.float64)[None]
    labels = labelled(group, "summary")
    if labels is not None and len(labels) != column.shape[1]:
        raise InputError(
            f"summary: expected a group for each of {column.shape[1]} images, got {len(labels)}"
        )
    found = interval(metric, column, groups=clusters(labels), confidence=confidence)
    numbers = {"mean": found.mean, "low": found.low, "high": found.high, **(levels or {})}
    counts = {"valid": int(np.isfinite(column).sum()), "n": column.shape[1]}
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()} | counts
