"""Gates that meet features in other ways than a product of two tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnviz as av

Apply = Callable[[Tensor, Tensor], Tensor]

SPATIAL: dict[str, tuple[Apply, Callable[[Tensor], Tensor]]] = {
    "flipped": (lambda x, z: x * z.sigmoid().flip(-1), lambda z: z.sigmoid().flip(-1)),
    "rolled": (
        lambda x, z: x * z.sigmoid().roll((1, 2), (2, 3)),
        lambda z: z.sigmoid().roll((1, 2), (2, 3)),
    ),
    "indexed": (
        lambda x, z: x * z.sigmoid()[:, :, torch.arange(z.shape[2] - 1, -1, -1)],
        lambda z: z.sigmoid().flip(2),
    ),
    "selected": (
        lambda x, z: x * z.sigmoid().index_select(3, torch.arange(z.shape[3])),
        lambda z: z.sigmoid(),
    ),
    "lerp": (lambda x, z: torch.lerp(torch.zeros_like(x), x, z.sigmoid()), lambda z: z.sigmoid()),
    "addcmul": (lambda x, z: torch.addcmul(x, x, z.sigmoid()), lambda z: z.sigmoid()),
    "addcmul, first": (lambda x, z: torch.addcmul(x, z.sigmoid(), x), lambda z: z.sigmoid()),
    "exponential of its logarithm": (
        lambda x, z: x * F.logsigmoid(z).exp(), lambda z: F.logsigmoid(z).exp()
    ),
    "where": (
        lambda x, z: x * torch.where(z > 0, z.sigmoid(), torch.zeros(())),
        lambda z: z.sigmoid() * (z > 0),
    ),
}  # fmt: skip


class Net(nn.Module):
    """Features, and logits of a gate over places or channels."""

    def __init__(self, apply: Apply, channels: bool = False) -> None:
        super().__init__()
        self.stem, self.logits = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 6 if channels else 1, 1)
        self.channels, self.use = channels, apply

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        pooled = F.adaptive_avg_pool2d(x, 1) if self.channels else x
        return self.use(x, self.logits(pooled)).mean((2, 3))


@pytest.mark.parametrize("name", SPATIAL)
def test_a_gate_is_recorded_as_it_meets_the_features_and_can_be_edited(name: str) -> None:
    torch.manual_seed(0)
    apply, expected = SPATIAL[name]
    net, images = Net(apply).eval(), torch.randn(2, 3, 24, 32)
    with torch.no_grad():
        plain = net(images)
        with av.watch(net) as seen:
            watched = net(images)
        (record,) = seen.values()
        assert torch.equal(watched, plain)
        assert (record.kind, record.axis, seen.unused) == ("gate", "spatial", [])
        assert torch.allclose(record.scale, expected(net.logits(net.stem(images))), atol=1e-6)
        with av.watch(net, edit={record.name: torch.zeros_like}):
            closed = net(images)
    nothing = torch.zeros_like(plain)
    adds = "addcmul" in name
    assert torch.allclose(closed, net.stem(images).mean((2, 3)) if adds else nothing, atol=1e-6)


@pytest.mark.parametrize("name", ["lerp", "addcmul", "exponential of its logarithm"])
def test_a_channel_gate_too(name: str) -> None:
    torch.manual_seed(0)
    net = Net(SPATIAL[name][0], channels=True).eval()
    with torch.no_grad(), av.watch(net) as seen:
        net(torch.randn(2, 3, 24, 32))
    (record,) = seen.values()
    assert (record.axis, seen.unused) == ("channel", [])


def test_lerp_of_parameters_or_by_a_number_is_no_gate() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.share = nn.Conv2d(3, 4, 1), nn.Parameter(torch.zeros(1, 4, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            x = self.conv(images)
            return torch.lerp(x, x.relu(), self.share.sigmoid()).lerp(x, 0.5)

    net = Mixed().eval()
    with torch.no_grad(), av.watch(net, empty=True) as seen:
        net(torch.randn(2, 3, 8, 8))
    assert not len(seen)


@pytest.mark.parametrize("part", ["row 1", "column 2", "pooled to a row"])
def test_a_spatial_gate_of_one_row_is_no_channel_gate_and_is_drawn_in_that_row(part: str) -> None:
    makes: dict[str, tuple[Apply, slice, slice]] = {
        "row 1": (lambda x, z: x[:, :, 1:2] * z[:, :, 1:2].sigmoid(), slice(4, 8), slice(None)),
        "column 2": (lambda x, z: x[..., 2:3] * z[..., 2:3].sigmoid(), slice(None), slice(8, 12)),
        "pooled to a row": (
            lambda x, z: F.adaptive_avg_pool2d(x, (1, 5)) * z[:, :, :1, :5].sigmoid(),
            slice(None),
            slice(None),
        ),
    }
    apply, down, along = makes[part]
    torch.manual_seed(0)
    model = Net(apply).eval()
    with torch.no_grad(), av.watch(model) as seen:
        model(torch.randn(1, 3, 16, 20))
    (record,) = seen.values()
    assert record.axis == ("rows" if part == "column 2" else "columns")
    drawn = av.gate_map(record, size=(16, 20), interpolation="nearest")[0]
    assert float(drawn[down, along].sum()) == pytest.approx(float(drawn.sum()))
    assert bool((drawn[down, along] > 0).all())
