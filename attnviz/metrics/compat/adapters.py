"""Localisation metrics as a torchmetrics `Metric`.

Needs the extra `attnviz[torchmetrics]`; nothing else in attnviz imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnviz.errors import UnsupportedError
from attnviz.metrics.batching import joined
from attnviz.metrics.localization import compute_scores
from attnviz.metrics.options import TOP, Sign, Threshold, checked_options
from attnviz.metrics.registry import DEFAULT, chosen_metrics

try:
    from torchmetrics import Metric
except ImportError as missing:
    raise UnsupportedError(
        "LocalizationMetric: expected torchmetrics to be installed; "
        "pip install 'attnviz[torchmetrics]', or use LocalizationMeter, which needs nothing"
    ) from missing


class LocalizationMetric(Metric):
    """`localization` as a torchmetrics `Metric`: synchronised, resettable, in a collection.

    `update(maps, masks)` takes what `localization` takes. `compute()` returns for each metric
    `key`, the mean over the images that have a score (NaN if none has), and `key_valid`, how many
    those are. The scores of single images are in `scores()`.

    Args:
        metrics: As in `localization`.
        threshold: As in `localization`.
        k: As in `localization`.
        tolerance: As in `localization`.
        sign: As in `localization`.
        **kwargs: For torchmetrics, such as `dist_sync_on_step`.

    Raises:
        InputError: An unknown metric, a metric without its threshold, an option out of range.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(
        self,
        metrics: Sequence[str] = DEFAULT,
        *,
        threshold: Threshold | None = None,
        k: int | float = TOP,
        tolerance: int | float = 0,
        sign: Sign = "positive",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = checked_options(threshold=threshold, k=k, tolerance=tolerance, sign=sign)
        self.keys = chosen_metrics(metrics, self.options)
        for key in self.keys:
            self.add_state(key, default=[], dist_reduce_fx="cat")

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Score a few more images; maps and masks (b, *places)."""
        for key, found in compute_scores(maps, masks, self.keys, self.options).items():
            getattr(self, key).append(found)

    def scores(self) -> dict[str, Tensor]:
        """The scores of every image seen here, (n,) float64 by metric."""
        return {key: _one(getattr(self, key)) for key in self.keys}

    def compute(self) -> dict[str, Tensor]:
        """The mean of each metric, and of how many images."""
        result = {}
        for key, found in self.scores().items():
            result[key] = found.nanmean()
            result[f"{key}_valid"] = (~found.isnan()).sum()
        return result


def _one(state: Tensor | list[Tensor]) -> Tensor:
    # torchmetrics leaves a list before it synchronises and a tensor after.
    return state if isinstance(state, Tensor) else joined(state, torch.float64)
