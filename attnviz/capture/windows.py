"""Windows: where the tokens of windowed attention lie on the image.

A model cuts windows by a copy from `(b, rows, columns, h, w, c)`, six axes in another order than
they lie in memory. Their strides determine exactly where each place goes; a roll or a padding just
before it is remembered with the tensor. No architecture needs to be known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnviz.capture.provenance import Tag
from attnviz.capture.record import Grid, Windows

_KEPT = 8


@dataclass(frozen=True, slots=True)
class Move:
    """What was done to a feature map before it was cut: a roll, then a padding, or reversed.

    Attributes:
        shift: By how much it was rolled, rows and columns; as `torch.roll` counts.
        grid: Its size before it was padded, None if it was not.
        rolled_first: Whether the roll came before the padding.
    """

    shift: Grid = (0, 0)
    grid: Grid | None = None
    rolled_first: bool = False


class Cuts:
    """The last few cuts into windows, by the shape of attention over them."""

    def __init__(self) -> None:
        self._cuts: dict[tuple[int, int, Any], Windows] = {}
        self._known: dict[Any, Windows] = {}

    def find(self, batch: int, tokens: int) -> Windows | None:
        """The latest cut into so many windows, all images together, of so many tokens."""
        found = (cut for key, cut in reversed(self._cuts.items()) if key[:2] == (batch, tokens))
        return next(found, None)

    def holding(self, cells: Sequence[int], count: int) -> Windows | None:
        """The cut into so many windows whose tokens have these cells of one image.

        Class and register tokens may have joined the tokens of each window, before them.
        """
        given = torch.tensor(cells).view(count, -1)
        for windows in reversed(self._cuts.values()):
            size = windows.cells.shape[1]
            own = given[:, given.shape[1] - size :]
            if windows.count == count and torch.equal(own, windows.cells) and (
                bool((given[:, : given.shape[1] - size] < 0).all())
            ):  # fmt: skip
                return windows
        return None

    def cut(self, source: Tensor, out: Tensor, tag: Tag | None) -> None:
        """Remember a copy whose axes are (b, rows, columns, h, w, c)."""
        b, rows, columns, h, w, _ = source.shape
        if not out.is_contiguous() or source.stride() == out.stride() or 0 in source.stride():
            return
        move = tag.extra if tag is not None and tag.kind == "moved" else Move()
        known = (source.shape[1:], source.stride()[1:], move)
        windows = self._known.get(known)
        if windows is None:
            windows = _windows(source, move)
            if windows is None:
                return
            self._known[known] = windows
        key = (b * rows * columns, h * w, known)
        self._cuts.pop(key, None)
        self._cuts[key] = windows
        if len(self._cuts) > _KEPT:
            del self._cuts[next(iter(self._cuts))]


def _windows(source: Tensor, move: Move) -> Windows | None:
    sizes, steps = source.shape[1:5], source.stride()[1:5]
    rows, columns, h, w = sizes
    height, width = rows * h, columns * w
    unit = min((step for step, n in zip(steps, sizes, strict=True) if n > 1), default=1)
    axes = [torch.arange(n) * (step // unit) for n, step in zip(sizes, steps, strict=True)]
    cells = (
        axes[0][:, None, None, None]
        + axes[1][None, :, None, None]
        + axes[2][None, None, :, None]
        + axes[3][None, None, None, :]
    ).reshape(rows * columns, h * w)
    if int(cells.max()) != height * width - 1 or cells.unique().numel() != height * width:
        return None
    cells, grid = _undo(cells, (height, width), move)
    shift = (-move.shift[0], -move.shift[1])
    return Windows(rows * columns, (h, w), grid, cells, shift)


def _undo(cells: Tensor, padded: Grid, move: Move) -> tuple[Tensor, Grid]:
    """Places on the image before it was rolled and padded; −1 for what was padded."""
    y, x = cells // padded[1], cells % padded[1]
    h, w = move.grid or padded
    if move.rolled_first:
        outside = (y >= h) | (x >= w)
        y, x = (y - move.shift[0]) % h, (x - move.shift[1]) % w
    else:
        y, x = (y - move.shift[0]) % padded[0], (x - move.shift[1]) % padded[1]
        outside = (y >= h) | (x >= w)
    return (y * w + x).masked_fill(outside, -1), (h, w)
