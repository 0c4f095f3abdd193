"""A model's outputs as one matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from attnviz.errors import InputError


def flat_output(outputs: Any) -> Tensor:
    """All floating-point outputs of a model, `(b, n)` in float32.

    Tuples, lists, mappings and dataclasses are searched in order; tensors without a batch axis of
    the right length are left out.

    Raises:
        InputError: There is no floating-point tensor in it.
    """
    found: list[Tensor] = []
    _collect(outputs, found)
    if not found:
        raise InputError(
            f"diagnose: expected a model that returns tensors, got {type(outputs).__name__}"
        )
    b = found[0].shape[0]
    return torch.cat([x.float().reshape(b, -1) for x in found if x.shape[0] == b], 1)


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.ndim:
            found.append(value)
    elif isinstance(value, Mapping):
        _each(value.values(), found)
    elif isinstance(value, tuple | list):
        _each(value, found)
    elif is_dataclass(value) and not isinstance(value, type):
        _each((getattr(value, one.name) for one in fields(value)), found)


def _each(values: Any, found: list[Tensor]) -> None:
    for value in values:
        _collect(value, found)
