"""Data sets as people have them become samples, and what is ambiguous is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import Compose, Resize, ToTensor

from attnviz.data import Sample, patched, samples_of
from attnviz.errors import InputError

H, W = 12, 16


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8))


def mask() -> np.ndarray:
    found = np.zeros((H, W), dtype=bool)
    found[2:6, 3:9] = True
    return found


def tensor() -> torch.Tensor:
    return torch.rand(3, H, W, generator=torch.Generator().manual_seed(0))


MASK = torch.from_numpy(mask())

FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "image, mask": ((tensor(), MASK), {"mask": MASK}),
    "image, label": ((tensor(), 3), {"mask": None, "label": 3}),
    "image, mask, label": ((tensor(), MASK, 2), {"mask": MASK, "label": 2}),
    "image, (label, mask)": ((tensor(), (2, mask())), {"mask": MASK, "label": 2}),
    "one channel": ((tensor(), MASK[None]), {"mask": MASK}),
    "0 and 255": ((tensor(), mask().astype(np.uint8) * 255), {"mask": MASK}),
    "0. and 1.": ((tensor(), MASK.float()), {"mask": MASK}),
    "tv_tensors": (
        (tv_tensors.Image(tensor()), {"masks": tv_tensors.Mask(MASK[None]), "labels": 1}),
        {"mask": MASK, "label": 1},
    ),
    "boxes": (
        (tensor(), {"boxes": tv_tensors.BoundingBoxes([[3, 2, 6, 4]], format="XYWH",
                                                      canvas_size=(H, W))}),
        {"mask": MASK, "boxes": torch.tensor([[3, 2, 9, 6]])},
    ),
    "mapping": (
        {"image": tensor(), "mask": MASK, "label": 1, "group": "p7", "name": "a.png"},
        {"mask": MASK, "label": 1, "group": "p7", "name": "a.png"},
    ),
    "COCO": (
        (tensor(), [{"bbox": [3, 2, 6, 4], "category_id": 1, "iscrowd": 0}]),
        {"mask": MASK},
    ),
    "boxes as the target": (
        (tensor(), tv_tensors.BoundingBoxes([[3, 2, 9, 6]], format="XYXY", canvas_size=(H, W))),
        {"mask": MASK, "boxes": torch.tensor([[3, 2, 9, 6]])},
    ),
    "masks of one channel": ((tensor(), {"masks": MASK[None, None]}), {"mask": MASK}),
    "masks of 0. and 255.": ((tensor(), {"masks": MASK[None] * 255.0}), {"mask": MASK}),
    "VOC": (
        (tensor(), {"annotation": {
            "size": {"width": str(W), "height": str(H), "depth": "3"},
            "object": [{"name": "cat", "bndbox": {"xmin": "4", "ymin": "3", "xmax": "9",
                                                  "ymax": "6"}}],
        }}),
        {"mask": MASK, "boxes": torch.tensor([[3, 2, 9, 6]])},
    ),
    "mapping of COCO": (
        {"image": tensor(), "annotations": [{"bbox": [3, 2, 6, 4], "category_id": 1}]},
        {"mask": MASK},
    ),
    "bbox of tensors that know their format": (
        {"image": tensor(), "bbox": tv_tensors.BoundingBoxes(
            [[3, 2, 6, 4]], format="XYWH", canvas_size=(H, W))},
        {"mask": MASK},
    ),
    "labels of objects": (
        {"image": tensor(), "boxes": torch.tensor([[3, 2, 9, 6]]), "labels": torch.tensor([5])},
        {"mask": MASK, "label": None},
    ),
    "a vector in a target": (
        (tensor(), {"mask": MASK, "label": [0, 1, 1]}), {"label": torch.tensor([0, 1, 1])}),
    "nothing in a list of COCO": ((tensor(), []), {"mask": torch.zeros(H, W, dtype=torch.bool)}),
    "a mask of pixels beside the image": (
        {"pixel_values": tensor(), "pixel_mask": MASK, "label": 1}, {"mask": None, "label": 1}),
    "several labels": ((tensor(), torch.tensor([0, 1, 1])), {"label": torch.tensor([0, 1, 1])}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str) -> None:
    item, expected = FORMS[form]
    sample = samples_of([item])[0]
    assert isinstance(sample, Sample)
    assert type(sample.image) is torch.Tensor
    for name, value in expected.items():
        found = getattr(sample, name)
        same = torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
        assert same, (name, found)


def test_pictures_and_masks_go_through_the_transform_together() -> None:
    data = samples_of([(picture(), mask(), 1)], transform=ToTensor())
    sample = data[0]
    assert torch.equal(sample.mask, MASK)
    assert sample.pixels is not None
    np.testing.assert_array_equal(sample.pixels.numpy(), np.asarray(picture()))
    assert sample.boxes is None  # one mask may show several objects


def test_two_objects_keep_their_boxes() -> None:
    target = {"boxes": torch.tensor([[0, 0, 4, 4], [4, 4, 8, 8]])}  # they touch at a corner
    sample = samples_of([(picture(), target)], transform=ToTensor())[0]
    assert sample.boxes is not None
    assert sample.boxes.tolist() == [[0, 0, 4, 4], [4, 4, 8, 8]]


def test_coco_s_objects_do_not_stay_behind_when_torchvision_resizes_the_image() -> None:
    class CocoDetection(list[Any]):
        """As torchvision's: its transform takes the image alone."""

        ids = (4,)
        coco = SimpleNamespace(imgs={4: {"id": 4, "height": 2 * H, "width": 2 * W}})

    objects = [{"bbox": [3, 2, 6, 4], "category_id": 1, "image_id": 4}]
    with pytest.raises(InputError, match=r"got boxes of 24 × 32; .* give it as transform="):
        samples_of(CocoDetection([(tensor(), objects)]))[0]
    whole = samples_of(CocoDetection([(picture().resize((2 * W, 2 * H)), objects)]),
                       transform=Compose([Resize((H, W)), ToTensor()]))[0]  # fmt: skip
    assert whole.boxes is not None
    assert whole.boxes.tolist() == [[2, 1, 4, 3]]


