"""Each row of the weights is of the image, the window and the head that it is said to be of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnviz import maps
from attnviz.capture import Capture, Record, edits, watch
from attnviz.errors import InputError
from attnviz.places import locate

Fold = Callable[[Tensor, Tensor, Tensor], Tensor]
WIDTH, GRID, CELLS = 16, (3, 4), 12


def weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weights(q, k) @ v


class Net(nn.Module):
    """Attention between the places of an image, or within its left and right half."""

    def __init__(self, fold: Fold, heads: int, *, declared: bool, windows: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.qkv = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, 3 * WIDTH)
        self.fold, self.count, self.windows = fold, heads, windows
        if declared:
            self.num_heads = heads
        self.truth = torch.empty(0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if self.windows:
            y = y.unflatten(-1, (2, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        tokens = self.qkv(y.flatten(2).mT)
        q, k, v = tokens.unflatten(2, (3, self.count, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        self.truth = weights(q, k).detach()
        return self.fold(q, k, v).transpose(1, 2).flatten(2).mean(1)


def folded(x: Tensor) -> Tensor:
    """Heads before images in one axis."""
    return x.transpose(0, 1).flatten(0, 1)


def cut(x: Tensor) -> Tensor:
    """The same by concatenation."""
    return torch.cat(x.unbind(1), 0)


def back(x: Tensor, like: Tensor) -> Tensor:
    return x.unflatten(0, (like.shape[1], -1)).transpose(0, 1)


def images_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(*(x.flatten(0, 1) for x in (q, k, v))).view(v.shape)


def heads_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return back(attend(folded(q), folded(k), folded(v)), q)


def folded_differently(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return back(attend(folded(q), cut(k), folded(v)), q)


def heads_apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(*(x.transpose(0, 1).contiguous() for x in (q, k, v))).transpose(0, 1)


def images_between_groups(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.unflatten(1, (2, -1)).transpose(0, 1) for x in (q, k, v))
    return attend(q, k, v).transpose(0, 1).flatten(1, 2)


def images_folded_between_groups(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = [x.unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 2) for x in (q, k, v)]
    return attend(*p).unflatten(0, (2, len(q), -1)).transpose(0, 1).flatten(1, 2)


def groups(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(*(x.unflatten(1, (2, -1)) for x in (q, k, v))).flatten(1, 2)


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return back(F.scaled_dot_product_attention(*(folded(x)[None] for x in (q, k, v)))[0], q)


def kernel_of_three_axes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return back(F.scaled_dot_product_attention(*(folded(x) for x in (q, k, v))), q)


def kernel_heads_apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = [x.transpose(0, 1).contiguous() for x in (q, k, v)]
    return F.scaled_dot_product_attention(*p).transpose(0, 1)


def rolled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(*(x.roll(1, 0) for x in (q, k, v))).roll(-1, 0)


def turned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return heads_first(*(x.flip(0) for x in (q, k, v))).flip(0)


def permuted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    order = torch.arange(len(q)).roll(1)
    return attend(q[order], k[order], v.index_select(0, order))[order.argsort()]


def in_slices(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = [folded(x) for x in (q, k, v)]
    out = torch.zeros_like(p[0])
    for i in range(len(out)):
        out[i : i + 1] = attend(*(x[i : i + 1] for x in p))
    return back(out, q)


FOLDS = [
    images_first, heads_first, folded_differently, heads_apart, images_between_groups,
    images_folded_between_groups, groups, kernel, kernel_of_three_axes, kernel_heads_apart, rolled,
    turned, permuted, in_slices,
]  # fmt: skip
COUNTS = [(3, 4, True), (3, 4, False), (4, 4, True), (2, 2, False)]


def elsewhere(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads first, in tensors of which nothing is known."""
    p = [torch.from_numpy(folded(x).detach().numpy()) for x in (q, k, v)]
    return back(attend(*p), q)


def seen_in(model: nn.Module, b: int) -> Capture:
    with torch.no_grad(), watch(model) as seen:
        model(torch.randn(b, 3, 12, 16))
    return seen


