"""Knockout: the effect of a cut is the output with it minus the output without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import attnviz as av
from attnviz.capture import watch
from attnviz.errors import InputError, NothingSeenError
from attnviz.faithfulness import Cut, knockout
from tests.faithfulness.nets import InPlace


class Heads(nn.Module):
    """Attention of two heads over places, then a gate per channel; head 1 counts for nothing."""

    def __init__(self, *, fused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 8, 3, stride=3)
        self.qkv = nn.Linear(8, 24)
        self.squeeze = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)
        self.fused = fused
        with torch.no_grad():
            self.head.weight[:, 4:] = self.squeeze.weight[:, 4:] = 0  # head 1 is not read

    def forward(self, images: Tensor, cut=None, gate=None) -> Tensor:
        x = self.features(images)
        b, _, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (4 * self.qkv(tokens)).reshape(b, h * w, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.fused and cut is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
            if cut is not None:
                weights = weights.clone()
                weights[:, cut[0]] = cut[1]
            mixed = weights @ v
        x = mixed.transpose(2, 3).reshape(b, 8, h, w)
        scale = torch.sigmoid(self.squeeze(x.mean((2, 3))))[..., None, None]
        if gate is not None:
            scale = torch.full_like(scale, gate)
        return self.head((x * scale).mean((2, 3)))


def images(b=5):
    return torch.rand(b, 3, 9, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fused", [False, True])
def test_effects_are_those_of_the_model_with_the_cut_made_by_hand(fused):
    model, x = Heads(fused=fused), images()
    found = knockout(model, x)
    with torch.no_grad():
        plain = model(x)[:, 0]
        by_hand = {
            (0, "uniform"): model(x, cut=(0, 1 / 12))[:, 0] - plain,
            (0, "zero"): model(x, cut=(0, 0.0))[:, 0] - plain,
            (1, "uniform"): torch.zeros(5),
            (1, "zero"): torch.zeros(5),
            (None, "open"): model(x, gate=1.0)[:, 0] - plain,
        }
    assert_close(found.plain, plain)
    assert {(cut.head, cut.way) for cut in found.cuts} == set(by_hand)
    for cut, effect in zip(found.cuts, found.effects, strict=True):
        assert_close(effect, by_hand[cut.head, cut.way], atol=1e-6, rtol=1e-4)
    assert found.effects[:2].abs().mean(1).min() > 1e-4


def test_a_gate_at_its_own_mean_keeps_its_strength_and_loses_its_choice():
    model = Heads()
    found = knockout(model, images(), ways=["mean"])
    (cut,) = found.cuts
    assert (cut.kind, cut.head, cut.way) == ("gate", None, "mean")
    with torch.no_grad(), watch(model) as seen:
        plain = model(images()[:1])
    gate = next(iter(seen.gates.values())).scale.mean()
    with torch.no_grad():
        expected = model(images()[:1], gate=float(gate)) - plain
    assert_close(found.effects[0, :1], expected[0])


def test_the_table_gives_a_mean_and_a_t_interval_per_cut():
    found = knockout(Heads(), images(40))
    table = found.table
    assert list(table.columns) == [
        "name", "kind", "head", "way", "effect", "low", "high", "size", "images",
    ]  # fmt: skip
    effects = found.effects.double().numpy()
    np.testing.assert_allclose(table.effect, effects.mean(1), atol=1e-7)
    np.testing.assert_allclose(table["size"], np.abs(effects).mean(1), atol=1e-7)
    half = 2.0227 * effects.std(1, ddof=1) / np.sqrt(40)  # Student's t of 39 degrees of freedom
    np.testing.assert_allclose(table.high - table.effect, half, rtol=2e-3, atol=1e-9)
    np.testing.assert_allclose(table.effect - table.low, half, rtol=2e-3, atol=1e-9)
    assert (table.images == 40).all()
    again = knockout(Heads(), images(40)).table
    assert again.equals(table)


def test_its_repr_is_the_table():
    lines = repr(knockout(Heads(), images())).splitlines()
    assert len(lines) == 1 + 5 + 1
    assert "head 0" in lines[1]
    assert "uniform" in lines[1]
    assert lines[-1] == "5 images; 95 % intervals over images, of one training"


def test_records_and_ways_can_be_chosen():
    only_gates = knockout(Heads(), images(), where="gate")
    assert {cut.kind for cut in only_gates.cuts} == {"gate"}
    zeroed = knockout(Heads(), images(), ways=["zero"])
    assert [(cut.head, cut.way) for cut in zeroed.cuts] == [(0, "zero"), (1, "zero")]
    assert isinstance(zeroed.cuts[0], Cut)


def test_rows_in_a_forward_do_not_matter_and_probabilities_can_be_asked_for():
    whole = knockout(Heads(), images())
    assert_close(knockout(Heads(), images(), rows=2).effects, whole.effects)
    shares = knockout(Heads(), images(), output="probability")
    assert_close(shares.plain, whole.plain.sigmoid())
    assert_close(shares.effects, (whole.plain + whole.effects).sigmoid() - whole.plain.sigmoid())


def test_the_model_stays_what_it_was():
    model = Heads().train()
    before = model(images()).detach()
    knockout(model, images())
    assert model.training
    assert torch.equal(model(images()), before)


@pytest.mark.parametrize("name", ["mha", "mha_conv1d", "cbam", "cbam_channel"])
def test_the_reference_models_can_be_cut(name):
    torch.manual_seed(0)
    model = av.build_model(name, width=8)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    found = knockout(model, x)
    heads = {cut.head for cut in found.cuts if cut.kind == "attention"}
    gates = {cut.name for cut in found.cuts if cut.kind == "gate"}
    assert (len(heads), len(gates)) == {
        "mha": (4, 0), "mha_conv1d": (4, 0), "cbam": (0, 2), "cbam_channel": (0, 1),
    }[name]  # fmt: skip
    assert found.effects.isfinite().all()
    assert (found.effects != 0).any(1).all()


def test_what_cannot_be_cut_is_said():
    with pytest.raises(NothingSeenError):
        knockout(nn.Sequential(nn.Flatten(), nn.Linear(324, 1)), images())
    with pytest.raises(InputError, match=r"open fit none of .*heads can be uniform or zero"):
        knockout(Heads(), images(), where="attention", ways=["open"])
    with pytest.raises(InputError, match="unknown way 'none'"):
        knockout(Heads(), images(), ways=["none"])
    with pytest.raises(InputError, match="at least one image"):
        knockout(Heads(), images(0))


def test_a_model_that_changes_its_images_in_place_has_the_same_effects():
    x = images()
    before = x.clone()
    plain, other = (knockout(InPlace(Heads(), inplace=inplace), x) for inplace in (False, True))
    assert_close(other.effects, plain.effects)
    assert torch.equal(x, before)
