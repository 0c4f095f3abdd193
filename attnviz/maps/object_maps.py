"""Maps of a detector's object queries, each with the box that it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attnviz.capture import SamplingPoints
from attnviz.errors import InputError
from attnviz.maps.arguments import whole_numbers
from attnviz.maps.geometry import Attention, Grid, Interpolation, name_of, resized, weights_of
from attnviz.maps.placement import Given, Known, laid, side
from attnviz.maps.single_record import Heads, fused_heads
from attnviz.maps.splatting import splatted


@dataclass(frozen=True, eq=False)
class ObjectMaps:
    """One map per object query. Maps, boxes and points lie on the images as the model got them.

    Attributes:
        maps: `(b, n, h, w)`, raw float32; with `heads="each"` `(b, n, heads, h, w)`.
        boxes: `(b, n, 4)`, left, top, right and bottom as shares of the width and the height of the
            model's input, padding included; None without an output.
        queries: The number of each query in the detector.
        points: `(b, n, heads, k, 2)`, x and y of the sampling points of deformable attention, over
            all levels, in the same shares; None for other attention.
        weights: `(b, n, heads, k)`, their weights, which sum to one for each head.
        level: For each of the `k` points, which feature map it was sampled from, from 0.
    """

    maps: Tensor
    boxes: Float[Tensor, "b n 4"] | None
    queries: tuple[int, ...]
    points: Tensor | None = None
    weights: Tensor | None = None
    level: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.queries)


def object_maps(
    record: Attention,
    output: Any = None,
    *,
    queries: Sequence[int] | None = None,
    layout: Known = None,
    mask: Tensor | None = None,
    points: SamplingPoints | None = None,
    heads: Heads = "mean",
    grid: Grid | None = None,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
) -> ObjectMaps:
    """Where each object query of a detector attends, `M_i[k] = A[i, k]`, and the box it predicts.

    Of deformable attention (Zhu et al. 2021), whose keys are sampling points, the map is what the
    points read: `M_i[place] = Σ_p a_ip w(p, place)`, with `w` the share that sampling at `p` takes
    of the place's value, 4 neighbours for bilinear sampling. It is computed on each level's own
    grid; levels are then spread over the finest one, a coarse place evenly over what it covers,
    and summed. What was sampled outside of a feature map is lost: a map sums to at most one.

    Args:
        record: The decoder's cross-attention, from object queries to the places of the image, or to
            sampling points; also that of a pixel decoder.
        output: What the detector returned, with `pred_boxes`, or these boxes `(b, n, 4)`: centre,
            width and height as shares of each image without its padding, as DETR and its successors
            predict them. No boxes if not given.
        queries: Numbers of the queries to draw; all if not given.
        layout: Which token is which place, from `av.locate`; not needed for sampling points.
        mask: `(b, H, W)`, which pixels of a padded batch are image, the detector's `pixel_mask`.
        points: Sampling points of a record that does not hold them, because its values were read by
            indexing in place of `grid_sample`.
        heads: `"mean"`, `"each"`, or one head's number.
        grid: The keys' `(h, w)`, where the record does not know it.
        size: `(h, w)` of the maps; None keeps the keys' grid, of sampling points the finest one.
        interpolation: How they are resized.

    Raises:
        InputError: Boxes of another number than queries, keys that are no places, a padded batch
            without its mask, or points that do not fit.
    """
    weights = weights_of(record)
    b, _, n, k = weights.shape
    boxes = None if output is None else _boxes(output)
    if boxes is not None and boxes.shape[:2] != (b, n):
        raise InputError(
            f"object_maps: {name_of(record)} has {b} · {n} queries and the output "
            f"{boxes.shape[0]} · {boxes.shape[1]} boxes; pass the decoder's cross-attention"
        )
    numbered = range(n) if queries is None else queries
    chosen = whole_numbers(numbered, "object_maps: queries")
    if not chosen or any(not 0 <= query < n for query in chosen):
        raise InputError(f"object_maps: expected queries from 0 to {n - 1}, got {queries!r}")
    sampled = _sampled(record, weights, points)
    if boxes is not None:
        boxes = _on_input(boxes[:, chosen], _extents(record, weights, sampled, mask))
    if sampled is not None:
        own, at = weights[:, :, chosen].detach(), sampled.at[:, :, chosen]
        maps = splatted(own, at, sampled, heads, interpolation, name_of(record))
        return ObjectMaps(
            resized(maps, size, interpolation), boxes, tuple(chosen),
            at.transpose(1, 2), own.transpose(1, 2), sampled.level,
        )  # fmt: skip
    keys = side(record, "keys", b, k, Given(layout, grid=grid))
    drawn = [
        resized(
            fused_heads(laid(weights[:, :, query], keys), heads, name_of(record)),
            size, interpolation,
        )
        for query in chosen
    ]  # fmt: skip
    return ObjectMaps(torch.stack(drawn, 1), boxes, tuple(chosen))


def _sampled(
    record: Attention, weights: Tensor, points: SamplingPoints | None
) -> SamplingPoints | None:
    """The sampling points of a record; None if its keys are none.

    Raises:
        InputError: They do not fit, or are not known.
    """
    found: SamplingPoints | None = points or getattr(record, "points", None)
    if found is not None:
        if not isinstance(found, SamplingPoints):
            raise InputError(
                "object_maps: points: expected attnviz.capture.SamplingPoints, got "
                f"{type(found).__name__}"
            )
        if found.at.shape[:-1] != weights.shape or len(found.level) != weights.shape[-1]:
            raise InputError(
                f"object_maps: {name_of(record)} has weights {tuple(weights.shape)}, and points "
                f"{tuple(found.at.shape)} with {len(found.level)} levels do not fit; expected "
                "(b, heads, q, k, 2) and one level for each of the k points"
            )
        return found
    places = getattr(record, "places", None)
    if places is not None and "point" in places.keys.role:
        raise InputError(
            f"object_maps: the keys of {name_of(record)} are sampling points, and where they lie "
            "is not known; pass points=SamplingPoints(…)"
        )
    return None


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


def _on_input(boxes: Tensor, extents: Tensor | None) -> Tensor:
    """Corners of boxes as shares of the model's input, of which images fill a part."""
    x, y, w, h = boxes.unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    return corners if extents is None else corners * extents.to(corners).repeat(1, 2)[:, None]


