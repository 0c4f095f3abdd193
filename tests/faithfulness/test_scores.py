"""All scores by name are the scores one by one."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import attnviz as av
from attnviz import faithfulness
from attnviz.baseline_images import black_and_white
from attnviz.errors import InputError
from attnviz.faithfulness import DEFAULT, METRICS, faithfulness_scores
from tests.faithfulness.nets import Corner, InPlace, corner_images, corner_maps


def test_the_front_door_knows_them():
    assert av.faithfulness_scores is faithfulness_scores
    assert av.knockout is faithfulness.knockout
    assert av.randomisation is faithfulness.randomisation


def test_every_default_metric_is_given_by_name_and_equals_its_own_function():
    images, maps = corner_images(), corner_maps()
    options = {"target": 1, "seed": 2, "steps": 8, "baseline": "mean", "percentiles": (30,)}
    scores = faithfulness_scores(Corner(), images, maps, **options)
    assert tuple(scores) == DEFAULT == tuple(METRICS)[:-1]
    takes = {
        "deletion_auc": ("seed", "steps", "baseline"),
        "insertion_auc": ("seed", "steps", "baseline"),
        "road_morf": ("seed", "percentiles"),
        "road_lerf": ("seed", "percentiles"),
        "road_combined": ("seed", "percentiles"),
        "avg_drop": ("baseline",),
        "increase_in_confidence": ("baseline",),
    }
    for name, score in scores.items():
        assert score.shape == (3,)
        assert score.dtype == torch.float32
        own = {key: options[key] for key in (*takes[name], "target")}
        assert_close(score, getattr(faithfulness, name)(Corner(), images, maps, **own))


def test_metrics_can_be_chosen_and_infidelity_asked_for():
    images, maps = corner_images(), corner_maps()
    scores = faithfulness_scores(
        Corner(), images, maps, metrics=["infidelity", "road_combined"], target=1
    )
    assert list(scores) == ["infidelity", "road_combined"]
    assert scores["infidelity"].shape == (3,)
    with pytest.raises(InputError, match=r"'deletion': did you mean 'deletion_auc'"):
        faithfulness_scores(Corner(), images, maps, metrics=["deletion"], target=1)


def test_numpy_maps_are_as_welcome_as_tensors():
    images, maps = corner_images(), corner_maps()
    options = {"metrics": tuple(METRICS), "target": 1, "steps": 8, "percentiles": (30,)}
    expected = faithfulness_scores(Corner(), images, maps, **options)
    found = faithfulness_scores(Corner(), images, maps.numpy(), **options)
    for name in METRICS:
        assert_close(found[name], expected[name], rtol=0, atol=0)
    for way in (faithfulness.deletion_auc, faithfulness.road_morf, faithfulness.avg_drop):
        assert_close(way(Corner(), images, maps.numpy(), target=1),
                     way(Corner(), images, maps, target=1), rtol=0, atol=0)  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_no_images_have_no_scores(name):
    none = corner_images()[:0], corner_maps()[:0]
    assert faithfulness_scores(Corner(), *none, metrics=[name], target=1)[name].shape == (0,)


class Whitened(torch.nn.Module):
    """`Corner` behind a normalisation: it takes pixels that were normalised per channel."""

    def __init__(self, mean, std):
        super().__init__()
        self.net, self.mean, self.std = Corner(), mean.view(3, 1, 1), std.view(3, 1, 1)

    def forward(self, x):
        return self.net(x * self.std + self.mean)


def test_normalised_images_score_as_the_pixels_that_they_are():
    """Black is another number in each channel, and the images are not square."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels, maps = (corner_images(side=(6, 14)) + 1) / 2, corner_maps(side=(6, 14))
    images = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    names = ("deletion_auc", "insertion_auc", "avg_drop", "increase_in_confidence")
    options = {"metrics": names, "target": 1, "steps": 6}
    for baseline in ("black", "white"):
        expected = faithfulness_scores(
            Corner(), pixels, maps, baseline=baseline, value_range=(0, 1), **options
        )
        found = faithfulness_scores(
            Whitened(mean, std), images, maps, baseline=baseline,
            value_range=black_and_white(mean=mean.tolist(), std=std.tolist()), **options,
        )  # fmt: skip
        for name in names:
            assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def test_a_model_that_changes_its_images_in_place_scores_as_one_that_does_not():
    images, maps = corner_images(), corner_maps()
    names, before = [*DEFAULT, "infidelity"], images.clone()
    plain, other = (
        faithfulness_scores(
            InPlace(Corner(), inplace=inplace), images, maps, target=1, metrics=names
        )
        for inplace in (False, True)
    )
    assert_close(other, plain, equal_nan=True)
    assert torch.equal(images, before)


class TwoInputs(torch.nn.Module):
    def forward(self, images, text):
        return images.mean((1, 2, 3)) + text


def test_a_model_of_several_inputs_is_refused():
    with pytest.raises(InputError, match="faithfulness: expected a model that takes images alone"):
        faithfulness_scores(TwoInputs(), corner_images(), corner_maps(), baseline="mean")
