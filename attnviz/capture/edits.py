"""Edits: replacements for a model's attention weights or gates while it runs.

An edit is a function of the values as a record shows them, attention `(b, heads, q, k)` or a gate
`(b, c, 1, 1)`, `(b, 1, h, w)`, that returns values of the same shape. One with a second argument is
given the `Record` as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attnviz.capture.record import Record
from attnviz.errors import InputError, unknown_name

Edit = Callable[[Tensor, Record], Tensor]


def uniform(values: Tensor, record: Record) -> Tensor:
    """Every key weighs the same: `1 / k`. A gate becomes its own mean over each image.

    Keys that every row leaves at exactly zero for a query, as masks do, stay at zero.
    """
    if record.kind == "gate":
        return values.mean(tuple(range(1, values.dim())), keepdim=True).expand_as(values)
    allowed = (values != 0).to(values.dtype)
    return allowed / allowed.sum(-1, keepdim=True).clamp_min(1)


def zero(values: Tensor, record: Record) -> Tensor:
    """All weights or gates are zero."""
    return torch.zeros_like(values)


def identity(values: Tensor, record: Record) -> Tensor:
    """Each query attends to its own place alone; a gate is 1.

    Raises:
        InputError: As many queries as keys are needed.
    """
    if record.kind == "gate":
        return torch.ones_like(values)
    if values.shape[-1] != values.shape[-2]:
        raise InputError(
            f"edits.identity: {record.name!r} attends from {values.shape[-2]} queries to "
            f"{values.shape[-1]} keys; expected as many of both"
        )
    return torch.eye(values.shape[-1], dtype=values.dtype, device=values.device).expand_as(values)


def head_off(*heads: int) -> Edit:
    """The weights of these heads are zero; heads count from 0."""

    def edit(values: Tensor, record: Record) -> Tensor:
        _attention("head_off", record)
        if any(not -values.shape[1] <= head < values.shape[1] for head in heads):
            raise InputError(
                f"edits.head_off: {record.name!r} has {values.shape[1]} heads, got {heads}"
            )
        values = values.clone()
        values[:, list(heads)] = 0
        return values

    return edit


def swap(first: int = 0, second: int = 1) -> Edit:
    """Two images of the batch exchange their weights or gates."""

    def edit(values: Tensor, record: Record) -> Tensor:
        count = record.windows.count if record.windows is not None else 1
        images = values.unflatten(0, (-1, count))
        if max(first, second) >= len(images):
            raise InputError(
                f"edits.swap: expected images {first} and {second} in a batch, got {len(images)}"
            )
        order = torch.arange(len(images), device=values.device)
        order[[first, second]] = order[[second, first]]
        swapped: Tensor = images.index_select(0, order).flatten(0, 1)
        return swapped

    return edit


def roll(keys: int = 1) -> Edit:
    """Each row is shifted by `keys` keys, cyclically; leading tokens stay where they are."""

    def edit(values: Tensor, record: Record) -> Tensor:
        _attention("roll", record)
        lead, rest = values[..., : record.prefix], values[..., record.prefix :]
        return torch.cat([lead, rest.roll(keys, -1)], -1)

    return edit


def shuffle(seed: int = 0) -> Edit:
    """Each row's weights, in another order; a gate's channels or places, the same."""

    def edit(values: Tensor, record: Record) -> Tensor:
        axis = -1 if record.kind == "attention" or record.axis != "channel" else 1
        generator = torch.Generator().manual_seed(seed)
        if record.kind == "gate" and axis == -1:
            flat = values.flatten(2)
            order = torch.randperm(flat.shape[-1], generator=generator).to(values.device)
            return flat.index_select(-1, order).view_as(values)
        order = torch.randperm(values.shape[axis], generator=generator).to(values.device)
        return values.index_select(axis, order)

    return edit


def constant(value: float) -> Edit:
    """Every weight or gate has this value."""

    def edit(values: Tensor, record: Record) -> Tensor:
        return torch.full_like(values, value)

    return edit


def times(factor: float) -> Edit:
    """Weights or gates are multiplied by a number."""

    def edit(values: Tensor, record: Record) -> Tensor:
        return values * factor

    return edit


def replace_by(given: Tensor) -> Edit:
    """These values take the place of the model's own; they must have the same shape."""

    def edit(values: Tensor, record: Record) -> Tensor:
        return given.to(values)

    return edit


READY: dict[str, Edit] = {
    "uniform": uniform,
    "zero": zero,
    "identity": identity,
    "swap": swap(),
    "roll": roll(),
    "shuffle": shuffle(),
    "open": constant(1.0),
    "half": times(0.5),
}
"""Edits that have a name, for `edit={"blocks.3.attn": "uniform"}`."""


def read_edits(edit: Mapping[str, Any] | None) -> dict[str, Edit]:
    """What the caller passed as `edit=`, as edits.

    Raises:
        InputError: Neither a function nor the name of a ready edit.
    """
    return {name: _read(name, value) for name, value in (edit or {}).items()}


def _read(name: str, value: Any) -> Edit:
    if isinstance(value, str):
        if value not in READY:
            raise unknown_name("edit", value, READY)
        return READY[value]
    if not callable(value):
        raise InputError(
            f"edit: expected a function or a ready edit's name for {name!r}, "
            f"got {type(value).__name__}"
        )
    return value if _arguments(value) > 1 else lambda values, record: value(values)


def _arguments(function: Callable[..., Any]) -> int:
    """How many arguments without a default a function takes by position."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)


def checked(edit: Edit, values: Tensor, record: Record) -> Tensor:
    """The edited values, in the type of the values.

    Raises:
        InputError: The edit returned no tensor, or another shape.
    """
    edited = edit(values, record)
    if not isinstance(edited, Tensor) or edited.shape != values.shape:
        came = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
        raise InputError(
            f"edit of {record.name!r}: expected a tensor {tuple(values.shape)} back, got {came}"
        )
    return edited.to(values)


def _attention(edit: str, record: Record) -> None:
    if record.kind != "attention":
        raise InputError(f"edits.{edit}: {record.name!r} is a gate, and this edit is for attention")
