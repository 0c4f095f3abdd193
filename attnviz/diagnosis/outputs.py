"""A model's outputs as one matrix, and the evaluation mode in which they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.errors import InputError


@contextmanager
def evaluating(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Evaluation mode, no gradients, seeded random numbers; modes and buffers restored on exit."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if _plain(buffer)]
    devices = sorted({x.device.index or 0 for x in model.parameters() if x.is_cuda})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        try:
            for module, _ in modes:
                module.training = False
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training
            for buffer, before in buffers:
                _write_back(buffer, before)


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


def _plain(buffer: Tensor) -> bool:
    return buffer.layout == torch.strided and not isinstance(buffer, nn.UninitializedBuffer)


def _write_back(buffer: Tensor, before: Tensor) -> None:
    if buffer.shape == before.shape and not torch.equal(buffer, before):
        with torch.no_grad():
            buffer.copy_(before)