def only(model: nn.Module, b: int) -> Record:
    (record,) = seen_in(model, b).values()
    return record


@pytest.mark.parametrize(("b", "heads", "declared"), COUNTS)
@pytest.mark.parametrize("fold", FOLDS)
def test_each_row_is_of_its_image_and_head(fold: Fold, b: int, heads: int, declared: bool) -> None:
    model = Net(fold, heads, declared=declared)
    record = only(model, b)
    assert record.weights is not None
    torch.testing.assert_close(record.weights, model.truth)
    assert (record.axis, record.heads, record.note) == ("k", heads, "")


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(
    "fold", [f for f in FOLDS if f not in (in_slices, rolled, permuted, turned)]
)
def test_windows_are_told_from_heads_by_their_places(fold: Fold, declared: bool) -> None:
    """Two windows of each image; the rows of a window lie on its half of the image."""
    model = Net(fold, 4, declared=declared, windows=True)
    record = only(model, 3)
    assert record.weights is not None
    torch.testing.assert_close(record.weights, model.truth)
    assert record.places is not None
    assert record.places.keys.grid == GRID
    truth = model.truth.mean((1, 2)).view(3, 2, 3, 2).transpose(1, 2).reshape(3, 3, 4)
    drawn = maps.received(record)
    torch.testing.assert_close(drawn / drawn.sum((1, 2), keepdim=True), truth / 2)


@pytest.mark.parametrize("fold", [heads_first, kernel, heads_apart, kernel_heads_apart, turned])
def test_a_map_is_drawn_on_its_own_image(fold: Fold) -> None:
    model = Net(fold, 4, declared=True)
    layout = locate(model, torch.randn(1, 3, 12, 16))
    drawn = maps.received(only(model, 3), layout=layout)
    torch.testing.assert_close(drawn.flatten(1), model.truth.mean((1, 2)))


def test_frames_are_folded_in_either_order() -> None:
    """`(b, t)` and `(t, b)` in one axis."""

    class Video(nn.Module):
        def __init__(self, *, time_first: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.time_first = nn.Conv3d(3, WIDTH, (1, 4, 4), (1, 4, 4)), time_first

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x).flatten(3).permute(0, 2, 3, 1)
            y = (y.transpose(0, 1) if self.time_first else y).flatten(0, 1)
            return attend(y, y, y).mean(1)

    x = torch.randn(2, 3, 5, 12, 16)
    found = []
    for time_first in (False, True):
        model = Video(time_first=time_first).eval()
        with torch.no_grad(), watch(model) as seen:
            model(x)
        (record,) = seen.values()
        assert record.places is not None
        assert record.places.keys.grid == (5, *GRID)
        found.append(record.weights)
    assert found[0] is not None
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("fold", [heads_first, kernel, kernel_heads_apart, turned])
def test_an_edit_reaches_the_image_and_head_that_it_names(fold: Fold) -> None:
    def first_alone(values: Tensor, record: Record) -> Tensor:
        values = values.clone()
        values[0, 1] = 0
        return values

    x = torch.randn(3, 3, 12, 16)
    outputs = []
    for way in (fold, images_first):
        model = Net(way, 4, declared=True)
        with torch.no_grad(), watch(model, edit={"*": first_alone}):
            outputs.append(model(x))
        with torch.no_grad(), watch(model, edit={"*": edits.head_off(2)}):
            outputs.append(model(x))
    torch.testing.assert_close(outputs[0], outputs[2])
    torch.testing.assert_close(outputs[1], outputs[3])


@pytest.mark.parametrize("fold", [heads_first, kernel])
def test_reductions_and_gradients_are_of_the_same_rows(fold: Fold) -> None:
    x = torch.randn(3, 3, 12, 16)
    model = Net(fold, 4, declared=True)
    with torch.no_grad(), watch(model, reduce="received") as seen:
        model(x)
    (record,) = seen.values()
    torch.testing.assert_close(record.reduced["received"], model.truth.mean(2))
    slopes = []
    for way in (fold, images_first):
        model = Net(way, 4, declared=True)
        with watch(model, keep_graph=True) as seen:
            out = model(x)
        slopes.append(next(iter(seen.values())).gradient(out[1:]))
    torch.testing.assert_close(*slopes)
    assert bool((slopes[0][0] == 0).all())
    assert bool((slopes[0][1:] != 0).any())


