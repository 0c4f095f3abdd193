"""Attributions are compared with the change of the output, and the difference is a number."""

from __future__ import annotations

import warnings

import captum.attr
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from attnviz.attribution import Attribution, attribute
from attnviz.errors import CompletenessWarning, InputError
from tests.attribution.nets import images, plain


class Cubed(nn.Module):
    """`Σ x³`: its attributions by every method are known."""

    def forward(self, x: Tensor) -> Tensor:
        return (x**3).sum((1, 2, 3))


def test_the_error_is_that_of_the_arithmetic():
    x = images()
    result = attribute(Cubed(), x, method="input_x_gradient", sign="abs", check=True)
    cubes = (x**3).sum((1, 2, 3))
    assert isinstance(result, Attribution)
    assert_close(result.total, 3 * cubes)
    assert_close(result.change, cubes)
    assert_close(result.error, 2 * cubes, rtol=1e-4, atol=1e-4)
    assert_close(result.relative_error, torch.full((3,), 2.0), rtol=1e-4, atol=1e-4)
    assert_close(result.magnitude, 3 * (x**3).abs().sum((1, 2, 3)))
    assert not result.complete.any()
    assert torch.equal(result.maps, attribute(Cubed(), x, method="input_x_gradient", sign="abs"))
    assert "0 of 3 complete; largest error" in repr(result)


@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift", "gradient_shap"])
@pytest.mark.parametrize("target", [1, torch.tensor([2, 0, 1])])
@pytest.mark.parametrize("size", [None, "own", (5, 6)])
def test_the_sum_is_taken_before_sign_size_and_pieces(method, target, size):
    model = plain(3)
    options = {"method": method, "target": target, "check": True, "seed": 4}
    plainly = attribute(model, images(), sign="signed", **options)
    other = attribute(model, images(), sign="positive", size=size, memory=1, **options)
    for name in ("total", "change", "magnitude"):
        assert_close(getattr(other, name), getattr(plainly, name), atol=1e-5, rtol=1e-4)
    assert_close(plainly.maps.sum((1, 2)), plainly.total, atol=1e-5, rtol=1e-4)
    index = torch.as_tensor(target).expand(3)[:, None]
    change = (model.eval()(images()) - model(images() * 0)).gather(1, index)[:, 0]
    assert_close(plainly.change, change.detach(), atol=1e-6, rtol=1e-4)


def test_more_steps_make_integrated_gradients_complete():
    few, many = (
        attribute(Cubed(), images(), method="integrated_gradients", n_steps=n, check=True)
        for n in (1, 60)  # the nodes of two steps are exact for a cube
    )
    assert (many.error.abs() < few.error.abs()).all()
    assert many.complete.all()


@pytest.mark.parametrize("target", [0, torch.tensor([2, 0, 1])])
def test_against_a_distribution_the_change_is_from_its_mean_output(target):
    model, many = plain(3).eval(), images(5, seed=7)
    result = attribute(
        model, images(), method="gradient_shap", baseline=many, target=target, check=True
    )
    index = torch.as_tensor(target).expand(3)[:, None]
    expected = (model(images()) - model(many).mean(0)).gather(1, index)[:, 0]
    assert_close(result.change, expected.detach())


def test_captum_objects_are_checked_too():
    model = plain().eval()
    mine = captum.attr.IntegratedGradients(model)
    assert attribute(model, images(), method=mine, check=True, n_steps=200).complete.all()
    unscaled = captum.attr.IntegratedGradients(model, multiply_by_inputs=False)
    with pytest.raises(InputError, match="this one does not claim it"):
        attribute(model, images(), method=unscaled, check=True)


@pytest.mark.parametrize("method", ["saliency", "layer_gradcam", "guided_backprop", "occlusion"])
def test_methods_that_claim_no_completeness_have_no_check(method):
    with pytest.raises(InputError, match=r"expected check=True for methods whose.*deep_lift"):
        attribute(plain(), images(), method=method, check=True)


class Gated(nn.Module):
    """A product of two activations, which DeepLIFT passes as plain gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.gate = plain(), nn.Sequential(plain(seed=1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.gate(20 * x)


def test_deep_lift_warns_with_the_error_where_it_is_not_complete():
    with pytest.warns(CompletenessWarning, match=r"deep_lift: .*of 3 images do not \(Attribution"):
        maps = attribute(Gated(), images(), method="deep_lift", sign="signed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = attribute(Gated(), images(), method="deep_lift", sign="signed", check=True)
    assert torch.equal(result.maps, maps)
    assert (~result.complete).any()
    assert_close(maps.sum((1, 2)), result.total, atol=1e-6, rtol=1e-4)


def test_no_images_have_no_error():
    result = attribute(plain(), images(0), method="integrated_gradients", check=True)
    assert result.error.shape == (0,)
    assert repr(result) == "Attribution: maps (0, 10, 12)"
