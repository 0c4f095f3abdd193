"""Places read off the positions that a model computes for its own tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import attnviz as av
from attnviz.capture.followed_ops import positions
from attnviz.capture.proven_places import TOLD
from attnviz.token_places import Places


class Rotary(nn.Module):
    """Attention over patches that a processor made, with rotary embeddings of rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Linear(12, 16), nn.Linear(16, 48)
        self.register_buffer("frequency", torch.tensor([1.0, 0.3]))

    def forward(self, patches: Tensor, ids: Tensor) -> Tensor:
        angles = (ids[..., None].float() * self.frequency).flatten(1)
        cos, sin = (torch.cat([x, x], -1)[:, None] for x in (angles.cos(), angles.sin()))
        q, k, v = self.qkv(self.stem(patches)).view(len(patches), 3, 2, 8).unbind(1)
        q, k = (x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin for x in (q, k))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v)


def _watched(ids: Tensor) -> av.Record:
    torch.manual_seed(0)
    model = Rotary().eval()
    with torch.no_grad(), av.watch(model) as seen:
        model(torch.randn(len(ids), 12), ids)
    (record,) = seen.values()
    return record


def _blocks(h: int, w: int) -> Tensor:
    """Rows and columns in blocks of 2 × 2, as Qwen2-VL holds them."""
    ids = torch.cartesian_prod(torch.arange(h), torch.arange(w)).view(h // 2, 2, w // 2, 2, 2)
    return ids.transpose(1, 2).reshape(-1, 2)


@pytest.mark.parametrize("order", ["blocks", "random", "rows"])
def test_a_map_follows_the_position_ids_in_any_order(order: str) -> None:
    ids = _blocks(4, 6)
    if order != "blocks":
        ids = (
            ids[torch.randperm(24)]
            if order == "random"
            else ids[(ids * ids.new([6, 1])).sum(1).argsort()]
        )
    record = _watched(ids)
    assert record.places is not None
    assert record.places.keys.reason == TOLD
    assert record.key_grid == record.query_grid == (4, 6)
    assert record.row_grids[1] == ((4, 6) if order == "rows" else None)
    true = torch.zeros(1, 4, 6)
    true[0, ids[:, 0], ids[:, 1]] = record.weights.mean((1, 2))[0]
    torch.testing.assert_close(av.received(record), true)
    torch.testing.assert_close(av.received(record, grid=(4, 6)), true)


def test_a_grid_that_the_ids_contradict_is_refused() -> None:
    record = _watched(_blocks(4, 6))
    with pytest.raises(av.InputError, match="another order than row by row"):
        av.received(record, grid=(6, 4))
    with pytest.raises(av.InputError, match="leave grid= and prefix= out"):
        av.received(record, grid=(4, 5), prefix=4)


@pytest.mark.parametrize(
    "ids",
    [
        torch.zeros(24, 2, dtype=torch.long),  # every token at one place
        torch.arange(24)[:, None].expand(-1, 2),  # words: the same number along each axis
        _blocks(4, 6)[:23],  # a cell is missing
        _blocks(4, 6) + 1,  # does not begin at 0
        torch.cat([_blocks(4, 6), _blocks(4, 6)]),  # two images
        torch.stack([torch.arange(24), torch.zeros(24).long()], 1),  # one row
        -_blocks(4, 6),
        torch.arange(24),
        torch.randint(0, 9, (2, 24)),
    ],
)
def test_numbers_that_fill_no_grid_are_no_positions(ids: Tensor) -> None:
    assert positions(ids) is None


def test_positions_of_three_axes_are_a_grid_of_three() -> None:
    ids = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4))
    label = positions(ids[None, :, :, None])
    assert label is not None
    assert label.space.grid == (2, 3, 4)
    assert label.numbers.shape == (1, 24, 1, 1)


def test_tokens_with_places_of_their_own_keep_these() -> None:
    """A rotation by other positions than those of the feature map moves no token."""

    class Images(Rotary):
        def __init__(self) -> None:
            super().__init__()
            self.cut = nn.Conv2d(3, 12, 8, 8)

        def forward(self, images: Tensor) -> Tensor:
            patches = self.cut(images).flatten(2).mT[0]
            return super().forward(patches, _blocks(4, 6).flip(0))

    model = Images().eval()
    with torch.no_grad(), av.watch(model) as seen:
        model(torch.randn(1, 3, 32, 48))
    (record,) = seen.values()
    assert record.places is not None
    assert record.places.keys.cell == tuple(range(24))


def test_places_tell_whether_they_lie_row_by_row() -> None:
    assert Places.row_by_row((2, 3), ["class"]).row_by_row_from(1)
    assert not Places.row_by_row((2, 3), ["class"]).row_by_row_from(2)
    assert not Places((1, 2), (1, 0), ("place", "place"), status="given").row_by_row_from(0)
    assert Places(reason="unknown").row_by_row_from(3)
