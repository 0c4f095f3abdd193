"""Heads that share their keys: `einsum` writes them as more queries of one product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attnviz import locate, maps
from attnviz.capture import Record, edits, watch

WIDTH, HEADS = 4, 3
KEYS = 12

WAYS = {
    "b h i": ("bhid,bjd->bhij", "bhij,bjd->bihd", lambda q: q.transpose(1, 2), (0, 1, 2, 3)),
    "b i h": ("bihd,bjd->bihj", "bihj,bjd->bihd", lambda q: q, (0, 2, 1, 3)),
    "b i h to b h i": ("bihd,bjd->bhij", "bhij,bjd->bihd", lambda q: q, (0, 1, 2, 3)),
    "i b h": ("ibhd,bjd->ibhj", "ibhj,bjd->bihd", lambda q: q.transpose(0, 1), (1, 2, 0, 3)),
}


class Shared(nn.Module):
    """Multi-query attention over the cells of a feature map; `off` zeroes a head by hand."""

    def __init__(self, way: str, *, named: bool, logarithm: bool = False) -> None:
        super().__init__()
        self.logarithm = logarithm
        torch.manual_seed(0)
        self.score, self.mix, self.arranged, self.order = WAYS[way]
        self.stem = nn.Conv2d(3, WIDTH * HEADS, 4, 4)
        self.queries = nn.Linear(WIDTH * HEADS, WIDTH * HEADS)
        self.both = nn.Linear(WIDTH * HEADS, 2 * WIDTH)
        self.off: int | None = None
        if named:
            self.num_heads = HEADS

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).flatten(2).mT
        q = self.arranged(self.queries(y).unflatten(-1, (HEADS, WIDTH)))
        k, v = self.both(y).chunk(2, -1)
        logits = torch.einsum(self.score, q, k).div(WIDTH**0.5)
        weights = logits.log_softmax(-1).exp() if self.logarithm else logits.softmax(-1)
        self.truth = weights.detach().permute(self.order)
        if self.off is not None:
            keep = torch.ones(HEADS).index_fill(0, torch.tensor(self.off), 0)
            weights = torch.einsum("bhij,h->bhij", weights.permute(self.order), keep)
            weights = weights.permute([self.order.index(i) for i in range(4)])
        return torch.einsum(self.mix, weights, v).flatten(2)


def images() -> Tensor:
    return torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(1))


def seen_in(model: nn.Module, edit: dict[str, edits.Edit] | None = None) -> tuple[Record, Tensor]:
    with torch.no_grad(), watch(model.eval(), edit=edit) as seen:
        out = model(images())
    (record,) = seen.values()
    return record, out


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_heads_that_share_their_keys_are_heads(way: str, named: bool, logarithm: bool) -> None:
    model = Shared(way, named=named, logarithm=logarithm)
    record, out = seen_in(model)
    with torch.no_grad():
        assert torch.equal(out, model(images()))
    assert record.weights is not None
    assert record.heads == HEADS
    torch.testing.assert_close(record.weights, model.truth)
    assert (record.query_grid, record.key_grid) == ((3, 4), (3, 4))
    received = model.truth.mean((1, 2)).unflatten(-1, (3, 4))
    torch.testing.assert_close(maps.received(record), received)


@pytest.mark.parametrize("way", WAYS)
def test_a_head_is_switched_off_alone(way: str) -> None:
    model = Shared(way, named=False)
    plain, edited = seen_in(model)[1], seen_in(model, {"*": edits.head_off(1)})[1]
    model.off = 1
    with torch.no_grad():
        torch.testing.assert_close(edited, model(images()))
    assert not torch.allclose(edited, plain)


@pytest.mark.parametrize("way", ["b h i", "b i h"])
def test_its_places_are_measured_as_they_are_proven(way: str) -> None:
    model = Shared(way, named=True).eval()
    (found,) = locate(model, images()).values()
    assert (found.queries.grid, found.keys.grid) == ((3, 4), (3, 4))
    assert found.queries.cell == found.keys.cell == tuple(range(KEYS))


def test_groups_of_heads_that_share_their_keys_are_heads_too() -> None:
    class Groups(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 16, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x).flatten(2).mT
            q, kv = y.unflatten(-1, (2, 2, 4)), y[..., :8].unflatten(-1, (2, 4))
            weights = torch.einsum("bngrd,bmgd->bgrnm", q, kv).softmax(-1)
            self.truth = weights.detach().flatten(1, 2)
            return torch.einsum("bgrnm,bmgd->bngrd", weights, kv).flatten(2)

    model = Groups()
    record, _ = seen_in(model)
    assert record.weights is not None
    torch.testing.assert_close(record.weights, model.truth)
    assert (record.query_grid, record.key_grid) == ((3, 4), (3, 4))


def test_queries_on_a_grid_are_no_heads() -> None:
    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, WIDTH, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x).permute(0, 2, 3, 1)
            weights = torch.einsum("byxd,bjd->byxj", y, y.flatten(1, 2)).softmax(-1)
            self.truth = weights.detach().flatten(1, 2)[:, None]
            return torch.einsum("byxj,bjd->byxd", weights, y.flatten(1, 2))

    model = Grid()
    record, _ = seen_in(model)
    assert record.weights is not None
    torch.testing.assert_close(record.weights, model.truth)
    assert (record.query_grid, record.key_grid) == ((3, 4), (3, 4))
