"""The explorer component: one dot per image, two histograms, and a brush over any of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnviz.figures.packing import pack_points
from dashboard.components import component, number

_explorer = component(__file__, "explorer")

Span = tuple[float, float] | None


def explorer(
    x: np.ndarray,
    y: np.ndarray,
    wrong: np.ndarray,
    *,
    names: tuple[str, str],
    brush: tuple[Span, Span],
    label: str,
    key: str,
) -> tuple[Span, Span] | None:
    """Show the dots; what the reader brushed just now, or None.

    Args:
        x: Along, one value per image.
        y: Up, one value per image.
        wrong: Whether the image was answered wrongly.
        names: What the two are.
        brush: The ranges that are chosen, None for all.
        label: The dots in words, with their number.
        key: The component's own key on the page.
    """
    block = pack_points(x, y, wrong, names=names, brush=brush, label=label)
    sent = _explorer(data=block, key=key, on_brushed_change=lambda: None).brushed
    if not isinstance(sent, dict):
        return None
    return _span(sent.get("x")), _span(sent.get("y"))


def _span(sent: Any) -> Span:
    """A range that a browser sent; None where it is none."""
    if not isinstance(sent, list) or len(sent) != 2:
        return None
    ends = [end for end in map(number, sent) if end is not None]
    return (min(ends), max(ends)) if len(ends) == 2 else None
