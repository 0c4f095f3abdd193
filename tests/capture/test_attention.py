"""Attention is seen in whatever way it is written, and comes out as (b, heads, q, k)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from attnviz import maps
from attnviz.capture import Record, watch
from attnviz.errors import InputError, NothingSeenError
from tests.capture import nets


def slow_weights(model: nn.Module, x: Tensor) -> Tensor:
    """Each weight by its definition, one image, head and query at a time."""
    attn = model.attn
    assert isinstance(attn, nets.Attention)
    with torch.no_grad():
        features = model.stem(x)  # type: ignore[operator]  # a submodule, to mypy a tensor too
        tokens = attn.qkv(features.flatten(2).mT)
    b, n, _ = tokens.shape
    d = nets.WIDTH // attn.num_heads
    out = torch.zeros(b, attn.num_heads, n, n)
    for i in range(b):
        for head in range(attn.num_heads):
            q = tokens[i, :, head * d : (head + 1) * d]
            k = tokens[i, :, nets.WIDTH + head * d : nets.WIDTH + (head + 1) * d]
            for j in range(n):
                powers = torch.exp(torch.stack([q[j] @ key for key in k]) / d**0.5)
                out[i, head, j] = powers / powers.sum()
    return out


def only(model: nn.Module, x: Tensor, **options: object) -> Record:
    """The one record of a model, which must not change its output."""
    with torch.no_grad():
        before = model(x)
        with watch(model, **options) as seen:  # type: ignore[arg-type]  # options by name
            assert torch.equal(model(x), before)
    assert len(seen) == 1, seen
    return next(iter(seen.values()))


@pytest.mark.parametrize("way", nets.EQUAL)
def test_every_way_to_write_it_gives_the_same_weights(way: str) -> None:
    model = nets.around(nets.Attention(nets.EQUAL[way]))
    x = nets.images()
    record = only(model, x, operands=True)
    assert record.weights is not None
    torch.testing.assert_close(record.weights, slow_weights(model, x), atol=1e-6, rtol=1e-5)
    assert record.row_sums is not None
    assert float((record.row_sums - 1).abs().max()) < 1e-5
    assert (record.name, record.kind, record.axis, record.heads) == ("attn", "attention", "k", 2)
    assert (record.query_grid, record.key_grid, record.prefix) == ((4, 6), (4, 6), 0)
    assert record.how == ("fused" if way == "fused" else "qk")
    assert record.exact is (way != "fused")
    assert (record.check is not None and record.check < 1e-5) is (way == "fused")
    assert record.source.startswith("nets.py:")
    assert record.images == 2


@pytest.mark.parametrize("way", [w for w in nets.EQUAL if w != "in_place"])
def test_scale_and_operands_of_the_logits_are_found(way: str) -> None:
    record = only(nets.around(nets.Attention(nets.EQUAL[way])), nets.images(), operands=True)
    assert record.d_k == 4
    assert record.logit_scale == pytest.approx(0.5)
    if way == "columns":  # the product's factors are keys and queries, in this order
        return
    assert record.query is not None
    assert record.key is not None
    assert record.weights is not None
    logits = record.query @ record.key.mT
    scaled = logits * (0.5 if way in ("plain", "fused", "einsum", "merged", "by_hand") else 1.0)
    scaled = scaled * (0.5 if way == "values_first" else 1.0)
    torch.testing.assert_close(scaled.softmax(-1), record.weights, atol=1e-6, rtol=1e-5)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = plain_logits(q, k).masked_fill(~torch.ones(q.shape[2], k.shape[2]).tril().bool(), -1e9)
    return logits.softmax(-1) @ v


def plain_logits(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT * q.shape[-1] ** -0.5


def sdpa_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sdpa_boolean(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[2], k.shape[2]).tril().bool()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def sdpa_additive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.zeros(q.shape[2], k.shape[2]).masked_fill(
        ~torch.ones(q.shape[2], k.shape[2]).tril().bool(), -torch.inf
    )
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("attend", [masked, sdpa_causal, sdpa_boolean, sdpa_additive])
def test_masks_leave_their_keys_at_zero(attend: nets.Attend) -> None:
    record = only(nets.around(nets.Attention(attend)), nets.images())
    assert record.weights is not None
    assert not record.weights.triu(1).any()
    torch.testing.assert_close(record.weights.sum(-1), torch.ones(2, 2, 24))
    if record.how == "fused":
        assert record.check is not None
        assert record.check < 1e-5


def test_a_fully_masked_row_of_a_kernel_is_zero() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(q.shape[2], k.shape[2]).bool()
        mask[3] = False
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    record = only(nets.around(nets.Attention(attend)), nets.images())
    assert record.weights is not None
    assert not record.weights[:, :, 3].any()
    assert record.check is not None
    assert record.check < 1e-5


@pytest.mark.parametrize("scale", [None, 0.1, 3.0])
def test_a_kernels_scale_is_used(scale: float | None) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    record = only(nets.around(nets.Attention(attend)), nets.images())
    assert record.logit_scale == pytest.approx(0.5 if scale is None else scale)
    assert record.check is not None
    assert record.check < 1e-5


def test_grouped_queries_share_their_keys() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)

    record = only(nets.around(nets.Attention(attend, heads=4)), nets.images())
    assert record.weights is not None
    assert record.weights.shape == (2, 4, 24, 24)
    assert record.check is not None
    assert record.check < 1e-5


class Cross(nn.Module):
    """Queries from learned tokens, keys from places."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(5, nets.WIDTH))
        self.key = nn.Linear(nets.WIDTH, nets.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).mT
        weights = (self.tokens.expand(len(x), -1, -1) * 1.0 @ self.key(places).mT).softmax(-1)
        return (weights @ places).mT[..., None]


