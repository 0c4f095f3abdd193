"""Maps of a detector's object queries, each with the box that it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attnviz.errors import InputError
from attnviz.maps.geometry import Attention, Grid, Interpolation, name_of, resized, weights_of
from attnviz.maps.placement import Given, Known, laid, side
from attnviz.maps.single_record import Heads, fused_heads


@dataclass(frozen=True, eq=False)
class ObjectMaps:
    """One map per object query.

    Attributes:
        maps: `(b, n, h, w)`, raw float32; with `heads="each"` `(b, n, heads, h, w)`.
        boxes: `(b, n, 4)`, left, top, right and bottom as shares of the image's width and height.
        queries: The number of each query in the detector.
    """

    maps: Tensor
    boxes: Float[Tensor, "b n 4"]
    queries: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.queries)


def object_maps(
    record: Attention,
    output: Any,
    *,
    queries: Sequence[int] | None = None,
    layout: Known = None,
    heads: Heads = "mean",
    grid: Grid | None = None,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
) -> ObjectMaps:
    """Where each object query of a detector attends, `M_i[k] = A[i, k]`, and the box it predicts.

    Args:
        record: The decoder's cross-attention, from object queries to the places of the image.
        output: What the detector returned, with `pred_boxes`, or these boxes `(b, n, 4)`: centre,
            width and height as shares of the image, as DETR and its successors predict them.
        queries: Numbers of the queries to draw; all if not given.
        layout: Which token is which place, from `av.locate`.
        heads: `"mean"`, `"each"`, or one head's number.
        grid: The keys' `(h, w)`, where the record does not know it.
        size: `(h, w)` of the maps; None keeps the keys' grid.
        interpolation: How they are resized.

    Raises:
        InputError: Boxes of another number than queries, keys that are no places, or a record of
            deformable attention, whose keys are sampling points.
    """
    weights = weights_of(record)
    b, _, n, k = weights.shape
    boxes = _boxes(output)
    if boxes.shape[:2] != (b, n):
        raise InputError(
            f"object_maps: {name_of(record)} has {b} · {n} queries and the output "
            f"{boxes.shape[0]} · {boxes.shape[1]} boxes; pass the decoder's cross-attention"
        )
    chosen = list(range(n)) if queries is None else [int(query) for query in queries]
    if not chosen or any(not 0 <= query < n for query in chosen):
        raise InputError(f"object_maps: expected queries from 0 to {n - 1}, got {queries!r}")
    keys = side(record, "keys", b, k, Given(layout, grid=grid))
    maps = [
        resized(
            fused_heads(laid(weights[:, :, query], keys), heads, name_of(record)),
            size, interpolation,
        )
        for query in chosen
    ]  # fmt: skip
    x, y, w, h = boxes[:, chosen].unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    return ObjectMaps(torch.stack(maps, 1), corners, tuple(chosen))


def _boxes(output: Any) -> Tensor:
    found = output
    if not isinstance(output, Tensor):
        found = output.get("pred_boxes") if isinstance(output, Mapping) else None
        found = getattr(output, "pred_boxes", None) if found is None else found
    if not isinstance(found, Tensor) or found.dim() != 3 or found.shape[-1] != 4:
        raise InputError(
            "object_maps: expected the detector's output with pred_boxes, or boxes (b, n, 4), got "
            f"{type(output).__name__}"
        )
    return found.detach().float()
