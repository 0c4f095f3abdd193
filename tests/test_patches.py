"""Patches: where they lie follows from (seed, index) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attnviz import InputError, inject_patch
from attnviz.patches import SHAPES


def grey(b: int = 4, side: int = 48) -> torch.Tensor:
    return torch.full((b, 3, side, side), 0.25)


def test_a_patch_covers_its_box_and_nothing_else() -> None:
    images, masks, boxes = inject_patch(grey(), size=16, seed=3)
    for image, mask, (x0, y0, x1, y1) in zip(images, masks, boxes.tolist(), strict=True):
        assert (x1 - x0, y1 - y0) == (16, 16)
        expected = torch.zeros(48, 48, dtype=torch.bool)
        expected[y0:y1, x0:x1] = True
        assert torch.equal(mask, expected)
        assert (image[:, mask] == 1).all()
        assert (image[:, ~mask] == 0.25).all()


def test_the_place_does_not_depend_on_the_batch() -> None:
    whole = inject_patch(grey(20), seed=7)
    for numbers in (torch.tensor([13]), torch.arange(5, 12), torch.tensor([19, 0, 4])):
        part = inject_patch(grey(len(numbers)), seed=7, indices=numbers)
        assert torch.equal(part.boxes, whole.boxes[numbers])
        assert torch.equal(part.images, whole.images[numbers])


def test_images_beyond_a_batch_get_places_of_their_own() -> None:
    boxes = inject_patch(grey(500, 96), seed=0).boxes
    assert len(boxes.unique(dim=0)) > 450
    other = inject_patch(grey(500, 96), seed=1).boxes
    assert (boxes == other).all(dim=1).float().mean() < 0.02


def test_every_place_is_equally_likely() -> None:
    boxes = inject_patch(torch.zeros(20_000, 1, 19, 19), size=16, seed=2).boxes
    counts = torch.bincount(boxes[:, 0] * 4 + boxes[:, 1], minlength=16).double()
    chi2 = ((counts - 1250) ** 2 / 1250).sum()
    assert chi2 < 37.7  # the .999 quantile of chi-squared with 15 degrees of freedom


def test_the_fraction_is_a_probability_of_each_image() -> None:
    masks = inject_patch(torch.zeros(20_000, 1, 16, 16), size=4, seed=5, fraction=0.3).masks
    assert masks.flatten(1).any(1).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert not inject_patch(grey(), seed=0, fraction=0.0).masks.any()


def test_an_image_without_a_patch_is_left_as_it_was_and_its_box_is_zero() -> None:
    images, masks, boxes = inject_patch(grey(64), seed=1, fraction=0.5)
    without = ~masks.flatten(1).any(1)
    assert without.any()
    assert (boxes[without] == 0).all()
    assert (images[without] == 0.25).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_stays_in_its_box_and_shows(shape: str) -> None:
    _, masks, boxes = inject_patch(grey(), size=12, seed=0, shape=shape)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        assert 0 < mask.sum() <= 144
        assert mask.sum() == mask[y0:y1, x0:x1].sum()


def test_textures_and_dots_differ_from_image_to_image() -> None:
    for shape in ("texture", "dots"):
        _, masks, boxes = inject_patch(grey(2), size=12, seed=0, shape=shape)
        one, two = (
            mask[y0:y1, x0:x1] for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True)
        )
        assert not torch.equal(one, two)


def test_several_patches_never_overlap() -> None:
    _, masks, boxes = inject_patch(grey(300), size=16, seed=0, count=2)
    assert (masks.flatten(1).sum(1) == 2 * 256).all()
    widths = boxes[:, 2:] - boxes[:, :2]
    assert (widths >= 16).all()
    assert (widths.amax(1) > 16).all()


def test_opacity_and_fill_blend() -> None:
    images, masks, _ = inject_patch(grey(1), seed=0, fill=(1.0, 0.0, -1.0), opacity=0.5)
    colours = images[0][:, masks[0]]
    expected = torch.tensor([0.625, 0.125, -0.375])
    assert torch.allclose(colours, expected[:, None].expand_as(colours))


def test_the_input_is_not_touched_and_types_are_kept() -> None:
    images = grey().to(torch.float64)
    patched = inject_patch(images, seed=0)
    assert (images == 0.25).all()
    assert patched.images.dtype == torch.float64
    assert patched.masks.dtype == torch.bool


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 49}, "expected a size from 1 to 48 for images of 48 × 48, got 49"),
        ({"size": -1}, "expected a size from 1 to 48"),
        ({"shape": "sqare"}, "unknown patch shape 'sqare': did you mean 'square'?"),
        ({"opacity": 0.0}, "expected an opacity in (0, 1], got 0.0"),
        ({"count": 0}, "expected a count of 1 or more"),
        ({"count": 9}, "found no room for 9 patches"),
        ({"fraction": 1.5}, "expected a fraction from 0 to 1"),
        ({"indices": torch.arange(3)}, "expected one index per image (4), got (3,)"),
        ({"images": torch.zeros(3, 48, 48)}, "expected images as a tensor (b, c, h, w)"),
        ({"images": np.zeros((1, 48, 48, 3))}, "got ndarray; an array (b, h, w, c) becomes one"),
        ({"images": torch.zeros(1, 3, 48, 48, dtype=torch.uint8)}, "convert with"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_says_what_was_expected(change: dict[str, object], message: str) -> None:
    arguments = {"images": grey(), "seed": 0, **change}
    with pytest.raises(InputError) as raised:
        inject_patch(**arguments)  # type: ignore[arg-type]
    assert message in str(raised.value)