def test_cross_attention_knows_the_keys_grid_alone() -> None:
    record = only(nets.around(Cross()), nets.images())
    assert record.weights is not None
    assert record.weights.shape == (2, 1, 5, 24)
    assert record.query_grid is None
    assert record.key_grid == (4, 6)


class ClassToken(nn.Module):
    """One or more leading tokens, and places."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(nets.WIDTH, 2, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, prefix, nets.WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).mT], 1)
        return self.attn(tokens, tokens, tokens)[0].mT[..., None]


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize("size", [(16, 24), (32, 32)])
def test_class_and_register_tokens_are_told_from_places(prefix: int, size: tuple[int, int]) -> None:
    record = only(nets.around(ClassToken(prefix)), nets.images(2, *size))
    assert record.prefix == prefix
    assert record.key_grid == (size[0] // 4, size[1] // 4)


def test_reduced_keys_lie_as_the_image_does() -> None:
    class Reduced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Conv2d(nets.WIDTH, nets.WIDTH, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k = x.flatten(2).mT, self.pool(x).flatten(2).mT
            return F.scaled_dot_product_attention(q, k, k).mT.unflatten(-1, x.shape[-2:])

    record = only(nets.around(Reduced()), nets.images(2, 32, 48))
    assert (record.query_grid, record.key_grid) == ((8, 12), (4, 6))


def test_attention_over_channels_has_no_grid() -> None:
    class Channels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x.flatten(2)
            return ((q @ q.mT).softmax(-1) @ q).view_as(x)

    record = only(nets.around(Channels()), nets.images(2, 32, 32))
    assert record.weights is not None
    assert record.weights.shape == (2, 1, 8, 8)
    assert record.key_grid is None


def wrong_axis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plain_logits(q, k).softmax(-2) @ v


def over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plain_logits(q, k).softmax(1) @ v


def over_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plain_logits(q, k).softmax(0) @ v


@pytest.mark.parametrize(
    ("attend", "axis"), [(nets.plain, "k"), (wrong_axis, "q"), (over_heads, "heads"),
                         (over_batch, "b")],
)  # fmt: skip
def test_the_axis_that_sums_to_one_is_told(attend: nets.Attend, axis: str) -> None:
    record = only(nets.around(nets.Attention(attend)), nets.images(3))
    assert record.axis == axis
    assert record.weights is not None
    total = record.weights.sum(["b", "heads", "q", "k"].index(axis))
    torch.testing.assert_close(total, torch.ones_like(total))


def twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plain_logits(q, k).softmax(-1).softmax(-1) @ v


def scaled_after(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (plain_logits(q, k).softmax(-1) * 0.25) @ v


def test_faults_that_the_flow_of_data_shows() -> None:
    assert only(nets.around(nets.Attention(twice)), nets.images()).double_softmax
    record = only(nets.around(nets.Attention(scaled_after)), nets.images())
    assert record.factor == 0.25
    assert record.row_sums is not None
    torch.testing.assert_close(record.row_sums, torch.full((2, 2, 24), 0.25))


def test_attention_that_is_computed_and_not_applied_is_told() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        plain_logits(q, k).softmax(-1)
        return v

    model = nets.around(nets.Attention(attend))
    with watch(model, empty=True) as seen:
        model(nets.images())
    assert not len(seen)
    assert [(r.name, r.op) for r in seen.unused] == [("attn", "softmax")]


def unnormalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plain_logits(q, k) @ v


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.mT @ v)) / (q @ k.sum(2, keepdim=True).mT)


def test_products_without_a_softmax_are_told_for_what_they_are() -> None:
    record = only(nets.around(nets.Attention(unnormalised)), nets.images())
    assert (record.how, record.axis, record.softmax) == ("unnormalised", None, False)
    assert record.weights is not None
    assert record.weights.shape == (2, 2, 24, 24)
    truth = only(nets.around(nets.Attention()), nets.images()).weights
    assert truth is not None
    torch.testing.assert_close(record.weights.softmax(-1), truth)
    record = only(nets.around(nets.Attention(linear)), nets.images())
    assert (record.how, record.weights) == ("linear", None)


def efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Shen et al.: queries softmaxed over channels, keys over places."""
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


