"""Registers at test time: an edit that takes the weight of sinks off the places, and its trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attnviz.capture import Record, watch
from attnviz.diagnosis.outputs import flat_output
from attnviz.diagnosis.statistics import interval
from attnviz.errors import InputError
from attnviz.inputs import AnyMasks, check_images, check_takes_images, masks_of_images
from attnviz.maps import received
from attnviz.model_state import frozen
from attnviz.shapes import Images

SINK = 0.3
"""Share of the attention of an image from which a single place is a sink; uniform is 1 / keys."""

NULL = 0.25
"""A sink that contributes less than this part of the attention's output is a null operation."""

FEWEST = 8
"""Places below which one of them cannot be a sink."""

_SIZE = 8  # images in a run


def sink_keys(weights: Tensor, prefix: int = 0) -> tuple[Tensor, Tensor]:
    """The place that gets most attention, per image and head.

    Args:
        weights: `(b, heads, q, k)`.
        prefix: Leading class and register tokens, which are no places.

    Returns:
        The share that it gets, of rows that sum to more than 1 the part of their sum, and its
        number among the keys, `(b, heads)` each.
    """
    rows = weights / weights.sum(-1, keepdim=True).clamp_min(1)
    share, key = rows[..., prefix:].mean(2).max(-1)
    return share, key + prefix


@dataclass(frozen=True)
class Sink:
    """A place that takes a large part of the attention of one head.

    Attributes:
        name: The record's name.
        head: Number of the head, from 0.
        share: Share of the attention, and of the head's map, that it takes, mean over images.
        value: Norm of its value over the median norm, median over images.
        token: The same of its key.
        contribution: Share of the head's output that it makes, Σ over queries of weight · |value|.
        kind: `"null operation"` where the contribution is small, else `"broadcast"`.
        change: Relative change of the model's output without it; None where that was not measured.
    """

    name: str
    head: int
    share: float
    value: float
    token: float
    contribution: float
    kind: Literal["null operation", "broadcast"]
    change: float | None = None


def sinks_of(record: Record, threshold: float = SINK) -> list[Sink]:
    """The sinks of one attention, by head; empty where weights or values are missing."""
    weights, value, key = record.weights, record.value, record.key
    if weights is None or value is None or value.shape[:2] != weights.shape[:2]:
        return []
    weights, value = weights.float(), value.float()
    received, at = sink_keys(weights, record.prefix)
    norms = value.norm(dim=-1)
    of_sink = norms.gather(-1, at[..., None])[..., 0]
    total = (weights.mean(2) * norms).sum(-1).clamp_min(1e-30)
    contribution = (received * of_sink / total).mean(0)
    ratio = _over_median(norms, at)
    alike = key is not None and key.shape[:3] == value.shape[:3]
    token = _over_median(key.float().norm(dim=-1), at) if alike and key is not None else None
    share = received.mean(0)
    return [
        Sink(
            record.name, head, float(share[head]), float(ratio[head]),
            float("nan") if token is None else float(token[head]), float(contribution[head]),
            "null operation" if contribution[head] < NULL else "broadcast",
        )
        for head in (share > threshold).nonzero().flatten().tolist()
    ]  # fmt: skip


def attention_sinks(model: nn.Module, images: Images, *, threshold: float = SINK) -> list[Sink]:
    """The attention sinks of a model per layer and head, and what its output does without each.

    A sink with a small value is a null operation: the head adds nothing. One with a large value
    broadcasts it to all queries (Gu et al. 2025, Guo et al. 2024).

    Args:
        model: Any module from images to tensors.
        images: `(b, c, h, w)`; the first eight are used.
        threshold: Share of the attention from which a place is a sink.

    Returns:
        The sinks in the order of layers and heads; one forward pass, and one more for each.
    """
    check_images(images, operation="attention_sinks")
    check_takes_images(model, operation="attention_sinks")
    images = images[:_SIZE].detach()
    found = []
    with frozen(model):
        with watch(model, operands=True, empty=True) as seen:
            plain = flat_output(model(images), len(images))
        for record in seen.attention.values():
            few = record.shape and record.shape[-1] - record.prefix < FEWEST
            if few or record.windows is not None:
                continue
            for sink in sinks_of(record, threshold):
                edit = without_sinks(threshold, head=sink.head)
                with watch(model, empty=True, edit={record.name: edit}):
                    other = flat_output(model(images), len(images))
                found.append(replace(sink, change=float((other - plain).norm() / plain.norm())))
    return found


def _over_median(norms: Tensor, at: Tensor) -> Tensor:
    """`(heads,)`: one token's norm over the median of the tokens, median over images."""
    own = norms.gather(-1, at[..., None])[..., 0]
    return (own / norms.median(-1).values.clamp_min(1e-30)).median(0).values


def without_sinks(
    threshold: float = SINK, *, head: int | None = None
) -> Callable[[Tensor, Record], Tensor]:
    """An edit for `attnviz.watch` that gives the weight of sinks to a register of value 0.

    The weight is taken off the sink and given to no other key, as a register token with a zero
    value would take it: rows then sum to less than one.

    Args:
        threshold: Share of an image's attention from which a place is a sink.
        head: The one head to edit, by default all.

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
        chosen = share > threshold
        if head is not None:
            chosen &= torch.arange(chosen.shape[1], device=chosen.device) == head
        taken = columns * chosen[..., None].to(weights)
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
    check_takes_images(model, operation="try_registers")
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
        part = images[start : start + _SIZE]
        with watch(model, empty=True, edit=edit) as seen:
            outputs.append(flat_output(model(part), len(part)))
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
