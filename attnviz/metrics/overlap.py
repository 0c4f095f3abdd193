"""Where a thresholded map and the mask overlap, and the threshold that was best elsewhere.

The threshold is applied to the map min-max scaled to [0, 1], in float64. It is never chosen on
the images it is reported on: `calibrate_threshold` takes the validation split. The one exception
carries it in its name, `oracle_iou`.
"""

from __future__ import annotations

from torch import Tensor

from attnviz.errors import InputError
from attnviz.inputs import AnyMaps, AnyMasks
from attnviz.metrics.batching import Batch, score
from attnviz.metrics.reasons import UNSCORABLE, Reason
from attnviz.metrics.row_kernels import at_least, count
from attnviz.shapes import Scores

FLAT = UNSCORABLE | Reason.CONSTANT
"""A constant map has no range to be scaled to, so no threshold of it."""


def iou(maps: AnyMaps, masks: AnyMasks, *, threshold: int | float) -> Scores:
    """Intersection over union of the mask with the places where the scaled map reaches τ.

    |P ∩ G| / |P ∪ G| with P = {a′ ≥ τ} and a′ the map min-max scaled to [0, 1].

    Source: P. Jaccard, 1901.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).
        threshold: τ in [0, 1].

    Returns:
        Scores in [0, 1], higher is better; NaN where the map is constant or the mask empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or τ outside [0, 1].
    """
    check_threshold(threshold)
    return score(maps, masks, lambda batch: iou_of(batch, threshold=threshold), blocked=FLAT)


def max_iou(maps: AnyMaps, masks: AnyMasks, *, threshold: int | float) -> Scores:
    """The IoU at the threshold whose mean IoU was best on the validation split.

    The same arithmetic as `iou`; the name is the claim that τ came from `calibrate_threshold` on
    other images.

    Source: after J. Choe et al., "Evaluating weakly supervised object localization methods
    right", 2020.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).
        threshold: τ in [0, 1], from `calibrate_threshold(maps, masks)` of the validation split.

    Returns:
        Scores in [0, 1], higher is better; NaN where the map is constant or the mask empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or τ outside [0, 1].
    """
    return iou(maps, masks, threshold=threshold)


def oracle_iou(maps: AnyMaps, masks: AnyMasks) -> Scores:
    """The largest IoU that any threshold of this very map reaches, exact over all its values.

    An upper bound that knows the answer, not a score to report alone. A constant map scores
    |G|/D: all or nothing are the only sets it has.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).

    Returns:
        Scores in [0, 1], higher is better; NaN where the mask is empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices.
    """
    return score(maps, masks, lambda batch: batch.curves.best_iou(), blocked=UNSCORABLE)


def iou_of(batch: Batch, *, threshold: int | float) -> Tensor:
    """The IoU of a batch at a threshold, (b,)."""
    return batch.once(("iou", threshold), lambda: _overlap(batch, threshold))


def _overlap(batch: Batch, threshold: int | float) -> Tensor:
    chosen = at_least(batch.scaled, threshold)
    both = count(chosen & batch.labels)
    return both.double() / (count(chosen) + batch.area - both).double()


def check_threshold(threshold: int | float) -> None:
    """Raise an `InputError` unless the threshold lies in [0, 1]."""
    if not 0 <= threshold <= 1:
        raise InputError(
            f"threshold: expected a number from 0 to 1, got {threshold}; "
            "maps are min-max scaled before it is applied"
        )
