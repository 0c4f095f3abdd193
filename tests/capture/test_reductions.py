"""A reduction within the watch equals the same reduction of the whole weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attnviz.capture import Capture, Record, reductions, watch
from attnviz.errors import InputError
from tests.capture import nets
from tests.capture.test_attention import ClassToken, Cross, linear
from tests.capture.test_gates import Blocks


def slow_received(a: Tensor) -> Tensor:
    b, heads, q, k = a.shape
    out = torch.zeros(b, heads, k)
    for i in range(b):
        for h in range(heads):
            for key in range(k):
                out[i, h, key] = sum(float(a[i, h, query, key]) for query in range(q)) / q
    return out


def slow_entropy(a: Tensor) -> Tensor:
    b, heads, q, _ = a.shape
    out = torch.zeros(b, heads, q)
    for i in range(b):
        for h in range(heads):
            for query in range(q):
                row = [float(p) for p in a[i, h, query]]
                out[i, h, query] = -sum(p * math.log(p) for p in row if p > 0)
    return out


def slow_distance(a: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    b, heads, q, _k = a.shape
    out = torch.zeros(b, heads, q - prefix)
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    for i in range(b):
        for h in range(heads):
            for n, p in enumerate(places):
                row = a[i, h, n + prefix, prefix:]
                out[i, h, n] = sum(
                    float(w) * math.dist(p, r) for w, r in zip(row, places, strict=True)
                ) / float(row.sum())
    return out


def slow_rollout(layers: list[Tensor]) -> Tensor:
    flow = torch.eye(layers[0].shape[-1]).expand(layers[0].shape[0], -1, -1)
    for a in layers:
        mixed = a.mean(1) + torch.eye(a.shape[-1])
        flow = mixed / mixed.sum(-1, keepdim=True) @ flow
    return flow


def watched(model: nn.Module, **options: object) -> Capture:
    with torch.no_grad(), watch(model, **options) as seen:  # type: ignore[arg-type]  # by name
        model(nets.images(2, 16, 24))
    return seen


@pytest.fixture(params=["plain", "fused"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    attend = nets.EQUAL[request.param]
    return nets.around(nn.Sequential(nets.Attention(attend), nets.Attention(attend)))


def test_reductions_equal_their_slow_twins(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnviz.capture.collector._CHUNK", 500)  # several chunks of queries
    whole = watched(model)
    names = ["received", "entropy", "class_row", "head_mean", "distance", "rollout",
             reductions.rows(3, 17)]  # fmt: skip
    some = watched(model, reduce=names)
    chunked = watched(model, reduce=["received", "entropy", "class_row"])
    for name in whole:
        a, record = whole[name].weights, some[name]
        assert a is not None
        assert record.weights is None
        assert record.shape == (2, 2, 24, 24)
        truth = {
            "received": slow_received(a),
            "entropy": slow_entropy(a),
            "class_row": a[:, :, 0],
            "head_mean": a.mean(1),
            "distance": slow_distance(a, (4, 6), 0),
            "rows": a[:, :, [3, 17]],
        }
        for key, expected in truth.items():
            torch.testing.assert_close(record.reduced[key], expected, atol=1e-5, rtol=1e-4)
            if key in chunked[name].reduced:
                torch.testing.assert_close(
                    chunked[name].reduced[key], expected, atol=1e-5, rtol=1e-4
                )
        assert set(chunked[name].reduced) == {"received", "entropy", "class_row"}
    first, last = some.values()
    assert "rollout" not in first.reduced
    layers = [record.weights for record in whole.values() if record.weights is not None]
    torch.testing.assert_close(last.reduced["rollout"], slow_rollout(layers), atol=1e-6, rtol=1e-5)


def test_a_fused_kernel_reduced_alone_is_still_checked() -> None:
    record = watched(nets.around(nets.Attention(nets.fused)), reduce="received")["attn"]
    assert record.check is not None
    assert record.check < 1e-5


def test_leading_tokens_have_no_distance() -> None:
    model = nets.around(ClassToken(1))
    whole, record = watched(model), watched(model, reduce="distance")["attn"]
    a = whole["attn"].weights
    assert a is not None
    torch.testing.assert_close(record.reduced["distance"], slow_distance(a, (4, 6), 1))


def test_a_reduction_that_does_not_apply_is_left_out() -> None:
    assert "distance" not in watched(nets.around(Cross()), reduce="distance")["attn"].reduced
    assert "rollout" not in watched(nets.around(Cross()), reduce="rollout")["attn"].reduced
    record = watched(nets.around(nets.Attention(linear)), reduce="received")["attn"]
    assert record.reduced == {}
    seen = watched(nets.around(Blocks()), reduce="received")
    assert all(record.scale is not None for record in seen.values())


def test_ones_own_reduction_gets_the_record() -> None:
    def mass(record: Record) -> Tensor | None:
        return None if record.weights is None else record.weights[..., :5].sum(-1)

    model = nets.around(nets.Attention())
    a = watched(model)["attn"].weights
    assert a is not None
    for reduce in (mass, [mass], {"mass": mass}):
        record = watched(model, reduce=reduce)["attn"]
        torch.testing.assert_close(record.reduced["mass"], a[..., :5].sum(-1))


def test_reduced_values_follow_dtype_and_heads() -> None:
    model = nets.around(nets.Attention(nets.fused))
    whole = watched(model, reduce="received")["attn"].reduced["received"]
    some = watched(model, reduce="received", heads=1, dtype=torch.float64)["attn"]
    assert some.reduced["received"].dtype == torch.float64
    torch.testing.assert_close(some.reduced["received"].float(), whole[:, 1:])


def test_wrong_reductions_say_what_is_wrong() -> None:
    model = nets.around(nets.Attention())
    with pytest.raises(InputError, match="unknown reduction 'recieved': did you mean 'received'"):
        watched(model, reduce="recieved")
    with pytest.raises(InputError, match="expected a name or a function, got int"):
        watched(model, reduce=[3])
    with pytest.raises(InputError, match="'half' of 'attn' returned float; expected a tensor"):
        watched(model, reduce={"half": lambda record: 0.5})
    with pytest.raises(InputError, match=r"rows: 'attn' has 24 queries, got \(24,\)"):
        watched(model, reduce=reductions.rows(24))


def test_each_forward_pass_has_a_rollout_of_its_own(model: nn.Module) -> None:
    with torch.no_grad(), watch(model, reduce="rollout") as both:
        model(nets.images(seed=5))
        model(nets.images(2, 16, 24))
    alone = watched(model, reduce="rollout")
    first, last = [r.reduced["rollout"] for r in both.values() if r.reduced]
    assert torch.equal(last, alone["attn.1"].reduced["rollout"])
    assert not torch.equal(first, last)


@pytest.mark.parametrize("reduce", ["class_row", lambda record: record.weights[..., 0, :]])
def test_what_is_kept_does_not_keep_the_weights_alive(model: nn.Module, reduce: object) -> None:
    for record in watched(model, reduce={"row": reduce}).values():
        row = record.reduced["row"]
        assert row.untyped_storage().nbytes() == row.numel() * row.element_size()


@pytest.mark.parametrize("most", [10, 24 * 24, 3 * 24 * 24, 1 << 20])
def test_a_kernels_weights_in_pieces_are_the_weights(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Some rows of a head at once, one head, several of two images, or all."""
    model = nets.around(nets.Attention(nets.fused, heads=4))
    truth = watched(nets.around(nets.Attention(heads=4)))["attn"].weights
    assert truth is not None
    monkeypatch.setattr("attnviz.capture.fused_weights._CACHED", most)
    weights = watched(model)["attn"].weights
    assert weights is not None
    torch.testing.assert_close(weights, truth, atol=1e-6, rtol=1e-5)
    received = watched(model, reduce="received")["attn"].reduced["received"]
    torch.testing.assert_close(received, truth.mean(2), atol=1e-6, rtol=1e-5)
