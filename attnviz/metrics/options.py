"""Options of the localisation metrics, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, TypeAlias, get_args

from attnviz.definitions import DEFINITIONS
from attnviz.errors import InputError, unknown_name

Threshold: TypeAlias = int | float | Mapping[str, int | float]
"""One τ for every metric that needs one, or one by the metric's key."""

Sign: TypeAlias = Literal["positive", "abs", "signed"]
"""Which values carry mass: those above zero, all by size, or all as they are."""

TOP = 0.01
"""The default share of places that `topk_intersection` counts."""


@dataclass(frozen=True)
class Options:
    """Options of the metrics, with their defaults.

    Attributes:
        threshold: One τ for all metrics that need one, or one by metric.
        k: For `topk_intersection`: a count or a share of the places.
        tolerance: For `pointing_game`: the largest distance of a hit from the mask, in pixels.
        sign: For the energy metrics: which values carry mass.
    """

    threshold: Threshold | None = None
    k: int | float = TOP
    tolerance: int | float = 0
    sign: Sign = "positive"

    def tau(self, key: str) -> float:
        """The threshold of one metric, or an `InputError` that names how to get one."""
        tau = self.threshold.get(key) if isinstance(self.threshold, Mapping) else self.threshold
        if tau is None:
            raise InputError(
                f"{key}: expected a threshold, got none; find one on the validation split with "
                "calibrate_threshold(maps, masks)"
            )
        check_threshold(tau)
        return float(tau)

    def has_tau(self, key: str) -> bool:
        """Whether a threshold is given for a metric."""
        given = self.threshold
        return key in given if isinstance(given, Mapping) else given is not None


def checked_options(
    *,
    threshold: Threshold | None = None,
    k: int | float = TOP,
    tolerance: int | float = 0,
    sign: Sign = "positive",
) -> Options:
    """Options in range.

    Raises:
        InputError: k, tolerance or sign out of range; a threshold for a metric that needs none.
    """
    check_k(k)
    check_tolerance(tolerance)
    check_sign(sign)
    for key in threshold if isinstance(threshold, Mapping) else ():
        if key not in DEFINITIONS or not DEFINITIONS[key].threshold:
            known = [key for key, one in DEFINITIONS.items() if one.threshold]
            raise unknown_name("thresholded metric", key, known)
    return Options(threshold=threshold, k=k, tolerance=tolerance, sign=sign)


def check_k(k: int | float) -> None:
    """Raise an `InputError` unless k is a count from 1 or a share in (0, 1]."""
    number = isinstance(k, Real) and not isinstance(k, bool)  # numpy's numbers too
    if not number or not (k >= 1 if isinstance(k, Integral) else 0 < k <= 1):
        raise InputError(f"k: expected an int from 1, or a float share in (0, 1], got {k!r}")


def check_tolerance(tolerance: int | float) -> None:
    """Raise an `InputError` unless the tolerance is a finite distance."""
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance: expected a distance in pixels of at least 0, got {tolerance}")


def check_sign(sign: str) -> None:
    """Raise an `InputError` for an unknown sign."""
    if sign not in get_args(Sign):
        raise unknown_name("sign", sign, get_args(Sign))


def check_threshold(threshold: int | float) -> None:
    """Raise an `InputError` unless the threshold lies in [0, 1]."""
    if not 0 <= threshold <= 1:
        raise InputError(
            f"threshold: expected a number from 0 to 1, got {threshold}; "
            "maps are min-max scaled before it is applied"
        )


def count_of(k: int | float, pixels: int) -> int:
    """The number of places that k stands for in maps of this many, or an `InputError`."""
    if isinstance(k, Integral):
        if k > pixels:
            raise InputError(f"k: expected at most the {pixels} places of a map, got {k}")
        return int(k)
    return max(1, round(float(k) * pixels))
