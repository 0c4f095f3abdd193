"""Average drop and increase in confidence, image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from attnviz.faithfulness import avg_drop, increase_in_confidence
from tests.faithfulness.nets import Corner, Sum, corner_images, corner_maps


def confidences_twin(images, maps, black):
    out = []
    for image, one in zip(images, maps, strict=True):
        share = (one - one.min()) / (one.max() - one.min())
        kept = share * image + (1 - share) * black
        both = (Corner()(x[None]).double().softmax(1)[0, 1].item() for x in (image, kept))
        out.append(tuple(both))
    return out


@pytest.mark.parametrize(("baseline", "black"), [("black", -1.0), ("white", 1.0), (0.2, 0.2)])
@pytest.mark.parametrize("turned", [1, -1])
def test_both_follow_from_what_the_map_lets_through(baseline, black, turned):
    images, maps = corner_images(), turned * corner_maps()
    options = {"target": 1, "baseline": baseline}
    pairs = confidences_twin(images, maps, black)
    drop = torch.tensor([max(0, y - o) / y for y, o in pairs])
    rise = torch.tensor([float(o > y) for y, o in pairs])
    assert_close(avg_drop(Corner(), images, maps, **options), drop, atol=1e-6, rtol=1e-5)
    assert torch.equal(increase_in_confidence(Corner(), images, maps, **options), rise)


def test_a_map_that_keeps_everything_that_counts_loses_little():
    images = corner_images()
    truth = torch.zeros(3, 8, 10)
    truth[:, :4, :5] = 1
    assert_close(avg_drop(Corner(), images, truth, target=1), torch.zeros(3))
    assert (avg_drop(Corner(), images, 1 - truth, target=1) > 0.1).all()


def test_only_the_shape_of_a_map_counts_not_its_unit():
    images, maps = corner_images(), corner_maps()
    expected = avg_drop(Corner(), images, maps, target=1)
    assert_close(avg_drop(Corner(), images, 1e3 * maps - 7, target=1), expected)
    for unit in (1e-60, 1e60):
        assert_close(avg_drop(Corner(), images, unit * maps.double(), target=1), expected)


def test_what_cannot_be_scored_is_nan_for_that_image_alone():
    images, maps = corner_images(), corner_maps()
    maps[0], maps[1, 0, 0] = 0.5, torch.nan
    for score in (avg_drop, increase_in_confidence):
        alone = score(Corner(), images[2:], maps[2:], target=1)
        scores = score(Corner(), images, maps, target=1)
        assert scores.isnan().tolist() == [True, True, False]
        assert_close(scores[2:], alone)


def test_a_drop_from_nothing_is_not_a_number():
    x = torch.tensor([[[[1.0, -2.0]]]])
    maps = torch.tensor([[[0.0, 1.0]]])
    assert avg_drop(Sum(), x, maps, output="logit", baseline="zero").isnan().all()
    assert increase_in_confidence(Sum(), x, maps, output="logit", baseline="zero").item() == 0.0


class Sure(nn.Module):
    """The sum of all pixels, far beyond where a probability in single precision is 1."""

    def forward(self, images: Tensor) -> Tensor:
        return 25 + Sum()(images)


def test_a_model_that_is_sure_can_still_be_surer():
    x = torch.full((1, 1, 2, 2), -0.5)
    maps = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    assert increase_in_confidence(Sure(), x, maps, baseline="white").item() == 1.0
    assert increase_in_confidence(Sure(), x, maps, baseline="black").item() == 0.0


def test_where_the_model_gives_no_number_there_is_no_score():
    class Undefined(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return Sum()(images).log()

    x = torch.stack([torch.full((1, 2, 2), -0.5), torch.full((1, 2, 2), 0.5)])
    maps = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).expand(2, 2, 2)
    for score in (avg_drop, increase_in_confidence):
        assert score(Undefined(), x, maps, baseline=9.0).isnan().tolist() == [True, False]
