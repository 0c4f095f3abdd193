"""Selection and order of a run's images, by the scores of a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from attnviz.comparison.from_runs import map_names
from attnviz.definitions import is_lower_better
from attnviz.statistics.variance import mean_of_valid

PAGE_SIZE = 48
AGREEMENT = "agreement_"
ORDERS = {
    "worst": "worst first",
    "best": "best first",
    "disagreement": "most disagreement between variants",
    "number": "by number",
}
OUTCOMES = {"all": "all", "right": "answered correctly", "wrong": "answered wrongly"}


@dataclass(frozen=True)
class Choice:
    """Which images a gallery shows.

    Attributes:
        order: A key of `ORDERS`.
        outcome: A key of `OUTCOMES`.
        size: Only objects with this longer side in pixels, or None.
        shape: Only objects of this shape, or None.
        page: Counted from 0.
    """

    order: str = "worst"
    outcome: str = "all"
    size: int | None = None
    shape: str | None = None
    page: int = 0
    per_page: int = field(default=PAGE_SIZE, repr=False)


def patch_sizes(samples: pd.DataFrame) -> np.ndarray:
    """The longer side of each image's box in pixels, 0 where there is none."""
    width, height = samples["x1"] - samples["x0"], samples["y1"] - samples["y0"]
    return np.maximum(width, height).to_numpy()


def scores(samples: pd.DataFrame, map_name: str, metric: str) -> np.ndarray:
    """One map's scores, (n,) with NaN where an image cannot be scored or has no such column."""
    column = f"{map_name}/{metric}"
    if column not in samples:
        return np.full(len(samples), np.nan)
    return samples[column].to_numpy(dtype=float)


def spread(by_variant: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """How far the variants disagree about each image: greatest less least mean over seeds, (n,)."""
    means = np.stack([mean_of_valid(np.stack(list(seeds)).T) for seeds in by_variant.values()])
    known = np.isfinite(means).sum(axis=0) > 1
    high = np.where(np.isfinite(means), means, -np.inf).max(axis=0)
    low = np.where(np.isfinite(means), means, np.inf).min(axis=0)
    return np.where(known, np.where(known, high, 0) - np.where(known, low, 0), np.nan)


def in_order(
    samples: pd.DataFrame,
    values: np.ndarray,
    choice: Choice,
    *,
    metric: str = "",
    disagreement: np.ndarray | None = None,
) -> np.ndarray:
    """Positions of the images that pass the filters, in the chosen order.

    Images that cannot be scored come last; ties keep their number. The metrics of which less is
    better are turned round, so that "worst" always means worst.

    Args:
        samples: The run's samples, one row per image.
        values: One score per row.
        choice: Order and filters.
        metric: The metric's key.
        disagreement: What `spread` returned; needed for that order.
    """
    keep = np.ones(len(samples), bool)
    if choice.outcome != "all" and "correct" in samples:
        keep &= samples["correct"].to_numpy(dtype=bool) == (choice.outcome == "right")
    if choice.size is not None:
        keep &= patch_sizes(samples) == choice.size
    if choice.shape is not None and "shape" in samples:
        keep &= samples["shape"].to_numpy() == choice.shape
    where = np.flatnonzero(keep)
    if choice.order == "number":
        return where
    if choice.order == "disagreement":
        key = -(np.full(len(samples), np.nan) if disagreement is None else disagreement)
    else:
        upwards = (choice.order == "worst") != is_lower_better(metric)
        key = values if upwards else -values
    return where[np.argsort(key[where], kind="stable")]  # NaN sorts last


def verdict(row: Mapping[str, Any], decimals: int = 2) -> str:
    """The model's verdict on an image, from its table: `right, p = 0.99`."""
    known = {key: row[key] for key in ("correct", "probability", "logit") if key in row}
    known = {key: float(value) for key, value in known.items() if not pd.isna(value)}
    parts = []
    if "correct" in known:
        parts.append("right" if known["correct"] else "wrong")
    if "probability" in known:
        parts.append(f"p = {known['probability']:.{decimals}f}")
    elif "logit" in known:
        parts.append(f"logit {known['logit']:+.2f}")
    return ", ".join(parts)


def page_of(where: np.ndarray, page: int, per_page: int = PAGE_SIZE) -> np.ndarray:
    """The part of `where` on one page."""
    return where[page * per_page : (page + 1) * per_page]


def pages(count: int, per_page: int = PAGE_SIZE) -> int:
    """How many pages that many images fill; at least one."""
    return max(1, -(-count // per_page))


def neighbours(where: Sequence[int] | np.ndarray, image: int) -> tuple[int | None, int | None]:
    """The images before and after one in an order; None at its ends, or if it is not in it."""
    places = np.flatnonzero(np.asarray(where) == image)
    if not len(places):
        return None, None
    at = int(places[0])
    before = int(where[at - 1]) if at > 0 else None
    after = int(where[at + 1]) if at + 1 < len(where) else None
    return before, after


def metric_names(samples: pd.DataFrame, map_name: str) -> list[str]:
    """The metrics of one map against the mask, in the table's order."""
    return [name for name in _columns_of(samples, map_name) if not name.startswith(AGREEMENT)]


def agreement_names(samples: pd.DataFrame, map_name: str) -> list[str]:
    """The columns that say how far a map agrees with an attribution, without their prefix."""
    found = _columns_of(samples, map_name)
    return [name.removeprefix(AGREEMENT) for name in found if name.startswith(AGREEMENT)]


def _columns_of(samples: pd.DataFrame, map_name: str) -> list[str]:
    prefix = f"{map_name}/"
    return [c.removeprefix(prefix) for c in samples.columns if c.startswith(prefix)]


def primary_map(run: Any, samples: pd.DataFrame) -> str | None:
    """The map a run is judged by: the one its summary names, else the first that has scores."""
    names = map_names(samples)
    named = run.summary.get("map")
    return named if named in names else (names[0] if names else None)


def threshold_of(run: Any, map_name: str) -> float:
    """The threshold that the run's validation images chose for a map; one half if it names none."""
    value = chosen_threshold(run, map_name)
    return 0.5 if value is None else value


def chosen_threshold(run: Any, map_name: str) -> float | None:
    """The threshold that the run's validation images chose for a map, where they did."""
    value = run.summary.get("threshold", {}).get(map_name)
    return float(value) if value is not None and 0 <= value <= 1 else None
