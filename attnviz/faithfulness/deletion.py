"""Deletion and insertion: the confidence as places are removed, or appear, in the map's order.

With a faithful map the confidence drops early when the highest places are removed first. Scores
depend on the baseline, so it is an argument with a name: against black a white patch vanishes,
against white only its surroundings do.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attnviz.baseline_images import Blank, ValueRange, blank_like
from attnviz.definitions import DEFINITIONS
from attnviz.errors import InputError
from attnviz.faithfulness.confidence import ROWS, Output, confidence_of, fitting
from attnviz.faithfulness.registry import metric
from attnviz.inputs import AnyMaps, maps_of_images
from attnviz.shapes import Images, Maps, Scores
from attnviz.targets import Target


def removal_order(maps: Maps, *, seed: int = 0) -> Int[Tensor, "b places"]:
    """Each map's places from highest to lowest.

    Tied places come in a random order that is the same for every image: in reading order a
    constant map would sweep the image from its upper left corner.
    """
    flat = maps.detach().flatten(1).cpu()
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    ranked = flat[:, shuffled].argsort(stable=True, dim=1, descending=True)
    return shuffled[ranked].to(maps.device)


def removal_curve(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    *,
    insert: bool = False,
    target: Target = None,
    baseline: Blank = "black",
    value_range: ValueRange = (-1.0, 1.0),
    steps: int = 32,
    output: Output = "probability",
    rows: int = ROWS,
    seed: int = 0,
) -> Float[Tensor, "b points"]:
    """The confidence as the highest places are blanked, or as they appear on a blank image.

    Arguments that are not listed are those of `faithfulness_scores`.

    Args:
        insert: Begin with the baseline image and let the highest places appear.

    Returns:
        `(b, steps + 1)` float32: confidence at `0, 1/steps, … 1` of the places, each rounded to
        whole places, both ends included. NaN for a map that is not finite.

    Raises:
        InputError: Maps that do not fit, more steps than places, several outputs and no target.
    """
    maps = maps_of_images(images, maps)
    places = maps[0].numel() if len(maps) else steps
    if not 1 <= steps <= places:
        raise InputError(f"steps: expected 1 to {places} (the places of a map), got {steps}")
    with confidence_of(model, target, output, rows) as confidence:
        blank = blank_like(images, baseline, value_range=value_range)
        order = removal_order(maps, seed=seed)
        hidden = _hidden(order, images, steps)
        start, end = (blank, images) if insert else (images, blank)
        curve = confidence.of_versions(torch.where(h[:, None], end, start) for h in hidden)
    return curve.T.float().masked_fill(~fitting(maps)[:, None], torch.nan)


def _hidden(order: Tensor, images: Images, steps: int) -> Iterator[Bool[Tensor, "b h w"]]:
    """The masks of the highest places, one step after the other."""
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    rank = rank.reshape(len(images), *images.shape[-2:])
    for count in _counts(order.shape[1], steps):
        yield rank < count


def _counts(places: int, steps: int) -> list[int]:
    """How many places are gone after each step."""
    return [round(step * places / steps) for step in range(steps + 1)]


def _area(curve: Float[Tensor, "b points"], images: Images) -> Scores:
    """The trapezoid of a curve against the share of the places that are gone, `(b,)`."""
    places = images.shape[-2] * images.shape[-1]
    share = torch.tensor(_counts(places, curve.shape[1] - 1), device=curve.device) / places
    return torch.trapezoid(curve, share, dim=1)


@metric(DEFINITIONS["deletion_auc"])
def deletion_auc(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    *,
    target: Target = None,
    baseline: Blank = "black",
    value_range: ValueRange = (-1.0, 1.0),
    steps: int = 32,
    output: Output = "probability",
    rows: int = ROWS,
    seed: int = 0,
) -> Scores:
    """How much confidence is left, on average, while the highest places are removed; lower ↓.

    The trapezoid of the confidence against the removed fraction, both ends included (Petsiuk et
    al. 2018, RISE, section 4.2).

    The arguments are those of `faithfulness_scores`.

    Returns:
        `(b,)`, 0 to 1 for probabilities; NaN for a map that is not finite.

    Raises:
        InputError: As `removal_curve`.
    """
    curve = removal_curve(
        model, images, maps, target=target, baseline=baseline, value_range=value_range,
        steps=steps, output=output, rows=rows, seed=seed,
    )  # fmt: skip
    return _area(curve, images)


@metric(DEFINITIONS["insertion_auc"])
def insertion_auc(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    *,
    target: Target = None,
    baseline: Blank = "black",
    value_range: ValueRange = (-1.0, 1.0),
    steps: int = 32,
    output: Output = "probability",
    rows: int = ROWS,
    seed: int = 0,
) -> Scores:
    """How much confidence there is, on average, while the highest places appear; higher ↑.

    The trapezoid of the confidence against the inserted fraction, both ends included (Petsiuk et
    al. 2018, RISE, section 4.2, who insert into a blurred image).

    Arguments that are not listed are those of `faithfulness_scores`.

    Args:
        baseline: The image that places are inserted into.

    Returns:
        `(b,)`, 0 to 1 for probabilities; NaN for a map that is not finite.

    Raises:
        InputError: As `removal_curve`.
    """
    curve = removal_curve(
        model, images, maps, insert=True, target=target, baseline=baseline,
        value_range=value_range, steps=steps, output=output, rows=rows, seed=seed,
    )  # fmt: skip
    return _area(curve, images)
