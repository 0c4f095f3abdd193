"""Reference levels of a score: chance, maps that ignore the image, the mask redrawn, the bound.

All are computed for the given masks, by the same metrics, because each depends on the size and
place of the object. Their names and meanings are in `attnviz.definitions.LEVELS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from attnviz.definitions import is_localization, is_lower_better
from attnviz.errors import InputError, unknown_name
from attnviz.inputs import AnyMasks, as_tensor, maps_with_masks
from attnviz.metrics.batching import score
from attnviz.metrics.counted import BOXES, counted_scores, counted_thresholds, refuse_boxes
from attnviz.metrics.localization import compute_scores
from attnviz.metrics.options import Options, Threshold, checked_options
from attnviz.metrics.reasons import Reason
from attnviz.metrics.registry import (
    DEFAULT,
    METRICS,
    Metric,
    known_metrics,
    of_any_axes,
)
from attnviz.metrics.thresholds import calibrate_all

_GRID = 20
"""Thresholds tried for the boxes: a coarse grid suffices for a baseline."""

LEVELS = ("chance", "centre", "fixed", "redrawn", "bound")
"""The levels in the order in which they are given."""

_SMOOTH = {2: "bilinear", 3: "trilinear"}
"""Interpolation by the number of place axes."""


def baselines(
    masks: AnyMasks,
    grid: Sequence[int] = (24, 24),
    metrics: Sequence[str] = DEFAULT,
    *,
    threshold: Threshold | None = None,
    calibration: Bool[Tensor, "n *places"] | Bool[np.ndarray, "n *places"] | None = None,
    draws: int = 4,
    seed: int = 0,
    levels: Sequence[str] = LEVELS,
    ignore: AnyMasks | None = None,
) -> dict[str, dict[str, float]]:
    """Reference levels of every metric, as means over these masks.

    - `chance`: a map without information. Where ties score their expected value it is the score of
      a constant map, exact. Elsewhere (`iou`, `iou_at_area`, `max_iou`, `oracle_iou`, the boxes)
      it is the mean over maps of uniform noise, drawn on the grid and upsampled linearly.
    - `centre`: a Gaussian in the centre of the image, σ a quarter of each side. A convention, not
      the best map that ignores the image.
    - `fixed`, with `calibration`: one map for all images, made of the calibration masks Gᵢ. With
      f = Σ wᵢ Gᵢ it is f itself, and for the energy metrics 1 where f is largest and 0 elsewhere.
      wᵢ is 1, but 1/|Gᵢ| for `mass_lift` and `relevance_rank_accuracy`, and 1/(|Gᵢ| (D − |Gᵢ|))
      for `pixel_auroc`. No map that ignores the image has a better mean on the calibration masks
      by `pointing_game`, the energy metrics, `topk_intersection` and `pixel_auroc`, nor, where
      all masks are of one size, by `relevance_rank_accuracy`; for AP, IoU and the boxes it is a
      good map, not proven best. Its τ is calibrated on the calibration masks. Not for metrics
      that use no mask.
    - `redrawn`: the mask itself, redrawn on the grid: averaged over the cells (area pooling) and
      upsampled, by nearest or linear, whichever scores better, at the τ that is best for it.
      **No upper bound**: a map that lights one cell inside the mask has more energy there.
    - `bound`: the best score that any map can reach, where it is known: 1 for shares, AUROC, AP
      and IoU, the mean of D/|G| for `mass_lift`, of min(1, |G|/k) for `topk_intersection` (at its
      default k).

    Args:
        masks: Where the object is, (b, h, w) or (b, d, h, w), bool. Empty ones do not count.
        grid: The size of the maps before they were upsampled, one number for each place axis.
        metrics: Keys of `METRICS`; by default those of the package, but without a threshold not the
            boxes, whose calibration takes as long as all the rest, and for volumes never the boxes.
        threshold: τ for chance and centre, one number or one by key; without it each is given
            the τ that is best for it on these masks.
        calibration: The masks of the calibration split, (n, *places), bool; never those of `masks`.
        draws: Noise maps per mask.
        seed: Of the noise.
        levels: Which of these levels; of them only chance and centre depend on `threshold`.
        ignore: (b, h, w) or (b, d, h, w), bool: pixels that count neither as inside nor as outside,
            in no level. Not for the boxes.

    Returns:
        key → {"chance": …, "centre": …, "redrawn": …}, and "fixed" and "bound" where they are
        known.

    Raises:
        InputError: Wrong shape or dtype, no mask that is not empty, an unknown metric,
            metrics of boxes where pixels are ignored.
    """
    checked_options(threshold=threshold)
    keys, (goals, without) = known_metrics(metrics), _counted(masks, ignore)
    _check_grid(grid, goals)
    if draws < 1:
        raise InputError(f"draws: expected at least 1 noise map per mask, got {draws}")
    if metrics is DEFAULT:
        keys = of_any_axes(keys, goals)
    if metrics is DEFAULT and threshold is None:
        keys = tuple(key for key in keys if key not in BOXES)
    if without is not None:
        refuse_boxes(keys)
    for level in levels:
        if level not in LEVELS:
            raise unknown_name("level", level, LEVELS)
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "chance": lambda: _chance(goals, grid, keys, threshold, draws, seed, without),
        "centre": lambda: _means(_centred(goals), goals, keys, threshold, without),
        "fixed": lambda: (
            {} if calibration is None else _fixed(goals, _filled(calibration), keys, without)
        ),
        "redrawn": lambda: _redrawn(goals, grid, keys, without),
        "bound": lambda: {
            key: bound for key in keys if (bound := _bound(goals, key, without)) is not None
        },
    }
    found = {level: way() for level, way in ways.items() if level in levels}
    return {
        key: {level: scores[key] for level, scores in found.items() if key in scores}
        for key in keys
    }


def _redrawn(
    goals: Tensor, grid: Sequence[int], keys: Sequence[str], ignore: Tensor | None
) -> dict[str, float]:
    """The scores of the masks averaged over cells and upsampled, the better of two ways."""
    cells = _pooled(goals, grid)
    near, smooth = (
        _means(_upsampled(cells, goals, mode), goals, keys, None, ignore)
        for mode in ("nearest", _SMOOTH[len(grid)])
    )
    return {key: (min if is_lower_better(key) else max)(near[key], smooth[key]) for key in keys}


def _check_grid(grid: Sequence[int], goals: Tensor) -> None:
    axes = goals.ndim - 1
    if len(grid) != axes or min(grid) < 1:
        raise InputError(
            f"grid: expected {axes} sizes from 1, one for each place axis of the masks, got {grid}"
        )
    if axes not in _SMOOTH:
        raise InputError(f"masks: expected 2 or 3 place axes to redraw on a grid, got {axes}")


def _chance(
    goals: Tensor,
    grid: Sequence[int],
    keys: Sequence[str],
    threshold: Threshold | None,
    draws: int,
    seed: int,
    ignore: Tensor | None,
) -> dict[str, float]:
    """A constant map's scores where ties are fair, else the mean over maps of noise."""
    exact = [key for key in keys if METRICS[key].fair]
    drawn = [key for key in keys if not METRICS[key].fair]
    constant = goals.new_ones((), dtype=torch.float32).expand(goals.shape)
    chance = _means(constant, goals, exact, None, ignore)
    noise = [
        _means(_noise(goals, grid, seed + draw), goals, drawn, threshold, ignore)
        for draw in range(draws)
    ]
    return chance | {key: sum(scores[key] for scores in noise) / draws for key in drawn}


