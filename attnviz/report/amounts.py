"""How much a report shows, so that it stays one small file."""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 5_000_000
"""Bytes of a page at most."""


@dataclass(frozen=True)
class Amount:
    """How much is shown.

    Attributes:
        images: Images in the strip, and worst and best of each variant.
        variants: Variants of which pictures are shown, the best in rank.
        runs: Runs that are listed.
        side: Longer side of a picture, in pixels.
        quality: Quality of a picture, from 1 to 100.
    """

    images: int = 4
    variants: int = 15
    runs: int = 1000
    side: int = 256
    quality: int = 88


AMOUNTS = (
    Amount(),
    Amount(images=3, variants=10, runs=500, side=192, quality=80),
    Amount(images=2, variants=6, runs=200, side=160, quality=70),
    Amount(images=1, variants=3, runs=100, side=128, quality=60),
)
"""From much to little: the first whose page fits is written."""
