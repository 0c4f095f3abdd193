"""Three axes of places, bags of instances: maps where they belong, scored against masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import attnviz as av
from attnviz.errors import InputError
from attnviz.maps import head_min, resized
from tests.places.nets import Plain


def test_a_volume_of_three_axes_has_maps_at_the_right_places() -> None:
    """One patch of the volume is changed, attention off: the token there is the one that moves."""
    torch.manual_seed(0)
    model, volumes = Plain(axes=3, patch=8, channels=1).eval(), torch.randn(2, 1, 16, 24, 32)
    layout = av.locate(model, volumes)
    places = layout["blocks.1"].keys
    assert places.grid == (2, 3, 4)
    changed = volumes.clone()
    changed[:, :, 8:16, 0:8, 16:24] += 1
    moved = (model.stem(changed) - model.stem(volumes)).abs().sum(1)
    cell = moved[0].flatten().argmax()
    assert int(cell) == 1 * 12 + 0 * 4 + 2
    with torch.no_grad(), av.watch(model) as seen:
        model(volumes)
    maps = av.class_row(seen["blocks.1"], layout=layout)
    weights = seen["blocks.1"].weights
    assert weights is not None
    torch.testing.assert_close(maps, weights[:, :, 0, 1:].mean(1).view(2, 2, 3, 4))
    masks = torch.zeros(2, 16, 24, 32, dtype=torch.bool)
    masks[:, 8:, :8] = True
    whole = av.class_row(
        seen["blocks.1"], layout=layout, size=(16, 24, 32), interpolation="nearest"
    )
    share = av.localization(whole, masks, metrics=["energy_pointing_game"])["energy_pointing_game"]
    torch.testing.assert_close(share.float(), maps[:, 1, 0].sum(1) / maps.flatten(1).sum(1))
    inside = av.rows_inside(seen["blocks.1"], masks, layout=layout)
    rows = weights[:, :, [1 + 12 + i for i in range(4)], 1:].mean((1, 2))
    torch.testing.assert_close(inside, rows.view(2, 2, 3, 4))
    with pytest.raises(InputError, match="expected masks with 3 axes of places"):
        av.rows_inside(seen["blocks.1"], masks[:, 0], layout=layout)


def test_three_axes_are_resized_as_two_are() -> None:
    maps = torch.rand(2, 3, 4, 6)
    large = resized(maps, (6, 8, 12), "nearest")
    twice = maps.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(large, twice)
    torch.testing.assert_close(resized(large, (3, 4, 6), "bilinear"), maps)
    flat = maps[:, :1].expand(2, 5, 4, 6)
    two = resized(maps[:, 0], (9, 7), "bilinear")
    if not two.requires_grad:
        torch.testing.assert_close(resized(flat, (5, 9, 7), "bilinear")[:, 3], two)
    torch.testing.assert_close(resized(maps, (8, 12), "nearest"), twice[:, ::2])
    with pytest.raises(InputError, match="nearest or bilinear for three axes"):
        resized(maps, (6, 8, 12), "bicubic")


class Windows(nn.Module):
    """Attention within 2 × 2 × 2 windows of a volume, shifted by one in each axis or not."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift, self.qkv, self.out = shift, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, d, h, w, c = x.shape
        y = torch.roll(x, [-self.shift] * 3, (1, 2, 3)) if self.shift else x
        y = y.view(b, d // 2, 2, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4, 6, 7)
        q, k, v = self.qkv(y.reshape(-1, 8, c)).view(-1, 8, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        z = self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(-1, 8, c))
        z = z.view(b, d // 2, h // 2, w // 2, 2, 2, 2, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
        z = z.reshape(b, d, h, w, c)
        return x + (torch.roll(z, [self.shift] * 3, (1, 2, 3)) if self.shift else z)


def test_shifted_windows_of_a_volume_are_laid_back_where_they_were_cut() -> None:
    """Proven while watching, and the same as measured; `maps_of` draws them with three axes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 16, 4, 4), Last(), Windows(0), Windows(1)).eval()
    volumes = torch.randn(2, 1, 16, 16, 24)
    with torch.no_grad(), av.watch(model) as seen:
        model(volumes)
    layout = av.locate(model, volumes)
    for name, shift in (("2", 0), ("3", 1)):
        record = seen[name]
        assert record.places is not None
        assert record.places.keys.grid == (4, 4, 6)
        assert record.places.keys.cell == layout[name].keys.cell
        cells = torch.arange(96).view(4, 4, 6).roll([-shift] * 3, (0, 1, 2))
        cells = cells.view(2, 2, 2, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(12, 8)
        assert record.weights is not None
        columns = record.weights.mean((1, 2)).view(2, 96)
        hand = torch.zeros(2, 96).scatter(1, cells.flatten().expand(2, 96), columns)
        torch.testing.assert_close(av.received(record), hand.view(2, 4, 4, 6))
    maps = av.maps_of(seen, size=(16, 16, 24))
    assert {name: one.shape for name, one in maps.items()} == {
        "received": (2, 16, 16, 24), "received.2": (2, 16, 16, 24)
    }  # fmt: skip
    corner = av.query_row(seen["3"], (0, 0, 0))[0]
    assert corner.nonzero().tolist() == [[z, y, x] for z in (0, 3) for y in (0, 3) for x in (0, 5)]


class Last(nn.Module):
    """Channels behind the places."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


def test_a_stack_of_one_slice_scores_and_draws_as_the_slice_does() -> None:
    """To the last bit: the third axis changes nothing for images."""
    torch.manual_seed(0)
    weights, masks = torch.rand(2, 3, 24, 24).softmax(-1), torch.rand(2, 8, 12) > 0.7
    flat, stack = (4, 6), (1, 4, 6)
    for draw in (av.received, av.head_max, head_min, av.head_mean):
        assert torch.equal(draw(weights, grid=flat), draw(weights, grid=stack)[:, 0])
        assert torch.equal(
            draw(weights, (8, 12), grid=flat), draw(weights, (8, 12), grid=stack)[:, 0]
        )
    assert torch.equal(
        av.query_row(weights, (1, 2), grid=flat), av.query_row(weights, (0, 1, 2), grid=stack)[:, 0]
    )
    assert torch.equal(
        av.rows_inside(weights, masks, grid=flat),
        av.rows_inside(weights, masks[:, None], grid=stack)[:, 0],
    )
    assert torch.equal(
        av.rollout([weights] * 2, grid=flat), av.rollout([weights] * 2, grid=stack)[:, 0]
    )
    maps = av.received(weights, (8, 12), grid=flat)
    two, three = av.localization(maps, masks), av.localization(maps[:, None], masks[:, None])
    for name, scores in two.items():
        assert torch.equal(scores.nan_to_num(9.0), three[name].nan_to_num(9.0)), name


class Bag(nn.Module):
    """Attention-based pooling of instances (Ilse et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.u, self.w = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, instances: Tensor) -> Tensor:
        scores = self.w(self.v(instances).tanh() * self.u(instances).sigmoid())
        return self.head(scores.mT.softmax(-1) @ instances)[:, 0]


def test_instances_of_a_bag_lie_where_their_coordinates_say() -> None:
    torch.manual_seed(0)
    model, instances = Bag().eval(), torch.randn(1, 5, 8)
    places = torch.tensor([[0, 0], [0, 3], [1, 1], [2, 3], [2, 0]])
    with torch.no_grad(), av.watch(model, where="attention") as seen:
        model(instances)
        scores = model.w(model.v(instances).tanh() * model.u(instances).sigmoid())
    (record,) = seen.attention.values()
    slide = av.received(record, places=places, grid=(3, 4))
    hand = torch.zeros(1, 3, 4)
    hand[0, places[:, 0], places[:, 1]] = scores[0, :, 0].softmax(0)
    torch.testing.assert_close(slide, hand)
    tumour = torch.zeros(1, 3, 4, dtype=torch.bool)
    tumour[0, 2] = True
    score = av.localization(slide, tumour, metrics=["energy_pointing_game"])
    torch.testing.assert_close(score["energy_pointing_game"].float(), hand[0, 2].sum()[None])
    with pytest.raises(InputError, match="expected 5 of them inside the grid 2 × 4"):
        av.received(record, places=places, grid=(2, 4))
