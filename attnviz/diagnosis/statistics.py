"""Intervals over independent images."""

from __future__ import annotations

from scipy.special import stdtrit
from torch import Tensor

_LEVEL = 0.05


def interval(values: Tensor, *, maps: int = 1) -> tuple[float, float, float]:
    """Mean and 95 % interval of Student's t, which ends at 0.

    Args:
        values: One per independent image, two or more.
        maps: Number of maps of which one is chosen; the level is divided by it.
    """
    n = len(values)
    mean = float(values.double().mean())
    quantile = float(stdtrit(n - 1, 1 - _LEVEL / maps / 2))
    half = quantile * float(values.double().std()) / n**0.5
    return mean, max(0.0, mean - half), mean + half
