"""Average drop and increase: the confidence on an image masked by its map."""

from __future__ import annotations

import torch
from torch import nn

from attnviz.baseline_images import Blank, ValueRange, blank_like
from attnviz.definitions import DEFINITIONS
from attnviz.faithfulness.confidence import ROWS, Output, confidence_of, fitting
from attnviz.faithfulness.registry import metric
from attnviz.inputs import AnyMaps, maps_of_images
from attnviz.shapes import Images, Scores
from attnviz.targets import Target


@metric(DEFINITIONS["avg_drop"])
def avg_drop(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    *,
    target: Target = None,
    baseline: Blank = "black",
    value_range: ValueRange = (-1.0, 1.0),
    output: Output = "probability",
    rows: int = ROWS,
) -> Scores:
    """Which share of the confidence is lost when only what the map shows is kept; lower ↓.

    `max(0, y − o) / y`, with `y` the confidence on the image and `o` on `m·x + (1 − m)·baseline`,
    `m` the map scaled from its minimum to its maximum to 0 … 1 (Chattopadhay et al. 2018).

    The arguments are those of `faithfulness_scores`.

    Returns:
        `(b,)`, 0 to 1 for probabilities, per image: the paper's value is their mean in percent.
        NaN for a map that is constant or not finite, and where `y` is not positive.

    Raises:
        InputError: Maps that do not fit, several outputs and no target.
    """
    whole, kept = _confidences(model, images, maps, target, baseline, value_range, output, rows)
    return ((whole - kept).clamp(min=0) / whole).masked_fill(~(whole > 0), torch.nan).float()


@metric(DEFINITIONS["increase_in_confidence"])
def increase_in_confidence(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    *,
    target: Target = None,
    baseline: Blank = "black",
    value_range: ValueRange = (-1.0, 1.0),
    output: Output = "probability",
    rows: int = ROWS,
) -> Scores:
    """Whether the model is surer when only what the map shows is kept; higher ↑.

    `1[o > y]`, with `y` and `o` as in `avg_drop` (Chattopadhay et al. 2018).

    The arguments are those of `faithfulness_scores`.

    Returns:
        `(b,)`, 0 or 1 per image: the paper's value is their mean in percent. NaN for a map that is
        constant or not finite.

    Raises:
        InputError: As `avg_drop`.
    """
    whole, kept = _confidences(model, images, maps, target, baseline, value_range, output, rows)
    return (kept > whole).float().masked_fill(kept.isnan() | whole.isnan(), torch.nan)


def _confidences(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    target: Target,
    baseline: Blank,
    value_range: ValueRange,
    output: Output,
    rows: int,
) -> tuple[Scores, Scores]:
    """On the whole image, and on what the map lets through (NaN where it cannot be scaled)."""
    maps = maps_of_images(images, maps).double()
    low, high = (m[:, None, None] for m in maps.flatten(1).aminmax(dim=1)) if len(maps) else (0, 1)
    with confidence_of(model, target, output, rows) as confidence:
        blank = blank_like(images, baseline, value_range=value_range)
        share = ((maps - low) / (high - low))[:, None]
        usable = fitting(share)
        share = share.nan_to_num(0.0, 0.0, 0.0).to(images)
        whole = confidence.of(images)
        kept = confidence.of(share * images + (1 - share) * blank)
    return whole, kept.masked_fill(~usable, torch.nan)