def test_a_joint_transform_of_image_and_annotations_is_trusted() -> None:
    class CocoDetection(list[Any]):
        ids = (4,)
        coco = SimpleNamespace(imgs={4: {"id": 4, "height": 2 * H, "width": 2 * W}})
        transform = target_transform = None
        transforms = print  # of both, given as transforms=

    corners = np.array([3, 2, 9, 2, 9, 6, 3, 6], float)
    objects = [{"segmentation": [corners], "category_id": 1, "image_id": 4}]
    sample = samples_of(CocoDetection([(tensor(), objects)]))[0]
    assert sample.boxes is not None
    assert sample.boxes.tolist() == [[3, 2, 9, 6]]


@pytest.mark.parametrize("about", [{"mask_path": "a.png"}, {"bbox": [1, 2, 3, 4]}, {"object": "a"}])
def test_what_else_is_said_beside_a_mask_is_no_place(about: dict[str, Any]) -> None:
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[2:4, 3:5] = True
    sample = samples_of([(tensor(), mask, about)])[0]
    assert sample.mask is not None
    assert sample.mask.sum() == 4
    assert samples_of([{"image": tensor(), "num_objects": 2}])[0].mask is None


def test_boxes_beside_one_mask_of_several_objects_are_kept() -> None:
    boxes = torch.tensor([[3, 2, 6, 6], [6, 2, 9, 6]])  # they touch, and are one component
    target = {"mask": mask(), "boxes": boxes, "labels": torch.tensor([1, 2])}
    for image, transform in ((tensor(), None), (picture(), ToTensor())):
        sample = samples_of([(image, target)], transform=transform)[0]
        assert torch.equal(sample.mask, MASK)
        assert torch.equal(sample.boxes, boxes)
    twice = MASK.repeat_interleave(2, 0).repeat_interleave(2, 1)
    with pytest.raises(InputError, match="expected a mask and boxes of one image, got a mask"):
        samples_of([(tensor(), {**target, "mask": twice})])[0]


