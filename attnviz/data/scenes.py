"""An annotated image before the model's preprocessing: objects, ignored pixels, label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from attnviz.data.preprocessing import Preprocessing
from attnviz.data.samples import Sample, called
from attnviz.errors import InputError


@dataclass(frozen=True, eq=False)
class Scene:
    """One annotated image.

    Attributes:
        picture: In mode RGB.
        objects: A mask `(H, W)` for each object; empty where the image holds none, None where it
            is not known.
        apart: Whether these are single objects, each with a box of its own. False for one mask
            that may show several.
        ignore: `(H, W)`, pixels that count neither way.
        label: As in `Sample`.
        group: As in `Sample`.
        name: As in `Sample`.
        extra: As in `Sample`.
        framed: Of one mask that may show several, the single objects' boxes filled, where known.
    """

    picture: Image.Image
    objects: Sequence[Bool[np.ndarray, "H W"]] | None
    ignore: Bool[np.ndarray, "H W"] | None = None
    label: int | float | Tensor | None = None
    group: str | None = None
    name: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    apart: bool = True
    framed: Sequence[Bool[np.ndarray, "H W"]] = ()

    def prepared(self, preprocessing: Preprocessing, index: int) -> Sample:
        """The scene as the model takes it: objects and ignored pixels moved with the image.

        Raises:
            InputError: An object of another size than the picture, or a transform that cannot be
                followed; the item is named.
        """
        try:
            image = preprocessing.image(self.picture, index)
            masks = [self._moved(one, preprocessing, index) for one in self.objects or ()]
            framed = [self._moved(one, preprocessing, index) for one in self.framed]
            ignore = None
            if self.ignore is not None and bool(self.ignore.any()):
                ignore = self._moved(self.ignore, preprocessing, index)
            pixels = preprocessing.pixels(image, self.picture.size, index)
            levels = preprocessing.value_range(self.picture.size, index)
        except InputError as error:
            at = Sample(torch.empty(0, 0, 0), name=self.name)
            raise InputError(f"{called(at, index)}: {error}") from error
        mask = None
        if self.objects is not None:
            mask = torch.zeros(image.shape[-2:], dtype=torch.bool)
            for one in masks:
                mask |= one
        objects = masks if self.apart else framed
        boxes = [box for one in objects if (box := box_of(one)) is not None]
        return Sample(
            image=image,
            mask=mask,
            boxes=torch.tensor(boxes, dtype=torch.int64) if boxes else None,
            ignore=ignore,
            label=self.label,
            group=self.group,
            name=self.name,
            pixels=pixels,
            value_range=levels,
            extra=self.extra,
        )

    def _moved(
        self, mask: Bool[np.ndarray, "H W"], preprocessing: Preprocessing, index: int
    ) -> Tensor:
        width, height = self.picture.size
        if mask.shape != (height, width):
            raise InputError(
                f"expected a mask of the image's size {height} × {width}, got "
                f"{' × '.join(map(str, mask.shape))}"
            )
        return preprocessing.mask(mask, index)


def box_of(mask: Bool[Tensor, "h w"]) -> list[int] | None:
    """The box `[x0, y0, x1, y1)` around a mask, None where it is empty."""
    y, x = mask.nonzero(as_tuple=True)
    if not len(y):
        return None
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


def filled_box(box: Sequence[float], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """A box `[x0, y0, x1, y1)` in pixels as a mask; a pixel that it touches is inside.

    Args:
        box: Its corners, which may lie between pixels.
        size: Width and height of the picture.

    Raises:
        InputError: It is empty, or reaches out of the picture by more than a pixel.
    """
    width, height = size
    x0, y0, x1, y1 = (float(value) for value in box)
    outside = x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1
    if outside or not (x0 < x1 and y0 < y1):
        raise InputError(
            f"expected a box [x0, y0, x1, y1) inside the {height} × {width} image, got "
            f"{[round(value, 2) for value in (x0, y0, x1, y1)]}"
        )
    mask = np.zeros((height, width), dtype=bool)
    top, left = int(np.floor(max(y0, 0))), int(np.floor(max(x0, 0)))
    mask[top : int(np.ceil(min(y1, height))), left : int(np.ceil(min(x1, width)))] = True
    return mask
