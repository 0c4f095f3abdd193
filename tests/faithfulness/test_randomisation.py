"""The randomisation check: what depends on the weights changes, what does not stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attnviz.attribution import attribute
from attnviz.errors import InputError, UnsupportedError
from attnviz.faithfulness import randomisation
from attnviz.metrics import agreement
from tests.faithfulness.nets import InPlace


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(54, 2),
    )


def images():
    return torch.rand(4, 3, 12, 14, generator=torch.Generator().manual_seed(1))


def test_layers_are_randomised_from_the_top_and_stay_so():
    """A twin that randomises by hand, layer upon layer, with the same generator."""
    model, x = net(), images()
    check = randomisation(model, x, "saliency", target=1, sign="signed", seed=5)
    assert check.layers == ("6", "2", "0")

    def draw(of):
        return attribute(of, x, method="saliency", target=1, sign="signed", seed=5)

    original, shaken = draw(model), copy.deepcopy(model)
    torch.manual_seed(5)
    for i, name in enumerate(check.layers):
        shaken.get_submodule(name).reset_parameters()
        expected = agreement(original, draw(shaken))
        assert_close(check.spearman[i], expected["spearman"])
        assert_close(check.ssim[i], expected["ssim"])
    assert_close(check.mprt, check.spearman.mean(0))


def test_a_map_of_the_image_alone_fails_and_a_gradient_passes():
    blind = randomisation(net(), images(), lambda model, x: x.mean(1))
    assert_close(blind.mprt, torch.ones(4, dtype=torch.float64))
    seeing = randomisation(net(), images(), "saliency", target=1, sign="signed")
    assert (seeing.mprt < 0.8).all()


def test_the_model_and_the_generator_stay_what_they_were():
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = randomisation(model, images(), "saliency", target=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    again = randomisation(model, images(), "saliency", target=0)
    assert torch.equal(again.spearman, first.spearman)
    other = randomisation(model, images(), "saliency", target=0, seed=1)
    assert not torch.equal(other.spearman, first.spearman)


def test_parameters_without_a_reset_are_shuffled():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.arange(168.0).reshape(12, 14))

        def forward(self, x):
            return (self.scale * x).sum((1, 2, 3))

    model = Scaled()
    check = randomisation(model, images(), "saliency", sign="signed")
    assert check.layers == ("",)
    assert (check.spearman.abs() < 0.5).all()

    def moments(of, _x):
        values = of.scale.detach().flatten().sort().values
        return values.reshape(1, 12, 14).expand(4, 12, 14)

    assert_close(randomisation(model, images(), moments).mprt, torch.ones(4, dtype=torch.float64))


def test_layers_can_be_chosen_and_are_taken_with_what_is_inside():
    model = nn.Sequential(nn.Sequential(*net()[:2]), *net()[2:])
    seen = []

    def draw(of, x):
        seen.append([p.detach().clone() for p in of.parameters()])
        return attribute(of, x, method="saliency", target=0)

    check = randomisation(model, images(), draw, layers=["0"], seed=3)
    assert check.layers == ("0",)
    assert len(check.table) == 1
    changed = [not torch.equal(a, b) for a, b in zip(*seen, strict=True)]
    assert changed == [True, True, False, False, False, False]


def test_a_layer_that_has_no_map_left_counts_as_not_comparable():
    check = randomisation(net(), images(), lambda model, x: torch.zeros(4, 12, 14), layers=["6"])
    assert check.spearman.isnan().all()
    assert check.table.valid.tolist() == [0]


def test_its_repr_is_the_table():
    lines = repr(randomisation(net(), images(), "saliency", target=1)).splitlines()
    assert lines[0].split() == ["randomised", "from", "the", "top", "spearman", "ssim", "images"]
    assert [line.split()[0] for line in lines[1:]] == ["6", "2", "0"]
    assert lines[1].endswith("4/4")


def test_what_cannot_be_checked_is_said():
    with pytest.raises(InputError, match=r"unknown layer '7'"):
        randomisation(net(), images(), "saliency", target=1, layers=["7"])
    with pytest.raises(InputError, match="no parameters that could be randomised"):
        randomisation(nn.Flatten(), images(), lambda model, x: x.mean(1))
    with pytest.raises(InputError, match="sign belong to a method's name"):
        randomisation(net(), images(), lambda model, x: x.mean(1), sign="abs")
    with pytest.raises(InputError, match=r"expected maps \(4, h, w\), got \(4, 3, 12, 14\)"):
        randomisation(net(), images(), lambda model, x: x)
    with pytest.raises(InputError, match="as a dotted name, since it works on a copy"):
        randomisation(net(), images(), "layer_gradcam", target=1, layer=nn.Conv2d(3, 6, 3))


class Ordered(nn.Module):
    """Defined head first, with a block that runs twice, tied weights, and a layer without use."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.idle = nn.Linear(6, 2), nn.Linear(3, 3)
        self.twice, self.stem = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.tied, self.between = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.tied.weight, self.tied.bias = self.between.weight, self.between.bias

    def forward(self, x):
        x = self.twice(self.between(self.stem(x)).relu()).relu()
        return self.head(self.twice(x).relu().mean((2, 3)))


def order_of(model):
    return randomisation(model.eval(), images(), lambda _, x: x.mean(1)).layers


def test_the_order_is_that_of_the_data_and_not_of_the_definition():
    """Of `between` and `tied`, which share their parameters, one stands for both."""
    order = order_of(Ordered())
    assert order[:2] == ("head", "twice")
    assert order[2] in ("between", "tied")
    assert order[3:] == ("stem",)


def test_parameters_that_are_used_without_a_call_of_their_module_count():
    class Uncalled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.last, self.scale = nn.Linear(6, 2), nn.Parameter(torch.ones(6, 1, 1))
            self.attn, self.first = nn.MultiheadAttention(6, 2), nn.Conv2d(3, 6, 3)

        def forward(self, x):
            weight = self.last.weight.t()  # a view, made before all else
            with torch.no_grad():
                x = self.first(x)
            x = (x * self.scale).flatten(2).permute(2, 0, 1)
            x = self.attn(x, x, x)[0].mean(0)
            return x @ weight + self.last.bias

    assert order_of(Uncalled()) == ("last", "attn.out_proj", "attn", "", "first")


def test_a_network_in_two_branches_has_every_layer_once():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=2).eval()
    x = torch.rand(1, 3, 32, 32)
    order = randomisation(model, x, lambda _, x: x.mean(1)).layers
    assert order[0] == "fc"
    assert order[-2:] == ("bn1", "conv1")
    stages = [name.split(".")[0] for name in order[1:-2]]
    assert stages == sorted(stages, reverse=True)
    assert len(order) == 41


def test_parameters_that_are_never_seen_in_use_need_an_order():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            return x.sum((1, 2, 3))

    with pytest.raises(UnsupportedError, match="none was seen in use; give the order with layers="):
        order_of(Idle())
    check = randomisation(Idle(), images(), lambda _, x: x.mean(1), layers=["linear"])
    assert check.layers == ("linear",)


def test_a_model_that_changes_its_images_in_place_is_compared_on_the_same_images():
    x = images()
    before = x.clone()

    plain, other = (
        randomisation(InPlace(net(), inplace=inplace), x, _outputs) for inplace in (False, True)
    )
    assert_close(other.spearman, plain.spearman)
    assert torch.equal(x, before)


def _outputs(model, x):
    """A map that follows the outputs, drawn by a function of one's own."""
    return x.mean(1) ** 2 * model(x)[:, :1, None] + x[:, 0] * model(x)[:, 1:, None]
