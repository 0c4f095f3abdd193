"""Reasons for missing scores, as flags.

A score is NaN exactly where a flag of its metric is set, and the flag gives the reason.
"""

from __future__ import annotations

from enum import IntFlag


class Reason(IntFlag):
    """Why an image cannot be scored. Several may hold at once."""

    EMPTY_MASK = 1
    FULL_MASK = 2
    NAN = 4
    INF = 8
    CONSTANT = 16
    NO_POSITIVE = 32
    ALL_ZERO = 64

    @property
    def words(self) -> str:
        """The reasons in words, joined by a semicolon."""
        return "; ".join(_WORDS[flag] for flag in self)


_WORDS = {
    Reason.EMPTY_MASK: "the mask is empty",
    Reason.FULL_MASK: "the mask is full",
    Reason.NAN: "the map holds NaN",
    Reason.INF: "the map holds Inf",
    Reason.CONSTANT: "the map is constant",
    Reason.NO_POSITIVE: "the map has no positive value",
    Reason.ALL_ZERO: "the map is zero everywhere",
}

UNFIT = Reason.NAN | Reason.INF
"""A map that no metric can score."""

UNSCORABLE = UNFIT | Reason.EMPTY_MASK
"""What no comparison of a map with a mask can score."""