def test_attention_with_softmaxed_keys_is_no_map_of_places() -> None:
    record = only(nets.around(nets.Attention(efficient)), nets.images())
    assert record.how == "direct"
    assert record.weights is not None
    assert record.weights.shape == (2, 2, 4, 24)  # each channel of a head looks at places
    assert record.query_grid is None
    assert record.key_grid == (4, 6)


class Pooled(nn.Module):
    """Attention pooling: one weight per place, multiplied and summed."""

    def __init__(self, matmul: bool) -> None:
        super().__init__()
        self.score, self.matmul = nn.Linear(nets.WIDTH, 1), matmul

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).mT
        weights = self.score(places).softmax(1)
        pooled = weights.mT @ places if self.matmul else (places * weights).sum(1, keepdim=True)
        return pooled.mT[..., None]


@pytest.mark.parametrize("matmul", [False, True])
def test_pooling_by_attention_is_one_query(matmul: bool) -> None:
    record = only(nets.around(Pooled(matmul)), nets.images())
    assert (record.how, record.key_grid, record.query_grid) == ("pooled", (4, 6), None)
    assert record.weights is not None
    assert record.weights.shape == (2, 1, 1, 24)
    torch.testing.assert_close(record.weights.sum(-1), torch.ones(2, 1, 1))


class TalkingHeads(nn.Module):
    """Heads are mixed before and after the softmax (CaiT)."""

    def __init__(self, convolve: bool) -> None:
        super().__init__()
        self.convolve = convolve
        self.before, self.after = (
            (nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)) if convolve else
            (nn.Linear(2, 2), nn.Linear(2, 2))
        )  # fmt: skip

    def mix(self, layer: nn.Module, x: Tensor) -> Tensor:
        mixed: Tensor = layer(x) if self.convolve else layer(x.movedim(1, -1)).movedim(-1, 1)
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        q = x.flatten(2).mT.unflatten(-1, (2, -1)).transpose(1, 2)
        weights = self.mix(self.after, self.mix(self.before, q @ q.mT).softmax(-1))
        return (weights @ q).transpose(2, 3).reshape(x.shape)


@pytest.mark.parametrize("convolve", [False, True])
def test_mixed_heads_are_followed_to_the_values(convolve: bool) -> None:
    record = only(nets.around(TalkingHeads(convolve)), nets.images())
    assert record.weights is not None
    assert record.weights.shape == (2, 2, 24, 24)
    assert (record.mixed, record.axis, record.how) == (True, "k", "qk")


