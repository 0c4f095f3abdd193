"""Wrong images, maps and masks are answered with what was expected and what came."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attnviz.errors import InputError
from attnviz.inputs import check_images, maps_of_images, maps_with_masks, masks_of_images

IMAGES = torch.zeros(2, 3, 4, 5)
MAPS = torch.zeros(2, 4, 5)


@pytest.mark.usefixtures("unchecked")
def test_what_fits_comes_back_as_tensors_on_the_same_memory():
    check_images(IMAGES)
    array = np.ones((2, 4, 5), dtype=np.float32)
    assert maps_of_images(IMAGES, array).data_ptr() == array.ctypes.data
    values, labels = maps_with_masks(array, array > 0)
    assert values.data_ptr() == array.ctypes.data
    assert labels.dtype == torch.bool
    assert masks_of_images(IMAGES, array > 0, "masks", operation="diagnose").all()
    assert maps_of_images(IMAGES, array.astype(np.uint8)).dtype == torch.float64


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 4, 5)), r"one tensor \(b, c, h, w\), got ndarray; .*torch.from_numpy"),
        (
            torch.zeros(3, 4, 5),
            r"got torch.float32 \(3, 4, 5\); add a batch axis with images\[None",
        ),
        (IMAGES.byte(), r"expected floating point images \(b, c, h, w\), got torch.uint8"),
    ],
)
def test_images_that_are_none_are_refused(images, message):
    with pytest.raises(InputError, match=f"^diagnose: .*{message}"):
        check_images(images, operation="diagnose")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maps_of_images(IMAGES, MAPS[:, :2]), r"maps \(2, 4, 5\).*got \(2, 2, 5\); resize"),
        (lambda: maps_of_images(IMAGES, [1]), "maps: expected a tensor or a numpy array, got list"),
        (lambda: maps_of_images(IMAGES, MAPS.numpy().astype(str)), "maps: expected float16 to"),
        (lambda: maps_with_masks(MAPS.long(), MAPS > 0), "maps: expected floating point"),
        (lambda: maps_with_masks(MAPS, MAPS), "masks: expected bool.*masks > 0"),
        (lambda: maps_with_masks(MAPS[0], MAPS[0] > 0), r"a single map is maps\[None\]"),
        (lambda: maps_with_masks(MAPS, (MAPS > 0)[:, None]), r"channel axis away with masks\[:, 0"),
        (lambda: maps_with_masks(MAPS[:, :2], MAPS > 0), "resize the maps to the masks first"),
        (lambda: maps_with_masks(MAPS, (MAPS > 0)[:1, :1]), "resize|one mask per map"),
        (lambda: maps_with_masks(MAPS[:, :0], (MAPS > 0)[:, :0]), "at least one place"),
        (
            lambda: masks_of_images(IMAGES, MAPS, "padding", operation="diagnose"),
            r"diagnose: expected padding as booleans \(2, 4, 5\), got torch.float32 .* > 0.5",
        ),
    ],
)
def test_maps_and_masks_that_do_not_fit_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
