"""Deletion and insertion: published values, a slow twin, ties and baselines."""

from __future__ import annotations

import pytest
import torch
from scipy.integrate import trapezoid
from torch import nn
from torch.testing import assert_close

from attnviz.baseline_images import blank_like
from attnviz.errors import InputError
from attnviz.faithfulness import deletion_auc, insertion_auc, removal_curve
from attnviz.faithfulness.deletion import removal_order
from tests.faithfulness.nets import Corner, Sum, corner_images, corner_maps

BOTH = pytest.mark.parametrize("insert", [False, True])


def test_torch_cams_published_values():
    """x = map = [[.4, .3], [.2, .1]], f = Σx, two steps: deletion .4, insertion .6."""
    x = torch.tensor([[[[0.4, 0.3], [0.2, 0.1]]]])
    options = {"baseline": "zero", "steps": 2, "output": "logit"}
    assert_close(deletion_auc(Sum(), x, x[:, 0], **options), torch.tensor([0.4]))
    assert_close(insertion_auc(Sum(), x, x[:, 0], **options), torch.tensor([0.6]))


def twin(model, image, one, blank, steps, insert):
    """The curve of one image, pixel by pixel, in the order of a map without ties."""
    places = sorted(((float(one[y, x]), y, x) for y in range(8) for x in range(10)), reverse=True)
    curve = []
    for step in range(steps + 1):
        version = (blank if insert else image).clone()
        for _, y, x in places[: round(step * 80 / steps)]:
            version[:, y, x] = (image if insert else blank)[:, y, x]
        logits = model(version[None])[0].double()
        curve.append(float((logits[1].exp() / logits.exp().sum()).detach()))
    return torch.tensor(curve)


@BOTH
@pytest.mark.parametrize("baseline", ["black", "white", "mean", "blur", 0.2])
@pytest.mark.parametrize("steps", [1, 7, 80])
def test_the_curve_is_the_confidence_at_each_share_of_the_places(insert, baseline, steps):
    model, images, maps = Corner(), corner_images(), corner_maps()
    options = {"target": 1, "baseline": baseline, "steps": steps}
    curve = removal_curve(model, images, maps, insert=insert, **options)
    blank = blank_like(images, baseline)
    for i in range(3):
        assert_close(curve[i], twin(model, images[i], maps[i], blank[i], steps, insert))
    area = (insertion_auc if insert else deletion_auc)(model, images, maps, **options)
    share = [round(step * 80 / steps) / 80 for step in range(steps + 1)]
    expected = [trapezoid(one.numpy(), share) for one in curve]
    assert_close(area, torch.tensor(expected, dtype=torch.float32))


def test_a_step_counts_by_the_places_that_it_takes():
    """Four places in three steps: one, two and one of them."""
    x = torch.tensor([[[[8.0, 4.0], [2.0, 1.0]]]])
    area = deletion_auc(Sum(), x, x[:, 0], baseline="zero", steps=3, output="logit")
    assert_close(area, torch.tensor([(15 + 7) / 2 / 4 + (7 + 1) / 2 / 2 + 1 / 2 / 4]))


@pytest.mark.parametrize("unit", [1e-60, 1e60])
def test_maps_in_double_precision_keep_their_order_in_any_unit(unit):
    options = {"target": 1, "steps": 8}
    expected = deletion_auc(Corner(), corner_images(), corner_maps(), **options)
    found = deletion_auc(Corner(), corner_images(), unit * corner_maps().double(), **options)
    assert torch.equal(found, expected)


def test_deletion_and_insertion_start_where_the_other_ends():
    options = {"target": 1, "steps": 5}
    deleted = removal_curve(Corner(), corner_images(), corner_maps(), **options)
    inserted = removal_curve(Corner(), corner_images(), corner_maps(), insert=True, **options)
    assert_close(deleted[:, 0], inserted[:, -1])
    assert_close(deleted[:, -1], inserted[:, 0])


def test_the_true_map_is_more_faithful_than_its_opposite():
    model, images, maps = Corner(), corner_images(), corner_maps()
    assert (deletion_auc(model, images, maps, target=1)
            < deletion_auc(model, images, -maps, target=1)).all()  # fmt: skip
    assert (insertion_auc(model, images, maps, target=1)
            > insertion_auc(model, images, -maps, target=1)).all()  # fmt: skip


