"""What the tokens of an attention are: places, channels, or images of the batch.

A taller image shows which axes are places, a smaller batch which are images. Where the model cannot
run the taller image a perturbed patch decides: in attention over places it changes one key, in
attention over channels every key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.perturbation import Activation, Perturbed, share_near

Axis: TypeAlias = Literal["places", "channels", "swapped", "images", "unknown"]

SPREAD = 0.25
"""A change of one place whose evenness over the keys is above this is in all of them."""

LOCAL = 0.4
"""A change is local if this share of it stays near its place."""

OWN = 0.5
"""Keys are channels of the map before them if both change more alike than this, 0 to 1."""


@dataclass(frozen=True)
class Tokens:
    """What the tokens of an attention are.

    Attributes:
        axis: `"swapped"` stands for channels that a linear layer over places made.
        evidence: The numbers that show it.
    """

    axis: Axis
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Probes:
    """The runs that the axes are read from.

    Attributes:
        images: Images in the plain run, and in the run with a smaller batch.
        fewer: The record in the smaller batch, None where it is missing.
        taller: The record on an image of twice the height, None where the model failed before.
        refused: Whether the model failed at twice the height.
        perturbed: The run with perturbed patches, None where it could not be made.
    """

    images: tuple[int, int]
    fewer: Record | None
    taller: Record | None
    refused: bool
    perturbed: Perturbed | None


def tokens_of(number: int, base: Record, probes: Probes) -> Tokens:
    """What the tokens of one attention are.

    Args:
        number: The record's number in the run.
        base: The record in the plain run.
        probes: The other runs.
    """
    keys = base.shape[-1] if base.shape else 0
    many, few = probes.images
    fewer, taller = probes.fewer, probes.taller
    less = fewer.shape[-1] if fewer is not None and fewer.shape else keys
    if less != keys and less * many == keys * few:
        return Tokens("images", {"images": few, "keys": less, "more": many, "grown": keys})
    if taller is not None and taller.shape:
        if taller.shape[-1] > keys:
            return Tokens("places")
        if taller.d_k and base.d_k and taller.d_k > base.d_k and taller.shape[-1] == keys:
            return Tokens("channels", {"keys": keys})
        if taller.shape[0] > base.shape[0] / many:  # more windows per image
            return Tokens("places")
    return _channels(number, base, probes)


def _channels(number: int, base: Record, probes: Probes) -> Tokens:
    """Keys as many as channels, each of which holds the whole image."""
    perturbed, unknown = probes.perturbed, Tokens("unknown")
    if perturbed is None or base.windows is not None:
        return unknown
    record, before = perturbed.records[number], last_grid(perturbed.before(number))
    if before is None or before.grid is None or record.key is None:
        return unknown
    (h, w), heads, keys = before.grid, record.key.shape[1], record.key.shape[-2]
    if keys == h * w + record.prefix or before.channels not in (keys, keys * heads):
        return unknown
    there = share_near(before.energy, perturbed.places)
    if there is None or there <= LOCAL:
        return unknown  # no feature map: windows by tokens, or one in which changes have spread
    if len(record.key) != len(perturbed.places) + 1:
        return unknown  # windows are folded into the batch
    moved = (record.key[1:] - record.key[:1]).float()
    change = moved.square()
    if _evenness(change.sum((1, 3))) < SPREAD or _evenness(change.sum((2, 3))) < SPREAD:
        return unknown  # the second where heads are windows, of which a patch changes a few
    along = change.sum((1, 2))
    if along.shape[1] == h * w:
        near = share_near(along.unflatten(1, (h, w)), perturbed.places)
        if near is not None and near > LOCAL:
            return Tokens("channels", {"keys": keys})
    if probes.refused and keys == before.channels:
        alike = _alikeness(before.change.flatten(2), moved.transpose(1, 2).flatten(2))
        if alike > OWN:
            return Tokens("swapped", {"keys": keys, "places": h * w})
    return unknown


def _alikeness(one: Tensor, other: Tensor) -> float:
    """Whether rows change alike in two tensors `(patches, rows, n)`: the least over the patches.

    Linear centred kernel alignment (Kornblith et al. 2019, section 3): 1 where one is the other
    after a rotation of its features, about 1/rows where their rows have nothing in common.
    """
    x, y = (x.double() - x.double().mean(1, keepdim=True) for x in (one, other))
    norms = (x @ x.mT).flatten(1).norm(dim=1) * (y @ y.mT).flatten(1).norm(dim=1)
    return float(((x.mT @ y).square().sum((1, 2)) / norms.clamp_min(1e-30)).min())


def last_grid(activations: Iterable[Activation]) -> Activation | None:
    """The first of some activations that is a feature map.

    One with a single channel, as of a gate or a mask, is taken only if there is no other.
    """
    maps = [one for one in activations if one.grid is not None]
    return next((one for one in maps if one.channels > 1), maps[0] if maps else None)


def _evenness(energy: Tensor) -> float:
    """`(Σe)² / (n Σe²)` of `(patches, n)`, averaged: 1 if all n change alike, 1/n if one does."""
    total = energy.sum(1).square()
    squares = energy.square().sum(1) * energy.shape[1]
    return float((total / squares.clamp_min(1e-30)).mean())