def _fixed(
    goals: Tensor, calibration: Tensor, keys: Sequence[str], ignore: Tensor | None
) -> dict[str, float]:
    """The scores of the map that is best for the calibration masks, whatever the image."""
    if calibration.shape[1:] != goals.shape[1:]:
        raise InputError(
            f"calibration: expected masks of {tuple(goals.shape[1:])} places as in masks, got "
            f"{tuple(calibration.shape[1:])}"
        )
    alike: dict[tuple[Any, bool], list[str]] = {}  # metrics with the same best map
    for key in filter(is_localization, keys):
        alike.setdefault((METRICS[key].weight, METRICS[key].peak), []).append(key)
    found: dict[str, float] = {}
    for group in alike.values():
        best = _best_fixed_map(calibration, METRICS[group[0]])
        tau = calibrate_all(best.expand(calibration.shape), calibration, _thresholded(group))
        found |= _means(best.expand(goals.shape), goals, group, tau, ignore)
    return {key: found[key] for key in keys if key in found}


def _best_fixed_map(calibration: Tensor, metric: Metric) -> Tensor:
    """The weighted sum of the calibration masks, or where it is largest; (*places) float64."""
    area = calibration.flatten(1).sum(1).double()
    weigh = metric.weight or (lambda area, _: torch.ones_like(area))
    weights = weigh(area, calibration[0].numel())
    total = torch.einsum("b,b...->...", weights, calibration.double())
    return (total == total.max()).double() if metric.peak else total


