"""Bimodal trainings, such as those that learned and those that failed.

Student's t does not apply to scores with two modes: three trainings that all failed are as close
together as three that all learned. So each variant is tested for two kinds, and where any variant
has two, differences must also be significant by ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from attnviz.statistics.variance import Array, Sample


@dataclass(frozen=True)
class Kinds:
    """Trainings that fall into two kinds, such as those that learned and those that failed.

    Attributes:
        low: The lower kind's scores, ascending.
        high: The higher kind's scores, ascending.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]


_WIDEST = {3: 0.970, 4: 0.851, 5: 0.743, 6: 0.660, 7: 0.599, 8: 0.552, 9: 0.514, 10: 0.484}
_NOISE = 6.0


def two_kinds(sample: Sample) -> Kinds | None:
    """The two kinds that trainings fall into, or None where a normal distribution fits.

    They do where the widest gap between neighbouring seeds takes more of their range than in 95 %
    of normal samples (for three seeds Dixon's test of 1950; for more by simulation), and is wider
    than six standard errors that the choice of images gives to one seed.
    """
    order, count = np.sort(sample.means), len(sample.means)
    if count < 3:
        return None
    gaps = np.diff(order)
    widest = int(gaps.argmax())
    usual = _WIDEST[min(count, max(_WIDEST))] * (order[-1] - order[0])
    if gaps[widest] <= max(usual, _NOISE * math.sqrt(sample.overlap * count)):
        return None
    low, high = order[: widest + 1], order[widest + 1 :]
    return Kinds(tuple(low.tolist()), tuple(high.tolist()))


def rank_sum(one: Array, other: Array) -> float:
    """Two-sided exact p of the rank-sum test (Mann and Whitney 1947) of two sets of trainings.

    Args:
        one: Scores of one variant's trainings.
        other: Scores of the other's; a tie counts half.
    """
    wins = float((one[:, None] > other).sum() + 0.5 * (one[:, None] == other).sum())
    counts = _ways(len(one), len(other))
    fewer = math.floor(min(wins, len(one) * len(other) - wins))
    return min(1.0, 2 * sum(counts[: fewer + 1]) / sum(counts))


@cache
def _ways(one: int, other: int) -> tuple[int, ...]:
    """In how many orders of `one` and `other` scores so many comparisons are won, from none on."""
    if not one or not other:
        return (1,)
    # The greatest score is one of the first, which wins against all of the second, or of these.
    wins = (0,) * other + _ways(one - 1, other)
    loses = _ways(one, other - 1)
    length = one * other + 1
    return tuple(
        (wins[i] if i < len(wins) else 0) + (loses[i] if i < len(loses) else 0)
        for i in range(length)
    )
