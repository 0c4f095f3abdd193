"""Weights of deformable attention: each row's query, head and image, and its sampling points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attnviz.capture.lineage import Label, Samples
from attnviz.capture.sampling_points import SamplingPoints


@dataclass(frozen=True, eq=False)
class SampledRows:
    """Rows of weights, each over sampling points of its own, and the heads they belong to.

    A row's points tell which row of the sampled feature map, `(b · heads, d, h, w)`, they lie on;
    rows of the same image and head are its queries, in their own order.

    Attributes:
        order: The rows sorted by image and head; None where they are.
        heads: How many heads an image has.
        count: How many images and heads there are.
        points: `(rows, k)`, for each row and key its number in the table.
        table: The points.
    """

    order: Tensor | None
    heads: int
    count: int
    points: Tensor
    table: Samples

    def present(self, rows: Tensor) -> Tensor:
        """Rows `(rows, k)` as `(b, heads, q, k)`."""
        rows = rows if self.order is None else rows[self.order.to(rows.device)]
        return rows.reshape(-1, self.heads, len(rows) // self.count, *rows.shape[1:])

    def restore(self, weights: Tensor) -> Tensor:
        """Weights `(b, heads, q, k)` as rows."""
        rows = weights.flatten(0, 2)
        return rows if self.order is None else rows[self.order.argsort().to(rows.device)]

    def of_operand(self, operand: Tensor, order: Sequence[int]) -> Tensor:
        """A product's operand `(…, 1, k)` as `(b, heads, q, k)`, its axes in a given order."""
        x = operand.permute(*order)
        return self.present(x.reshape(-1, x.shape[-1]))

    def to_operand(self, weights: Tensor, like: Tensor, order: Sequence[int]) -> Tensor:
        """Weights `(b, heads, q, k)` in the shape of a product's operand."""
        x = self.restore(weights).reshape([like.shape[i] for i in order])
        return x.permute([order.index(i) for i in range(len(order))])

    def sampling_points(self) -> SamplingPoints | None:
        """Where the keys were sampled; None where queries were given different maps."""
        table = self.table
        index = self.present(self.points).to(table.at.device)
        level = table.level[index]
        modes = {(one.mode, one.padding) for one in table.maps}
        if len(modes) > 1 or bool((level != level[:1, :1, :1]).any()):
            return None
        numbers = level[0, 0, 0].tolist()
        used = sorted(set(numbers))
        maps = [table.maps[i] for i in used]
        filled = [one.filled.view(-1, self.heads, one.filled.shape[-1]).amax(1) for one in maps]
        ((mode, padding),) = modes
        return SamplingPoints(
            table.at[index], tuple(used.index(n) for n in numbers),
            tuple(one.sides for one in maps), torch.stack(filled, 1), mode, padding,
        )  # fmt: skip


def joined(parts: Sequence[SampledRows]) -> SampledRows:
    """The rows of several parts, keys after keys; all have the same images, heads and queries."""
    table = Samples.joined([one.table for one in parts])
    starts = np.cumsum([0, *(len(one.table.at) for one in parts)]).tolist()
    points = torch.cat(
        [one.present(one.points) + start for one, start in zip(parts, starts, strict=False)], -1
    ).flatten(0, 2)
    return SampledRows(None, parts[0].heads, parts[0].count, points, table)


def sampled_rows(
    labels: Sequence[Label],
    shape: Sequence[int],
    order: Sequence[int],
    keys: int,
    batch: int,
    images: int | None,
) -> SampledRows | None:
    """How rows of weights are to be read that meet values at sampling points.

    Args:
        labels: What is known of these values.
        shape: Their shape, 1 along axes that weights are repeated along.
        order: Their axes: those of rows, then those of keys.
        keys: How many of these axes are keys.
        batch: The first size of the softmax's result: images, or images and heads.
        images: How many images the model was given, where that is known.

    Returns:
        None where the values are not sampled, or not as many for each image and head.
    """
    label = next((one for one in labels if isinstance(one.space, Samples)), None)
    if label is None or any(n > 1 and shape[i] == 1 for i, n in enumerate(label.numbers.shape)):
        return None
    table = label.space
    assert isinstance(table, Samples)
    numbers = torch.from_numpy(label.numbers.copy()).expand(*shape).permute(*order)
    numbers = numbers.flatten(len(order) - keys) if keys else numbers[..., None]
    points = numbers.flatten(0, -2)
    if bool((points < 0).any()):
        return None
    row = table.row.cpu()[points]
    count = len(table.maps[0].filled)
    each = row[:, 0].bincount(minlength=count)
    if bool((row != row[:, :1]).any()) or bool((each != each[0]).any()):
        return None
    order_ = row[:, 0].argsort(stable=True)
    sorted_ = bool((order_.diff() == 1).all())
    if batch == count and images and count % images == 0:
        batch = images
    heads = count // batch if batch and count % batch == 0 else 1
    return SampledRows(None if sorted_ else order_, heads, count, points, table)