def _bound(goals: Tensor, key: str, ignore: Tensor | None) -> float | None:
    """The mean over masks of the best score that any map can reach; None where it is not known."""
    metric = METRICS[key]
    if metric.bound is not None:
        parts = (
            [goals]
            if ignore is None
            else [goal[~out][None, None] for goal, out in zip(goals, ignore, strict=True)]
        )
        bounds = [score(p.double(), p, metric.bound, blocked=Reason.EMPTY_MASK) for p in parts]
        return float(torch.cat(bounds).mean())
    bound = metric.definition.bound
    return bound if isinstance(bound, float) else None


def _thresholded(keys: Sequence[str]) -> list[str]:
    return [key for key in keys if METRICS[key].thresholded]


def _means(
    maps: Tensor,
    masks: Tensor,
    keys: Sequence[str],
    threshold: Threshold | None,
    ignore: Tensor | None,
) -> dict[str, float]:
    """The mean of each metric, at the given thresholds or at those best for these very maps."""
    wanted = _thresholded(keys)
    given = threshold if isinstance(threshold, Mapping) else dict.fromkeys(wanted, threshold)
    tau = {key: value for key, value in given.items() if value is not None}
    missing = [key for key in wanted if key not in tau]
    table: Mapping[str, Tensor]
    if ignore is None:
        tau |= calibrate_all(maps, masks, missing, grid=_GRID)
        table = compute_scores(maps, masks, keys, Options(threshold=tau))
    else:
        tau |= counted_thresholds(maps, masks, ignore, missing, grid=_GRID)
        table = counted_scores(maps, masks, ignore, keys, tau)
    return {key: float(scores.nanmean()) for key, scores in table.items()}


def _counted(masks: AnyMasks, ignore: AnyMasks | None) -> tuple[Tensor, Tensor | None]:
    """The masks that are not empty where pixels count, and which pixels do not; None for all."""
    if ignore is None:
        return _filled(masks), None
    goals, without = as_tensor(masks, "masks"), as_tensor(ignore, "ignore")
    if without.shape != goals.shape or without.dtype != torch.bool:
        raise InputError(
            f"ignore: expected bool {tuple(goals.shape)} as the masks, got {without.dtype} "
            f"{tuple(without.shape)}"
        )
    goals = goals & ~without
    filled = goals.flatten(1).any(1)
    return _filled(goals), without[filled]


def _filled(masks: AnyMasks) -> Tensor:
    """The masks that are not empty, checked."""
    goals = as_tensor(masks, "masks")
    _, goals = maps_with_masks(torch.zeros(goals.shape, device=goals.device), goals)
    goals = goals[goals.flatten(1).any(1)]
    if not len(goals):
        raise InputError("baselines: expected at least one mask that is not empty, got none")
    return goals


def _noise(goals: Tensor, grid: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
    cells = torch.rand(len(goals), *grid, generator=generator).to(goals.device)
    return _upsampled(cells, goals, _SMOOTH[len(grid)])


def _centred(goals: Tensor) -> Tensor:
    axes = []
    for size in goals.shape[1:]:
        place = torch.arange(size, dtype=torch.float32, device=goals.device) - (size - 1) / 2
        axes.append(torch.exp(-0.5 * (place / (size / 4)) ** 2))
    return reduce(torch.Tensor.mul, torch.meshgrid(*axes, indexing="ij")).expand(goals.shape)


def _pooled(goals: Tensor, grid: Sequence[int]) -> Tensor:
    pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    return pool(goals.float()[:, None], tuple(grid))[:, 0]


def _upsampled(cells: Tensor, goals: Tensor, mode: str) -> Tensor:
    return F.interpolate(cells[:, None], size=goals.shape[1:], mode=mode)[:, 0]
