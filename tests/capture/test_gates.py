"""A gate is what multiplies features from a squashed interval; activations are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnviz.capture import Record, watch
from attnviz.errors import NothingSeenError
from tests.capture import nets


def seen_in(middle: nn.Module, x: Tensor | None = None, **options: object) -> list[Record]:
    """The records of a network around a middle, which must not change its output."""
    model = nets.around(middle)
    x = nets.images() if x is None else x
    with torch.no_grad():
        before = model(x)
        with watch(model, **options) as seen:  # type: ignore[arg-type]  # options by name
            assert torch.equal(model(x), before)
    return list(seen.values())


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


class Squeeze(nn.Module):
    """Squeeze and excitation, its gate written in one of many ways."""

    def __init__(self, gate: Callable[[Tensor], Tensor], apply: str = "product") -> None:
        super().__init__()
        self.fc, self.gate, self.apply_ = nn.Conv2d(nets.WIDTH, nets.WIDTH, 1), gate, apply

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(self.fc(pooled(x)))
        if self.apply_ == "expanded":
            return x * gate.expand_as(x)
        if self.apply_ == "left":
            return gate * x
        if self.apply_ == "in place":
            y = x.clone()
            y *= gate
            return y
        if self.apply_ == "method":
            return x.mul(gate)
        if self.apply_ == "residual":
            return x * (1 + gate)
        if self.apply_ == "viewed":
            return x * gate.flatten(1)[:, :, None, None]
        return x * gate


SQUASH: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "functional": (F.sigmoid, "sigmoid"),
    "torch": (torch.sigmoid, "sigmoid"),
    "method": (lambda z: z.sigmoid(), "sigmoid"),
    "in place": (lambda z: z.sigmoid_(), "sigmoid"),
    "module": (nn.Sigmoid(), "sigmoid"),
    "hard module": (nn.Hardsigmoid(), "hardsigmoid"),
    "hard functional": (F.hardsigmoid, "hardsigmoid"),
    "hard by hand": (lambda z: F.relu6(z + 3) / 6, "hardsigmoid"),
    "hard clamp": (lambda z: (0.2 * z + 0.5).clamp(0, 1), "hardsigmoid"),
    "tanh": (torch.tanh, "tanh"),
    "softmax": (lambda z: z.softmax(1), "softmax"),
}


@pytest.mark.parametrize("way", SQUASH)
def test_a_channel_gate_however_it_is_squashed(way: str) -> None:
    squash, op = SQUASH[way]
    (record,) = seen_in(Squeeze(squash))
    assert (record.name, record.kind, record.axis, record.op) == ("attn", "gate", "channel", op)
    assert record.how == "gate"
    model = nets.around(Squeeze(squash))
    with torch.no_grad():
        x = model.stem(nets.images())  # type: ignore[operator]  # a submodule
        truth = squash(model.attn.fc(pooled(x)))  # type: ignore[operator, union-attr]
    assert record.scale is not None
    torch.testing.assert_close(record.scale, truth)


@pytest.mark.parametrize("apply", ["expanded", "left", "in place", "method", "residual", "viewed"])
def test_a_channel_gate_however_it_is_applied(apply: str) -> None:
    (record,) = seen_in(Squeeze(torch.sigmoid, apply))
    assert (record.axis, record.op) == ("channel", "sigmoid")
    assert record.scale is not None
    assert record.scale.shape == (2, nets.WIDTH, 1, 1)
    assert float(record.scale.min()) > (1 if apply == "residual" else 0)


class Spatial(nn.Module):
    """CBAM's spatial gate, with the sigmoid within `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(stacked))


