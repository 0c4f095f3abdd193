"""Where attention lies: on the object of the masks, and on padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attnviz.capture import Record, watch
from attnviz.diagnosis.examination import FEW, Examination
from attnviz.diagnosis.registry import Observation, observed, rule
from attnviz.diagnosis.rules.information import padding_tokens
from attnviz.diagnosis.statistics import interval
from attnviz.maps import class_row, gate_map, received
from attnviz.places import placed

ATTENDED = 0.01
"""Share of the attention of real places that padding may get."""

ABOVE = 1.02
"""How many times chance the lower end of the interval must reach: flat maps reach 1.00."""

MEANT = 1.25
"""Times chance that a map of the object reaches; an interval that ends below it says no."""

ENOUGH = 16
"""Independent images (photographs, where groups are given) below which nothing is concluded."""

_STRIP = 16  # a border of one colour counts as padding from this part of the image on
_INTERVAL = {
    "lift": "share of the map inside the mask over the mask's area, mean over images",
    "low": "lower end of its 95 % interval, adjusted for the number of maps",
    "high": "upper end of the same",
    "images": "number of independent images with a mask",
    "maps": "number of maps of which this is the best",
}


@rule(
    code="padding-attention",
    severity="warning",
    summary="Real places attend to padding.",
    meaning="{share:.1%} of the attention of real places goes to padding",
    evidence={"share": "share of the attention of real places on padding, 0 to 1"},
    threshold=f"share above {ATTENDED:g}",
    remedy="mask padded keys: nn.MultiheadAttention(…)(…, key_padding_mask=padding), or "
    "attn_mask=~padding[:, None, None, :] (True is allowed there)",
    appearance="A bright border.",
    cause="Images were padded to a common size and the padding is not masked. Every unmasked model "
    "attends to it to some degree.",
    method=f"More than {ATTENDED:.0%} of the attention of real places goes to places that are "
    "padding altogether. A warning where `padding=` was given, a note where borders of one colour "
    "were taken for it. Tokens that are no places count as in [pooled-padding](pooled-padding.md).",
)
def padding_attention(case: Examination) -> Iterator[Observation]:
    yield from _to_padding_tokens(case)
    given = case.padding is not None
    padding = plain_borders(case.few) if case.padding is None else case.padding[: len(case.few)]
    if len(padding) < len(case.few):  # a single image is examined beside its mirror image
        padding = torch.cat([padding, padding.flip(-1)])
    if not bool(padding.any()):
        return
    for i, record in case.attention():
        if case.tokens[i].axis in ("channels", "swapped", "images"):
            continue
        share = _to_padding(record, padding)
        if share is not None and share > ATTENDED:
            yield observed(record.name, None if given else "note", share=share)


@rule(
    code="outside-mask",
    severity="warning",
    summary="The map avoids the object.",
    meaning="attention avoids the masks, they get {lift:.2f} times what chance would put there "
    "(95 % interval {low:.2f} to {high:.2f}, {images} images, the best of {maps} maps)",
    evidence=_INTERVAL,
    threshold=f"interval below 1, {ENOUGH} images or more",
    remedy="check that masks and images were flipped and resized together; else the values, not "
    "the weights, carry the object: draw an attribution",
    appearance="A dark hole where the object is.",
    cause="Masks flipped or resized differently from the images; a gate that closes where the "
    "object is; keys that are not needed for the object's values.",
    method="As [not-above-chance](not-above-chance.md), with the whole interval of the best map "
    "below 1.",
)
def outside_mask(case: Examination) -> Iterator[Observation]:
    best = case.cached(_best_lift)
    if best is not None and best.images >= ENOUGH and best.high < 1:
        yield best.observed()


@rule(
    code="not-above-chance",
    severity="warning",
    summary="The map does not find the object.",
    meaning="inside the masks lies {lift:.2f} times the attention that chance would put there "
    "(95 % interval {low:.2f} to {high:.2f}, {images} images, the best of {maps} maps): the map "
    "does not find the object",
    evidence=_INTERVAL,
    threshold=f"interval from below {ABOVE:g} to below {MEANT:g}, {ENOUGH} images or more",
    remedy="try another construction (av.class_row, av.rollout, av.gradient_weighted) and an "
    "attribution before you conclude that the model does not attend to it",
    appearance="On something else, or everywhere.",
    cause="The model solves the task by other means, the wrong construction was drawn, or the "
    "layer attends elsewhere.",
    method="The map's share inside the mask over the mask's area, per image, averaged over the "
    "images of a group (`groups=`, crops of one photograph). The 95 % interval of Student's t of "
    "the best map, adjusted for the number of maps (Bonferroni), begins below "
    f"{ABOVE} and ends below {MEANT}: an effect that matters is excluded. Needs `masks=` with "
    f"{ENOUGH} independent images or more, and trained weights; with fewer, or a wider interval, "
    "see [too few images](too-few-images.md).",
    explained_by=("outside-mask",),
)
def not_above_chance(case: Examination) -> Iterator[Observation]:
    best = case.cached(_best_lift)
    if best is not None and best.images >= ENOUGH and best.low <= ABOVE and best.high < MEANT:
        yield best.observed()


@rule(
    code="too-few-images",
    severity="note",
    summary="There are too few images to test whether the map finds the object.",
    meaning="{images} independent images are too few to test whether the map finds the object: it "
    "is {lift:.2f} times as dense inside the masks as chance (95 % interval {low:.2f} to "
    "{high:.2f}, the best of {maps} maps)",
    evidence=_INTERVAL,
    threshold=f"fewer than {ENOUGH} images, or interval up to {MEANT:g} or more",
    remedy=f"give {ENOUGH} images with masks or more, of different photographs",
    appearance="Any.",
    cause="Few images, few photographs (`groups=`), or maps that differ much between images.",
    method=f"Fewer than {ENOUGH} independent images, or an interval that begins below {ABOVE} and "
    f"ends above {MEANT}.",
)
def too_few_images(case: Examination) -> Iterator[Observation]:
    best = case.cached(_best_lift)
    if best is None or best.low > ABOVE:
        return
    if best.images < ENOUGH or (best.high >= MEANT and best.high >= 1):
        yield best.observed()


@dataclass(frozen=True)
class Lift:
    """How many times chance a layer's map is inside the masks.

    Attributes:
        where: The layer.
        lift: Mean over independent images.
        low: Lower end of its interval.
        high: Upper end of the same.
        images: Number of independent images.
        maps: Number of maps of which it is the best.
    """

    where: str
    lift: float
    low: float
    high: float
    images: int
    maps: int

    def observed(self) -> Observation:
        """The numbers as evidence of a finding."""
        return observed(
            self.where, lift=self.lift, low=self.low, high=self.high, images=self.images,
            maps=self.maps,
        )  # fmt: skip


def _best_lift(case: Examination) -> Lift | None:
    """The lift of the best layer, None without masks or where it cannot be judged."""
    if case.masks is None or not case.trained:
        return None
    return best_of(_lifts(case, case.masks))


def best_of(lifts: Mapping[str, Tensor]) -> Lift | None:
    """The map with the largest mean lift, with an interval that allows for the choice.

    Args:
        lifts: For each map one lift per independent image; those that are not finite do not count.
    """
    counted = {
        name: per_group
        for name, lift in lifts.items()
        if len(per_group := lift[lift.isfinite()]) > 1
    }
    judged = [
        Lift(name, *interval(lift, maps=len(counted)), len(lift), len(counted))
        for name, lift in counted.items()
    ]
    return max(judged, key=lambda one: one.lift, default=None)


def plain_borders(images: Tensor) -> Tensor:
    """`(b, h, w)`: rows and columns of one colour at an image's edges, from 1/16 of it on."""
    h, w = images.shape[-2:]
    rows, columns = _edges(images), _edges(images.transpose(-2, -1))
    rows = _thick(rows, h // _STRIP)
    columns = _thick(columns, w // _STRIP)
    both = rows[:, :, None] | columns[:, None, :]
    return both & ~both.flatten(1).all(1)[:, None, None]


def _edges(images: Tensor) -> Tensor:
    """`(b, n)`: rows that continue the first or last row and are all of its colour."""
    first, last = images[..., :1, :1], images[..., -1:, -1:]
    from_top = (images == first).all(-1).all(1).long().cumprod(1).bool()
    from_bottom = (images == last).all(-1).all(1).flip(1).long().cumprod(1).bool().flip(1)
    return torch.stack([from_top, from_bottom], 0)


def _thick(edges: Tensor, least: int) -> Tensor:
    """Edges that are thick enough, both together."""
    wide = edges.sum(2, keepdim=True) >= max(1, least)
    return (edges & wide).any(0)


def _to_padding_tokens(case: Examination) -> Iterator[Observation]:
    """Attention of the other tokens to those that hold nothing of the image."""
    found = case.cached(padding_tokens)
    for _, record in case.attention() if found is not None else ():
        weights = record.weights
        if found is None or weights is None or tuple(weights.shape[-2:]) != (found.tokens,) * 2:
            continue
        real = [i for i in range(found.tokens) if i not in found.padding]
        share = float(weights[:, :, real][..., list(found.padding)].sum(-1).mean())
        if share > ATTENDED:
            yield observed(record.name, None if found.alike else "note", share=share)


def _to_padding(record: Record, padding: Tensor) -> float | None:
    """The share of attention that goes from real places to padding."""
    weights, (queries, grid) = record.weights, record.row_grids
    if weights is None or grid is None or record.windows is not None or queries != grid:
        return None
    n = grid[0] * grid[1]
    if weights.shape[0] != len(padding) or weights.shape[-1] != n + record.prefix:
        return None
    covered = F.adaptive_avg_pool2d(padding.float()[:, None], grid).flatten(1)
    filled, real = covered > 0.999, covered < 1e-3
    if not bool(filled.any()):
        return None
    rows = weights[..., record.prefix :, record.prefix :].float().mean(1)
    if rows.shape[-2] != n:
        return None
    to = (rows * filled[:, None, :]).sum(-1)
    padded = real & filled.any(1)[:, None]
    return float(to[padded].mean()) if bool(padded.any()) else None


def _lifts(case: Examination, masks: Tensor) -> dict[str, Tensor]:
    """For each record the share of its map inside the mask over the mask's area, per group."""
    found: dict[str, list[Tensor]] = {}
    some = masks.flatten(1).any(1) & ~masks.flatten(1).all(1)
    images, masks = case.images[some], masks[some]
    for start in range(0, len(images), FEW):
        part, inside = images[start : start + FEW], masks[start : start + FEW]
        for name, map_ in _maps(case, part).items():
            mass = map_.clamp_min(0).flatten(1)
            covered = inside.flatten(1).to(mass)
            share = (mass * covered).sum(1) / mass.sum(1) / covered.mean(1)
            found.setdefault(name, []).append(share)
    groups = None if case.groups is None else case.groups[some]
    return {name: _per_group(torch.cat(parts), groups) for name, parts in found.items()}


def _per_group(values: Tensor, groups: Tensor | None) -> Tensor:
    """The mean of each group; images whose value is not finite are left out."""
    kept = values.isfinite()
    if groups is None:
        return values[kept]
    groups = groups[kept] if len(groups) == len(kept) else groups
    return torch.stack([values[kept][groups == one].mean() for one in groups.unique()])


def _maps(case: Examination, images: Tensor) -> dict[str, Tensor]:
    """One map per record that is over places, by name."""
    size = (images.shape[-2], images.shape[-1])
    with watch(case.model, empty=True) as seen:
        case.model(images)
    maps = {}
    records = placed(case.model, images, seen, proven=True)
    for i, (name, record) in enumerate(records.items()):
        map_ = _map(record, size, case.tokens[i].axis if i in case.tokens else "unknown")
        if map_ is not None and len(map_) == len(images):
            maps[name] = map_
    return maps


def _map(record: Record, size: tuple[int, int], axis: str) -> Tensor | None:
    places = record.places
    if record.kind == "gate":
        known = record.axis == "spatial" and (places is None or places.keys.known)
        return gate_map(record, size=size) if known else None
    if record.weights is None or places is None or axis in ("channels", "swapped"):
        return None
    if places.keys.grid is None:
        return None
    if "class" in places.queries.role:
        return class_row(record, size=size)
    return received(record, size=size)
