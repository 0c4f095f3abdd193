"""Targets: the model output to explain.

One rule for everything that takes a gradient or reads a confidence: a model with a single output
needs no target, a model with several outputs needs one. There is no default target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnviz.errors import InputError
from attnviz.shapes import Scores

Target: TypeAlias = int | Sequence[int] | Tensor | None
"""An output's index for all images, one index per image, or None where there is one output."""


def target_scores(outputs: Float[Tensor, "b *n"], target: Target = None) -> Scores:
    """The output that is explained, one number per image, with its graph.

    Args:
        outputs: What the model gave: `(b,)`, `(b, 1)` or `(b, n)`.
        target: The index among `n`, for all images or one per image (sequence or integer tensor
            of length `b`). None is right for a single output only.

    Returns:
        `(b,)`.

    Raises:
        InputError: `n > 1` without a target, an index outside the outputs, a target for a single
            output other than 0, or outputs that are not `(b, n)`.
    """
    if outputs.ndim == 1:
        outputs = outputs[:, None]
    if outputs.ndim != 2:
        raise InputError(
            f"target: expected outputs (b,) or (b, n), got {tuple(outputs.shape)}; "
            "wrap the model in one that returns one row of logits per image"
        )
    chosen = target_indices(outputs.shape[0], outputs.shape[1], target)
    return outputs.gather(1, chosen.to(outputs.device)[:, None])[:, 0]


def output_rows(outputs: object, b: int, target: Target) -> Float[Tensor, "rows n"]:
    """A model's outputs as `(rows, n)`, with `target` checked against `n` for `b` images.

    Args:
        outputs: What the model returned, one row per image or per version of an image.
        b: The number of images.
        target: As in `target_scores`.

    Raises:
        InputError: No tensor, no rows of logits, or a target that does not choose.
    """
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"expected the model to return a tensor of logits, got {type(outputs).__name__}; "
            "wrap it in a module that returns the logits"
        )
    rows = outputs[:, None] if outputs.ndim == 1 else outputs
    if rows.ndim != 2:
        raise InputError(
            f"expected the model to return (b,) or (b, n), got {tuple(outputs.shape)}; "
            "wrap it in a module that returns the logits"
        )
    target_indices(b, rows.shape[1], target)
    return rows


def target_indices(b: int, n: int, target: Target) -> Tensor:
    """The target as one index per image, `(b,)` int64, checked against `n` outputs.

    Raises:
        InputError: As `target_scores`.
    """
    if target is None:
        if n != 1:
            raise InputError(
                f"target: the model has {n} outputs, so choose one: target=<index> for all "
                f"images, or one index per image, such as target=logits.argmax(1)"
            )
        target = 0
    indices = as_indices(target)
    if indices.dtype.is_floating_point or indices.dtype == torch.bool:
        raise InputError(f"target: expected integer indices, got dtype {indices.dtype}")
    if indices.ndim > 1 or (indices.ndim == 1 and len(indices) != b):
        raise InputError(
            f"target: expected one index or {b} of them (one per image), "
            f"got shape {tuple(indices.shape)}"
        )
    if bool(((indices < 0) | (indices >= n)).any()):
        raise InputError(
            f"target: expected indices from 0 to {n - 1}, got {indices.flatten().tolist()[:8]}"
        )
    return indices.long().expand(b)


def as_indices(target: int | Sequence[int] | Tensor) -> Tensor:
    """A target as a tensor, its values unchecked.

    Raises:
        InputError: It is neither a number nor a sequence of numbers.
    """
    try:
        return torch.as_tensor(target).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            "target: expected an output's index, or one index per image, got "
            f"{type(target).__name__}; to explain anything else, wrap the model in a module that "
            "returns it as (b,)"
        ) from None


def indices_per_image(target: Target, images: Tensor) -> Int[Tensor, " b"]:
    """One index per image on the images' device, where the number of outputs is not known yet.

    Raises:
        InputError: Neither one index nor one per image.
    """
    chosen = as_indices(0 if target is None else target).to(images.device).long()
    if chosen.ndim and chosen.shape != images.shape[:1]:
        raise InputError(
            f"target: expected one index or {len(images)} of them (one per image), "
            f"got shape {tuple(chosen.shape)}"
        )
    return chosen.expand(len(images))
