"""DeepLIFT, guided backpropagation and deconvolution see every activation, or say which not."""

from __future__ import annotations

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from attnviz.attribution import attribute
from attnviz.attribution.activations import trace_of
from attnviz.errors import UnsupportedError


class Net(nn.Module):
    """Two convolutions; the second activation is `act(x, self)`."""

    def __init__(self, act) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c1, self.c2, self.f = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 1)
        self.r1, self.r2, self.sigmoid, self.act = nn.ReLU(), nn.ReLU(), nn.Sigmoid(), act

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.act(self.c2(self.r1(self.c1(x))), self).mean((2, 3)))


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


def emptied(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0
    return x


RECTIFIED = {
    "F.relu": lambda x, net: F.relu(x),
    "torch.relu_": lambda x, net: torch.relu_(x),
    "method": lambda x, net: x.relu(),
    "clamp": lambda x, net: x.clamp(min=0),
    "clamp_": lambda x, net: x.clamp_(0),
    "clamp_min": lambda x, net: torch.clamp_min(x, 0),
    "threshold": lambda x, net: F.threshold(x, 0.0, 0.0),
    "maximum": lambda x, net: torch.maximum(x, torch.zeros(())),
    "product": lambda x, net: x * (x > 0),
    "where": lambda x, net: torch.where(x > 0, x, 0.0),
    "masked": lambda x, net: x.masked_fill(x < 0, 0),
    "index": lambda x, net: emptied(x),
    "half": lambda x, net: (x + x.abs()) / 2,
    "unhooked": lambda x, net: net.r2.forward(x),
    "function": lambda x, net: Custom.apply(x),
}
BENT = {
    "relu6": lambda x, net: F.relu6(x),
    "leaky": lambda x, net: F.leaky_relu(x),
    "gelu": lambda x, net: F.gelu(x),
    "silu": lambda x, net: F.silu(x),
    "swish": lambda x, net: x * torch.sigmoid(x),
    "swish by module": lambda x, net: x * net.sigmoid(x),
    "exact gelu": lambda x, net: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
}
X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def captums(kind: str):
    return lambda model: {"method": getattr(captum.attr, kind)(model)}


GUIDED = {
    "guided_backprop": lambda model: {"method": "guided_backprop"},
    "guided_gradcam": lambda model: {"method": "guided_gradcam", "layer": "c1"},
    "GuidedBackprop": captums("GuidedBackprop"),
    "Deconvolution": captums("Deconvolution"),
}
LIFTED = {
    "deep_lift": lambda model: {"method": "deep_lift"},
    "DeepLift": captums("DeepLift"),
    "DeepLiftShap": lambda model: {**captums("DeepLiftShap")(model), "baseline": X * 0},
}


@pytest.mark.parametrize("act", [*RECTIFIED, *BENT])
@pytest.mark.parametrize("method", GUIDED)
def test_guided_methods_refuse_activations_that_they_would_not_guide(method, act):
    model = Net((RECTIFIED | BENT)[act]).eval()
    with pytest.raises(UnsupportedError, match=r"activations all are nn.ReLU modules.*it also has"):
        attribute(model, X, **GUIDED[method](model))


@pytest.mark.parametrize("act", [*RECTIFIED, *BENT])
@pytest.mark.parametrize("method", LIFTED)
def test_deep_lift_refuses_activations_without_a_rule(method, act):
    model = Net((RECTIFIED | BENT)[act]).eval()
    with pytest.raises(UnsupportedError, match=r"would pass plain gradients|product|sigmoid"):
        attribute(model, X, **LIFTED[method](model))


@pytest.mark.parametrize("method", [*GUIDED, *LIFTED])
def test_modules_that_ran_are_taken_and_those_that_did_not_do_not_matter(method):
    model = Net(lambda x, net: net.r2(x)).eval()
    model.idle = nn.GELU()
    options = (GUIDED | LIFTED)[method](model)
    maps = attribute(model, X, sign="signed", **options)
    assert maps.abs().max() > 0
    if method in LIFTED:
        change = (model(X) - model(X * 0))[:, 0]
        assert_close(maps.sum((1, 2)), change.detach(), atol=1e-6, rtol=1e-4)


def test_floors_of_divisors_and_gates_are_no_activations_of_a_guided_net():
    model = Net(lambda x, net: F.normalize(net.r2(x)) * torch.sigmoid(x.mean((2, 3), True))).eval()
    assert attribute(model, X, method="guided_backprop", sign="abs").any()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda x, net: F.max_pool2d(net.r2(x), 2), "got max_pool2d.* in the model's forward"),
        (lambda x, net: torch.tanh(x), "got tanh in the model's forward"),
        (lambda x, net: net.r1(x), "'r1' runs twice or more; give each place"),
    ],
)
def test_deep_lift_names_what_it_has_no_rule_for(act, message):
    with pytest.raises(UnsupportedError, match=message):
        attribute(Net(act).eval(), X, method="deep_lift")


def test_deep_lift_refuses_activations_with_backward_hooks_that_captum_would_leave_out():
    model = Net(lambda x, net: net.r2(x)).eval()
    model.r2.register_full_backward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match=r"without backward hooks, .* remove those of 'r2'"):
        attribute(model, X, method="deep_lift")


def test_the_trace_names_module_and_operation_and_leaves_the_model_alone():
    model = Net(lambda x, net: F.relu(net.r2(x))).train()
    model.f.weight.requires_grad_(False)
    trace = trace_of(model, X[:1])
    assert [(one.operation, one.name) for one in trace.activations] == [
        ("relu", "r1"), ("relu", "r2"), ("relu", ""),
    ]  # fmt: skip
    assert trace.calls[model.r1] == 1
    assert model.training
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_does_not_depend_on_the_image_is_no_activation():
    class Fixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            bias = F.relu(self.f.weight).mean()
            return super().forward(x) + bias

    model = Fixed(lambda x, net: net.r2(x)).eval()
    assert [one.name for one in trace_of(model, X[:1]).activations] == ["r1", "r2"]
