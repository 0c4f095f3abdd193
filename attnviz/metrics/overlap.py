"""Intersection over union of the mask and the thresholded map.

The threshold is applied to the map min-max scaled to [0, 1], in float64. It is never chosen on
the images that are reported: `calibrate_threshold` takes the validation split. The one exception
is named for it, `oracle_iou`.
"""

from __future__ import annotations

from torch import Tensor

from attnviz.definitions import DEFINITIONS
from attnviz.inputs import AnyMaps, AnyMasks
from attnviz.metrics.batching import Batch, score
from attnviz.metrics.options import check_threshold
from attnviz.metrics.reasons import UNSCORABLE, Reason
from attnviz.metrics.registry import metric
from attnviz.metrics.row_kernels import at_least, count
from attnviz.shapes import Scores

FLAT = UNSCORABLE | Reason.CONSTANT
"""A constant map has no range to be scaled to, so no threshold of it."""


@metric(
    DEFINITIONS["iou"],
    batched=lambda batch, options: iou_of(batch, threshold=options.tau("iou")),
    blocked=FLAT,
)
def iou(maps: AnyMaps, masks: AnyMasks, *, threshold: int | float) -> Scores:
    """Intersection over union of the mask with the places where the scaled map reaches τ.

    |P ∩ G| / |P ∪ G| with P = {a′ ≥ τ} and a′ the map min-max scaled to [0, 1].

    Source: P. Jaccard, 1901.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).
        threshold: τ in [0, 1].

    Returns:
        Scores in [0, 1], higher is better; NaN where the map is constant or the mask empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or τ outside [0, 1].
    """
    check_threshold(threshold)
    return score(maps, masks, lambda batch: iou_of(batch, threshold=threshold), blocked=FLAT)


@metric(
    DEFINITIONS["max_iou"],
    batched=lambda batch, options: iou_of(batch, threshold=options.tau("max_iou")),
    blocked=FLAT,
)
def max_iou(maps: AnyMaps, masks: AnyMasks, *, threshold: int | float) -> Scores:
    """The IoU at the threshold whose mean IoU was best on the validation split.

    The same arithmetic as `iou`; the name is the claim that τ came from `calibrate_threshold` on
    other images.

    Source: after J. Choe et al., "Evaluating weakly supervised object localization methods
    right", 2020.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).
        threshold: τ in [0, 1], from `calibrate_threshold(maps, masks)` of the validation split.

    Returns:
        Scores in [0, 1], higher is better; NaN where the map is constant or the mask empty.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or τ outside [0, 1].
    """
    return iou(maps, masks, threshold=threshold)


@metric(DEFINITIONS["oracle_iou"], batched=lambda batch, _: batch.curves.best_iou(), sorts=True)
def oracle_iou(maps: AnyMaps, masks: AnyMasks) -> Scores:
    """The largest IoU that any threshold of this very map reaches, exact over all its values.

    The threshold is chosen with the mask at hand: not a score to report alone. A constant map
    scores |G|/D: all or nothing are the only sets it has.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).

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
