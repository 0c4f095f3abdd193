"""One softmax over several sets of keys, of which each meets values of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnviz import locate, maps
from attnviz.capture import Capture, watch

WIDTH = 8


class Two(nn.Module):
    """Each cell attends to all cells and, in the same softmax, to the same in reverse order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.other = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).flatten(2).mT
        z = self.other(y.flip(1))
        weights = torch.cat([y @ y.mT, y @ z.mT], -1).softmax(-1)
        first, second = weights.split(y.shape[1], -1)
        self.truth = first.detach(), second.detach().flip(-1)
        return first @ y + second @ z


class CrissCross(nn.Module):
    """Each cell attends to its column and, in the same softmax, to its row (CCNet, 1811.11721)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        f = self.stem(x)
        b, _, h, w = f.shape
        column, row = f.permute(0, 3, 2, 1).flatten(0, 1), f.permute(0, 2, 3, 1).flatten(0, 1)
        up = (column @ column.mT).view(b, w, h, h).permute(0, 2, 1, 3)
        weights = torch.cat([up, (row @ row.mT).view(b, h, w, w)], 3).softmax(3)
        along = weights[..., :h].permute(0, 2, 1, 3).reshape(b * w, h, h)
        across = weights[..., h:].reshape(b * h, w, w)
        self.truth = along.detach(), across.detach()
        out = (along @ column).view(b, w, h, -1).transpose(1, 2)
        return out + (across @ row).view(b, h, w, -1)


def seen_in(model: nn.Module, x: Tensor) -> Capture:
    with torch.no_grad(), watch(model.eval()) as seen:
        out = model(x)
        assert out.shape[0] == len(x)
    return seen


def test_each_set_of_keys_has_its_own_places() -> None:
    model, x = Two(), torch.randn(2, 3, 12, 16)
    seen = seen_in(model, x)
    found = locate(model, x)
    for name, truth, cell in zip(seen, model.truth, (range(12), range(11, -1, -1)), strict=True):
        places = seen[name].places
        assert places is not None
        assert places.keys.cell == tuple(cell)
        received = truth.mean(1).unflatten(-1, (3, 4))
        torch.testing.assert_close(maps.received(seen[name]), received)
        torch.testing.assert_close(maps.received(seen[name], layout=found), received)


def test_columns_and_rows_of_a_square_map_are_windows_and_not_heads() -> None:
    model, x = CrissCross(), torch.randn(2, 3, 16, 16)
    seen = seen_in(model, x)
    for record, truth, step in zip(seen.values(), model.truth, (4, 1), strict=True):
        assert record.weights is not None
        assert record.places is not None
        torch.testing.assert_close(record.weights, truth[:, None])
        assert record.places.keys.cell[:4] == tuple(range(0, 4 * step, step))
        by_line = truth.mean(1).unflatten(0, (2, 4))  # (b, lines, cells)
        received = by_line.mT if step == 4 else by_line
        torch.testing.assert_close(maps.received(record), received)


def test_a_token_beside_the_keys_takes_its_share() -> None:
    class Sink(Two):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x).flatten(2).mT
            logits = torch.cat([y @ y.mT, y.new_zeros(*y.shape[:2], 1)], -1)
            weights = logits.softmax(-1)[..., :-1]
            self.truth = weights.detach(), weights.detach()
            return weights @ y

    model, x = Sink(), torch.randn(2, 3, 12, 16)
    (record,) = seen_in(model, x).values()
    received = model.truth[0].mean(1).unflatten(-1, (3, 4))
    torch.testing.assert_close(maps.received(record), received)


def test_parts_that_are_copied_are_records_of_their_own() -> None:
    class Copied(CrissCross):
        def forward(self, x: Tensor) -> Tensor:
            f = self.stem(x)
            h, w = f.shape[2:]
            up = torch.einsum("bcyx,bczx->byxz", f, f)
            weights = torch.cat([up, torch.einsum("bcyx,bcyz->byxz", f, f)], 3).softmax(3)
            along, across = weights.split([h, w], 3)
            out = torch.einsum("byxz,bczx->bcyx", along, f)
            return out + torch.einsum("byxz,bcyz->bcyx", across, f)

    model, x = Copied(), torch.randn(2, 3, 16, 16)
    assert len(seen_in(model, x)) == 2
    assert len(locate(model.eval(), x)) == 2
