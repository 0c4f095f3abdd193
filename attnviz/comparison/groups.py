"""Scores of one variant by seed and image, the input of a comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnviz.errors import InputError
from attnviz.runs.header import THING
from attnviz.statistics.clusters import clusters


@dataclass(frozen=True, eq=False)
class Group:
    """One variant's measurements, image by image and seed by seed.

    Attributes:
        variant: Its name.
        seeds: One label per training seed.
        values: Metric → scores (seeds, images), NaN where an image cannot be scored.
        correct: (seeds, images), 1 where the prediction is correct, or None.
        accuracy: One per seed over all test images, NaN where it is not known.
        grouping: One label per image, its group (photograph, patient, video), or None where each
            image is its own.
        levels: Metric → reference level (`attnviz.definitions.LEVELS`) → number, where known.
        thing: What is looked for, such as "lesion".
    """

    variant: str
    seeds: tuple[Any, ...]
    values: dict[str, np.ndarray]
    correct: np.ndarray | None = None
    accuracy: tuple[float, ...] = ()
    levels: dict[str, dict[str, float]] = field(default_factory=dict)
    grouping: tuple[Any, ...] | None = None
    thing: str = THING

    @property
    def images(self) -> int:
        """How many images were measured."""
        return int(next(iter(self.values.values())).shape[1])

    @property
    def clusters(self) -> np.ndarray | None:
        """Each image's group as a whole number from 0; None without several groups."""
        return clusters(self.grouping)


def thing_of(groups: Iterable[Any]) -> str:
    """What groups or runs look for, such as "lesion"; "object" where they do not agree."""
    found = {str(one.thing) for one in groups}
    return found.pop() if len(found) == 1 else THING


def array(values: Any, what: str) -> np.ndarray:
    """Numbers of any kind, torch tensors on any device included, as a float64 array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"compare: {what}: expected an array of numbers, got {error}") from None