@pytest.mark.parametrize("declared", [True, False])
def test_what_is_not_followed_and_fits_two_orders_is_not_split(declared: bool) -> None:
    model = Net(elsewhere, 4, declared=declared)
    record = only(model, 3)
    assert record.shape == (12, 1, CELLS, CELLS)
    assert "give the model one image at a time" in record.note
    with pytest.raises(InputError, match="unknown"):
        maps.received(record)
    alone = only(model, 1)
    assert alone.weights is not None
    torch.testing.assert_close(alone.weights, model.truth)
    assert alone.note == ""


def order_of(x: Tensor) -> Tensor:
    """The images turned by one, along an axis of every shape."""
    return torch.arange(len(x)).roll(1)


def wide(x: Tensor) -> Tensor:
    return order_of(x).reshape(-1, *[1] * (x.dim() - 1)).expand_as(x)


OTHERS = {
    "index_put": lambda x: x.clone().index_put((order_of(x),), x.clone()),
    "index_copy": lambda x: x.clone().index_copy(0, order_of(x), x),
    "scatter along images": lambda x: x.clone().scatter(0, wide(x), x),
    "scatter along tokens": lambda x: x.clone().scatter(
        2, torch.arange(CELLS)[:, None].expand_as(x), x.roll(1, 0)
    ),
    "slice_scatter": lambda x: torch.slice_scatter(x.clone(), x.flip(0), 0, 0, len(x)),
    "select_scatter": lambda x: torch.select_scatter(x.clone(), x[1], 0, 0),
    "masked_scatter": lambda x: x.clone().masked_scatter(x.isfinite(), x.roll(1, 0)),
}


@pytest.mark.parametrize("write", OTHERS)
def test_what_other_images_are_written_into_is_not_followed(write: str) -> None:
    other = OTHERS[write]
    record = only(Net(lambda q, k, v: heads_first(*map(other, (q, k, v))), 4, declared=True), 3)
    assert record.shape == (12, 1, CELLS, CELLS)
    assert "give the model one image at a time" in record.note


OWN = {
    "one token": lambda x: x.clone().index_put(
        (torch.arange(len(x))[:, None], torch.zeros(1, 1).long()), torch.ones(4)
    ),
    "tokens of the same images": lambda x: x.clone().index_copy(2, torch.arange(CELLS), x),
    "a token of the same images": lambda x: torch.select_scatter(x.clone(), x[:, :, 1], 2, 0),
    "zeros": lambda x: x.clone().index_fill(2, torch.tensor([0]), 0.0),
}


@pytest.mark.parametrize("write", OWN)
def test_what_is_written_into_its_own_images_is_followed(write: str) -> None:
    own = OWN[write]
    model = Net(lambda q, k, v: heads_first(own(q), own(k), v), 4, declared=True)
    record = only(model, 3)
    assert record.shape == (3, 4, CELLS, CELLS)
    assert record.note == ""


@pytest.mark.parametrize(
    ("count", "frames", "heads_first"),
    [(1, 3, False), (2, 4, False), (3, 3, False), (2, 4, True), (3, 3, True)],
)
def test_frames_that_are_folded_with_the_images_are_no_heads(
    count: int, frames: int, heads_first: bool
) -> None:
    class Video(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x.flatten(0, 1))
            return y.unflatten(0, (len(x), -1)).mean(1)

    net = Video(heads_apart if heads_first else attend, 2, declared=False)
    x = torch.randn(count, frames, 3, 12, 16)
    with torch.no_grad(), watch(net, empty=True) as seen:
        net(x)
    (record,) = seen.values()
    assert record.weights is not None
    torch.testing.assert_close(record.weights, net.truth)
    assert record.heads == 2
    (found,) = locate(net, x, channels=2).values()
    assert found.keys.grid == (frames, *GRID)
