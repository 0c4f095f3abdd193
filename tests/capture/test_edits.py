"""Weights and gates can be replaced while the model runs, on every path that is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attnviz.capture import Record, edits, watch
from attnviz.capture.rules import fused_kernels
from attnviz.errors import InputError, UnsupportedError
from tests.capture import nets
from tests.capture.test_attention import Pooled, TalkingHeads, linear, sdpa_boolean, unnormalised
from tests.capture.test_gates import BAM, ChannelsLast, Coordinates, Selective, Spatial, Squeeze

MIDDLES: dict[str, Callable[[], nn.Module]] = {
    **{way: (lambda way=way: nets.Attention(nets.EQUAL[way])) for way in nets.EQUAL},
    "unnormalised": lambda: nets.Attention(unnormalised),
    "pooled": lambda: Pooled(matmul=False),
    "pooled matmul": lambda: Pooled(matmul=True),
    "talking heads": lambda: TalkingHeads(convolve=False),
    "squeeze": lambda: Squeeze(torch.sigmoid),
    "expanded": lambda: Squeeze(torch.sigmoid, "expanded"),
    "viewed": lambda: Squeeze(torch.sigmoid, "viewed"),
    "spatial": Spatial,
    "both": lambda: BAM("sum"),
    "stacked": lambda: Selective(stacked=True),
    "branches": lambda: Selective(stacked=False),
    "rows and columns": Coordinates,
    "channels last": lambda: ChannelsLast("channel", tokens=False),
    "tokens": lambda: ChannelsLast("spatial", tokens=True),
}


def logits(model: nn.Module, edit: object = None, **options: object) -> tuple[Tensor, list[Record]]:
    given = {} if edit is None else {"*": edit}
    with torch.no_grad(), watch(model, edit=given, **options) as seen:  # type: ignore[arg-type]
        out: Tensor = model(nets.images())
    return out, list(seen.values())


@pytest.mark.parametrize("name", MIDDLES)
def test_an_edit_reaches_the_output_on_every_path(name: str) -> None:
    model = nets.around(MIDDLES[name]())
    plain, records = logits(model)
    same, _ = logits(model, lambda values: values)
    torch.testing.assert_close(same, plain, atol=1e-6, rtol=1e-5)
    changed, edited = logits(model, lambda values: values * 0.5 + 0.1)
    assert not torch.allclose(changed, plain, atol=1e-5)
    for before, after in zip(records, edited, strict=True):
        kind = "weights" if before.kind == "attention" else "scale"
        assert after.edited
        if before is records[0]:  # later ones see edited features
            torch.testing.assert_close(
                getattr(after, kind), getattr(before, kind) * 0.5 + 0.1, atol=1e-5, rtol=1e-4
            )
        assert getattr(after, kind).shape == getattr(before, kind).shape


@pytest.mark.parametrize("way", nets.EQUAL)
def test_edited_attention_is_a_times_v(way: str) -> None:
    """The same random weights give the same output, in whatever way the attention is written."""
    given = torch.rand(2, 2, 24, 24, generator=torch.Generator().manual_seed(5))

    def defined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return given @ v

    truth = nets.around(nets.Attention(defined))(nets.images())
    out, _ = logits(nets.around(nets.Attention(nets.EQUAL[way])), edits.replace_by(given))
    torch.testing.assert_close(out, truth, atol=1e-5, rtol=1e-4)


def test_edited_gates_multiply_as_defined() -> None:
    model = nets.around(Squeeze(torch.sigmoid, "expanded"))
    with torch.no_grad():
        x = model.stem(nets.images())  # type: ignore[operator]  # a submodule
        truth = model.head(x * 0.25)  # type: ignore[operator]  # a submodule
    out, _ = logits(model, edits.constant(0.25))
    torch.testing.assert_close(out, truth)


def test_uniform_is_one_over_the_keys_that_are_allowed() -> None:
    _, (record,) = logits(nets.around(nets.Attention()), "uniform")
    assert record.weights is not None
    torch.testing.assert_close(record.weights, torch.full((2, 2, 24, 24), 1 / 24))
    _, (record,) = logits(nets.around(nets.Attention(sdpa_boolean)), "uniform")
    assert record.weights is not None
    allowed = torch.ones(24, 24).tril()
    torch.testing.assert_close(record.weights[0, 0], allowed / allowed.sum(-1, keepdim=True))


def test_ready_edits_do_what_they_say() -> None:
    model = nets.around(nets.Attention())
    _, (plain,) = logits(model)
    weights = plain.weights
    assert weights is not None

    def edited(edit: object) -> Tensor:
        _, (record,) = logits(model, edit)
        assert record.weights is not None
        return record.weights

    assert not edited("zero").any()
    assert torch.equal(edited("identity")[0, 0], torch.eye(24))
    off = edited(edits.head_off(1))
    assert not off[:, 1].any()
    assert torch.equal(off[:, 0], weights[:, 0])
    assert torch.equal(edited(edits.swap(0, 1)), weights.flip(0))
    assert torch.equal(edited(edits.roll(3)), weights.roll(3, -1))
    shuffled = edited(edits.shuffle(2))
    assert not torch.equal(shuffled, weights)
    assert torch.equal(shuffled.sort(-1).values, weights.sort(-1).values)
    assert torch.equal(edited(edits.times(0.5)), weights * 0.5)


def test_ready_edits_of_gates() -> None:
    model = nets.around(Spatial())
    _, (plain,) = logits(model)
    scale = plain.scale
    assert scale is not None

    def edited(edit: object) -> Tensor:
        _, (record,) = logits(model, edit)
        assert record.scale is not None
        return record.scale

    uniform = edited("uniform")
    torch.testing.assert_close(uniform[0], torch.full((1, 4, 6), float(scale[0].mean())))
    assert torch.equal(edited("open"), torch.ones_like(scale))
    assert torch.equal(edited("swap"), scale.flip(0))
    assert torch.equal(edited("shuffle").flatten().sort().values, scale.flatten().sort().values)
    for edit in (edits.head_off(0), edits.roll(1)):
        with pytest.raises(InputError, match="'attn' is a gate"):
            logits(model, edit)


def test_rolled_keys_leave_leading_tokens_in_place() -> None:
    weights = torch.rand(1, 1, 5, 5)
    rolled = edits.roll(1)(weights, Record("x", "attention", weights, prefix=1))
    assert torch.equal(rolled[..., 0], weights[..., 0])
    assert torch.equal(rolled[..., 1], weights[..., 4])


def test_names_globs_and_calls_say_what_is_edited() -> None:
    attn = nets.Attention()
    model = nets.around(nn.Sequential(attn, attn))
    with torch.no_grad(), watch(model, edit={"attn.0#1": "uniform"}) as seen:
        model(nets.images())
    assert [record.edited for record in seen.values()] == [False, True]
    with torch.no_grad(), watch(model, edit={"attn.*": "uniform"}) as seen:
        model(nets.images())
    assert [record.edited for record in seen.values()] == [True, True]


def test_a_function_may_ask_for_the_record() -> None:
    asked: list[str] = []

    def edit(values: Tensor, record: Record) -> Tensor:
        asked.append(record.name)
        return values

    logits(nets.around(nets.Attention()), edit)
    assert asked == ["attn"]


def test_what_cannot_be_edited_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"edit of 'attn': .*linear: q \(kᵀ v\)"):
        logits(nets.around(nets.Attention(linear)), "uniform")

    class Dropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x.flatten(2).mT
            return (nn.functional.dropout((q @ q.mT).softmax(-1), 0.5) @ q).mT.view_as(x)

    with pytest.raises(UnsupportedError, match=r"edit of 'attn': dropout follows .*model.eval"):
        logits(nets.around(Dropped()), "uniform")


def test_wrong_edits_say_what_is_wrong() -> None:
    model = nets.around(nets.Attention())
    with pytest.raises(InputError, match=r"expected a tensor \(2, 2, 24, 24\) back, got \(2, 24\)"):
        logits(model, lambda values: values[:, 0, 0])
    with pytest.raises(InputError, match="unknown edit 'unifrom': did you mean 'uniform'"):
        logits(model, "unifrom")
    with pytest.raises(InputError, match=r"expected a function or a ready edit's name .* got int"):
        logits(model, 3)
    with (
        pytest.raises(InputError, match=r"'atn' met nothing .*did you mean 'attn'"),
        watch(model, edit={"atn": "uniform"}),
    ):
        model(nets.images())
    with pytest.raises(InputError, match=r"head_off: 'attn' has 2 heads, got \(4,\)"):
        logits(model, edits.head_off(4))
    with pytest.raises(InputError, match="expected images 0 and 7 in a batch, got 2"):
        logits(model, edits.swap(0, 7))


@pytest.mark.parametrize("name", ["plain", "fused", "squeeze"])
def test_a_backward_pass_through_an_edit_is_refused(name: str) -> None:
    model = nets.around(MIDDLES[name]())
    with watch(model, edit={"*": "uniform"}):
        out = model(nets.images())
    with pytest.raises(UnsupportedError, match=r"run it under torch\.no_grad"):
        out.sum().backward()


def test_weights_that_are_used_twice_are_one_call() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT).softmax(-1)
        return weights @ v + weights @ v.flip(2)

    model = nets.around(nets.Attention(attend))
    by_name, _ = logits(model, "uniform")
    with torch.no_grad(), watch(model, edit={"attn#0": "uniform"}):
        assert torch.equal(model(nets.images()), by_name)
    with (
        pytest.raises(InputError, match="'attn#1' met nothing"),
        watch(model, edit={"attn#1": "uniform"}),
    ):
        model(nets.images())


class Relative(nn.Module):
    """Attention with a relative position for each pair of tokens in its values (Shaw, 2018)."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.factor, self.off, self.first = factor, False, False
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.table = nn.Parameter(torch.randn(24, 24, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).flatten(2).mT.unflatten(2, (3, 4)).transpose(1, 2)
        weights = (y @ y.mT).softmax(-1)
        if self.off:
            weights = weights * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
        again = weights * self.factor if self.factor != 1 else weights
        if self.first:
            return torch.einsum("bhqk,qkd->bhqd", again, self.table) + weights @ y
        return weights @ y + torch.einsum("bhqk,qkd->bhqd", again, self.table)


def test_weights_that_met_learned_values_first_cannot_be_edited() -> None:
    model = Relative()
    model.first = True
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedError, match=r"met learned values before .* change the order"),
        watch(model, edit={"*": edits.head_off(1)}),
    ):
        model(nets.images())


