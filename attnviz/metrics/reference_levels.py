"""What a score is worth: chance, the centre of the image, and the best that the grid allows.

All three are computed for the very masks at hand, by the same metrics, because each depends on
the size and place of what is to be found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnviz.errors import InputError
from attnviz.inputs import AnyMasks, as_tensor, maps_with_masks
from attnviz.metrics.localization import compute_scores
from attnviz.metrics.registry import (
    DEFAULT,
    METRICS,
    Options,
    Threshold,
    checked_options,
    known_metrics,
)
from attnviz.metrics.thresholds import calibrate_all

_GRID = 20
"""Thresholds tried for the boxes: a baseline need not be known to the second digit."""

_SLOW = ("max_box_acc", "max_box_acc_v2")

_BY_CONSTANT = frozenset(
    {
        "pointing_game",
        "energy_pointing_game",
        "mass_lift",
        "relevance_rank_accuracy",
        "topk_intersection",
        "pixel_auroc",
        "pixel_ap",
        "sparseness",
        "complexity",
    }
)
"""Where ties score their expectation, a constant map has the chance level exactly."""


def baselines(
    masks: AnyMasks,
    grid: tuple[int, int] = (24, 24),
    metrics: Sequence[str] = DEFAULT,
    *,
    threshold: Threshold | None = None,
    draws: int = 4,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Chance, centre bias and the grid's ceiling of every metric, as means over these masks.

    - `chance`: what a map that knows nothing scores. Where ties score their expected value it is
      that of a constant map, exact. Elsewhere (`iou`, `iou_at_area`, `max_iou`, `oracle_iou`, the
      boxes) it is the mean over maps of uniform noise, drawn on the grid and upsampled bilinearly.
    - `centre`: a Gaussian in the middle of the image, σ a quarter of each side.
    - `ceiling`: the mask itself as the grid sees it: averaged over the cells (area pooling) and
      upsampled, by nearest or bilinear, whichever scores better. It is what an ideal map of this
      resolution reaches when it draws the whole mask; a map that lights one inner cell alone can
      have more energy inside. Its τ is calibrated on the ideal maps themselves. For `sparseness`
      and `complexity`, which know no mask, it is the ideal map's score, and no bound.

    Args:
        masks: Where the thing to be found is, (b, h, w), bool. Empty ones do not count.
        grid: Rows and columns of the maps before they were upsampled.
        metrics: Keys of `METRICS`; by default all, but without a threshold not the boxes, whose
            calibration takes as long as all the rest.
        threshold: τ for chance and centre, one number or one by key; without it each is given
            the τ that is best for it on these masks.
        draws: Noise maps per mask.
        seed: Of the noise.

    Returns:
        key → {"chance": …, "centre": …, "ceiling": …}.

    Raises:
        InputError: Wrong shape or dtype, no mask that is not empty, an unknown metric.
    """
    if len(grid) != 2 or min(grid) < 1:
        raise InputError(f"grid: expected rows and columns from 1, got {grid}")
    if draws < 1:
        raise InputError(f"draws: expected at least 1 noise map per mask, got {draws}")
    checked_options(threshold=threshold)
    keys, goals = known_metrics(metrics), _filled(masks)
    if metrics is DEFAULT and threshold is None:
        keys = tuple(key for key in keys if key not in _SLOW)
    exact = [key for key in keys if key in _BY_CONSTANT]
    drawn = [key for key in keys if key not in _BY_CONSTANT]
    chance = _means(goals.new_ones((), dtype=torch.float32).expand(goals.shape), goals, exact, None)
    noise = [
        _means(_noise(goals, grid, seed + draw), goals, drawn, threshold) for draw in range(draws)
    ]
    chance |= {key: sum(scores[key] for scores in noise) / draws for key in drawn}
    centre = _means(_centred(goals), goals, keys, threshold)
    cells = _pooled(goals, grid)
    near, smooth = (
        _means(_upsampled(cells, goals, mode), goals, keys, None)
        for mode in ("nearest", "bilinear")
    )
    best = {key: max if METRICS[key].better == "higher" else min for key in keys}
    return {
        key: {
            "chance": chance[key],
            "centre": centre[key],
            "ceiling": best[key](near[key], smooth[key]),
        }
        for key in keys
    }


def _means(
    maps: Tensor, masks: Tensor, keys: Sequence[str], threshold: Threshold | None
) -> dict[str, float]:
    """The mean of each metric, at the given thresholds or at those best for these very maps."""
    wanted = [key for key in keys if METRICS[key].thresholded]
    given = threshold if isinstance(threshold, Mapping) else dict.fromkeys(wanted, threshold)
    tau = {key: value for key, value in given.items() if value is not None}
    missing = [key for key in wanted if key not in tau]
    tau |= calibrate_all(maps, masks, missing, grid=_GRID)
    table = compute_scores(maps, masks, keys, Options(threshold=tau))
    return {key: float(scores.nanmean()) for key, scores in table.items()}


def _filled(masks: AnyMasks) -> Tensor:
    """The masks that are not empty, checked."""
    goals = as_tensor(masks, "masks")
    _, goals = maps_with_masks(torch.zeros(goals.shape, device=goals.device), goals)
    goals = goals[goals.flatten(1).any(1)]
    if not len(goals):
        raise InputError("baselines: expected at least one mask that is not empty, got none")
    return goals


def _noise(goals: Tensor, grid: tuple[int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
    cells = torch.rand(len(goals), *grid, generator=generator).to(goals.device)
    return _upsampled(cells, goals, "bilinear")


def _centred(goals: Tensor) -> Tensor:
    axes = []
    for size in goals.shape[1:]:
        place = torch.arange(size, dtype=torch.float32, device=goals.device) - (size - 1) / 2
        axes.append(torch.exp(-0.5 * (place / (size / 4)) ** 2))
    return torch.outer(*axes).expand(goals.shape)


def _pooled(goals: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(goals.float()[:, None], grid)[:, 0]


def _upsampled(cells: Tensor, goals: Tensor, mode: str) -> Tensor:
    return F.interpolate(cells[:, None], size=goals.shape[1:], mode=mode)[:, 0]
