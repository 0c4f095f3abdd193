"""torch's own attention modules, their fast paths included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnviz.capture import Record, watch
from attnviz.errors import UnsupportedError

WIDTH, HEADS, LENGTH = 8, 2, 5


def tokens(length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randn(3, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def reference(mha: nn.MultiheadAttention, *inputs: Tensor, **options: Any) -> Tensor:
    """The weights that the module itself gives out, per head, on its slow path."""
    state = mha.training
    mha.train()  # the fast path would average with another rounding
    dropout, mha.dropout = mha.dropout, 0.0
    _, weights = mha(*inputs, **{**options, "need_weights": True, "average_attn_weights": False})
    mha.dropout = dropout
    mha.train(state)
    assert isinstance(weights, Tensor)
    return weights.detach()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("mask", [None, "boolean", "float", "padding", "both"])
@pytest.mark.parametrize("extra", [{}, {"bias": False}, {"add_bias_kv": True},
                                   {"add_zero_attn": True}, {"kdim": 6, "vdim": 7},
                                   {"dropout": 0.5}])  # fmt: skip
def test_every_form_of_multihead_attention(
    training: bool, grad: bool, batch_first: bool, need_weights: bool, mask: str | None,
    extra: dict[str, Any],
) -> None:  # fmt: skip
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **extra).train(training)
    query, key, value = tokens(), tokens(), tokens()
    if "kdim" in extra:
        key, value = torch.randn(3, LENGTH, 6), torch.randn(3, LENGTH, 7)
    else:
        key = value = query
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        key, value = (query, query) if "kdim" not in extra else (key, value)
    options: dict[str, Any] = {"need_weights": need_weights}
    if mask in ("boolean", "both"):
        options["attn_mask"] = torch.ones(LENGTH, LENGTH).triu(1).bool()
    if mask == "float":
        options["attn_mask"] = torch.zeros(LENGTH, LENGTH).masked_fill(
            torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf
        )
    if mask in ("padding", "both"):
        options["key_padding_mask"] = torch.arange(LENGTH)[None] >= torch.tensor([5, 4, 3])[:, None]
    truth = reference(mha, query, key, value, **options)
    with torch.set_grad_enabled(grad):
        torch.manual_seed(1)
        plain = mha(query, key, value, **options)
        torch.manual_seed(1)
        with watch(mha) as seen:
            again = mha(query, key, value, **options)
    assert torch.equal(plain[0], again[0])
    assert not need_weights or torch.equal(plain[1], again[1])
    (record,) = seen.values()
    assert (record.kind, record.axis, record.name) == ("attention", "k", "MultiheadAttention")
    assert record.weights is not None
    torch.testing.assert_close(record.weights, truth, atol=1e-5, rtol=1e-4)
    assert record.check is None or record.check < 1e-5


def test_cross_attention_and_unbatched_input() -> None:
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    query, memory = tokens(), tokens(7, seed=1)
    with watch(mha) as seen:
        mha(query, memory, memory)
    (record,) = seen.values()
    assert record.weights is not None
    assert record.weights.shape == (3, HEADS, LENGTH, 7)
    torch.testing.assert_close(record.weights, reference(mha, query, memory, memory))
    with watch(mha) as seen:
        mha(query[0], memory[0], memory[0])
    (record,) = seen.values()
    assert record.weights is not None
    torch.testing.assert_close(
        record.weights, reference(mha, query[:1], memory[:1], memory[:1]), atol=1e-6, rtol=1e-5
    )


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    made = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, **options).eval()
    for parameter in made.parameters():  # biases start at zero, and hide mistakes
        nn.init.normal_(parameter, std=0.5)
    return made


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("mask", [None, "source", "padding", "both"])
def test_the_encoder_layers_fast_path(norm_first: bool, activation: str, mask: str | None) -> None:
    encoder = layer(norm_first=norm_first, activation=activation)
    x = tokens()
    options: dict[str, Tensor] = {}
    if mask in ("source", "both"):
        options["src_mask"] = torch.ones(LENGTH, LENGTH).triu(1).bool()
    if mask in ("padding", "both"):
        padding = torch.arange(LENGTH)[None] >= torch.tensor([5, 4, 3])[:, None]
        options["src_key_padding_mask"] = padding
    with torch.no_grad():
        plain = encoder(x, **options)
        with watch(encoder) as seen:
            assert torch.equal(encoder(x, **options), plain)
    (record,) = seen.values()
    assert (record.op, record.exact) == ("fast path", False)
    assert record.check is not None
    assert record.check < 1e-5
    normed = encoder.norm1(x) if norm_first else x
    names = {"src_mask": "attn_mask", "src_key_padding_mask": "key_padding_mask"}
    truth = reference(encoder.self_attn, normed, normed, normed,
                      **{names[name]: value for name, value in options.items()})  # fmt: skip
    assert record.weights is not None
    torch.testing.assert_close(record.weights, truth, atol=1e-5, rtol=1e-4)


def test_an_encoder_names_each_layer() -> None:
    encoder = nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False).eval()
    with torch.no_grad(), watch(encoder) as seen:
        encoder(tokens())
    assert list(seen) == ["layers.0", "layers.1"]
    encoder.train()
    with watch(encoder) as seen:
        encoder(tokens())
    assert list(seen) == ["layers.0.self_attn", "layers.1.self_attn"]


@pytest.mark.parametrize("fast", [True, False])
def test_an_encoder_layer_s_attention_has_one_name_on_every_path(fast: bool) -> None:
    encoder, x = nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False).eval(), tokens()
    with torch.set_grad_enabled(not fast):
        with watch(encoder, where="layers.1.self_attn") as seen:
            encoder(x)
        (record,) = seen.values()
        assert seen["layers.1.self_attn"] is record
        assert (record.op == "fast path", record.origin) == (fast, "layers.1.self_attn")
    with torch.no_grad(), watch(encoder, edit={"layers.1.self_attn": "uniform"}) as seen:
        encoder(x)
    assert [one.edited for one in seen.values()] == [False, True]


def test_nested_tensors_are_named_and_cannot_be_edited() -> None:
    encoder = nn.TransformerEncoder(layer(), 1, enable_nested_tensor=True).eval()
    padding = torch.arange(LENGTH)[None] >= torch.tensor([5, 4, 3])[:, None]

    def run() -> Tensor:
        out: Tensor = encoder(tokens(), src_key_padding_mask=padding)
        return out

    with torch.no_grad(), pytest.warns(UserWarning, match="nested tensors"):
        plain = run()
    with torch.no_grad(), watch(encoder) as seen:
        assert torch.equal(run(), plain)
    record: Record = seen["layers.0"]
    assert record.weights is None
    assert "enable_nested_tensor=False" in record.note
    with (
        pytest.raises(UnsupportedError, match="nested tensors"),
        torch.no_grad(),
        watch(encoder, edit={"layers.0": "uniform"}),
    ):
        run()


@pytest.mark.parametrize("kind", ["multihead", "encoder"])
def test_an_edit_of_a_fast_path_gives_what_the_slow_path_gives(kind: str) -> None:
    module: nn.Module = layer()
    if kind == "multihead":
        module = layer().self_attn

    def run() -> Tensor:
        x = tokens()
        out: Tensor = module(x, x, x)[0] if kind == "multihead" else module(x)
        return out

    with torch.no_grad(), watch(module, edit={"*": "uniform"}) as seen:
        fast = run()
    assert next(iter(seen.values())).op == "fast path"
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), watch(module, edit={"*": "uniform"}) as seen:
            slow = run()
        assert next(iter(seen.values())).op != "fast path"
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(run(), fast)
