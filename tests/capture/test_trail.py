"""A stream looks at softmaxes and gates alone where it may, and notices where it may not."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnviz.capture import Capture, listening, op_mode, stream, watch
from tests.capture import nets
from tests.capture.interrupts import interrupting
from tests.capture.test_gates import Blocks

Depths = list[tuple[int, bool]]


def key_is_on() -> bool:
    return bool(torch._C._dispatch_tls_is_dispatch_key_included(listening._KEY))


def batches(count: int = 4) -> list[Tensor]:
    return [nets.images(seed=seed) for seed in range(count)]


def assert_as_watched(model: nn.Module, images: list[Tensor], **options: Any) -> list[Capture]:
    found = []
    for (x, seen), batch in zip(stream(model, images, **options), images, strict=True):
        assert torch.equal(x, batch)
        with torch.no_grad(), watch(model, **options) as alone:
            assert torch.equal(seen.output, model(batch))
        assert list(seen) == list(alone)
        for one, other in zip(seen.values(), alone.values(), strict=True):
            assert one.shape == other.shape
            assert set(one.reduced) == set(other.reduced)
            pairs = [(one.weights, other.weights), (one.scale, other.scale)]
            pairs += [(value, other.reduced[name]) for name, value in one.reduced.items()]
            for value, expected in pairs:
                assert (value is None) == (expected is None)
                assert value is None or expected is None or torch.equal(value, expected)
        assert [one.name for one in seen.unused] == [one.name for one in alone.unused]
        found.append(seen)
    assert not key_is_on()
    return found


def depths(model: nn.Module) -> Depths:
    """How the model is looked at while it attends, one entry for each forward pass."""
    found: Depths = []
    within = next(m for m in model.get_submodule("attn").modules() if isinstance(m, nn.Linear))
    within.register_forward_hook(
        lambda *_: found.append((op_mode.watches(), listening._running.told is not None))  # type: ignore[func-returns-value]
    )
    return found


needs_the_key = pytest.mark.skipif(not listening.can_listen(), reason="this torch uses the key")


@needs_the_key
@pytest.mark.parametrize(
    "options", [{"reduce": None}, {"reduce": "received"}, {"reduce": "rollout"},
                {"reduce": None, "heads": 1, "dtype": torch.float16},
                {"reduce": None, "where": "attention"}, {"reduce": None, "where": "gate"}],
)  # fmt: skip
def test_ops_are_not_followed_once_a_batch_was(options: dict[str, Any]) -> None:
    model = nets.around(nn.Sequential(nets.Attention(), Blocks()))
    found = depths(model)
    for _ in stream(model, batches(), **options):
        pass
    assert found == [(1, True), (0, True), (0, True), (0, True)]
    assert_as_watched(model, batches(), **options)


@pytest.mark.parametrize("attend", [nets.fused, nets.by_hand])
def test_what_no_softmax_returned_is_followed(attend: nets.Attend) -> None:
    model = nets.around(nets.Attention(attend))
    found = depths(model)
    for _ in stream(model, batches(3), reduce=None):
        pass
    assert [depth for depth, _ in found] == [1, 1, 1]
    assert [told for _, told in found][1:] == [False, False]


def halved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights that are written into before they are applied."""
    return (q @ k.mT).softmax(-1).mul_(0.5) @ v


def reused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights that are written into after they were applied."""
    weights = (q @ k.mT).softmax(-1)
    out = weights @ v
    return out + weights.zero_().sum()


@pytest.mark.parametrize("attend", [halved, reused])
def test_weights_that_are_written_into_are_followed(attend: nets.Attend) -> None:
    model = nets.around(nets.Attention(attend))
    found = depths(model)
    assert_as_watched(model, batches(), reduce=None)
    assert all(depth for depth, _ in found)


class Either(nn.Module):
    """One of two attentions, by what the batch holds."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nets.Attention(), nets.Attention()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.idle:
            return x
        found: Tensor = (self.one if self.chosen else self.other)(x)
        return self.one(found) if self.both else found

    chosen, both, idle = True, False, False


