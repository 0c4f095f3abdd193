"""Registers at test time: an edit that takes the weight of sinks off the places, and its trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.capture import Record, watch
from attnviz.diagnosis.outputs import flat_output
from attnviz.diagnosis.statistics import interval
from attnviz.errors import InputError
from attnviz.inputs import AnyMasks, check_images, masks_of_images
from attnviz.maps import received
from attnviz.model_state import frozen
from attnviz.shapes import Images

SINK = 0.3
"""Share of the attention of an image from which a single place is a sink; uniform is 1 / keys."""

_SIZE = 8  # images in a run


def sink_keys(weights: Tensor, prefix: int = 0) -> tuple[Tensor, Tensor]:
    """The place that gets most attention, per image and head.

    Args:
        weights: `(b, heads, q, k)`.
        prefix: Leading class and register tokens, which are no places.

    Returns:
        The share that it gets and its number among the keys, `(b, heads)` each.
    """
    share, key = weights[..., prefix:].mean(2).max(-1)
    return share, key + prefix


def without_sinks(threshold: float = SINK) -> Callable[[Tensor, Record], Tensor]:
    """An edit for `attnviz.watch` that gives the weight of sinks to a register of value 0.

    The weight is taken off the sink and given to no other key, as a register token with a zero
    value would take it: rows then sum to less than one.

    Args:
        threshold: Share of an image's attention from which a place is a sink.

    Examples:
        >>> import torch
        >>> weights = torch.full((1, 1, 4, 4), 0.1)
        >>> weights[..., 2] = 0.7
        >>> without_sinks()(weights).sum(-1)
        tensor([[[0.3000, 0.3000, 0.3000, 0.3000]]])
    """

    def edit(weights: Tensor, record: Record | None = None) -> Tensor:
        prefix = 0 if record is None else record.prefix
        if weights.dim() != 4 or weights.shape[-1] <= prefix:
            return weights
        share, key = sink_keys(weights, prefix)
        columns = torch.nn.functional.one_hot(key, weights.shape[-1]).to(weights)
        taken = columns * (share > threshold)[..., None].to(weights)
        return weights * (1 - taken[:, :, None, :])

    return edit


@dataclass(frozen=True)
class Trial:
    """One attention before and after `without_sinks`, means with 95 % intervals over images.

    Attributes:
        name: The record's name.
        share: Share of the map that the largest place takes, before and after.
        lift: How many times chance the map is inside the masks, before and after; None without
            masks.
        change: Relative change of the model's output.
    """

    name: str
    share: tuple[tuple[float, float, float], tuple[float, float, float]]
    lift: tuple[tuple[float, float, float], tuple[float, float, float]] | None
    change: tuple[float, float, float]


def try_registers(
    model: nn.Module, images: Images, masks: AnyMasks | None = None, *, threshold: float = SINK
) -> list[Trial]:
    """Compare maps of attention received and outputs with and without the weight of sinks.

    Args:
        model: Any module from images to tensors.
        images: `(b, c, h, w)`, two or more.
        masks: `(b, h, w)`, True on the object.
        threshold: As in `without_sinks`.

    Returns:
        A trial for each attention over places that has a sink in an image.

    Raises:
        InputError: Fewer than two images, or masks of another shape.
    """
    check_images(images, operation="try_registers")
    if len(images) < 2:
        raise InputError(
            f"try_registers: expected two images or more for intervals, got {len(images)}"
        )
    inside = None
    if masks is not None:
        inside = masks_of_images(images, masks, "masks", operation="try_registers")
    edit = without_sinks(threshold)
    with frozen(model):
        names = _with_sinks(model, images, threshold)
        plain = _measured(model, images, inside, None)
        found = []
        for name in names:
            other = _measured(model, images, inside, {name: edit})
            before, after = plain.maps[name], other.maps[name]
            lift = None if inside is None else (interval(before[1]), interval(after[1]))
            apart = (other.output - plain.output).norm(dim=1) / plain.output.norm(dim=1)
            share = (interval(before[0]), interval(after[0]))
            found.append(Trial(name, share, lift, interval(apart)))
    return found


@dataclass(frozen=True)
class _Measured:
    output: Tensor
    maps: dict[str, tuple[Tensor, Tensor]]


def _with_sinks(model: nn.Module, images: Tensor, threshold: float) -> list[str]:
    with watch(model, empty=True) as seen:
        model(images[:_SIZE])
    return [
        name for name, one in seen.attention.items()
        if one.weights is not None and one.row_grids[1] is not None and one.windows is None
        and bool((sink_keys(one.weights, one.prefix)[0] > threshold).any())
    ]  # fmt: skip


def _measured(
    model: nn.Module, images: Tensor, masks: Tensor | None, edit: dict[str, Any] | None
) -> _Measured:
    outputs: list[Tensor] = []
    maps: dict[str, list[tuple[Tensor, Tensor]]] = {}
    size = (images.shape[-2], images.shape[-1])
    for start in range(0, len(images), _SIZE):
        with watch(model, empty=True, edit=edit) as seen:
            outputs.append(flat_output(model(images[start : start + _SIZE])))
        inside = None if masks is None else masks[start : start + _SIZE].flatten(1)
        for name, record in seen.attention.items():
            if record.weights is None or record.row_grids[1] is None or record.windows is not None:
                continue
            coarse = received(record).flatten(1)
            largest = coarse.amax(1) / coarse.sum(1)
            lift = torch.zeros_like(largest)
            if inside is not None:
                mass = received(record, size=size).flatten(1)
                covered = inside.to(mass)
                lift = (mass * covered).sum(1) / mass.sum(1) / covered.mean(1)
            maps.setdefault(name, []).append((largest, lift))
    joined = {
        name: (torch.cat([one for one, _ in parts]), torch.cat([two for _, two in parts]))
        for name, parts in maps.items()
    }
    return _Measured(torch.cat(outputs), joined)