def _extents(
    record: Attention, weights: Tensor, points: SamplingPoints | None, mask: Tensor | None
) -> Tensor | None:
    """`(b, 2)`, which share of the input's width and height each image fills; None for all of it.

    Raises:
        InputError: Images are padded and there is no mask, or the mask is no rectangle.
    """
    if mask is None:
        filled = None if points is None else points.filled
        padded = (
            bool((weights.detach() == 0).all(2).all(1).any()) if points is None
            else filled is not None and bool((filled < 1).any())
        )  # fmt: skip
        if padded:
            raise InputError(
                f"object_maps: a part of what {name_of(record)} attends to is masked, as the "
                "padding of images of different sizes is, and boxes are shares of images without "
                "it; pass mask=, the pixel_mask (b, H, W) of the detector"
            )
        return None
    inside = torch.zeros(0) if not isinstance(mask, Tensor) else mask != 0
    if inside.dim() != 3 or len(inside) != len(weights):
        raise InputError(
            f"object_maps: expected mask= (b, H, W) for {len(weights)} images, got "
            f"{tuple(inside.shape)}"
        )
    sides = [inside.any(axis).sum(1) for axis in (1, 2)]  # columns, rows
    area = sides[0] * sides[1]
    for image, one in enumerate(inside):
        if int(area[image]) == 0 or not bool(one[: sides[1][image], : sides[0][image]].all()):
            raise InputError(
                f"object_maps: mask= of image {image} is no rectangle from the upper left corner; "
                "expected true for the image and false for the padding to its right and below it"
            )
    width, height = inside.shape[2], inside.shape[1]
    return torch.stack([sides[0] / width, sides[1] / height], -1)
