"""What a comparison compares: one variant's scores, image by image and seed by seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnviz.errors import InputError
from attnviz.statistics.clusters import clusters


@dataclass(frozen=True, eq=False)
class Group:
    """One variant's measurements, image by image and seed by seed.

    Attributes:
        variant: Its name.
        seeds: One label per training seed.
        values: Metric → scores (seeds, images), NaN where an image cannot be scored.
        correct: (seeds, images), 1 where the image was classified rightly, or None.
        accuracy: One per seed over all test images, NaN where it is not known.
        grouping: One label per image, its group (photograph, patient, video), or None where each
            image is its own.
        levels: Metric → reference level (`attnviz.definitions.LEVELS`) → number, where known.
    """

    variant: str
    seeds: tuple[Any, ...]
    values: dict[str, np.ndarray]
    correct: np.ndarray | None = None
    accuracy: tuple[float, ...] = ()
    levels: dict[str, dict[str, float]] = field(default_factory=dict)
    grouping: tuple[Any, ...] | None = None

    @property
    def images(self) -> int:
        """How many images were measured."""
        return int(next(iter(self.values.values())).shape[1])

    @property
    def clusters(self) -> np.ndarray | None:
        """Each image's group as a whole number from 0; None where groups tell nothing.

        That is so without groups, and where all images are of one.
        """
        return clusters(self.grouping)


def array(values: Any, what: str) -> np.ndarray:
    """Numbers of any kind, torch tensors on any device included, as a float64 array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"compare: {what}: expected an array of numbers, got {error}") from None