@pytest.mark.parametrize("flavour", ["module", "functional", "fused"])
def test_weights_in_training_are_those_before_dropout(flavour: str) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if flavour == "fused":
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
        weights = plain_logits(q, k).softmax(-1)
        return F.dropout(weights, 0.5, training=True) @ v

    model = nets.around(nets.Attention(attend)).train()
    x = nets.images()
    torch.manual_seed(3)
    before = model(x)
    torch.manual_seed(3)
    with watch(model) as seen:
        assert torch.equal(model(x), before)
    record = seen["attn"]
    assert record.dropout
    assert record.weights is not None
    torch.testing.assert_close(record.weights, slow_weights(model, x), atol=1e-6, rtol=1e-5)


def test_a_module_called_twice_has_two_records() -> None:
    model = nets.around(nn.Identity())
    attn = nets.Attention()
    model.attn = nn.Sequential(attn, attn)
    with watch(model) as seen:
        model(nets.images())
    assert list(seen) == ["attn.0#0", "attn.0#1"]
    assert seen["attn.0#1"].name == "attn.0#1"
    a, b = (seen[name].weights for name in seen)
    assert a is not None
    assert b is not None
    assert not torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:torch.compile with fullgraph=True found no compiled")
def test_flex_attention_is_seen_with_its_own_scores() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def nearer(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score - 0.1 * (i - j).abs()

        out = flex_attention(q, k, v, score_mod=nearer)
        assert isinstance(out, Tensor)
        return out

    model, x = nets.around(nets.Attention(attend)), nets.images()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        plain = model(x)
    with torch.no_grad(), watch(model) as seen:
        assert torch.equal(model(x), plain)
    record = seen["attn"]

    def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = torch.arange(q.shape[2])
        return (plain_logits(q, k) - 0.1 * (n[:, None] - n).abs()).softmax(-1) @ v

    truth = only(nets.around(nets.Attention(by_hand)), x)
    assert record.weights is not None
    assert truth.weights is not None
    torch.testing.assert_close(record.weights, truth.weights, atol=1e-6, rtol=1e-5)
    assert record.check is not None
    assert record.check < 1e-5


def test_learned_queries_meet_keys() -> None:
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(nets.WIDTH, 2, batch_first=True)
            self.probe = nn.Parameter(torch.randn(1, 1, nets.WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            places = x.flatten(2).mT
            out: Tensor = self.attn(self.probe.repeat(len(x), 1, 1), places, places)[0]
            return out.mT[..., None]

    record = only(nets.around(Probe()), nets.images())
    assert record.weights is not None
    assert record.weights.shape == (2, 2, 1, 24)
    assert (record.how, record.key_grid, record.query_grid) == ("qk", (4, 6), None)


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_that_attends_in_its_own_forward_has_grids(fused: bool) -> None:
    class Inline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.q = nn.Conv2d(3, nets.WIDTH, 4, 4), nn.Linear(nets.WIDTH, nets.WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.q(self.stem(x).flatten(2).mT)[:, None]
            attend = nets.fused if fused else nets.plain
            return attend(tokens, tokens, tokens).mean((1, 2))

    record = only(Inline().eval(), nets.images())
    assert (record.name, record.key_grid, record.query_grid) == ("Inline", (4, 6), (4, 6))


def test_a_sigmoid_over_scores_is_attention_without_a_softmax() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.sigmoid(plain_logits(q, k) - 3) @ v

    model, x = nets.around(nets.Attention(attend)), nets.images()
    record = only(model, x)
    assert (record.how, record.op, record.softmax, record.axis) == (
        "unnormalised", "sigmoid", False, None)  # fmt: skip
    assert record.note == "q · kᵀ reaches the values without a softmax"
    assert record.weights is not None
    truth = only(nets.around(nets.Attention(unnormalised)), x).weights
    assert truth is not None
    torch.testing.assert_close(record.weights, (truth - 3).sigmoid())


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("masked", ["not", "alike", "each"])
def test_a_kernel_without_an_axis_of_heads_does_not_take_images_for_heads(
    heads: int, masked: str
) -> None:
    given = {"not": None, "alike": torch.randn(24, 24),
             "each": torch.randn(3 * heads, 24, 24)}[masked]  # fmt: skip

    def merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=given)
        return out.unflatten(0, (-1, heads))

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = given.unflatten(0, (-1, heads)) if given is not None and masked == "each" else given
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    x = nets.images(3)
    record = only(nets.around(nets.Attention(merged, heads=heads)), x)
    truth = only(nets.around(nets.Attention(apart, heads=heads)), x)
    assert record.weights is not None
    assert truth.weights is not None
    assert record.weights.shape == (3, heads, 24, 24)
    torch.testing.assert_close(record.weights, truth.weights)
    if record.how == "fused":  # torch 2.9 has no kernel for these, and writes it out
        assert record.check is not None
        assert record.check < 1e-5
    reduced = only(nets.around(nets.Attention(merged, heads=heads)), x, reduce="received")
    torch.testing.assert_close(reduced.reduced["received"], truth.weights.mean(2))


def mlp(wrap: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    layers = [wrap(nn.Linear(8, 8)) for _ in range(3)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm,
             parametrizations.orthogonal, lambda layer: nn.LazyLinear(8)],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(4, 8), (2, 5, 8)])
def test_layers_whose_weights_are_made_late_are_no_attention(
    wrap: Callable[[nn.Linear], nn.Module], shape: tuple[int, ...]
) -> None:
    model = mlp(wrap)
    with watch(model, empty=True) as seen:
        model(torch.randn(shape))
    assert not len(seen)
    assert not seen.unused


def test_weights_that_are_exchanged_between_calls_are_no_attention() -> None:
    model = mlp(lambda layer: layer)
    with watch(model, empty=True) as seen:
        for _ in range(2):
            given = {name: p.detach().clone() for name, p in model.named_parameters()}
            torch.func.functional_call(model, given, (torch.randn(4, 8),))
    assert not len(seen)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_attention_between_projections_whose_weights_are_made_late(
    wrap: Callable[[nn.Linear], nn.Linear],
) -> None:
    model = nets.around(nets.Attention())
    attn = model.attn
    assert isinstance(attn, nets.Attention)
    attn.qkv = wrap(attn.qkv)
    record = only(model, nets.images())
    assert (record.how, record.d_k) == ("qk", 4)


def test_tokens_from_a_table_are_data() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.positions = nn.Embedding(10, 8), nn.Parameter(torch.randn(6, 8))

        def forward(self, ids: Tensor) -> Tensor:
            x = self.table(ids) + self.positions
            return (x @ x.mT).softmax(-1) @ x

    record = only(Words(), torch.randint(10, (2, 6)))
    assert record.weights is not None
    assert record.weights.shape == (2, 1, 6, 6)


def test_a_buffer_that_data_is_written_into_holds_data() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(nets.WIDTH, 3 * nets.WIDTH)
            for name in ("keys", "values"):
                self.register_buffer(name, torch.zeros(1, 24, nets.WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x.flatten(2).mT).chunk(3, -1)
            self.keys[:, :24], self.values[:, :24] = k, v
            return ((q @ self.keys.mT).softmax(-1) @ self.values).mT.view_as(x)

    record = only(nets.around(Cached()), nets.images(1))
    assert (record.how, record.key_grid) == ("qk", (4, 6))


def test_a_kernel_from_outside_torch_is_named_with_the_remedy() -> None:
    @torch.library.custom_op("attnviz_tests::flash_attn_fwd", mutates_args=())
    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v

    class Flash(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = flash(x, x, x)
            return out

    model, x = nn.Sequential(nn.Linear(4, 4), Flash()), torch.randn(1, 3, 4)
    with torch.no_grad(), watch(model) as seen:
        out = model(x)
    record = seen["1"]
    assert record.weights is None
    assert record.op == "attnviz_tests.flash_attn_fwd.default"
    assert "attn_implementation='sdpa' or 'eager'" in record.note
    with torch.no_grad():
        assert torch.equal(out, model(x))


@pytest.mark.parametrize("mask", [False, True])
def test_queries_packed_by_key_group_are_heads_of_one_token(mask: bool) -> None:
    # transformers decodes so: (b, heads, 1, d) as (b, groups, heads / groups, d)
    class Packed(nn.Module):
        num_key_value_groups = 3

        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(12, 24)

        def forward(self, x: Tensor, keys: Tensor) -> Tensor:
            q = self.q(x).view(2, 1, 6, 4).transpose(1, 2).reshape(2, 2, 3, 4)
            allowed = torch.ones(2, 1, 1, 5, dtype=torch.bool)
            allowed[1, ..., :2] = False
            return F.scaled_dot_product_attention(q, keys, keys, allowed if mask else None)

    model, x, keys = Packed(), torch.randn(2, 1, 12), torch.randn(2, 2, 5, 4)
    with torch.no_grad(), watch(model) as seen:
        model(x, keys)
        q = model.q(x).view(2, 1, 6, 4).transpose(1, 2)
    (record,) = seen.values()
    logits = q @ keys.repeat_interleave(3, 1).mT / 2
    if mask:
        logits[1, ..., :2] = -torch.inf
    assert record.weights is not None
    torch.testing.assert_close(record.weights, logits.softmax(-1))


class Neighbours(nn.Module):
    """Attention to the 3 x 3 cells around each cell, written as a product and a sum."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 12, 4, 4)
        if named:
            self.num_heads = 3

    def forward(self, x: Tensor) -> Tensor:
        f = self.stem(x)
        b, _, h, w = f.shape
        q = f.view(b, 3, 4, 1, h * w)
        around = F.unfold(f, 3, padding=1).view(b, 3, 4, 9, h * w)
        weights = (q * around).sum(2).softmax(2)
        self.truth = weights.detach().transpose(2, 3)
        return (weights[:, :, None] * around).sum(3).flatten(1, 2)


def test_queries_of_a_product_and_sum_are_no_heads() -> None:
    model = Neighbours(named=True)
    record = only(model, torch.randn(2, 3, 16, 24))
    assert record.weights is not None
    torch.testing.assert_close(record.weights, model.truth)
    assert record.heads == 3


def test_heads_that_cannot_be_told_from_queries_are_noted() -> None:
    record = only(Neighbours(named=False), torch.randn(2, 3, 16, 24))
    assert record.weights is not None
    assert record.weights.shape == (2, 3 * 24, 1, 9)
    assert "are heads and which are queries was not followed" in record.note
    with pytest.raises(InputError, match="which of its 9 keys are which places is unknown"):
        maps.received(record)


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "log_softmax": lambda x: F.log_softmax(x, -1).exp(),
    "log_softmax in a view": lambda x: F.log_softmax(x, -1).flatten(0, 1).exp().view_as(x),
    "logsumexp": lambda x: (x - x.logsumexp(-1, keepdim=True)).exp(),
    "logsumexp unsqueezed": lambda x: (x - x.logsumexp(-1)[..., None]).exp(),
    "a sum that is kept from zero": lambda x: x.exp() / (x.exp().sum(-1, keepdim=True) + 1e-8),
}


@pytest.mark.parametrize("way", SPELLINGS)
def test_a_softmax_by_its_logarithm_is_one(way: str) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return SPELLINGS[way](q @ k.mT * 0.5) @ v

    model = nets.around(nets.Attention(attend))
    record = only(model, nets.images())
    assert record.weights is not None
    torch.testing.assert_close(record.weights, slow_weights(model, nets.images()))
    assert (record.how, record.axis, record.logit_scale) == ("qk", "k", pytest.approx(0.5))


def test_a_logsumexp_of_something_else_makes_no_softmax() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = q @ k.mT
        return (logits - (2 * logits).logsumexp(-1, keepdim=True)).exp() @ v

    with pytest.raises(NothingSeenError), watch(model := nets.around(nets.Attention(attend))):
        model(nets.images())


def test_weights_of_weights_are_noted() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT).softmax(-1)
        return (weights @ weights) @ v

    record = only(nets.around(nets.Attention(attend)), nets.images())
    assert "the model applies the product, which is not recorded" in record.note