@needs_the_key
def test_another_path_is_noticed_and_the_batch_runs_again() -> None:
    model = nets.around(Either())
    inner = model.get_submodule("attn")
    assert isinstance(inner, Either)
    names = []
    for i, (_, seen) in enumerate(stream(model, batches(5), reduce=None)):
        names.append(list(seen))
        inner.chosen, inner.both = i != 1, i == 2
    assert names == [
        ["attn.one"], ["attn.one"], ["attn.other"], ["attn.one#0", "attn.one#1"], ["attn.one"],
    ]  # fmt: skip
    assert inner.calls == 6  # the third batch ran twice, and the trail was given up with it


def test_a_path_without_attention_is_no_error_once_there_was_some() -> None:
    model = nets.around(Either())
    inner = model.get_submodule("attn")
    assert isinstance(inner, Either)
    names = []
    for i, (_, seen) in enumerate(stream(model, batches(3), reduce=None)):
        names.append(list(seen))
        inner.idle = i == 0
    assert names == [["attn.one"], [], ["attn.one"]]


def test_a_model_in_training_never_runs_twice() -> None:
    model = nets.around(Either()).train()
    inner = model.get_submodule("attn")
    assert isinstance(inner, Either)
    for i, _ in enumerate(stream(model, batches(3), reduce=None)):
        inner.both = i == 1
    assert inner.calls == 3


def test_without_the_key_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnviz.capture.trail.can_listen", lambda: False)
    model = nets.around(nn.Sequential(nets.Attention(), Blocks()))
    found = depths(model)
    assert_as_watched(model, batches(2), reduce=None)
    assert all(depth == 1 for depth, _ in found[::2])


def test_casts_are_as_they_were() -> None:
    model = nets.around(nets.Attention())
    with torch.autocast("cpu", torch.bfloat16):
        assert_as_watched(model, batches(3), reduce=None)
    assert_as_watched(model.double(), [x.double() for x in batches(3)], reduce=None)


def nested(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Beside its attention, a softmax over a nested tensor."""
    parts = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]).softmax(-1)
    return nets.plain(q, k, v) + torch.nested.to_padded_tensor(parts, 0.0).sum()


def mapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Beside its attention, a softmax that `vmap` runs."""
    return nets.plain(q, k, v) + torch.vmap(lambda x: x.softmax(-1))(torch.ones(2, 3)).sum()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("attend", [nested, mapped])
def test_softmaxes_of_other_tensors_do_no_harm(attend: nets.Attend) -> None:
    assert_as_watched(nets.around(nets.Attention(attend)), batches(3), reduce=None)


def test_a_watch_around_a_stream_sees_the_model_and_not_the_streams_own_work() -> None:
    model = nets.around(nets.Attention())
    with watch(model) as outer:
        names = [list(seen) for _, seen in stream(model, batches(3), reduce="received")]
    assert names == [["attn"]] * 3
    assert list(outer) == ["attn#0", "attn#1", "attn#2"]


def test_an_interrupt_at_any_line_leaves_nothing_on() -> None:
    """Ctrl-C may come between any two lines; here it comes at every fifth of ours."""
    model = nets.around(nets.Attention())
    stopped, number = True, 0
    while stopped:
        number += 5
        flow = stream(model, batches(2), reduce="received")
        next(flow)
        tracer = sys.gettrace()
        stopped = False
        try:
            sys.settrace(interrupting(number))
            next(flow)
        except KeyboardInterrupt:
            stopped = True
        finally:
            sys.settrace(tracer)
        flow.close()
        torch.set_grad_enabled(True)  # a tracer may stop a with where no signal can, at its exit
        assert not key_is_on()
        assert op_mode.watches() == 0
    assert number > 50