def test_a_second_use_in_another_order_is_edited_alike() -> None:
    model, x = Relative(), nets.images()
    with torch.no_grad():
        with watch(model, edit={"*": edits.head_off(1)}):
            edited = model(x)
        plain, model.off = model(x), True
        torch.testing.assert_close(edited, model(x))
    assert not torch.allclose(edited, plain)


def test_a_second_use_of_changed_values_cannot_be_edited() -> None:
    model, x = Relative(0.5), nets.images()
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedError, match=r"are used a second time, and are others there"),
        watch(model, edit={"*": edits.head_off(1)}),
    ):
        model(x)


def test_a_second_use_in_an_order_that_is_not_known_cannot_be_edited() -> None:
    class Uniform(Relative):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x).flatten(2).mT.unflatten(2, (3, 4)).transpose(1, 2)
            flat = y.mean(2, keepdim=True).repeat(1, 1, 24, 1)
            weights = (flat @ flat.mT).softmax(-1)
            return weights @ y + torch.einsum("bhqk,qkd->bhqd", weights, self.table)

    model = Uniform()
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedError, match=r"and are in an order that is not known there"),
        watch(model, edit={"*": lambda x: x.tril()}),
    ):
        model(nets.images())


@pytest.mark.parametrize("complement_first", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.25])
def test_the_complement_of_an_edited_gate_is_edited_with_it(
    value: float, complement_first: bool
) -> None:
    class Highway(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.gate = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1)
            self.given: float | None = None

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            gate = self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
            gate = gate if self.given is None else torch.full_like(gate, self.given)
            if complement_first:
                return (1 - gate) * y + gate * y.relu()
            return gate * y.relu() + (1 - gate) * y

    model, x = Highway(), nets.images()
    with torch.no_grad():
        with watch(model, edit={"*": edits.constant(value)}):
            edited = model(x)
        model.given = 1 - value if complement_first else value
        torch.testing.assert_close(edited, model(x))


