"""Sampling points of deformable attention, followed through every way to write it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnviz as av

WIDTH, HEADS, LEVELS, POINTS, QUERIES = 32, 2, 2, 3, 5
KEYS = LEVELS * POINTS


class Deformable(nn.Module):
    """Deformable attention written in one of several ways; keeps its own locations and weights."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.stem = way, nn.Conv2d(3, WIDTH, 4, 4)
        self.queries, self.reference = nn.Parameter(torch.randn(QUERIES, WIDTH)), nn.Linear(48, 2)
        self.offsets, self.weigh = nn.Linear(48, 2 * HEADS * KEYS), nn.Linear(48, HEADS * KEYS)

    def forward(self, x: Tensor) -> Tensor:
        fine, b = self.stem(x), len(x)
        q = torch.cat([self.queries.expand(b, -1, -1), x.mean(1)[:, :QUERIES, :16]], -1)
        offsets = self.offsets(q).view(b, QUERIES, HEADS, LEVELS, POINTS, 2)
        at = self.reference(q).sigmoid()[:, :, None, None, None] + 0.2 * offsets
        weights = self.weigh(q).view(b, QUERIES, HEADS, KEYS).softmax(-1)
        self.at, self.weights = at.transpose(1, 2).flatten(3, 4), weights.transpose(1, 2)
        maps = [m.reshape(b * HEADS, -1, *m.shape[2:]) for m in (fine, F.avg_pool2d(fine, 2))]
        out: Tensor = self.attend(weights, [self.sample(m, at[:, :, :, i])
                                            for i, m in enumerate(maps)])  # fmt: skip
        return out

    def sample(self, values: Tensor, at: Tensor) -> Tensor:
        """`(b · heads, d, queries, points)`."""
        grid, aligned = at.transpose(1, 2).flatten(0, 1), self.way == "corners aligned"
        if aligned:
            size = torch.tensor(values.shape[:1:-1])
            grid = (grid * size - 0.5) / (size - 1)
        if self.way == "points in one row":
            one = F.grid_sample(values, 2 * grid.flatten(1, 2)[:, :, None] - 1, align_corners=False)
            return one.view(len(values), -1, QUERIES, POINTS)
        if self.way == "by index":
            h, w = values.shape[2:]
            x, y = (grid * torch.tensor([w, h])).long().unbind(-1)
            rows = torch.arange(len(values))[:, None, None]
            return values[rows, :, y.clamp(0, h - 1), x.clamp(0, w - 1)].movedim(-1, 1)
        return F.grid_sample(values, 2 * grid - 1, align_corners=aligned)

    def attend(self, weights: Tensor, sampled: list[Tensor]) -> Tensor:
        b, flat = len(weights), weights.transpose(1, 2).flatten(0, 1)  # (b · heads, queries, keys)
        values = torch.cat(sampled, -1)
        if self.way == "einsum":
            return torch.einsum("nqp,ndqp->nqd", flat, values)
        if self.way == "a product for each query":
            rows = values.permute(0, 2, 3, 1).flatten(0, 1)
            return torch.bmm(flat.flatten(0, 1)[:, None], rows)
        if self.way == "queries before heads":
            apart = values.view(b, HEADS, -1, QUERIES, KEYS).permute(0, 3, 1, 2, 4)
            return (apart * weights[:, :, :, None]).sum(-1)
        if self.way == "channels last":
            apart = values.view(b, HEADS, -1, QUERIES, KEYS).permute(0, 3, 1, 4, 2)
            return (apart * weights[..., None]).sum(-2)
        if self.way == "levels stacked":
            split = flat.view(-1, 1, QUERIES, LEVELS, POINTS)
            return (torch.stack(sampled, -2) * split).sum((-1, -2))
        return (values * flat[:, None]).sum(-1)


class InParts(Deformable):
    """The same in a loop over levels or over points, each with its part of the weights."""

    def attend(self, weights: Tensor, sampled: list[Tensor]) -> Tensor:
        b, flat = len(weights), weights.transpose(1, 2).flatten(0, 1)
        sums: list[Tensor] = []
        for level, (values, part) in enumerate(
            zip(sampled, flat.chunk(LEVELS, -1), strict=True)
        ):  # fmt: skip
            copied = weights.unflatten(-1, (LEVELS, POINTS))[..., level, :]
            apart = values.view(b, HEADS, -1, QUERIES, POINTS)
            by_query = values.permute(0, 2, 3, 1).flatten(0, 1)
            if self.way == "views":
                sums.append((values * part[:, None]).sum(-1))
            elif self.way == "copies":
                whole = copied.transpose(1, 2).reshape(b * HEADS, 1, QUERIES, POINTS)
                sums.append((values * whole).sum(-1))
            elif self.way == "einsum of levels":
                sums.append(torch.einsum("bqhp,bhdqp->bhdq", copied, apart))
            elif self.way == "products of levels":
                sums.append(torch.bmm(part.flatten(0, 1)[:, None], by_query))
            elif self.way == "products from the left":
                sums.append(torch.bmm(by_query.mT, part.flatten(0, 1)[:, :, None]))
            elif self.way == "channels last":
                channels_last = apart.permute(0, 3, 1, 4, 2)
                sums.append((channels_last * copied[..., None]).sum(-2))
            elif self.way == "stacked":
                sums.append(values * part[:, None])
            else:
                sums += [values[..., i] * part[:, None, :, i] for i in range(POINTS)]
        if self.way == "stacked":
            return torch.stack(sums).sum((0, -1))
        return torch.stack(sums).sum(0)