class Blocks(nn.Module):
    """CBAM as a block writes it: both gates are multiplied by the block."""

    def __init__(self) -> None:
        super().__init__()
        self.ca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(nets.WIDTH, nets.WIDTH, 1),
                                nn.Sigmoid())  # fmt: skip
        self.sa = nn.Sequential(nn.Conv2d(nets.WIDTH, 1, 3, padding=1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.ca(x) * x
        return self.sa(x) * x


def test_a_spatial_gate_keeps_its_places() -> None:
    (record,) = seen_in(Spatial())
    assert (record.name, record.axis) == ("attn", "spatial")
    assert record.scale is not None
    assert record.scale.shape == (2, 1, 4, 6)


def test_gates_are_named_after_the_module_that_makes_them() -> None:
    channel, spatial = seen_in(Blocks())
    assert (channel.name, channel.axis) == ("attn.ca", "channel")
    assert (spatial.name, spatial.axis) == ("attn.sa", "spatial")
    assert channel.origin == "attn.ca.2"


class BAM(nn.Module):
    """One gate per channel and place, from a channel and a spatial branch."""

    def __init__(self, joined: str) -> None:
        super().__init__()
        self.channel = nn.Conv2d(nets.WIDTH, nets.WIDTH, 1)
        self.spatial = nn.Conv2d(nets.WIDTH, 1, 1)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.channel(pooled(x)), self.spatial(x)
        if self.joined == "expanded product":
            a, b = a.expand_as(x), b.expand_as(x)
        both = a + b if self.joined == "sum" else a * b
        return (1 + torch.sigmoid(both)) * x


@pytest.mark.parametrize("joined", ["sum", "product", "expanded product"])
def test_a_gate_of_channels_and_places_together(joined: str) -> None:
    (record,) = seen_in(BAM(joined))
    assert (record.axis, record.kind) == ("element", "gate")
    assert record.scale is not None
    assert record.scale.shape == (2, nets.WIDTH, 4, 6)


class Selective(nn.Module):
    """Selective kernels: a softmax over two branches, stacked or written out."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(nets.WIDTH, nets.WIDTH, k, padding=k // 2) for k in (1, 3))
        self.fc, self.stacked = nn.Conv2d(nets.WIDTH, 2 * nets.WIDTH, 1), stacked

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        weights = self.fc(pooled(a + b)).unflatten(1, (2, -1)).softmax(1)
        if self.stacked:
            return (torch.stack([a, b], 1) * weights).sum(1)
        return a * weights[:, 0] + b * weights[:, 1]


@pytest.mark.parametrize("stacked", [False, True])
def test_a_softmax_over_branches_is_one_gate(stacked: bool) -> None:
    (record,) = seen_in(Selective(stacked))
    assert (record.axis, record.op, record.kind) == ("branch", "softmax", "gate")
    assert record.scale is not None
    assert record.scale.shape == (2, 2, nets.WIDTH, 1, 1)
    torch.testing.assert_close(record.scale.sum(1), torch.ones(2, nets.WIDTH, 1, 1))


class Coordinates(nn.Module):
    """Coordinate attention: one gate over rows, one over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.w = (nn.Conv2d(nets.WIDTH, nets.WIDTH, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.h(x.mean(3, keepdim=True)).sigmoid()
        columns = self.w(x.mean(2, keepdim=True)).sigmoid()
        return x * rows * columns


def test_gates_over_rows_and_columns() -> None:
    rows, columns = seen_in(Coordinates())
    assert (rows.axis, columns.axis) == ("rows", "columns")
    assert rows.scale is not None
    assert columns.scale is not None
    assert rows.scale.shape == (2, nets.WIDTH, 4, 1)
    assert columns.scale.shape == (2, nets.WIDTH, 1, 6)


class ChannelsLast(nn.Module):
    """Gates on `(b, h, w, c)`, or on tokens `(b, n, c)`."""

    def __init__(self, kind: str, tokens: bool) -> None:
        super().__init__()
        self.kind, self.tokens = kind, tokens
        self.fc = nn.Linear(nets.WIDTH, 1 if kind == "spatial" else nets.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        y = y.flatten(1, 2) if self.tokens else y
        dims = tuple(range(1, y.dim() - 1))
        gate = self.fc(y if self.kind == "spatial" else y.mean(dims, keepdim=True)).sigmoid()
        return (y * gate).reshape(len(x), *x.shape[2:], -1).movedim(-1, 1)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("kind", ["channel", "spatial"])
def test_gates_have_one_shape_in_all_memory_layouts(kind: str, tokens: bool) -> None:
    (record,) = seen_in(ChannelsLast(kind, tokens))
    assert record.axis == kind
    assert record.scale is not None
    shape = (2, nets.WIDTH, 1, 1) if kind == "channel" else (2, 1, 4, 6)
    assert record.scale.shape == shape


class Coarse(nn.Module):
    """A gate computed on a coarser grid and resized (GhostNet's DFC attention)."""

    def forward(self, x: Tensor) -> Tensor:
        gate = F.avg_pool2d(x, 2).sigmoid()
        return x * F.interpolate(gate, size=x.shape[-2:])


def test_a_resized_gate_is_a_gate() -> None:
    (record,) = seen_in(Coarse())
    assert record.axis == "element"


class Other(nn.Module):
    """Something that contains a sigmoid, a tanh or a softmax and gates nothing."""

    def __init__(self, function: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(nets.WIDTH, nets.WIDTH, 1)
        self.table = nn.Parameter(torch.randn(1, nets.WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self)


def _glu(x: Tensor, own: nn.Module) -> Tensor:
    return F.glu(torch.cat([own.conv(x), x], 1), 1)


def _glu_by_hand(x: Tensor, own: nn.Module) -> Tensor:
    a, b = torch.cat([own.conv(x), x], 1).chunk(2, 1)
    return a * torch.sigmoid(b)


NO_GATES: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "silu": lambda x, own: F.silu(own.conv(x)),
    "gelu": lambda x, own: F.gelu(own.conv(x)) + F.gelu(x, approximate="tanh"),
    "swish by hand": lambda x, own: x * torch.sigmoid(x),
    "swish with a slope": lambda x, own: x * torch.sigmoid(1.702 * x),
    "mish": lambda x, own: x * torch.tanh(F.softplus(x)),
    "hard swish": lambda x, own: x * (F.relu6(x + 3) / 6) + F.hardswish(x),
    "glu": _glu,
    "glu by hand": _glu_by_hand,
    "learned scale": lambda x, own: x * torch.sigmoid(own.table),
    "probabilities": lambda x, own: (
        own.conv(x).softmax(1) * own.conv(x).mean(1, keepdim=True).sigmoid()
    ),
    "tanh": lambda x, own: torch.tanh(own.conv(x)),
}


@pytest.mark.parametrize("way", NO_GATES)
def test_activations_are_no_gates(way: str) -> None:
    with pytest.raises(NothingSeenError):
        seen_in(Other(NO_GATES[way]))


def test_a_classifiers_softmax_and_a_loss_are_no_gates() -> None:
    model = nets.around(nn.Identity())
    with watch(model, empty=True) as seen:
        logits = model(nets.images())
        F.binary_cross_entropy_with_logits(logits[:, 0], torch.ones(2))
        F.cross_entropy(logits, torch.zeros(2, dtype=torch.long))
        (logits.softmax(-1) * torch.ones(2, 2)).sum()
    assert not len(seen)
    assert not seen.unused


def test_what_a_gate_multiplies_is_kept_on_request() -> None:
    (record,) = seen_in(Squeeze(torch.sigmoid), features=True)
    model = nets.around(Squeeze(torch.sigmoid))
    with torch.no_grad():
        truth = model.stem(nets.images())  # type: ignore[operator]  # a submodule
    assert record.features is not None
    assert torch.equal(record.features, truth)
    (record,) = seen_in(ChannelsLast("channel", tokens=True), features=True)
    assert record.features is not None
    assert record.features.shape == (2, nets.WIDTH, 4, 6)
    (record,) = seen_in(Squeeze(torch.sigmoid))
    assert record.features is None


def test_a_gate_that_is_computed_and_not_applied_is_told() -> None:
    class Forgotten(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.sigmoid(pooled(x))
            return x

    model = nets.around(Forgotten())
    with (
        pytest.raises(NothingSeenError, match=r"attn \(sigmoid, test_gates.py:\d+\)"),
        watch(model),
    ):
        model(nets.images())


def test_what_is_kept_outlives_what_the_model_writes_over_it() -> None:
    def reused(z: Tensor) -> Tensor:
        gate = torch.sigmoid(z)
        held.append(gate)
        return gate

    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze = Squeeze(reused, apply="in place")

        def forward(self, x: Tensor) -> Tensor:
            before.append(x.clone())
            y = self.squeeze(x)
            held[-1].zero_()
            return y.relu_()

    held: list[Tensor] = []
    before: list[Tensor] = []
    (record,) = seen_in(Overwritten(), features=True)
    assert record.scale is not None
    assert record.features is not None
    assert float(record.scale.min()) > 0
    assert torch.equal(record.features, before[-1])
