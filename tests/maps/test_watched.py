"""Maps of real records: what a watch saw of a model is what the maps are made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import attnviz as av
from attnviz import maps
from attnviz.errors import InputError


class Block(nn.Module):
    """Attention over tokens, by hand or by the fused kernel."""

    def __init__(self, width: int = 8, heads: int = 2, *, fused: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.heads, self.fused = heads, fused

    def forward(self, tokens: Tensor) -> Tensor:
        b, n, c = tokens.shape
        q, k, v = (3 * self.qkv(tokens)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-1, -2) * (c // self.heads) ** -0.5).softmax(-1) @ v
        return tokens + mixed.transpose(1, 2).reshape(b, n, c)


class Transformer(nn.Module):
    """Patches of 4 × 4 pixels, a class token, two blocks, three classes."""

    def __init__(self, *, fused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(Block(fused=fused) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        places = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), places], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


def images():
    return torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))


def seen_by(model, **options):
    with av.watch(model, **options) as seen:
        logits = model(images())
    return seen, logits


@pytest.mark.parametrize("fused", [False, True])
def test_the_grid_and_the_class_token_are_known_to_the_record(fused):
    with torch.no_grad():
        seen, _ = seen_by(Transformer(fused=fused))
    record = seen["blocks.1"]
    assert_close(maps.received(record), record.weights.mean((1, 2))[:, 1:].reshape(2, 3, 5))
    assert_close(maps.class_row(record), record.weights.mean(1)[:, 0, 1:].reshape(2, 3, 5))
    assert maps.received(record, size=(12, 20)).shape == (2, 12, 20)


@pytest.mark.parametrize("name", ["received", "class_row"])
def test_a_reduced_watch_gives_the_same_map(name):
    with torch.no_grad():
        whole, _ = seen_by(Transformer(fused=True))
        reduced, _ = seen_by(Transformer(fused=True), reduce=name)
    assert reduced["blocks.0"].weights is None
    draw = getattr(maps, name)
    for heads in ("mean", "each", 1):
        drawn = draw(reduced["blocks.0"], heads=heads)
        assert_close(drawn, draw(whole["blocks.0"], heads=heads))


@pytest.mark.parametrize(
    ("name", "said"),
    [("rollout", "a rollout of mean heads"), ("head_mean", "the mean of its heads")],
)
@pytest.mark.parametrize("read", ["class", "received"])
def test_a_rollout_made_while_watching_is_the_same_as_afterwards(name, said, read):
    with torch.no_grad():
        whole, _ = seen_by(Transformer())
        reduced, _ = seen_by(Transformer(), reduce=name)
    assert_close(maps.rollout(reduced, read=read), maps.rollout(whole, read=read))
    with pytest.raises(InputError, match=f"{said}; for fuse='max'"):
        maps.rollout(reduced, fuse="max")


def test_gradient_maps_of_a_fused_model_are_those_of_the_same_model_by_hand():
    drawn = {}
    for fused in (False, True):
        seen, logits = seen_by(Transformer(fused=fused), keep_graph=True)
        drawn[fused] = [
            maps.gradient_weighted(seen, logits, target=[2, 0]),
            maps.attention_gradcam(seen["blocks.0"], logits, target=1),
        ]
        with pytest.raises(InputError, match="the model has 3 outputs"):
            maps.gradient_weighted(seen, logits)
    for by_hand, by_kernel in zip(drawn[False], drawn[True], strict=True):
        assert (by_hand > 0).any()
        assert_close(by_kernel, by_hand, atol=1e-6, rtol=1e-4)


def test_gradients_of_a_watched_model_follow_chefers_rule():
    model = Transformer()
    seen, logits = seen_by(model, keep_graph=True)
    drawn = maps.gradient_weighted(seen, logits, target=1)
    relevance = torch.eye(16).expand(2, 16, 16)
    for record in seen.attention.values():
        slope = record.gradient(logits[:, 1])
        cam = (slope * record.weights.detach()).clamp(min=0).mean(1)
        relevance = relevance + cam @ relevance
    assert_close(drawn, relevance[:, 0, 1:].reshape(2, 3, 5))


def test_a_watch_without_a_graph_says_how_to_keep_one():
    seen, logits = seen_by(Transformer())
    with pytest.raises(InputError, match="keep_graph=True"):
        maps.gradient_weighted(seen, logits, target=1)


@pytest.mark.parametrize("name", ["cbam", "cbam_channel"])
def test_the_reference_models_gates_have_maps(name):
    model = av.build_model(name, width=8).eval()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad(), av.watch(model, features=True) as seen:
        model(x)
    channel = next(r for r in seen.gates.values() if r.scale.shape[-1] == 1)
    drawn = maps.channel_gated(channel)
    preference = channel.scale - channel.scale.mean(1, keepdim=True)
    assert_close(drawn, (preference * channel.features).mean(1))
    assert drawn.shape == (2, 8, 8)
    if name == "cbam":
        spatial = next(r for r in seen.gates.values() if r.scale.shape[-1] > 1)
        assert_close(maps.gate_map(spatial), spatial.scale[:, 0])


def test_a_capture_stands_for_its_last_attention() -> None:
    net = av.build_model("vit").eval()
    with torch.no_grad(), av.watch(net) as seen:
        net(torch.rand(2, 3, 32, 32))
    last = list(seen.values())[-1]
    assert torch.equal(av.class_row(seen), av.class_row(last))
    assert torch.equal(av.received(seen), av.received(last))