PARTS = (
    "views", "copies", "einsum of levels", "products of levels", "products from the left",
    "channels last", "stacked", "points",
)  # fmt: skip


@pytest.mark.parametrize("way", PARTS)
@pytest.mark.parametrize("b", [1, 3])
def test_parts_of_the_weights_are_one_attention_over_all_levels(way: str, b: int) -> None:
    torch.manual_seed(0)
    model, x = InParts(way).eval(), torch.randn(b, 3, 32, 48)
    with torch.no_grad(), av.watch(model) as seen:
        model(x)
    assert not seen.gates
    (record,) = seen.values()
    assert record.note == "its weights meet the sampled values in several parts"
    assert record.weights is not None
    assert torch.equal(record.weights, model.weights)
    assert record.points is not None
    assert record.points.level == (0, 0, 0, 1, 1, 1)
    assert record.points.sides == ((8, 12), (4, 6))
    torch.testing.assert_close(record.points.at, model.at, rtol=0, atol=1e-6)
    assert record.places is not None
    assert set(record.places.keys.role) == {"point"}
    assert not av.locate(model, x)[record.name].keys.known


def test_parts_are_edited_to_nothing_or_not_at_all() -> None:
    torch.manual_seed(0)
    model, x = InParts("copies").eval(), torch.randn(1, 3, 32, 48)
    with torch.no_grad(), av.watch(model, edit={"*": "zero"}) as seen:
        assert bool((model(x) == 0).all())
    assert [one.edited for one in seen.values()] == [True]
    with (
        torch.no_grad(),
        pytest.raises(av.AttnvizError, match="only the edit 'zero' is possible"),
        av.watch(model, edit={"*": "uniform"}),
    ):
        model(x)


def test_parts_that_are_not_all_known_are_named() -> None:
    class First(InParts):
        def attend(self, weights: Tensor, sampled: list[Tensor]) -> Tensor:
            flat = weights.transpose(1, 2).flatten(0, 1)
            return (sampled[0] * flat[:, None, :, :POINTS]).sum(-1)

    model = First("views").eval()
    with torch.no_grad(), av.watch(model) as seen:
        model(torch.randn(2, 3, 32, 48))
    (record,) = seen.values()
    assert (record.kind, record.weights) == ("attention", None)
    assert "which are not all known: no weights are at hand" in record.note


WAYS = (
    "plain", "corners aligned", "points in one row", "einsum", "a product for each query",
    "queries before heads", "channels last", "levels stacked", "by index",
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_each_key_is_where_the_model_sampled_it(way: str) -> None:
    torch.manual_seed(0)
    for b in (1, 3):
        model, x = Deformable(way).eval(), torch.randn(b, 3, 32, 48)
        with torch.no_grad(), av.watch(model) as seen:
            plain = model(x)
        (record,) = seen.values()
        assert record.weights is not None
        assert torch.equal(record.weights, model.weights)
        assert record.points is not None
        assert record.points.level == (0, 0, 0, 1, 1, 1)
        assert record.points.sides == ((8, 12), (4, 6))
        truth = model.at
        if way == "by index":  # the centres of the cells that were read
            sides = torch.tensor([[12.0, 8.0]] * 3 + [[6.0, 4.0]] * 3)
            truth = ((truth * sides).long().clamp_min(0).minimum(sides.long() - 1) + 0.5) / sides
        torch.testing.assert_close(record.points.at, truth, rtol=0, atol=1e-6)
        name = record.name
        with torch.no_grad(), av.watch(model, edit={name: lambda values, _: values * 2}) as seen:
            edited = model(x)
        torch.testing.assert_close(edited, plain * 2)


def test_points_follow_the_chosen_heads_and_the_type() -> None:
    torch.manual_seed(0)
    model, x = Deformable("plain").eval(), torch.randn(2, 3, 32, 48)
    with torch.no_grad(), av.watch(model, heads=1, dtype=torch.float16) as seen:
        model(x)
    (record,) = seen.values()
    assert record.points is not None
    assert torch.equal(record.points.at, model.at[:, [1]].half())
    with torch.no_grad(), av.watch(model, reduce="received") as seen:
        model(x)
    assert [one.points for one in seen.values()] == [None]


def test_masked_values_tell_how_far_images_reach() -> None:
    torch.manual_seed(0)
    model, x = Deformable("plain").eval(), torch.randn(2, 3, 32, 48)
    with torch.no_grad(), av.watch(model) as seen:
        mask = torch.ones(2, 1, 8, 12)
        mask[1, :, 4:] = mask[1, :, :, 6:] = 0
        model.stem.register_forward_hook(lambda _, __, out: out * mask)
        model(x)
    record = seen[list(seen)[-1]]
    assert record.points is not None
    assert record.points.filled is not None
    assert record.points.filled.tolist() == [[[1, 1], [1, 1]], [[0.5, 0.5], [0.5, 0.5]]]
