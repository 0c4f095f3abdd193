"""Tokens in unusual orders: measured where each lies, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnviz.places import Places, locate
from tests.places.nets import WIDTH, Block

Tokens = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Tokens made in any way, and one block of attention."""

    def __init__(self, tokens: Tokens, stem: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block = stem or nn.Conv2d(3, WIDTH, 8, 8), Block()
        self.registers, self.tokens = nn.Parameter(torch.randn(1, 5, WIDTH)), tokens
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.tokens(self, x)).mean(1)


def rows(net: Net, x: Tensor) -> Tensor:
    return net.stem(x).flatten(2).mT


def hilbert(net: Net, x: Tensor) -> Tensor:
    """Along a curve that fills the square (Hilbert 1891), 4 × 4 cells."""
    curve = [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]
    return rows(net, x)[:, curve]


def amid(net: Net, x: Tensor) -> Tensor:
    """Registers after the fifth patch, and one behind the last."""
    patches, registers = rows(net, x), net.registers.expand(len(x), -1, -1)
    return torch.cat([patches[:, :5], registers[:, :4], patches[:, 5:], registers[:, 4:]], 1)


def _located(net: Net, *shape: int) -> Places:
    torch.manual_seed(1)
    (one,) = locate(net, torch.randn(*shape)).values()
    return one.keys


def cells(height: int, width: int) -> Tensor:
    return torch.arange(height * width).view(height, width)


@pytest.mark.parametrize(
    ("tokens", "size", "true"),
    [
        (hilbert, (32, 32), [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]),
        (amid, (32, 48), [*range(5), -1, -1, -1, -1, *range(5, 24), -1]),
        (lambda net, x: rows(net, x.transpose(2, 3)), (32, 48), cells(4, 6).T.flatten().tolist()),
        (lambda net, x: rows(net, x.roll((16, 8), (2, 3))), (32, 48),
         cells(4, 6).roll((2, 1), (0, 1)).flatten().tolist()),
        (lambda net, x: torch.cat([rows(net, x[..., :24]), rows(net, x[..., 24:])], 1), (32, 48),
         [*cells(4, 6)[:, :3].flatten().tolist(), *cells(4, 6)[:, 3:].flatten().tolist()]),
    ],
    ids=["hilbert", "registers amid", "transposed", "rolled", "halves"],
)  # fmt: skip
def test_any_order_of_tokens_is_measured(
    tokens: Tokens, size: tuple[int, int], true: list[int]
) -> None:
    places = _located(Net(tokens), 1, 3, *size)
    assert list(places.cell) == true
    assert places.error < 0.5


@pytest.mark.parametrize(
    ("tokens", "channels", "side"),
    [
        (lambda net, x: torch.cat([rows(net, x), rows(net, F.avg_pool2d(x, 2))], 1), 3, 64),
        (lambda net, x: rows(net, (x + x.flip(-1)) / 2), 3, 48),
        (lambda net, x: torch.cat([rows(net, x[:, :3]), rows(net, x[:, 3:])], 1), 6, 48),
    ],
    ids=["two scales", "mirrored mean", "two images in channels"],
)
def test_tokens_of_several_grids_are_refused(tokens: Tokens, channels: int, side: int) -> None:
    assert not _located(Net(tokens), 1, channels, side, side).known


def test_images_that_change_their_order_are_told_apart() -> None:
    """Weights are in the order of the images where that is followed, and measured elsewhere."""
    places = _located(Net(lambda net, x: rows(net, x).flip(0)), 2, 3, 32, 48)
    assert (places.image, places.grid) == (None, (4, 6))

    def elsewhere(net: Net, x: Tensor) -> Tensor:
        return torch.from_numpy(rows(net, x).numpy()[::-1].copy())

    places = _located(Net(elsewhere), 2, 3, 32, 48)
    assert places.image is not None
    assert places.image[0] == 1
    assert places.image[-1] == 0


@pytest.mark.parametrize(
    ("stem", "size"),
    [
        (nn.Conv2d(3, WIDTH, 16, 8, 4), (64, 96)),
        (nn.Conv2d(3, WIDTH, 16, 8), (64, 64)),
        (nn.Conv2d(3, WIDTH, 1, 8), (64, 64)),
        (nn.Conv2d(3, WIDTH, 8, 8), (67, 45)),
        (nn.Conv2d(3, WIDTH, 8, 8, 4), (64, 64)),
        (nn.Sequential(*[nn.Conv2d(3 if i == 0 else WIDTH, WIDTH, 3, 2, 1) for i in range(4)]),
         (96, 96)),
    ],
    ids=["overlap", "no padding", "points", "a rest", "padding", "strides"],
)  # fmt: skip
def test_a_place_that_is_given_lies_within_half_a_cell(
    stem: nn.Module, size: tuple[int, int]
) -> None:
    places = _located(Net(rows, stem), 1, 3, *size)
    assert not places.known or places.error < 0.5
