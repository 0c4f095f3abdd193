"""Regions without gaps, and Shapley values that are Shapley values."""

from __future__ import annotations

import itertools
import math

import captum.attr
import pytest
import torch
from captum._utils.models.linear_model import SkLearnLinearRegression
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from attnviz.attribution import attribute, superpixels
from attnviz.attribution.regions import LeastSquares
from attnviz.errors import InputError
from tests.attribution.nets import images, plain


def test_regions_are_numbered_from_zero_without_gaps():
    regions = superpixels(images(side=(24, 30)), segments=12)
    assert regions.shape == (3, 1, 24, 30)
    for one in regions:
        found = one.unique()
        assert torch.equal(found, torch.arange(len(found)))
        assert 6 <= len(found) <= 24


def test_regions_of_an_image_do_not_depend_on_its_range_or_its_neighbours():
    x = images(side=(24, 30))
    regions = superpixels(x, segments=12)
    assert torch.equal(superpixels(3 * x[1:2] + 7, segments=12), regions[1:2])


def test_a_bright_square_is_a_region_of_its_own():
    x = -torch.ones(1, 3, 24, 24)
    x[..., 6:12, 6:12] = 1
    regions = superpixels(x, segments=16, compactness=1.0)[0, 0]
    inside = set(regions[6:12, 6:12].flatten().tolist())
    outside = regions.clone()
    outside[6:12, 6:12] = -1
    assert inside.isdisjoint(outside.flatten().tolist())


def test_fewer_than_two_regions_are_refused():
    with pytest.raises(InputError, match="segments of at least 2, got 1"):
        superpixels(images(), segments=1)
    with pytest.raises(InputError, match="a single region"):
        attribute(
            plain(),
            images(),
            method="feature_ablation",
            feature_mask=torch.zeros(1, 1, 10, 12, dtype=torch.long),
        )


@pytest.mark.parametrize("samples", [30, 5])
def test_least_squares_are_scikit_learns(samples):
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(samples, 8, generator=draw)
    y = torch.rand(samples, generator=draw)
    weight = torch.rand(samples, generator=draw) + 0.1
    data = DataLoader(TensorDataset(x, y, weight), batch_size=samples)
    mine, theirs = LeastSquares(), SkLearnLinearRegression()
    mine.fit(data)
    theirs.fit(data)
    assert_close(mine.representation(), theirs.representation(), atol=2e-4, rtol=1e-3)


class Interacting(nn.Module):
    """Regions that only count together: the case that ablation gets wrong."""

    def forward(self, x):
        left, middle, right = x[:, 0, 0, 0], x[:, 0, 0, 1], x[:, 0, 0, 2]
        return left * middle + 2 * right


def test_kernel_shap_finds_the_shapley_values():
    x = torch.ones(1, 1, 1, 3)
    mask = torch.arange(3).reshape(1, 1, 1, 3)
    model = Interacting()
    shapley = torch.zeros(3)
    for i in range(3):
        rest = [j for j in range(3) if j != i]
        for size in range(3):
            for chosen in itertools.combinations(rest, size):
                weight = math.factorial(size) * math.factorial(2 - size) / math.factorial(3)
                without = torch.zeros(1, 1, 1, 3)
                without[..., list(chosen)] = 1
                having = without.clone()
                having[..., i] = 1
                shapley[i] += weight * float(model(having) - model(without))
    drawn = attribute(
        model, x, method="kernel_shap", feature_mask=mask, n_samples=3000, sign="signed"
    )
    assert_close(drawn[0, 0], shapley, atol=0.02, rtol=0)


def test_kernel_shap_is_exact_where_regions_only_add_up():
    class Sum(nn.Module):
        def forward(self, x):
            return (x * torch.arange(6.0)).sum((1, 2, 3))

    x = torch.rand(2, 1, 1, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([0, 0, 1, 1, 2, 2]).reshape(1, 1, 1, 6)
    drawn = attribute(
        Sum(), x, method="kernel_shap", feature_mask=mask, n_samples=30, sign="signed"
    )
    regions = (x * torch.arange(6.0)).reshape(2, 3, 2).sum(-1)
    assert_close(drawn[:, 0], regions.repeat_interleave(2, 1), atol=1e-4, rtol=1e-4)


def test_feature_ablation_is_captums_own_over_the_same_regions():
    model, x = plain(3).eval(), images()
    regions = superpixels(x, segments=6)
    expected = captum.attr.FeatureAblation(model).attribute(x, target=1, feature_mask=regions)
    drawn = attribute(
        model, x, method="feature_ablation", target=1, segments=6, sign="signed", memory=1
    )
    assert_close(drawn, expected.mean(1))
    given = attribute(
        model, x, method="feature_ablation", target=1, feature_mask=regions, sign="signed"
    )
    assert_close(given, drawn)
