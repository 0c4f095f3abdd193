"""The model's own preprocessing, applied to an image and to what is drawn over it alike.

Preprocessing of timm, torchvision and Hugging Face resizes, crops and normalises an image and
takes no mask. Its effect on places is measured by running it on known pictures: with
white for inside and black for outside the mask comes out where the image's pixels come out, and
what white and black themselves become gives the scale, whatever the normalisation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from attnviz.errors import InputError

Transform = Callable[[Image.Image], Tensor]
"""From a picture in mode RGB to what the model takes, `(c, h, w)`."""

_LEAST = 1e-6
"""White and black nearer than this: the pixel does not come from the picture (padding)."""


@dataclass(frozen=True, eq=False)
class Shades:
    """What black and white pictures of one size become.

    Attributes:
        black: `(c, h, w)`.
        span: From black to white; infinite where a pixel does not come from the picture.
        follows: Whether any pixel comes from the picture.
        levels: What black and white pixels become, one number per channel.
    """

    black: Tensor
    span: Tensor
    follows: bool
    levels: tuple[tuple[float, ...], tuple[float, ...]]

    @classmethod
    def of(cls, black: Tensor, white: Tensor) -> Shades:
        """The shades of a transformed black and a transformed white picture."""
        span = white - black
        there = span.abs() >= _LEAST
        known = torch.where(there, span, torch.inf)
        low, high = (_levels(one, there) for one in (black, white))
        return cls(black, known, bool(there.any()), (low, high))

    def shares(self, image: Tensor) -> Tensor:
        """Each value's place between black, 0, and white, 1."""
        return (image - self.black) / self.span


def _levels(values: Tensor, there: Tensor) -> tuple[float, ...]:
    """The median of each channel over the pixels that come from the picture, padding left out."""
    return tuple(
        float(channel[inside].median() if bool(inside.any()) else channel.median())
        for channel, inside in zip(values, there, strict=True)
    )


class Preprocessing:
    """A transform that takes pictures and masks through the same geometry.

    Args:
        transform: Any callable from a PIL image to a tensor `(c, h, w)`: of torchvision (v1 and
            v2, `weights.transforms()`), of timm (`create_transform`), a Hugging Face image
            processor, or one's own. It may be random: image and mask are given the same draws.
        seed: Of these draws; an image's depend on its number alone.
    """

    def __init__(self, transform: Callable[..., Any], seed: int = 0) -> None:
        self.transform, self.seed = transform, seed
        self._shades: dict[tuple[tuple[int, int], int], Shades] = {}
        self._random: bool | None = None

    def image(self, picture: Image.Image, index: int) -> Float[Tensor, "c h w"]:
        """The picture as the model takes it.

        Raises:
            InputError: The transform gives something else than floating point `(c, h, w)`.
        """
        return self._applied(picture, index)

    def mask(self, mask: Bool[np.ndarray, "H W"], index: int) -> Bool[Tensor, "h w"]:
        """A mask, moved like the picture of the same number; True where most of a pixel is inside.

        Raises:
            InputError: The transform is no map from each pixel's shade (it equalises, inverts or
                mixes pictures), so that a mask cannot follow it.
        """
        shade = Image.fromarray((mask * np.uint8(255)).astype(np.uint8)).convert("RGB")
        shades = self._range(shade.size, index)
        moved = self._applied(shade, index)
        plain = tuple(shades.black.shape)
        if moved.shape != plain:
            raise InputError(
                f"transform: gives {tuple(moved.shape)} for a mask and {plain} for a "
                "plain picture of its size; it cannot be followed, transform images and masks "
                "together yourself"
            )
        share = shades.shares(moved)
        if not shades.follows or bool((share < -0.25).any()) or bool((share > 1.25).any()):
            raise InputError(
                "transform: changes shades by their neighbours or by the whole picture, so that a "
                "mask cannot follow it; transform images and masks together yourself"
            )
        return share.mean(0) > 0.5

    def pixels(
        self, image: Float[Tensor, "c h w"], size: tuple[int, int], index: int
    ) -> UInt8[Tensor, "h w 3"]:
        """What the model takes, as people see it: the normalisation undone."""
        shares = self._range(size, index).shares(image)
        shades = (shares.clamp(0, 1) * 255).round().to(torch.uint8)
        three = shades.expand(3, -1, -1) if len(shades) == 1 else shades[:3]
        return three.permute(1, 2, 0).contiguous()

    def value_range(
        self, size: tuple[int, int], index: int
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What black and white pixels of a picture become, one number per channel."""
        return self._range(size, index).levels

    def _range(self, size: tuple[int, int], index: int) -> Shades:
        """What black and white pictures of this size become."""
        key = (size, index if self._is_random(size) else -1)
        if key not in self._shades:
            plain = [Image.new("RGB", size, colour) for colour in ("black", "white")]
            if key[1] >= 0:
                self._shades.clear()  # a random transform's are of one image only
            self._shades[key] = Shades.of(*(self._applied(picture, index) for picture in plain))
        return self._shades[key]

    def _is_random(self, size: tuple[int, int]) -> bool:
        if self._random is None:
            noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
            picture = Image.fromarray(noise)
            tries = [self._applied(picture, index) for index in range(4)]
            self._random = any(
                one.shape != tries[0].shape or not torch.equal(one, tries[0]) for one in tries
            )
        return self._random

    def _applied(self, picture: Image.Image, index: int) -> Tensor:
        with _seeded(self.seed + index):
            given = self.transform(picture)
        found = _tensor(given)
        if found.ndim == 4 and len(found) == 1:
            found = found[0]
        if found.ndim != 3 or not found.is_floating_point():
            raise InputError(
                f"transform: expected a floating point tensor (c, h, w), got {found.dtype} "
                f"{tuple(found.shape)}; end it with ToTensor()"
            )
        return found.detach()


def preprocessing(transform: Any, seed: int = 0) -> Preprocessing:
    """A transform of any kind as `Preprocessing`.

    Raises:
        InputError: It cannot be called.
    """
    if isinstance(transform, Preprocessing):
        return transform
    if hasattr(transform, "preprocess") and hasattr(transform, "image_mean"):
        return Preprocessing(_of_processor(transform), seed)
    if not callable(transform):
        raise InputError(
            f"transform: expected a function from a PIL image to a tensor, got "
            f"{type(transform).__name__}"
        )
    return Preprocessing(transform, seed)


def _of_processor(processor: Any) -> Callable[[Image.Image], Any]:
    def apply(picture: Image.Image) -> Any:
        return processor(images=picture, return_tensors="pt")["pixel_values"]

    return apply


def _tensor(given: Any) -> Tensor:
    if isinstance(given, Mapping) and "pixel_values" in given:
        given = given["pixel_values"]
    if isinstance(given, Sequence) and len(given) == 1:
        given = given[0]
    if isinstance(given, np.ndarray):
        return torch.from_numpy(given)
    if isinstance(given, Tensor):
        return given.as_subclass(Tensor)
    raise InputError(
        f"transform: expected a tensor (c, h, w), got {type(given).__name__}; end it with "
        "ToTensor() or with ToImage() and ToDtype(torch.float32, scale=True)"
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's generators at a seed, and afterwards as they were."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  # what transforms draw from
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])