def test_tied_places_come_in_a_random_order_that_the_seed_repeats():
    flat = torch.zeros(2, 6, 7)
    order = removal_order(flat, seed=1)
    assert torch.equal(order[0], order[1])
    assert torch.equal(order[0].sort().values, torch.arange(42))
    assert not torch.equal(order[0], torch.arange(42))
    assert torch.equal(removal_order(flat, seed=1), order)
    assert not torch.equal(removal_order(flat, seed=2), order)
    flat[0, 2, 3] = 1
    flat[0, 4, 4] = -1
    order = removal_order(flat, seed=1)
    assert order[0, 0] == 2 * 7 + 3
    assert order[0, -1] == 4 * 7 + 4


def test_a_constant_map_scores_chance_on_average():
    """Over many seeds a constant map deletes at random: of a sum, a straight line to zero."""
    x = torch.rand(1, 1, 4, 5)
    areas = torch.stack(
        [
            deletion_auc(Sum(), x, torch.zeros(1, 4, 5), baseline="zero", steps=20, output="logit",
                         seed=seed)
            for seed in range(300)
        ]
    )  # fmt: skip
    assert_close(areas.mean(), x.sum() / 2, rtol=0.02, atol=0)


@BOTH
def test_a_score_depends_on_the_order_of_the_values_alone(insert):
    score = insertion_auc if insert else deletion_auc
    maps = corner_maps()
    expected = score(Corner(), corner_images(), maps, target=1)
    assert_close(score(Corner(), corner_images(), (5 * maps - 2).exp(), target=1), expected)


@BOTH
def test_an_images_score_does_not_depend_on_the_others_or_on_the_rows(insert):
    score = insertion_auc if insert else deletion_auc
    images, maps = corner_images(), corner_maps()
    maps[2] = 0  # ties too
    target = [0, 1, 1]
    whole = score(Corner(), images, maps, target=target)
    assert_close(score(Corner(), images[2:], maps[2:], target=1), whole[2:])
    assert_close(score(Corner(), images, maps, target=target, rows=1), whole)


def test_a_map_that_is_not_finite_scores_nan_and_the_others_stay():
    images, maps = corner_images(), corner_maps()
    whole = deletion_auc(Corner(), images, maps, target=1)
    maps[1, 0, 0] = torch.nan
    broken = deletion_auc(Corner(), images, maps, target=1)
    assert broken[1].isnan()
    assert_close(broken[[0, 2]], whole[[0, 2]])


def test_nothing_that_was_given_is_changed():
    model = nn.Sequential(nn.Dropout(0.5), Corner()).train()
    images, maps = corner_images(), corner_maps()
    before = images.clone(), maps.clone()
    first = deletion_auc(model, images, maps, target=1)
    assert torch.equal(deletion_auc(model, images, maps, target=1), first)
    assert model.training
    assert model[0].training
    assert torch.equal(images, before[0])
    assert torch.equal(maps, before[1])
    assert model[1].weight.grad is None


def test_a_single_logit_is_read_as_a_probability_and_several_need_a_target():
    images, maps = corner_images(), corner_maps()

    class There(Corner):
        def forward(self, x):
            return super().forward(x)[:, 1]

    single = deletion_auc(There(), images, maps)
    assert_close(single, deletion_auc(Corner(), images, maps, target=1))
    with pytest.raises(InputError, match="the model has 2 outputs, so choose one"):
        deletion_auc(Corner(), images, maps)


def test_wrong_arguments_say_what_is_right(unchecked):
    images, maps = corner_images(), corner_maps()
    with pytest.raises(InputError, match=r"steps: expected 1 to 80 .*got 81"):
        deletion_auc(Corner(), images, maps, target=1, steps=81)
    with pytest.raises(InputError, match=r"expected maps \(3, 8, 10\).*got \(3, 4, 5\)"):
        deletion_auc(Corner(), images, maps[:, ::2, ::2], target=1)
    with pytest.raises(InputError, match="unknown baseline 'grey'"):
        deletion_auc(Corner(), images, maps, target=1, baseline="grey")
    with pytest.raises(InputError, match="unknown output 'score'"):
        deletion_auc(Corner(), images, maps, target=1, output="score")
    with pytest.raises(InputError, match="expected at least 1 image in a forward, got 0"):
        deletion_auc(Corner(), images, maps, target=1, rows=0)
