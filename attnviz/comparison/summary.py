"""One column of scores in a few numbers: what a run's summary and a table of one run say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from attnviz.comparison.resampling import half_width, image_draws
from attnviz.definitions import limits_of

RESAMPLES = 10_000


def summarised(
    metric: str, scores: np.ndarray, levels: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Mean and 95 % interval over the images, with how many counted, beside the reference levels.

    Args:
        metric: Its key; an interval ends where the metric's range does.
        scores: One per image, `(n,)`, NaN where it cannot be scored.
        levels: What stands beside it, such as `{"chance": …, "redrawn": …}`.

    Returns:
        `mean`, `low`, `high`, `valid`, `n` and the levels; None for what is not finite.
    """
    column = np.asarray(scores, dtype=np.float64)[None]
    centres, draws = image_draws(column, resamples=RESAMPLES, rng=np.random.default_rng(0))
    mean, half = float(centres[0]), half_width(column, draws[:, 0], 0.95)
    least, most = limits_of(metric)
    low, high = max(mean - half, least), min(mean + half, most)
    numbers = {"mean": mean, "low": low, "high": high, **(levels or {})}
    counts = {"valid": int(np.isfinite(column).sum()), "n": column.shape[1]}
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()} | counts