def test_a_softmax_over_places_is_edited_as_it_is_recorded_or_not_at_all() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.score = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 1, 1)
            self.factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            gate = self.score(y).flatten(2).softmax(-1).view(len(y), 1, *y.shape[2:])
            return y * (gate * self.factor)

    model, x = Places(), nets.images()
    with torch.no_grad():
        with watch(model, edit={"*": lambda x: 2 * x}) as seen:
            edited = model(x)
        (record,) = seen.values()
        with watch(model) as plain:
            model(x)
        (before,) = plain.values()
        assert record.scale is not None
        assert before.scale is not None
        assert record.kind == "gate"
        torch.testing.assert_close(record.scale, 2 * before.scale)
        model.factor = 2.0
        torch.testing.assert_close(edited, model(x))
        model.factor = 1.0
        with (
            pytest.raises(UnsupportedError, match=r"it is a gate over places \(2, 1, 4, 6\)"),
            watch(model, edit={"*": lambda x: x.flip(-1)}),
        ):
            model(x)


def test_dropout_within_a_kernel_is_not_undone_either(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fused_kernels.arguments  # no kernel of a CPU drops weights out
    monkeypatch.setattr(
        fused_kernels, "arguments", lambda *given: {**real(*given), "dropout_p": 0.5}
    )
    with pytest.raises(UnsupportedError, match=r"edit of 'attn': dropout follows .*model.eval"):
        logits(nets.around(nets.Attention(nets.fused)), "uniform")