def test_a_label_map_says_which_values_are_the_thing() -> None:
    values = np.zeros((H, W), dtype=np.uint8)
    values[:4], values[4:6], values[6:8] = 1, 2, 9
    with pytest.raises(InputError, match=r"item 0: a label map with the values \[0, 1, 2, 9\]"):
        samples_of([(tensor(), values)])[0]
    sample = samples_of([(tensor(), values)], inside=2, ignore=[9])[0]
    assert sample.mask is not None
    assert sample.ignore is not None
    assert sample.mask.nonzero()[:, 0].unique().tolist() == [4, 5]
    assert sample.ignore.nonzero()[:, 0].unique().tolist() == [6, 7]


class VOCSegmentation(list[Any]):
    """As torchvision's: a palette of classes, 255 for what counts neither way."""


class OxfordIIITPet(list[Any]):
    """As torchvision's: 1 the pet, 2 the background, 3 the border."""


def test_torchvision_s_label_maps_mean_what_they_mean_there() -> None:
    values = np.zeros((H, W), dtype=np.uint8)
    values[:4], values[4:6], values[6] = 15, 8, 255
    sample = samples_of(VOCSegmentation([(picture(), Image.fromarray(values))]),
                        transform=ToTensor())[0]  # fmt: skip
    assert sample.mask is not None
    assert sample.ignore is not None
    assert sample.mask.nonzero()[:, 0].unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert sample.ignore.nonzero()[:, 0].unique().tolist() == [6]
    trimap = np.full((H, W), 2, dtype=np.uint8)
    trimap[3:6], trimap[6] = 1, 3
    pet = OxfordIIITPet([(picture(), (4, Image.fromarray(trimap)))])
    sample = samples_of(pet, transform=ToTensor())[0]
    assert sample.mask is not None
    assert sample.label == 4
    assert sample.mask.nonzero()[:, 0].unique().tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((picture(), mask()), "give transform="),
        ((tensor(), MASK.float() * 0.3 + 0.1), "choose a threshold"),
        ((tensor(), {"boxes": torch.tensor([[0, 0, 40, 4]])}), "item 0: expected a box"),
        ((tensor(), {"boxes": torch.tensor([[4, 4, 4, 8]])}), "inside the 12 × 16 image"),
        (
            (
                tensor(),
                {
                    "boxes": tv_tensors.BoundingBoxes(
                        [[3.0, 2.0, 6.0, 4.0, 0.0]], format="XYWHR", canvas_size=(H, W)
                    )
                },
            ),
            "expected boxes as XYXY, XYWH or CXCYWH, got XYWHR",
        ),
        ({"mask": MASK}, "a mapping with 'image'"),
        ((tensor(), {"masks": MASK.float()[None] * 0.1}), "choose a threshold"),
        (
            (tensor(), {"masks": torch.arange(3).repeat(H, 64)[None, :, :W]}),
            "item 0: a label map with the values",
        ),
        (
            (
                tensor(),
                tv_tensors.BoundingBoxes([[3, 2, 9, 6]], format="XYXY", canvas_size=(2 * H, 2 * W)),
            ),
            "expected boxes of the 12 × 16 image, got boxes of 24 × 32; boxes and image must go",
        ),
        (
            (tensor(), {"annotation": {"size": {"width": "32", "height": "24"}, "object": []}}),
            "got boxes of 24 × 32",
        ),
        (
            (tensor(), {"boxes": torch.tensor([[0.1, 0.2, 0.5, 0.6]])}),
            "expected boxes in pixels, got .* shares of the image",
        ),
        ((tensor(), {"annotation": {"object": [{"name": "cat"}]}}), "expected a VOC object with"),
        (
            (tensor(), [{"type": "Car", "bbox": [3.0, 2.0, 9.0, 6.0], "dimensions": [1, 2, 3]}]),
            "expected a list of COCO's annotations, .* got type, bbox, dimensions",
        ),
        ({"image": tensor(), "annotations": "a.json"}, "COCO's annotations, .* got str"),
        ({"image": tensor(), "bbox": [[3, 2, 6, 4]]}, "the place of the objects under bbox is not"),
        ((tensor(), {"objects": {"bbox": [[3, 2, 6, 4]]}}), "under objects is not understood"),
        ({"image": tensor(), "segmentation_mask": MASK}, "under segmentation_mask is not"),
        ((tensor(), MASK, "cat"), "label: expected a class's index, got the text 'cat'; a file's"),
        (
            {"image": tensor(), "labels": MASK.long()},
            "several labels, got Tensor of several axes; a label map is given",
        ),
        ({"image": tensor(), "labels": {"boxes": 0}}, "several labels, got dict; a label map"),
        (tensor(), "expected .image, mask."),
    ],
)
def test_what_cannot_be_read_is_named(item: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        samples_of([item])[0]


def test_a_mask_of_another_size_than_its_picture_is_named() -> None:
    data = samples_of([(picture(), mask()[:-1])], transform=ToTensor())
    with pytest.raises(InputError, match="item 0: expected a mask of the image's size 12 × 16"):
        data[0]


def test_a_label_by_name_is_that_class_of_the_data_set() -> None:
    class Named(list[Any]):
        classes = ("dog", "cat")

    assert samples_of(Named([(tensor(), MASK, "cat")]))[0].label == 1
    with pytest.raises(InputError, match="or one of the classes dog, cat, got the text 'cow'"):
        samples_of(Named([{"image": tensor(), "label": "cow"}]))[0]


def test_samples_stay_as_they_are_when_they_are_grouped() -> None:
    sample = Sample(
        tensor(), MASK, torch.tensor([[3, 2, 6, 6], [6, 2, 9, 6]]), label=1, name="a",
        pixels=torch.zeros(H, W, 3, dtype=torch.uint8), value_range=((-2.0,), (2.0,)),
        extra={"age": 3},
    )  # fmt: skip
    found = samples_of([sample], group=["p1"])[0]
    assert found.group == "p1"
    names = ("image", "mask", "boxes", "label", "name", "pixels", "value_range", "extra")
    assert all(getattr(found, name) is getattr(sample, name) for name in names)
    with pytest.raises(InputError, match="the items are samples, whose images are as the model"):
        samples_of([sample], transform=ToTensor())[0]


def test_stacked_tensors_are_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match="expected a sequence of items, got a tuple of 2 tensors"):
        samples_of((tensor()[None], MASK[None]))


