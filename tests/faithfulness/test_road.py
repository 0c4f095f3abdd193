"""ROAD: the imputation solves its equations, and the scores follow from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from attnviz.errors import InputError
from attnviz.faithfulness import impute, road_combined, road_lerf, road_morf
from tests.faithfulness.nets import Corner, Sum, corner_images, corner_maps

SIDE, ACROSS = 1 / 6, 1 / 12


def filled_twin(image, removed):
    """One equation per removed place and channel, solved densely."""
    c, h, w = image.shape
    out = image.double().clone()
    places = [(y, x) for y in range(h) for x in range(w) if removed[y, x]]
    for channel in range(c):
        system, right = np.zeros((len(places), len(places))), np.zeros(len(places))
        for i, (y, x) in enumerate(places):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    v, u = y + dy, x + dx
                    if (dy, dx) == (0, 0) or not (0 <= v < h and 0 <= u < w):
                        continue
                    weight = SIDE if 0 in (dy, dx) else ACROSS
                    system[i, i] += weight
                    if removed[v, u]:
                        system[i, places.index((v, u))] -= weight
                    else:
                        right[i] += weight * float(image[channel, v, u])
        for place, value in zip(places, np.linalg.solve(system, right), strict=True):
            out[channel, place[0], place[1]] = value
    return out.float()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_removed_places_are_the_mean_of_their_neighbours(share):
    images = corner_images()
    removed = torch.rand(3, 8, 10, generator=torch.Generator().manual_seed(3)) < share
    filled = impute(images, removed, noise=0)
    for i in range(3):
        assert_close(filled[i], filled_twin(images[i], removed[i]))
    assert torch.equal(filled[~removed[:, None].expand_as(filled)],
                       images[~removed[:, None].expand_as(filled)])  # fmt: skip


def test_a_flat_image_stays_flat_and_a_slope_stays_within_its_ends():
    removed = torch.zeros(1, 9, 9, dtype=torch.bool)
    removed[:, 2:7, 2:8] = True
    flat = impute(torch.full((1, 2, 9, 9), 0.3), removed, noise=0)
    assert_close(flat, torch.full((1, 2, 9, 9), 0.3))
    slope = torch.arange(9.0).expand(1, 1, 9, 9)
    assert_close(impute(slope, removed, noise=0), slope)


def test_noise_is_added_to_removed_places_only_and_is_the_same_for_every_image():
    images = corner_images()[:1].repeat(2, 1, 1, 1)
    removed = torch.zeros(2, 8, 10, dtype=torch.bool)
    removed[:, 2:6, 3:7] = True
    added = impute(images, removed, noise=0.1) - impute(images, removed, noise=0)
    assert (added[:, :, 2:6, 3:7] != 0).all()
    assert (added[~removed[:, None].expand_as(added)] == 0).all()
    assert torch.equal(added[0], added[1])
    assert 0.05 < added[0, :, 2:6, 3:7].std() < 0.2


def test_an_image_of_which_nothing_is_left_cannot_be_filled():
    with pytest.raises(InputError, match="at least one place left"):
        impute(corner_images(), torch.ones(3, 8, 10, dtype=torch.bool))


@pytest.mark.parametrize("most", [True, False])
def test_the_score_is_the_mean_confidence_over_the_percentiles(most):
    images, maps = corner_images(), corner_maps()
    drawn = (road_morf if most else road_lerf)(
        Corner(), images, maps, target=1, percentiles=(25, 60), noise=0
    )
    for i in range(3):
        confidences = []
        for count in (20, 48):
            order = maps[i].flatten().argsort(descending=most)
            removed = torch.zeros(80, dtype=torch.bool)
            removed[order[:count]] = True
            version = filled_twin(images[i], removed.reshape(8, 10))
            confidences.append(Corner()(version[None]).double().softmax(1)[0, 1].item())
        assert_close(drawn[i], torch.tensor(sum(confidences) / 2, dtype=torch.float32))


def test_the_combined_score_is_half_the_difference_and_favours_the_truth():
    images, maps = corner_images(), corner_maps()
    options = {"target": 1, "seed": 4}
    combined = road_combined(Corner(), images, maps, **options)
    most, least = (road(Corner(), images, maps, **options) for road in (road_morf, road_lerf))
    assert_close(combined, (least - most) / 2)
    assert (combined > 0.05).all()
    assert_close(road_combined(Corner(), images, -maps, **options), -combined, atol=2e-3, rtol=0.05)


def test_a_map_of_places_that_do_not_matter_scores_nothing():
    images = torch.full((1, 1, 8, 8), 0.25)  # filled from its surroundings a flat image stays
    maps = torch.rand(1, 8, 8)
    combined = road_combined(Sum(), images, maps, output="logit", noise=0)
    assert_close(combined, torch.zeros(1), atol=1e-5, rtol=0)


def test_an_images_score_does_not_depend_on_the_others_or_on_the_rows():
    images, maps = corner_images(), corner_maps()
    maps[2] = 0
    whole = road_combined(Corner(), images, maps, target=1)
    assert_close(road_combined(Corner(), images[2:], maps[2:], target=1), whole[2:])
    assert_close(road_combined(Corner(), images, maps, target=1, rows=2), whole)


def test_what_cannot_be_scored_is_nan_or_refused():
    images, maps = corner_images(), corner_maps()
    maps[0, 0, 0] = torch.inf
    assert road_morf(Corner(), images, maps, target=1).isnan().tolist() == [True, False, False]
    for wrong in ((), (0,), (50, 100)):
        with pytest.raises(InputError, match="percentiles: expected values between 0 and 100"):
            road_morf(Corner(), images, maps, target=1, percentiles=wrong)


def test_places_of_other_images_are_refused(unchecked):
    images = corner_images()
    wrong = (torch.zeros(3, 4, 5) > 0, torch.zeros(2, 8, 10) > 0, torch.zeros(3, 8, 10))
    for removed in wrong:
        with pytest.raises(InputError, match=r"removed places as booleans \(3, 8, 10\), got"):
            impute(images, removed)


def test_the_least_of_whole_numbers_come_first_too(unchecked):
    images, maps = corner_images(), (100 * corner_maps()).byte()
    expected = road_lerf(Corner(), images, maps.double(), target=1)
    assert torch.equal(road_lerf(Corner(), images, maps, target=1), expected)
