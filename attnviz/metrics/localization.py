"""All localisation metrics computed together.

One pass over the images; all metrics share one sort, one scaling, one set of flags.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from attnviz.errors import unknown_name
from attnviz.inputs import AnyBoxes, AnyMaps, AnyMasks
from attnviz.metrics.batching import VALUES_OF_MANY, batches, hide, joined
from attnviz.metrics.options import TOP, Options, Sign, Threshold, checked_options
from attnviz.metrics.reasons import Reason
from attnviz.metrics.registry import (
    DEFAULT,
    METRICS,
    check_axes,
    chosen_metrics,
    of_any_axes,
)
from attnviz.metrics.score_table import ScoreTable, in_words


def localization(
    maps: AnyMaps,
    masks: AnyMasks,
    metrics: Sequence[str] = DEFAULT,
    *,
    threshold: Threshold | None = None,
    k: int | float = TOP,
    tolerance: int | float = 0,
    sign: Sign = "positive",
    boxes: AnyBoxes | None = None,
) -> ScoreTable:
    """Scores of each map against its mask, by several metrics in one pass, one per image.

    Args:
        maps: Raw maps, (b, *places) such as (b, *places) or (b, d, h, w), float16 to float64,
            tensors on any device or arrays.
        masks: Where the object is, (b, *places), bool, on the same device.
        metrics: Keys of `METRICS`. By default those of the package; those that need a threshold
            are left out when there is none, and the boxes for maps of more than two place axes.
        threshold: τ for the metrics that need one, from `calibrate_threshold` on the validation
            split; one number, or one by key.
        k: For `topk_intersection`: an `int` count or a `float` share of the places.
        tolerance: For `pointing_game`: how far from the mask a maximum still counts, in pixels.
        sign: For the energy metrics: "positive", "abs" or "signed".
        boxes: For the box metrics: annotated boxes of each image, as in `max_box_acc`.

    Returns:
        A dict of key → (b,) float64 scores, on the device of the maps. NaN where an image cannot
        be scored; `.why(key)` gives the reason, `.summary()` means and counts.

    Raises:
        InputError: Wrong shapes, dtypes or devices, an unknown metric, a metric without its
            threshold, or an option out of range.

    Examples:
        >>> import torch
        >>> maps, masks = torch.rand(2, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool)
        >>> masks[0, 2:4, 2:4] = True
        >>> localization(maps, masks, ["pointing_game"]).why("pointing_game")
        [None, 'the mask is empty']
    """
    options = checked_options(threshold=threshold, k=k, tolerance=tolerance, sign=sign)
    keys = chosen_metrics(metrics, options)
    if metrics is DEFAULT:
        keys = of_any_axes(keys, maps)
    scores = compute_scores(maps, masks, keys, options, boxes=boxes)
    scores.masks = masks
    return scores


def compute_scores(
    maps: AnyMaps,
    masks: AnyMasks,
    keys: Iterable[str],
    options: Options,
    *,
    boxes: AnyBoxes | None = None,
) -> ScoreTable:
    """The scores of checked metrics under checked options."""
    parts: dict[str, list[Tensor]] = {key: [] for key in keys}
    check_axes([*parts], maps)
    flags: list[Tensor] = []
    order = sorted((METRICS[key] for key in parts), key=lambda metric: not metric.sorts)
    for batch in batches(maps, masks, at_once=VALUES_OF_MANY, boxes=boxes):
        flags.append(batch.flags)
        for metric in order:
            scores = metric.compute(batch, options)
            parts[metric.key].append(hide(scores, batch, metric.blocked_under(options)))
    return ScoreTable(
        {key: joined(scores, torch.float64) for key, scores in parts.items()},
        joined(flags, torch.int64),
        options,
    )


def reasons(maps: AnyMaps, masks: AnyMasks, metric: str | None = None) -> list[str | None]:
    """For each image why it cannot be scored, or None where it can.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).
        metric: Only what keeps this one from scoring; by default what keeps any from it.

    Returns:
        A list of b sentences or None, in the order of the images.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or an unknown metric.
    """
    if metric is not None and metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    flags = joined([batch.flags for batch in batches(maps, masks)], torch.int64)
    return in_words(
        flags, ~Reason(0) if metric is None else METRICS[metric].blocked_under(Options())
    )
