"""Ask the trained model itself: does what a map shows matter to it, and each head and gate?

A few test images that have something to find are enough, for every one is asked many times over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from attnviz.comparison.text import records
from attnviz.errors import NothingSeenError
from attnviz.faithfulness import faithfulness_scores, knockout
from attnviz.maps import resized

BASELINE = "black"
"""What stands for a removed place: for a white patch the opposite."""

STEPS = 16
"""Of deletion and insertion."""


def chosen_images(masks: Tensor, count: int) -> Tensor:
    """The numbers of the first images that have something to find."""
    return masks.flatten(1).any(1).nonzero()[:count, 0]


def faithful_columns(
    model: nn.Module, images: Tensor, maps: Mapping[str, Tensor], numbers: Tensor
) -> dict[str, dict[str, np.ndarray]]:
    """Deletion, insertion, ROAD, average drop and increase of each map.

    Args:
        model: The trained model.
        images: `(k, 3, h, w)`, those that are asked about.
        maps: Name → raw maps of all images `(n, h', w')`.
        numbers: Which of all images those are, `(k,)`.

    Returns:
        Map → metric → `(n,)`, NaN for images that were not asked about.
    """
    columns: dict[str, dict[str, np.ndarray]] = {}
    for name, whole in maps.items() if len(numbers) else ():
        size = (images.shape[-2], images.shape[-1])
        few = resized(whole[numbers], size, "bilinear").to(images.device)
        scores = faithfulness_scores(model, images, few, baseline=BASELINE, steps=STEPS)
        columns[name] = {key: _spread(one, numbers, len(whole)) for key, one in scores.items()}
    return columns


def knocked_out(model: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """What each head and gate is worth, as rows; none for a model without."""
    if not len(images):
        return []
    try:
        table = knockout(model, images).table
    except NothingSeenError:
        return []
    return records(table)


def _spread(scores: Tensor, numbers: Tensor, count: int) -> np.ndarray:
    column = np.full(count, np.nan)
    column[numbers.numpy()] = scores.double().cpu().numpy()
    return column
