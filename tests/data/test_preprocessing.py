"""Masks follow an image through any preprocessing that moves pixels, or it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from attnviz.data import preprocessing
from attnviz.errors import InputError

NORMALISE = v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def scene(height: int = 60, width: int = 90) -> tuple[Image.Image, np.ndarray]:
    """A dark picture with a white object, and the object's mask."""
    mask = np.zeros((height, width), dtype=bool)
    mask[12:34, 40:71] = True
    pixels = np.full((height, width, 3), 20, np.uint8)
    pixels[mask] = 255
    return Image.fromarray(pixels), mask


def timm_transform() -> Any:
    return pytest.importorskip("timm.data").create_transform((3, 48, 48), is_training=False)


def hf_processor() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.ViTImageProcessor(size={"height": 40, "width": 56})


def weights_transform() -> Any:
    from torchvision.models import ResNet18_Weights

    return ResNet18_Weights.DEFAULT.transforms()


TRANSFORMS = {
    "v1": lambda: v1.Compose([v1.Resize(48), v1.CenterCrop(40), v1.ToTensor(), NORMALISE]),
    "v2": lambda: v2.Compose(
        [v2.ToImage(), v2.Resize((48, 64), antialias=True), v2.ToDtype(torch.float32, scale=True)]
    ),
    "padded": lambda: v1.Compose([v1.Pad((0, 15), fill=114), v1.Resize((45, 45)), v1.ToTensor()]),
    "grey": lambda: v1.Compose([v1.Grayscale(), v1.Resize((30, 45)), v1.ToTensor()]),
    "flipped": lambda: v1.Compose([v1.RandomHorizontalFlip(1.0), v1.ToTensor()]),
    "random": lambda: v1.Compose([v1.RandomResizedCrop(40, (0.5, 1.0)), v1.ToTensor(), NORMALISE]),
    "rotated": lambda: v1.Compose([v1.RandomRotation(30), v1.ToTensor()]),
    "timm": timm_transform,
    "weights": weights_transform,
    "processor": hf_processor,
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("index", [0, 5])
def test_a_mask_lies_where_the_bright_object_comes_out(name: str, index: int) -> None:
    moved = preprocessing(TRANSFORMS[name]())
    picture, mask = scene()
    image = moved.image(picture, index)
    found = moved.mask(mask, index)
    shown = moved.pixels(image, picture.size, index)
    assert found.shape == image.shape[-2:]
    assert shown.shape == (*found.shape, 3)
    bright = shown.float().mean(-1) > 137  # half way from 20 to 255
    assert found.any() or not bright.any()
    assert (found ^ bright).float().mean() < 0.01


def test_the_normalisation_is_undone_exactly() -> None:
    moved = preprocessing(v1.Compose([v1.ToTensor(), NORMALISE]))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    picture = Image.fromarray(pixels)
    shown = moved.pixels(moved.image(picture, 0), picture.size, 0)
    np.testing.assert_array_equal(shown.numpy(), pixels)


def test_black_and_white_are_those_of_the_picture_and_not_of_the_padding() -> None:
    moved = preprocessing(v1.Compose([v1.Pad((0, 70), fill=114), v1.ToTensor(), NORMALISE]))
    plain = preprocessing(v1.Compose([v1.ToTensor(), NORMALISE]))
    size = (90, 60)  # less than half of what comes out
    assert moved.value_range(size, 0) == plain.value_range(size, 0)


def test_an_image_s_draws_depend_on_its_number_alone() -> None:
    moved = preprocessing(TRANSFORMS["random"]())
    picture, mask = scene()
    first = moved.image(picture, 3), moved.mask(mask, 3)
    moved.image(picture, 4)
    again = moved.image(picture, 3), moved.mask(mask, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], moved.image(picture, 4))


def test_generators_are_left_as_they_were() -> None:
    state = torch.get_rng_state()
    moved = preprocessing(TRANSFORMS["random"]())
    picture, mask = scene()
    moved.image(picture, 0)
    moved.mask(mask, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_mask_cannot_follow_is_refused() -> None:
    inverted = preprocessing(
        v1.Compose([v1.ToTensor(), lambda x: (x - x.mean()) / (x.std() + 1e-3)])
    )
    picture, mask = scene()
    inverted.image(picture, 0)
    with pytest.raises(InputError, match="cannot follow it"):
        inverted.mask(mask, 0)


def test_what_is_no_transform_is_refused() -> None:
    with pytest.raises(InputError, match="expected a function from a PIL image"):
        preprocessing("resize")
    picture, _ = scene()
    with pytest.raises(InputError, match="end it with ToTensor"):
        preprocessing(v1.PILToTensor()).image(picture, 0)
    with pytest.raises(InputError, match="end it with ToTensor"):
        preprocessing(v1.Resize(8)).image(picture, 0)
