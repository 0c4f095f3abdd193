"""Maps through layers, against loops that read like the papers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from attnviz import maps
from attnviz.capture import Record, Windows
from attnviz.errors import InputError
from tests.maps.stand_ins import StandIn, attention, gate


def layers(prefix=1, count=3, **options):
    return [attention(prefix=prefix, seed=i, **options) for i in range(count)]


def read(matrix: Tensor, record) -> Tensor:
    h, w = record.key_grid
    row = matrix[0] if record.prefix else matrix.mean(0)
    return row[record.prefix :].reshape(h, w)


def rollout_twin(records, fuse) -> Tensor:
    """Abnar and Zuidema, one image, one row and one layer at a time."""
    out = []
    for i in range(len(records[0].weights)):
        n = records[0].weights.shape[-1]
        flow = torch.eye(n)
        for record in records:
            fused = fuse(record.weights[i])
            step = 0.5 * fused + 0.5 * torch.eye(n)
            for row in range(n):
                step[row] = step[row] / step[row].sum()
            flow = step @ flow
        out.append(read(flow, records[-1]))
    return torch.stack(out)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "fuse"),
    [
        ("mean", lambda a: a.mean(0)),
        ("max", lambda a: a.max(0).values),
        ("min", lambda a: a.min(0).values),
    ],
)
def test_rollout_multiplies_half_attention_half_identity(prefix, name, fuse):
    records = layers(prefix)
    said = {"grid": records[0].key_grid, "prefix": prefix}
    assert_close(maps.rollout(records, fuse=name, **said), rollout_twin(records, fuse))


def test_rollout_of_identity_attention_stays_at_home():
    eye = torch.eye(7).expand(1, 2, 7, 7)
    record = StandIn(weights=eye, prefix=1, key_grid=(2, 3))
    assert torch.equal(maps.rollout([record] * 4), torch.zeros(1, 2, 3))


def test_rollout_reads_a_capture_in_order_and_leaves_its_gates_out():
    first, second = layers(count=2)
    capture = {"a": first, "gate": gate(), "b": second}
    assert_close(maps.rollout(capture), maps.rollout([first, second]))
    assert not torch.allclose(maps.rollout(capture), maps.rollout([second, first]))
    assert_close(maps.rollout(first), maps.rollout([first]))


def test_layers_whose_tokens_differ_are_refused_by_name():
    small = StandIn(name="stage2.attn", weights=torch.rand(2, 3, 16, 4), key_grid=(2, 2))
    with pytest.raises(InputError, match=r"'stage2.attn' attends from 16 queries to 4 keys"):
        maps.rollout([*layers(), small])
    with pytest.raises(InputError, match="at least one attention record"):
        maps.rollout({"gate": gate()})


def test_an_unknown_way_to_fuse_or_read_is_named(unchecked):
    with pytest.raises(InputError, match="unknown fuse 'sum'"):
        maps.rollout(layers(), fuse="sum")
    with pytest.raises(InputError, match="unknown read 'row'"):
        maps.rollout(layers(), read="row")
    with pytest.raises(InputError, match="no class token"):
        maps.rollout(layers(prefix=0), read="class")


class Twofold(nn.Module):
    """Two layers of attention over tokens, whose weights stay in the graph."""

    def __init__(self, prefix=1, grid=(2, 3), width=8, heads=2, classes=3):
        super().__init__()
        self.prefix, self.grid, self.heads = prefix, grid, heads
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[StandIn]]:
        kept = []
        for qkv in self.qkv:
            b, n, _ = tokens.shape
            q, k, v = qkv(tokens).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-1, -2)).softmax(-1)
            kept.append(StandIn(weights=weights, prefix=self.prefix, key_grid=self.grid))
            tokens = tokens + (weights @ v).transpose(1, 2).flatten(2)
        return self.head(tokens.mean(1)), kept


def twofold(prefix=1):
    torch.manual_seed(0)
    model = Twofold(prefix)
    return model, 2 * torch.randn(2, prefix + 6, 8)


@pytest.mark.parametrize("prefix", [0, 1])
def test_gradient_weighted_follows_chefers_rule(prefix):
    model, tokens = twofold(prefix)
    logits, records = model(tokens)
    drawn = maps.gradient_weighted(records, logits, target=[2, 0])

    for i, target in enumerate([2, 0]):
        one, kept = model(tokens[i : i + 1])
        for record in kept:
            record.weights.retain_grad()
        one[0, target].backward()
        n = prefix + 6
        relevance = torch.eye(n)
        for record in kept:
            cam = torch.zeros(n, n)
            for head in range(2):
                product = record.weights.grad[0, head] * record.weights[0, head].detach()
                cam += product.clamp(min=0) / 2
            relevance = relevance + cam @ relevance
        assert_close(drawn[i], read(relevance - torch.eye(n), records[0]))


@pytest.mark.parametrize("prefix", [0, 1])
def test_attention_gradcam_weighs_heads_by_their_mean_gradient(prefix):
    model, tokens = twofold(prefix)
    logits, records = model(tokens)
    drawn = maps.attention_gradcam(records[-1], logits, target=1)
    assert (drawn > 0).any()

    logits, (_, record) = model(tokens)
    record.weights.retain_grad()
    logits[:, 1].sum().backward()
    for i in range(2):
        total = torch.zeros(6)
        for head in range(2):
            a, slope = record.weights[i, head].detach(), record.weights.grad[i, head]
            row = a[0, 1:] if prefix else a.mean(0)
            weight = slope[0, 1:].mean() if prefix else slope.mean()
            total += weight * row / 2
        assert_close(drawn[i], total.clamp(min=0).reshape(2, 3))


def test_gradients_at_hand_do_as_well_as_the_outputs():
    model, tokens = twofold()
    logits, records = model(tokens)
    weights = [record.weights for record in records]
    slopes = torch.autograd.grad(logits[:, 1].sum(), weights, retain_graph=True)
    assert_close(
        maps.gradient_weighted(records, gradients=slopes),
        maps.gradient_weighted(records, logits, target=1),
    )
    assert_close(
        maps.attention_gradcam(records[0], gradients=slopes[0]),
        maps.attention_gradcam(records[0], logits, target=1),
    )


def test_relevance_leaves_no_gradient_behind_and_can_be_asked_twice():
    model, tokens = twofold()
    logits, records = model(tokens)
    first = maps.gradient_weighted(records, logits, target=0)
    assert_close(maps.gradient_weighted(records, logits, target=0), first)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_relevance_never_guesses_a_target_or_a_gradient():
    model, tokens = twofold()
    logits, records = model(tokens)
    with pytest.raises(InputError, match="the model has 3 outputs, so choose one"):
        maps.gradient_weighted(records, logits)
    with pytest.raises(InputError, match="expected outputs="):
        maps.gradient_weighted(records)
    with pytest.raises(InputError, match=r"no gradient reaches 'block.attn'.*keep_graph=True"):
        maps.gradient_weighted(layers(), logits, target=0)
    other, _ = model(tokens)
    with pytest.raises(InputError, match="come from another forward"):
        maps.gradient_weighted(records, other, target=0)


def test_gradients_are_one_per_layer():
    record = attention()
    with pytest.raises(InputError, match="expected one gradient per layer, got 2 for 1 layers"):
        maps.gradient_weighted(record, gradients=[record.weights, record.weights])


def test_a_rollout_is_found_where_a_last_layer_took_no_part():
    whole, last = attention(), attention()
    flow = maps.rollout(whole)
    product = torch.eye(whole.weights.shape[-1]) + whole.weights.mean(1)
    product = product / product.sum(-1, keepdim=True)
    rolled = replace(whole, weights=None, reduced={"rollout": product})
    assert_close(maps.rollout([rolled, replace(last, weights=None)]), flow)


def test_windows_have_no_product_of_layers():
    cells = torch.arange(16).reshape(4, 4)
    windows = Windows(count=4, size=(2, 2), grid=(4, 4), cells=cells)
    record = Record("swin.attn", "attention", torch.rand(8, 2, 4, 4), windows=windows)
    for draw in (maps.rollout, maps.gradient_weighted, maps.attention_gradcam):
        with pytest.raises(InputError, match=r"'swin.attn' attends within windows"):
            draw(record)
