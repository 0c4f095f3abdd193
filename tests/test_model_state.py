"""Whatever happens inside `frozen`, the model and the generators leave as they came."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnviz.model_state import frozen, seeded


class Restless(nn.Module):
    """Counts its calls, keeps a cache, writes into a buffer, replaces another and adds an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.act = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.calls, self.cache = 0, {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache[self.calls] = x
        self.written += 1
        self.replaced = self.replaced + 1
        self.added = True
        return self.act(self.norm(self.linear(x)))


def state(model):
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "grads": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "own": (model.calls, dict(model.cache), hasattr(model, "added"), model.act.inplace),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002 - the one that is restored
    }


def assert_same(one, other):
    for key in ("modes", "hooks", "grads", "own"):
        assert one[key] == other[key], key
    assert all(torch.equal(one["values"][k], other["values"][k]) for k in one["values"])
    assert torch.equal(one["torch"], other["torch"])
    assert np.array_equal(one["numpy"], other["numpy"])


def disturb(model, x):
    model.linear.register_forward_hook(lambda *_: None)
    model.linear.weight.requires_grad_(False)
    model.train()
    model(x)
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002 - the one that is restored


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_everything_is_restored_on_every_exit(gradients, error):
    model = Restless()
    model.norm.eval()
    model.linear.bias.requires_grad_(False)
    before = state(model)
    try:
        with frozen(model, gradients=gradients):
            disturb(model, torch.rand(4, 2))
            if gradients:
                model(torch.rand(4, 2)).sum().backward()
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert_same(state(model), before)


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_block_has_its_own_modes(outside, gradients):
    model = Restless()
    with outside(), frozen(model, gradients=gradients):
        assert not any(m.training for m in model.modules())
        assert model.act.inplace is not gradients
        assert torch.is_grad_enabled() is gradients
        assert not torch.is_inference_mode_enabled()


def test_random_numbers_inside_follow_the_seed_alone():
    draws = []
    for seed in (3, 3, 4):
        torch.rand(1)
        with frozen(nn.Identity(), seed=seed):
            legacy = float(np.random.rand())  # noqa: NPY002 - the one that Captum draws from
            draws.append((float(torch.rand(1)), legacy))
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    with seeded(3):
        assert float(torch.rand(1)) == draws[0][0]


class InPlace(nn.Module):
    """Normalises its images where they are."""

    def forward(self, images: Tensor) -> Tensor:
        images.sub_(0.5).div_(0.25)
        return images.mean((1, 2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("make", [lambda one: one, torch.jit.script], ids=["plain", "scripted"])
def test_a_model_that_changes_its_images_gets_copies(make):
    model, images = make(InPlace()), torch.rand(2, 3, 4, 4)
    before, leaf = images.clone(), images.clone().requires_grad_()
    with frozen(model):
        assert torch.equal(model(images), model(images))
        if not isinstance(model, torch.jit.ScriptModule):
            assert torch.equal(model(images=images), model(images))
    assert torch.equal(images, before)
    with frozen(model, gradients=True):
        model(leaf).sum().backward()
    assert torch.allclose(leaf.grad, torch.full_like(leaf, 4 / 48))
    assert not model._forward_pre_hooks
