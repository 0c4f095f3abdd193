"""Confidences of a model on many versions of an image, a few rows in one forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from attnviz.errors import InputError, unknown_name
from attnviz.inputs import check_takes_images
from attnviz.model_state import frozen
from attnviz.shapes import Images, Scores
from attnviz.targets import Target, output_rows, target_indices

Output: TypeAlias = Literal["probability", "logit"]
"""What is followed: the sigmoid of a single output or the softmax over several, or the output as
the model gives it."""

ROWS = 128
"""Default number of images in one forward."""


@dataclass(frozen=True)
class Confidence:
    """How sure a model is of its target.

    Attributes:
        model: Any module from images to `(b,)`, `(b, 1)` or `(b, n)` outputs.
        target: Which output, for all images or one index per image; needed for `n > 1`.
        output: `"probability"` or `"logit"`.
        rows: Images in one forward.
    """

    model: nn.Module
    target: Target
    output: Output
    rows: int

    def of(self, images: Images, which: slice | Tensor = slice(None), b: int = -1) -> Scores:
        """`(rows,)` confidences; `which` of the `b` images each row is a version of.

        Probabilities in double precision: in single precision those of a confident model are 1,
        and an increase is lost to rounding.
        """
        b = len(images) if b < 0 else b
        parts = [images.new_zeros(0)]
        numbers = torch.arange(b)[which]
        for start in range(0, len(images), self.rows):
            part = slice(start, start + self.rows)
            parts.append(self._read(self.model(images[part]), numbers[part], b))
        return torch.cat(parts)

    def of_versions(self, versions: Iterable[Images]) -> Tensor:
        """`(versions, b)` confidences of whole batches, one after the other."""
        return torch.stack([self.of(images) for images in versions])

    def _read(self, outputs: object, numbers: Tensor, b: int) -> Scores:
        rows = output_rows(outputs, b, self.target)
        index = target_indices(b, rows.shape[1], self.target)[numbers].to(rows.device)
        if self.output == "probability":
            rows = rows.double()
            rows = rows.sigmoid() if rows.shape[1] == 1 else rows.softmax(1)
        return rows.gather(1, index[:, None])[:, 0]


@contextmanager
def confidence_of(
    model: nn.Module, target: Target, output: Output, rows: int
) -> Iterator[Confidence]:
    """Confidences of a model in evaluation mode without gradients; its state restored after."""
    if output not in ("probability", "logit"):
        raise unknown_name("output", output, ("probability", "logit"))
    if rows < 1:
        raise InputError(f"rows: expected at least 1 image in a forward, got {rows}")
    check_takes_images(model, operation="faithfulness")
    with frozen(model):
        yield Confidence(model, target, output, rows)


def fitting(maps: Tensor) -> Tensor:
    """`(b,)`, whether a map can be scored: all its values are finite."""
    return maps.flatten(1).isfinite().all(1)
