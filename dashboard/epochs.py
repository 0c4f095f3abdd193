"""Training history of a run: curves by epoch, and maps of a few pinned images.

A run keeps an epoch's maps under `<map>@<epoch>`, `(k, h, w)`, and notes beside the file which test
images they are of: `about = {"epoch": 3, "images": [0, 2, 4, 6]}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

_NAMED = re.compile(r"(?P<map>.+)@(?P<epoch>\d{1,6})")


@dataclass(frozen=True)
class EpochMaps:
    """Where the maps of one epoch are.

    Attributes:
        name: The map's name in the run.
        epoch: Counted from 1.
        images: The test images that were pinned.
    """

    name: str
    epoch: int
    images: tuple[int, ...]


def epoch_maps(run: Any) -> list[EpochMaps]:
    """The maps that a run kept by epoch, in order; empty where it kept none."""
    found = []
    for name in run.map_names:
        named = _NAMED.fullmatch(name)
        file = run.entry(f"maps/{name}")
        if named is None or file.shape is None:
            continue
        images = file.about.get("images")
        pinned = tuple(images) if _are_indices(images) else tuple(range(file.shape[0]))
        found.append(EpochMaps(name, int(named["epoch"]), pinned))
    found.sort(key=lambda one: one.epoch)
    return [one for one in found if one.images == found[-1].images]


def _are_indices(images: Any) -> bool:
    return isinstance(images, list) and all(type(i) is int and i >= 0 for i in images)


def seed_bands(tables: Mapping[str, Sequence[pd.DataFrame]], column: str) -> pd.DataFrame:
    """One curve of each variant: mean, least and greatest over the seeds that reached an epoch.

    Args:
        tables: Variant → one table per seed, a row per epoch.
        column: The curve.

    Returns:
        Columns `variant`, `epoch`, `mean`, `low`, `high`, `seeds`.
    """
    parts = []
    for variant, seeds in tables.items():
        here = [t[["epoch", column]] for t in seeds if column in t]
        if not here:
            continue
        rows = pd.concat(here).dropna().groupby("epoch")[column]
        part = rows.agg(mean="mean", low="min", high="max", seeds="count").reset_index()
        parts.append(part.assign(variant=variant))
    columns = ["variant", "epoch", "mean", "low", "high", "seeds"]
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)


def found_at(
    epochs: np.ndarray,
    values: np.ndarray,
    accuracy: np.ndarray,
    chance: float | None = None,
    guess: float = 0.5,
) -> float | None:
    """The epoch from which on a score stays above half of its last value and answers are no guess.

    None where it never rose: the last value is less than twice chance, or than twice the first
    value where chance is not known. A map of a network that still guesses is no finding, however
    high its score: accuracy must be nearer to 1 than to guessing from that epoch on.

    Args:
        epochs: Ascending, `(n,)`.
        values: A score of the map at each, `(n,)`.
        accuracy: The network's at each, `(n,)`; NaN counts as a guess.
        chance: What a random map scores.
        guess: The accuracy of a network that guesses.
    """
    known = np.isfinite(values)
    values, epochs, accuracy = values[known], epochs[known], accuracy[known]
    if not len(values) or values[-1] < 2 * (values[0] if chance is None else chance):
        return None
    if not accuracy[-1] > (1 + guess) / 2:
        return None
    below = np.flatnonzero((values < values[-1] / 2) | ~(accuracy > (1 + guess) / 2))
    return float(epochs[below[-1] + 1]) if len(below) else float(epochs[0])
