"""Selection and order of a run's images, by the scores of a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from attnviz.comparison.from_runs import map_names
from attnviz.definitions import is_lower_better
from attnviz.statistics.clusters import GROUP
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
CELLS = {
    "tp": ("true positives", 1, 1),
    "tn": ("true negatives", 0, 0),
    "fp": ("false positives", 0, 1),
    "fn": ("false negatives", 1, 0),
}
"""Cells of the confusion table of two classes: words, label, prediction."""


@dataclass(frozen=True)
class Choice:
    """Which images a gallery shows.

    Attributes:
        order: A key of `ORDERS`.
        outcome: A key of `OUTCOMES`.
        size: Only objects with this longer side in pixels, or None.
        shape: Only objects of this shape, or None.
        page: Counted from 0.
        label: Only images of this class, or None.
        prediction: Only images for which this class was predicted, or None.
        cell: Only one cell of the confusion table of two classes, a key of `CELLS`, or None.
        group: Only images of this group, or None.
        tagged: Only these images, or None.
        confidence: Only images with a confidence from one to the other, or None.
        score: Only images with a score from one to the other, or None.
    """

    order: str = "worst"
    outcome: str = "all"
    size: int | None = None
    shape: str | None = None
    page: int = 0
    per_page: int = field(default=PAGE_SIZE, repr=False)
    label: int | None = None
    prediction: int | None = None
    cell: str | None = None
    group: str | None = None
    tagged: frozenset[int] | None = None
    confidence: tuple[float, float] | None = None
    score: tuple[float, float] | None = None


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
    keep &= passes(samples, values, choice)
    where = np.flatnonzero(keep)
    if choice.order == "number":
        return where
    if choice.order == "disagreement":
        key = -(np.full(len(samples), np.nan) if disagreement is None else disagreement)
    else:
        upwards = (choice.order == "worst") != is_lower_better(metric)
        key = values if upwards else -values
    return where[np.argsort(key[where], kind="stable")]  # NaN sorts last


def passes(samples: pd.DataFrame, values: np.ndarray, choice: Choice) -> np.ndarray:
    """Which images pass the filters by class, prediction, group, tag and range, (n,) bool."""
    keep = np.ones(len(samples), bool)
    _, label, prediction = CELLS.get(choice.cell or "", ("", None, None))
    for column, wanted in (
        ("label", choice.label), ("prediction", choice.prediction),
        ("label", label), ("prediction", prediction),
    ):  # fmt: skip
        if wanted is not None and column in samples:
            keep &= samples[column].to_numpy(dtype=float) == wanted
    if choice.group is not None and GROUP in samples:
        keep &= samples[GROUP].astype(str).to_numpy() == choice.group
    if choice.tagged is not None:
        keep &= np.isin(np.arange(len(samples)), list(choice.tagged))
    for numbers, span in ((confidence(samples), choice.confidence), (values, choice.score)):
        if span is not None:
            keep &= (numbers >= span[0]) & (numbers <= span[1])  # NaN is in no range
    return keep


def confidence(samples: pd.DataFrame) -> np.ndarray:
    """How sure the model was of its answer, (n,) from 0 to 1; NaN where it does not say."""
    if "confidence" in samples:
        return samples["confidence"].to_numpy(dtype=float)
    if "probability" in samples:
        p = samples["probability"].to_numpy(dtype=float)
        return np.maximum(p, 1 - p)
    return np.full(len(samples), np.nan)


def class_name(run: Any, index: float) -> str:
    """A class by its name; by its number where the run names none."""
    if not np.isfinite(index):
        return "none"
    k = int(index)
    return str(run.classes[k]) if 0 <= k < len(run.classes) else f"class {k}"


def is_binary(samples: pd.DataFrame) -> bool:
    """Whether labels and predictions are of two classes, 0 and 1."""
    if not {"label", "prediction"} <= set(samples.columns):
        return False
    known = {*samples["label"].dropna().unique(), *samples["prediction"].dropna().unique()}
    return known <= {0, 1} and len(known) == 2


def verdict(row: Mapping[str, Any], decimals: int = 2, run: Any = None) -> str:
    """The model's verdict on an image: `right, p = 0.99`; with class names where a run has them."""
    known = {key: row[key] for key in ("correct", "probability", "logit") if key in row}
    known = {key: float(value) for key, value in known.items() if not pd.isna(value)}
    parts = []
    if "correct" in known:
        parts.append("right" if known["correct"] else "wrong")
    if run is not None and len(run.classes) > 1 and not pd.isna(row.get("prediction", np.nan)):
        parts.append(_named(run, row))
    if "probability" in known:
        parts.append(f"{_of_class(run, row)} = {known['probability']:.{decimals}f}")
    elif "logit" in known:
        parts.append(f"logit {known['logit']:+.2f}")
    return ", ".join(parts)


def _of_class(run: Any, row: Mapping[str, Any]) -> str:
    """Of which class the probability is: the label's of several, the second of two."""
    if run is None or len(run.classes) < 2:
        return "p"
    if len(run.classes) == 2:
        return f"p({run.classes[1]})"
    label = row.get("label", np.nan)
    return f"p({class_name(run, row.get('prediction', np.nan) if pd.isna(label) else label)})"


def _named(run: Any, row: Mapping[str, Any]) -> str:
    """The predicted class by name, and the image's own where it is another."""
    predicted, label = row["prediction"], row.get("label", np.nan)
    said = class_name(run, predicted)
    return said if pd.isna(label) or label == predicted else f"{said}, not {class_name(run, label)}"


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


def shown_maps(run: Any, samples: pd.DataFrame) -> list[str]:
    """The maps of a run whose values were kept and that have scores, the primary one first."""
    first = primary_map(run, samples)
    kept = [name for name in map_names(samples) if name in run.map_names]
    return sorted(kept, key=lambda name: name != first)


def map_in_words(run: Any, name: str) -> str:
    """A map by its name, how it is drawn and of which layer: `received: mean over queries`."""
    entry = run.entry(f"maps/{name}").about if name in run.map_names else {}
    drawn = str(entry.get("drawn") or run.summary.get("about", {}).get(name) or "")
    layer = str(entry.get("layer") or run.summary.get("layers", {}).get(name) or "")
    if not drawn:
        known = CONSTRUCTIONS.get(name.partition(".")[0])
        drawn = known or ""
    parts = [part for part in (drawn, f"of {layer}" if layer else "") if part]
    return f"{name} ({', '.join(parts)})" if parts else name


CONSTRUCTIONS = {
    "received": "attention received: mean over queries",
    "class_row": "attention of the class token",
    "rollout": "attention rollout over the layers",
    "gate_map": "the spatial gate",
    "channel_gated": "features weighted by their channel gate",
    "layer_gradcam": "Grad-CAM of the layer",
    "integrated_gradients": "integrated gradients of the input",
}
"""What a map shows, where its run does not say."""


def threshold_of(run: Any, map_name: str) -> float:
    """The threshold that the run's validation images chose for a map; one half if it names none."""
    value = chosen_threshold(run, map_name)
    return 0.5 if value is None else value


def chosen_threshold(run: Any, map_name: str) -> float | None:
    """The threshold that the run's validation images chose for a map, where they did."""
    value = run.summary.get("threshold", {}).get(map_name)
    if value is None:  # an evaluation names one per metric
        chosen = run.summary.get("thresholds", {}).get(map_name, {})
        value = next((chosen[key] for key in ("max_iou", "iou", *chosen) if key in chosen), None)
    return float(value) if value is not None and 0 <= value <= 1 else None
