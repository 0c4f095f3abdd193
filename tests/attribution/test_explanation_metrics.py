"""Infidelity and sensitivity are Captum's own, image by image."""

from __future__ import annotations

import captum.attr
import captum.metrics
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attnviz.attribution import attribute, infidelity, sensitivity
from attnviz.errors import InputError
from tests.attribution.nets import images, plain


class Weighed(nn.Module):
    """A linear model whose gradient is the same for all channels of a place."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(1, 1, 10, 12, generator=draw))

    def forward(self, x):
        return (x * self.weight).sum((1, 2, 3))


def test_the_gradient_of_a_linear_model_is_perfectly_faithful():
    model, x = Weighed(), images()
    maps = 3 * model.weight[0].expand(3, 10, 12)  # a place's three channels, summed
    assert_close(infidelity(model, x, maps, normalize=False), torch.zeros(3), atol=1e-5, rtol=0)
    # Normalising makes up for the unit of the map, and for nothing else.
    assert_close(infidelity(model, x, 7 * maps), torch.zeros(3), atol=1e-5, rtol=0)
    assert (infidelity(model, x, maps.flip(2)) > 0.01).all()


def test_the_opposite_of_the_right_map_scores_as_an_empty_one():
    model, x = Weighed(), images()
    maps = 3 * model.weight[0].expand(3, 10, 12)
    empty = infidelity(model, x, 0 * maps)
    assert (empty > 0.01).all()
    for scale in (-1, -1e-3, -40):
        assert_close(infidelity(model, x, scale * maps), empty)
    assert infidelity(model, x, maps * torch.nan).isnan().all()


def test_normalising_takes_the_best_scale_that_is_not_negative():
    """A twin: the smallest score over many scales."""
    model, x = plain(3), images(2)
    maps = attribute(model, x, method="saliency", target=1, sign="signed") + 0.02
    found = infidelity(model, x, maps, target=1, samples=8)
    scales = [0.0, *torch.logspace(-4, 2, 600).tolist()]
    options = {"target": 1, "samples": 8, "normalize": False}
    tried = torch.stack([infidelity(model, x, one * maps, **options) for one in scales]).amin(0)
    assert (found <= tried * (1 + 1e-5)).all()
    assert_close(found, tried, rtol=1e-2, atol=1e-10)


def test_infidelity_is_captums():
    model, x = plain(3).eval(), images(1)
    maps = attribute(model, x, method="saliency", target=1, sign="signed")
    torch.manual_seed(5)
    expected = captum.metrics.infidelity(
        model,
        lambda y: (noise := 0.1 * torch.stack([torch.randn_like(one) for one in y]), y - noise),
        x,
        (maps / 3)[:, None].expand_as(x),
        target=1,
        n_perturb_samples=6,
    )
    drawn = infidelity(model, x, maps, target=1, samples=6, normalize=False, seed=5)
    assert_close(drawn, expected.detach())


def test_infidelity_of_an_image_does_not_depend_on_the_others_or_on_memory():
    model, x = plain(3), images()
    maps = attribute(model, x, method="saliency", target=[0, 1, 2], sign="signed")
    options = {"normalize": False, "noise": 0.5}
    whole = infidelity(model, x, maps, target=[0, 1, 2], **options)
    assert_close(infidelity(model, x[1:2], maps[1:2], target=1, **options), whole[1:2])
    pieces = infidelity(model, x, maps, target=[0, 1, 2], memory=1, **options)
    assert_close(pieces, whole, rtol=1e-4, atol=1e-12)
    assert model.training


def test_maps_that_do_not_fit_the_images_are_refused(unchecked):
    with pytest.raises(InputError, match=r"expected maps \(3, 10, 12\).*got \(3, 5, 6\)"):
        infidelity(plain(), images(), torch.zeros(3, 5, 6))


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require:UserWarning")
def test_sensitivity_is_captums():
    grey = nn.Conv2d(1, 3, 1)
    model, x = nn.Sequential(grey, plain(3)).eval(), images(1)[:, :1]
    torch.manual_seed(5)
    expected = captum.metrics.sensitivity_max(
        captum.attr.Saliency(model).attribute,
        x,
        target=2,
        perturb_radius=0.1,
        n_perturb_samples=4,
    )
    # A single channel is what makes Captum's attributions and our maps the same thing.
    options = {"method": "saliency", "sign": "abs", "target": 2}
    drawn = sensitivity(model, x, **options, radius=0.1, samples=4, seed=5)
    assert_close(drawn, expected)
    assert drawn > 0


def test_a_linear_model_is_not_sensitive_and_every_image_has_its_target():
    assert_close(sensitivity(Weighed(), images(), method="saliency"), torch.zeros(3))
    model = plain(3)
    whole = sensitivity(model, images(), method="input_x_gradient", target=[2, 0, 1], samples=3)
    one = sensitivity(model, images()[1:2], method="input_x_gradient", target=0, samples=3)
    assert_close(one, whole[1:2])
    assert model.training


def test_numpy_maps_are_as_welcome_as_tensors():
    model, x = plain(), images()
    maps = attribute(model, x, method="saliency", sign="signed")
    assert torch.equal(infidelity(model, x, maps.numpy()), infidelity(model, x, maps))


@pytest.mark.parametrize(
    ("method", "each"),
    [
        ("integrated_gradients", {"baseline": images(seed=5)}),
        ("feature_ablation", {"feature_mask": torch.arange(360).view(3, 1, 10, 12) // 17 % 5}),
    ],
)
def test_in_sensitivity_every_image_has_its_own_baseline_and_regions(method, each):
    model, options = plain(), {"method": method, "samples": 3, "radius": 0.3}
    whole = sensitivity(model, images(), **each, **options)
    for i in range(3):
        own = {name: value[i : i + 1] for name, value in each.items()}
        assert_close(sensitivity(model, images()[i : i + 1], **own, **options), whole[i : i + 1])


def test_in_sensitivity_every_image_draws_from_the_whole_distribution():
    options = {"method": "gradient_shap", "baseline": images(seed=5), "samples": 2, "n_samples": 3}
    whole = sensitivity(plain(), images(), **options)
    assert_close(sensitivity(plain(), images()[1:2], **options), whole[1:2])
