"""IoU of a map at every threshold, in numpy, as the gallery computes it in the browser.

The same steps as `attnviz.metrics.iou`: the map at the image's size by bilinear interpolation with
half-pixel centres, scaled from its least to its greatest value, then cut at τ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attnviz.figures import resized


def stretched(maps: np.ndarray) -> np.ndarray:
    """Each map scaled to 0 … 1; NaN throughout where it is constant or not finite."""
    flat = maps.reshape(len(maps), -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    span = np.where(np.isfinite(high - low) & (high > low), high - low, np.nan)
    return ((flat - low[:, None]) / span[:, None]).reshape(maps.shape)


def iou_curves(maps: np.ndarray, masks: np.ndarray, steps: int = 50) -> np.ndarray:
    """IoU at τ = 0, 1/steps … 1 of each map, `(n, steps + 1)`; NaN where there is none.

    Args:
        maps: `(n, h, w)`, at any resolution.
        masks: `(n, H, W)` bool, at the images' size.
        steps: How many steps τ takes from 0 to 1.
    """
    n, height, width = masks.shape
    values = stretched(resized(maps.astype(np.float32), (height, width))).reshape(n, -1)
    truth = masks.reshape(n, -1)
    good = np.isfinite(values).all(axis=1) & truth.any(axis=1)
    thresholds = np.linspace(0, 1, steps + 1, dtype=np.float32)
    curves = np.full((n, steps + 1), np.nan)
    for i in np.flatnonzero(good):
        # a pixel counts at every threshold up to its own value
        reached = np.searchsorted(thresholds, values[i], side="right")
        hot = _at_least(reached, steps)
        both = _at_least(reached[truth[i]], steps)
        curves[i] = both / (hot + truth[i].sum() - both)
    return curves


def _at_least(reached: np.ndarray, steps: int) -> np.ndarray:
    """How many pixels reach each threshold."""
    counts = np.bincount(reached, minlength=steps + 2)
    return counts[::-1].cumsum()[::-1][1:].astype(float)


def energy(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of each map's positive mass inside its mask, `(n,)`; NaN without either."""
    large = np.maximum(resized(maps.astype(np.float32), masks.shape[1:]), 0)
    total = large.sum(axis=(1, 2))
    inside = (large * masks).sum(axis=(1, 2))
    good = (total > 0) & np.isfinite(total) & masks.any(axis=(1, 2))
    return np.divide(inside, total, out=np.full(len(maps), np.nan), where=good)


def on_one_grid(maps: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """A blank map, for the image itself, then the maps: on their grid, or on the image's.

    The browser enlarges them, so maps of one grid travel as they are; those of several grids are
    brought to the image's size.

    Args:
        maps: Maps `(h, w)`.
        size: The image's height and width.
    """
    grids = {one.shape for one in maps}
    h, w = grids.pop() if len(grids) == 1 else size
    return np.stack([np.zeros((h, w), np.float32), *(resized(one, (h, w)) for one in maps)])
