"""Metrics of maps against masks, one score per image.

Every metric takes maps and masks of one shape, (b, h, w), (b, d, h, w) or any other number of place
axes from two, as tensors on any device or as numpy arrays, float16 to float64, and returns (b,)
float64 scores. The conventions are the same in all of them:

- Nothing is made positive, scaled or squashed unless the docstring states it; no input is modified.
- An image that cannot be scored, such as one with an empty mask or a map with NaN, scores NaN;
  `reasons` gives the reason. Wrong shapes, dtypes and devices raise.
- Ties score what fair tie-breaking would on average, so a constant map scores chance.
- Boxes are `[x0, y0, x1, y1)`: their ends are exclusive.
- Thresholds come from the validation split (`calibrate_threshold`); a score at the best threshold
  of each image is called an oracle.
- A score depends on its own image alone: to the last bit on a CPU, to 1e-12 on a GPU, where the
  order of additions is not fixed.
"""

from typing import TYPE_CHECKING, Any

from attnviz.metrics.agreement import agreement
from attnviz.metrics.boxes import max_box_acc, max_box_acc_v2
from attnviz.metrics.energy import complexity, energy_pointing_game, mass_lift, sparseness
from attnviz.metrics.localization import localization, reasons
from attnviz.metrics.meter import LocalizationMeter
from attnviz.metrics.overlap import iou, max_iou, oracle_iou
from attnviz.metrics.pxap import pxap
from attnviz.metrics.ranking import (
    iou_at_area,
    pixel_ap,
    pixel_auroc,
    pointing_game,
    relevance_rank_accuracy,
    topk_intersection,
)
from attnviz.metrics.reasons import Reason
from attnviz.metrics.reference_levels import baselines
from attnviz.metrics.registry import DEFAULT, METRICS, metric
from attnviz.metrics.score_table import ScoreTable
from attnviz.metrics.thresholds import calibrate_threshold

if TYPE_CHECKING:
    from attnviz.metrics.compat.adapters import LocalizationMetric

__all__ = [
    "DEFAULT",
    "METRICS",
    "LocalizationMeter",
    "LocalizationMetric",
    "Reason",
    "ScoreTable",
    "agreement",
    "baselines",
    "calibrate_threshold",
    "complexity",
    "energy_pointing_game",
    "iou",
    "iou_at_area",
    "localization",
    "mass_lift",
    "max_box_acc",
    "max_box_acc_v2",
    "max_iou",
    "metric",
    "oracle_iou",
    "pixel_ap",
    "pixel_auroc",
    "pointing_game",
    "pxap",
    "reasons",
    "relevance_rank_accuracy",
    "sparseness",
    "topk_intersection",
]


def __getattr__(name: str) -> Any:
    if name == "LocalizationMetric":  # torchmetrics is an extra
        from attnviz.metrics.compat.adapters import LocalizationMetric

        return LocalizationMetric
    raise AttributeError(f"module 'attnviz.metrics' has no attribute {name!r}")