def test_a_picture_of_16_bits_keeps_its_shades() -> None:
    shades = np.arange(H * W, dtype=np.uint16).reshape(H, W) * 256
    sample = samples_of([(Image.fromarray(shades), mask())], transform=ToTensor())[0]
    np.testing.assert_allclose(sample.image[0] * 255, shades >> 8)


def test_a_stream_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match="of an iterator make a list"):
        samples_of(iter([(tensor(), MASK)]))


def test_a_loader_is_its_data_set() -> None:
    loader = torch.utils.data.DataLoader([(tensor(), MASK)] * 3, batch_size=2)
    assert len(samples_of(loader)) == 3


def test_groups_come_from_a_function_or_a_list() -> None:
    data = [(tensor(), MASK, 0)] * 4
    by_function = samples_of(data, group=lambda index, item: f"patient {index // 2}")
    by_list = samples_of(data, group=["a", "a", "b", "b"])
    assert [by_function[i].group for i in range(4)] == ["patient 0"] * 2 + ["patient 1"] * 2
    assert by_list[3].group == "b"
    with pytest.raises(InputError, match="expected 4 names"):
        samples_of(data, group=["a"])


def test_a_patch_makes_a_place_known() -> None:
    data = patched([(tensor(), 1)] * 3, size=4, seed=2)
    samples = [data[i] for i in range(3)]
    assert all(s.mask is not None and int(s.mask.sum()) == 16 for s in samples)
    assert all(torch.equal(data[i].image, s.image) for i, s in enumerate(samples))
    assert all(s.label == 1 for s in samples)
    assert (samples[0].image[:, samples[0].mask] == 1).all()
