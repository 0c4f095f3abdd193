"""A split is a data set of `evaluate`: the same images and masks as its loader's, one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import attnviz as av
from experiments import evaluation
from experiments.evaluation import GRADCAM
from experiments.questions import Asked
from experiments.settings import Settings
from experiments.splits import Split, with_patch

SMALL = Settings(side=32, size=8, train_images=8, val_images=4, test_images=30, batch=4)


def model(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return av.build_model(name).eval()


@pytest.mark.parametrize("question", ["patch", "both", "larger"])
@pytest.mark.parametrize("places", ["image", "batch"])
def test_images_made_one_by_one_are_those_made_together(question: str, places: str) -> None:
    settings = dataclasses.replace(SMALL, question=question, places=places, shape="ring")
    split = Split(settings, "test")
    asked = split.asked(range(30))
    for number in (0, 7, 29):
        sample = split[number]
        assert torch.equal(sample.image, asked.images[number])
        assert torch.equal(sample.mask, asked.masks[number])
        assert sample.label == int(asked.labels[number])


def test_images_that_have_something_to_find_are_chosen_first_to_last() -> None:
    split = Split(SMALL, "test")
    there = split.asked(range(30)).masks.flatten(1).any(1).nonzero()[:, 0].tolist()
    assert with_patch(split, 3) == there[:3]
    assert with_patch(split, 99) == there
    assert with_patch(split, 0) == []
    some = Split(SMALL, "test", there[1:4])
    assert len(some) == 3
    assert torch.equal(some[2].image, split[there[3]].image)


def test_a_class_token_gives_its_rows_and_their_rollout_in_every_layer() -> None:
    vit, split = model("vit"), Split(SMALL, "test")
    result = av.evaluate(
        vit, split, layers=True, heads=True, rows=3, attributions=GRADCAM, batch=30,
        findings=False, progress=False,
    )  # fmt: skip
    blocks = ["class_row.blocks.0.attend", "class_row.blocks.1.attend", "class_row"]
    assert set(result.maps) == {*blocks, "rollout", "layer_gradcam"}
    with torch.no_grad(), av.watch(vit) as capture:
        vit(split.asked(range(30)).images)
    for name, record in zip(blocks, capture.values(), strict=True):
        np.testing.assert_allclose(result.raw(name), av.class_row(record), atol=1e-6)
        assert result.layers[name] == record.name
        assert record.weights is not None
        rows = result.rows[name]
        np.testing.assert_allclose(rows.weights, record.weights[:3], atol=1e-6)
        assert (rows.images, rows.about["prefix"]) == ((0, 1, 2), 1)
        assert rows.about["query_grid"] == [4, 4]
    np.testing.assert_allclose(result.raw("rollout"), av.rollout(capture), atol=1e-6)


def test_attention_between_channels_has_no_map_and_no_rows() -> None:
    result = av.evaluate(
        model("pointwise_channels"), Split(SMALL, "test"), attributions=GRADCAM, rows=1,
        findings=False,
    )  # fmt: skip
    assert result.maps == ["layer_gradcam"]
    assert result.rows == {}


def test_the_doctor_sees_crops_around_the_patches_where_weights_are_large() -> None:
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    boxes = torch.tensor([[50, 0, 60, 10], [27, 40, 37, 50], [0, 0, 0, 0]])
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    asked = Asked(masks[:, None].expand(-1, 3, -1, -1).float(), masks, boxes, torch.zeros(3))
    for whole, side in ((evaluation.WHOLE_BYTES, 64), (evaluation.WHOLE_BYTES * 17, 16)):
        images, kept = evaluation._cropped(asked, whole)
        assert images.shape == (3, 3, side, side)
        assert kept.flatten(1).sum(1).tolist() == [100, 100, 0]
        assert torch.equal(images[:, 0].bool(), kept)
