"""A data set streams through a watched model in the memory of one batch."""

from __future__ import annotations

import gc
import io
import sys
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from attnviz.capture import op_mode, stream, watch
from attnviz.errors import InputError, NothingSeenError
from tests.capture import nets
from tests.capture.test_choosing import Both
from tests.capture.test_gates import BAM, Blocks, Selective
from tests.capture.test_multihead import layer, tokens
from tests.capture.test_windows import Windowed

MODELS: dict[str, Callable[[], nn.Module]] = {
    "both": lambda: nets.around(Both()),
    "bam": lambda: nets.around(BAM("sum")),
    "branches": lambda: nets.around(Selective(stacked=False)),
    "windows": lambda: nets.around(Windowed(shift=1)),
    "whole": lambda: Blocks().eval(),
    **{name: lambda attend=attend: nets.around(nets.Attention(attend)) for name, attend in
       nets.EQUAL.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_batch_is_as_if_it_were_watched_alone(name: str) -> None:
    model = MODELS[name]()
    shape = (nets.WIDTH, 4, 6) if name == "whole" else (3, 16, 24)
    batches = [
        torch.randn(b, *shape, generator=torch.Generator().manual_seed(seed))
        for seed, b in enumerate((2, 2, 3, 1, 2, 3))
    ]
    alone = []
    for batch in batches:
        with torch.no_grad(), watch(model) as seen:
            alone.append((model(batch), seen))
    known = [(name, sorted(vars(module))) for name, module in model.named_modules()]
    count = 0
    for (images, seen), batch, (out, truth) in zip(
        stream(model, batches, reduce=None), batches, alone, strict=True
    ):
        count += 1
        assert torch.equal(images, batch)
        assert torch.equal(seen.output, out)
        assert list(seen) == list(truth)
        for one, other in zip(seen.values(), truth.values(), strict=True):
            for field in ("weights", "scale"):
                a, b = getattr(one, field), getattr(other, field)
                assert (a is None) == (b is None)
                assert a is None or torch.equal(a, b)
            for field in ("kind", "axis", "how", "query_grid", "key_grid", "prefix", "heads",
                          "source", "origin", "logit_scale"):  # fmt: skip
                assert getattr(one, field) == getattr(other, field), field
            assert (one.windows is None) == (other.windows is None)
            if one.windows is not None and other.windows is not None:
                assert torch.equal(one.windows.cells, other.windows.cells)
        assert [(name, sorted(vars(module))) for name, module in model.named_modules()] == known
    assert count == 6


def test_fast_paths_stay_fast() -> None:
    encoder = nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False).eval()
    with torch.no_grad():
        plain = encoder(tokens())
    for _, seen in stream(encoder, [tokens()] * 3, reduce="received"):
        assert torch.equal(seen.output, plain)
        assert [record.op for record in seen.values()] == ["fast path"] * 2


def test_streams_are_reduced_and_edited() -> None:
    model = nets.around(nets.Attention(nets.fused))
    with torch.no_grad(), watch(model, edit={"attn": "uniform"}) as truth:
        out = model(nets.images())
    for _, seen in stream(model, [nets.images()] * 3, reduce="received", edit={"attn": "uniform"}):
        assert torch.equal(seen.output, out)
        record = seen["attn"]
        assert record.edited
        assert record.weights is None
        torch.testing.assert_close(record.reduced["received"], torch.full((2, 2, 24), 1 / 24))
    assert truth["attn"].edited


def test_rollout_starts_anew_in_every_batch() -> None:
    model = nets.around(nn.Sequential(nets.Attention(), nets.Attention()))
    found = [
        seen["attn.1"].reduced["rollout"]
        for _, seen in stream(model, [nets.images()] * 3, reduce="rollout")
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_gradients_of_every_batch_are_those_of_a_watch() -> None:
    model = nets.around(nets.Attention(nets.fused))
    batches = nets.images(4).split(2)
    found = []
    for _, seen in stream(model, batches, reduce=None, keep_graph=True):
        found.append(seen["attn"].gradient(seen.output[:, 1]))
    with watch(model, keep_graph=True) as whole:
        out = model(torch.cat(batches))
    torch.testing.assert_close(torch.cat(found), whole["attn"].gradient(out[:, 1]))
    assert not any(seen.output.requires_grad for _, seen in stream(model, batches, reduce=None))


def test_loaders_with_labels_and_mappings() -> None:
    model = nets.around(nets.Attention())
    data = TensorDataset(nets.images(5), torch.arange(5))
    labels: list[int] = []
    for images, seen in stream(model, DataLoader(data, batch_size=2), reduce="received"):
        assert len(images) == len(seen.output) == len(seen["attn"].reduced["received"])
        labels += seen.batch[1].tolist()
    assert labels == [0, 1, 2, 3, 4]
    for images, _ in stream(model, [{"pixel_values": nets.images(), "y": 0}], reduce=None):
        assert images.shape == (2, 3, 16, 24)
    with pytest.raises(InputError, match=r"expected batches that are a tensor .*got str"):
        list(stream(model, ["no"], reduce=None))


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    model = nets.around(nets.Attention(nets.fused))
    captures: list[weakref.ref[object]] = []
    sums: list[Tensor] = []
    for _, seen in stream(model, (nets.images(seed=i) for i in range(20)), reduce="received"):
        captures.append(weakref.ref(seen))
        sums.append(seen["attn"].reduced["received"])
        assert seen["attn"].weights is None
        del seen
        gc.collect()
        assert sum(ref() is not None for ref in captures) <= 1
    assert len(sums) == 20


def test_everything_is_back_when_a_stream_is_left_early() -> None:
    model = nets.around(nets.Attention())

    def leave() -> None:
        for i, _ in enumerate(stream(model, [nets.images()] * 5, reduce=None)):
            if i == 2:
                break

    leave()
    gc.collect()
    assert all("forward" not in vars(module) for module in model.modules())
    assert op_mode.modes() == []

    class Late(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Late.calls += 1
            if Late.calls > 2:
                raise KeyboardInterrupt
            return x

    model = nets.around(nn.Sequential(nets.Attention(), Late()))
    with pytest.raises(KeyboardInterrupt):
        list(stream(model, [nets.images()] * 5, reduce=None))
    assert all("forward" not in vars(module) for module in model.modules())
    assert op_mode.modes() == []


def test_a_model_without_attention_says_so_at_the_first_batch() -> None:
    with pytest.raises(NothingSeenError):
        next(iter(stream(nets.around(nn.Identity()), [nets.images()], reduce=None)))


def test_progress_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    model = nets.around(nets.Attention())
    list(stream(model, [nets.images()] * 2, reduce=None))
    assert terminal.getvalue() == ""
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    list(stream(model, [nets.images()] * 2, reduce=None))
    assert "watch: 100%" in terminal.getvalue()
    length = len(terminal.getvalue())
    list(stream(model, [nets.images()] * 2, reduce=None, progress=False))
    assert len(terminal.getvalue()) == length


def test_a_forward_that_somebody_else_put_in_is_used_and_put_back() -> None:
    model, x = nets.around(nets.Attention()), nets.images()
    attn = model.get_submodule("attn")
    own = attn.forward
    attn.forward = lambda x: own(x) * 2  # type: ignore[method-assign]  # as accelerate does it
    with torch.no_grad():
        plain = model(x)
    outputs = [seen.output for _, seen in stream(model, [x] * 3, reduce=None)]
    assert all(torch.equal(out, plain) for out in outputs)
    assert torch.equal(model(x), plain)


class Within(nn.Module):
    """A module that runs within itself, and attends there, too."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nets.Attention(nets.fused)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = x + nets.fused(x, x, x)
        y: Tensor = self(x, depth - 1) if depth else self.attn(x)
        return y


def test_a_module_within_itself_is_seen_once() -> None:
    model = nets.around(Within())
    found = [list(seen) for _, seen in stream(model, [nets.images()] * 3, reduce="received")]
    assert found == [["attn#0", "attn#1", "attn#2", "attn.attn"]] * 3


def test_images_of_another_size_are_learned_anew() -> None:
    model = nets.around(Windowed(shift=1))
    sizes = ((16, 24), (32, 48), (16, 24), (32, 48))
    batches = [nets.images(2, *size) for size in sizes]
    for (images, seen), batch in zip(stream(model, batches, reduce=None), batches, strict=True):
        with torch.no_grad(), watch(model) as alone:
            model(batch)
        for one, other in zip(seen.values(), alone.values(), strict=True):
            assert one.image == other.image == images.shape[2:]
            assert one.windows is not None
            assert other.windows is not None
            assert torch.equal(one.windows.cells, other.windows.cells)


class Either(nn.Module):
    """One of two attentions, both or none, by what the batch holds."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nets.Attention(), nets.Attention()
        self.calls = 0
        self.path: tuple[str, ...] = ("one",)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for name in self.path:
            x = self.get_submodule(name)(x)
        return x


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_takes_another_path_is_seen_on_it_and_never_runs_twice(
    training: bool,
) -> None:
    model = nets.around(Either()).train(training)
    inner = model.get_submodule("attn")
    assert isinstance(inner, Either)
    paths: list[tuple[str, ...]] = [("one",), ("other",), ("one", "other"), (), ("one", "one")]
    inner.path = paths[0]
    names = []
    for i, (_, seen) in enumerate(stream(model, [nets.images()] * 5, reduce=None)):
        names.append(list(seen))
        inner.path = paths[min(i + 1, 4)]
    assert names == [
        ["attn.one"], ["attn.other"], ["attn.one", "attn.other"], [], ["attn.one#0", "attn.one#1"],
    ]  # fmt: skip
    assert inner.calls == 5
