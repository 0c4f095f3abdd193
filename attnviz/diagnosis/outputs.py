"""A model's outputs as one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attnviz.errors import InputError


def flat_output(outputs: Any, images: int) -> Tensor:
    """All floating-point outputs of a model, `(b, n)` in float32.

    Tuples, lists, mappings and dataclasses are searched in order. A tensor counts if its first axis
    is the images; a list or tuple of one item per image, as of detectors, gives one row per item,
    shorter ones filled with zeros. Other tensors are left out; of a single image none is.

    Args:
        outputs: What the model returned.
        images: `b`, how many images it was given.

    Raises:
        InputError: There is no floating-point tensor in it, or none with a row per image.
    """
    rows = list(_rows(outputs, images))
    if not rows:
        raise InputError(f"diagnose: {_expected(outputs, images)}")
    return torch.cat(rows, 1)


def _expected(outputs: Any, images: int) -> str:
    tensors = list(_tensors(outputs))
    if not tensors:
        return f"expected a model that returns tensors, got {type(outputs).__name__}"
    got = ", ".join(f"{one.dtype} {tuple(one.shape)}" for one in tensors[:3])
    if not any(one.is_floating_point() for one in tensors):
        return (
            f"expected a model that returns floating-point tensors, got {got}; wrap it in a module "
            "that returns the logits, before argmax or a threshold"
        )
    return (
        f"expected a model that returns one row for each of {images} images, got {got}; wrap it in "
        "a module whose outputs have the images as their first axis"
    )


def _rows(value: Any, b: int) -> Iterator[Tensor]:
    """The `(b, n)` parts of an output, in order."""
    if isinstance(value, Tensor):
        one_row = b == 1 and value.numel() > 0
        if value.is_floating_point() and (one_row or (value.ndim and len(value) == b)):
            yield value.float().reshape(b, -1)
    elif _per_image(value, b):
        yield pad_sequence(
            [torch.cat([one.float().reshape(-1) for one in _floats(item)]) for item in value],
            batch_first=True,
        )
    else:
        for one in _parts(value):
            yield from _rows(one, b)


def _per_image(value: Any, b: int) -> bool:
    """Whether a sequence holds one item per image: `b` alike items that are not batches."""
    if b < 2 or not isinstance(value, tuple | list) or len(value) != b:
        return False
    items = [list(_floats(item)) for item in value]
    layouts = {tuple((one.ndim, one.shape[1:]) for one in item) for item in items}
    batches = all(one.ndim and len(one) == b for item in items for one in item)
    return len(layouts) == 1 and layouts != {()} and not batches


def _floats(value: Any) -> Iterator[Tensor]:
    return (one for one in _tensors(value) if one.is_floating_point())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for one in _parts(value):
            yield from _tensors(one)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, tuple | list):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, one.name) for one in fields(value)]
    return []
