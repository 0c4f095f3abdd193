"""Places are followed from the image to the tokens, or are unknown; none is read off a count."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from attnviz import maps
from attnviz.capture import Capture, Record, followed_ops, lineage, stream, watch
from attnviz.errors import InputError

WIDTH = 8


def attend(tokens: Tensor) -> Tensor:
    """Attention with one head, written out; each token is its own query and key."""
    return (tokens @ tokens.mT).softmax(-1) @ tokens


class Made(nn.Module):
    """A stem, and whatever comes after it."""

    def __init__(self, after: Callable[[Tensor], Tensor], stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4) if stem is None else stem
        self.merge = nn.Linear(4 * WIDTH, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 3, WIDTH))
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.stem(x))


def seen_in(model: nn.Module, *args: object) -> Capture:
    with torch.no_grad(), watch(model.eval(), empty=True) as seen:
        model(*args)
    return seen


def only(after: Callable[[Tensor], Tensor], *size: int, stem: nn.Module | None = None) -> Record:
    torch.manual_seed(0)
    (record,) = seen_in(Made(after, stem), torch.randn(*(size or (2, 3, 16, 24)))).values()
    return record


def cells(record: Record) -> list[int]:
    assert record.places is not None
    assert record.places.keys.status == "proven"
    return list(record.places.keys.cell)


def unknown(record: Record) -> bool:
    return record.key_grid is None and (record.places is None or not record.places.keys.known)


def rows(x: Tensor) -> Tensor:
    """Tokens row by row."""
    return x.flatten(2).mT


def test_tokens_row_by_row_are_places() -> None:
    record = only(lambda x: attend(rows(x)))
    assert (record.key_grid, record.query_grid, record.prefix) == ((4, 6), (4, 6), 0)
    assert cells(record) == list(range(24))


ORDERS: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "columns first": (lambda x: x.mT.flatten(2).mT,
                      [y * 6 + x for x in range(6) for y in range(4)]),
    "rolled": (lambda x: rows(x.roll((1, 2), (2, 3))),
               [(y - 1) % 4 * 6 + (x - 2) % 6 for y in range(4) for x in range(6)]),
    "padded": (lambda x: rows(F.pad(x, (0, 1))),
               [y * 6 + x if x < 6 else -1 for y in range(4) for x in range(7)]),
    "in blocks": (lambda x: x.unflatten(3, (3, 2)).unflatten(2, (2, 2)).permute(0, 2, 4, 3, 5, 1)
                  .flatten(1, 4),
                  [(2 * i + a) * 6 + 2 * j + b for i in range(2) for j in range(3)
                   for a in range(2) for b in range(2)]),
    "the middle": (lambda x: rows(x[..., 1:3, 2:5]), [8, 9, 10, 14, 15, 16]),
    "normalised and added to": (lambda x: F.layer_norm(rows(x), (WIDTH,)) + rows(x) * 2,
                                list(range(24))),
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("b", [1, 2])
def test_copies_in_another_order_of_memory_are_followed(order: str, b: int) -> None:
    move, truth = ORDERS[order]
    assert cells(only(lambda x: attend(move(x)), b, 3, 16, 24)) == truth


def test_every_other_place_is_a_grid_of_half_the_size() -> None:
    record = only(lambda x: attend(rows(x[..., ::2, ::2])), 1, 3, 32, 48)
    assert (record.key_grid, cells(record)) == ((4, 6), list(range(24)))


def grid_of(record: Record) -> tuple[int, ...] | None:
    assert record.places is not None
    return record.places.keys.grid


def grid_cells(grid: tuple[int, ...], *chosen: object) -> list[int]:
    return np.arange(math.prod(grid)).reshape(grid)[chosen].ravel().tolist()


ALL = slice(None)
PARTS: dict[str, tuple[object, object]] = {
    "the first row": (slice(0, 1), ALL),
    "row 1": (slice(1, 2), ALL),
    "row 6": (slice(6, 7), ALL),
    "the last row": (slice(-1, None), ALL),
    "column 2": (ALL, slice(2, 3)),
    "the centre column": (ALL, slice(4, 5)),
    "rows 3 and 4": (slice(3, 5), ALL),
    "the first and the last row": (slice(None, None, 7), ALL),
    "rows 1, 3 and 5": (slice(1, 6, 2), ALL),
    "one row, every third column": (slice(1, 2), slice(None, None, 3)),
    "the inner patch": (slice(3, 4), slice(4, 5)),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_feature_map_is_no_grid_of_its_own(part: str) -> None:
    down, along = PARTS[part]
    record = only(lambda x: attend(rows(x[:, :, down, along])), 1, 3, 32, 36)
    assert (grid_of(record), cells(record)) == ((8, 9), grid_cells((8, 9), down, along))
    assert record.places is not None
    assert record.places.queries.cell == record.places.keys.cell
    assert record.places.keys.error == 0
    drawn = maps.received(record)[0]
    assert drawn.shape == (8, 9)
    inside = torch.zeros(8, 9, dtype=torch.bool)
    inside[down, along] = True
    assert_close(drawn[inside].sum(), drawn.sum())


@pytest.mark.parametrize("chosen", [1, 2, 6])
def test_keys_that_are_one_row_are_drawn_in_that_row_at_the_size_of_the_image(chosen: int) -> None:
    def after(x: Tensor) -> Tensor:
        keys = rows(x[:, :, chosen : chosen + 1])
        return (rows(x) @ keys.mT).softmax(-1) @ keys

    record = only(after, 1, 3, 32, 32)
    drawn = maps.received(record, size=(32, 32), interpolation="nearest")[0]
    assert_close(drawn[4 * chosen : 4 * chosen + 4].sum(), drawn.sum())


def test_the_centre_row_of_three_is_a_third_of_the_image() -> None:
    record = only(lambda x: attend(rows(x[:, :, 1:2])), 1, 3, 12, 16)
    assert (grid_of(record), cells(record)) == ((3, 4), [4, 5, 6, 7])


COARSER: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int]]] = {
    "every second row": (lambda x: x[:, :, ::2], (4, 9)),
    "every second row but the first": (lambda x: x[:, :, 1::2], (4, 9)),
    "every fourth row, every third column": (lambda x: x[:, :, 2::4, 1::3], (2, 3)),
    "every other column of nine": (lambda x: x[..., ::2], (8, 5)),
    "one row by pooling": (nn.AvgPool2d((8, 1)), (1, 9)),
    "one row by adaptive pooling": (nn.AdaptiveAvgPool2d((1, 9)), (1, 9)),
    "one column by a layer": (nn.Conv2d(WIDTH, WIDTH, (1, 9)), (8, 1)),
    "one row by strides": (nn.Conv2d(WIDTH, WIDTH, (3, 1), (8, 1), (1, 0)), (1, 9)),
}


@pytest.mark.parametrize("way", COARSER)
def test_a_coarser_feature_map_is_a_grid_of_its_own(way: str) -> None:
    make, grid = COARSER[way]
    record = only(lambda x: attend(rows(make(x))), 1, 3, 32, 36)
    assert (grid_of(record), cells(record)) == (grid, list(range(math.prod(grid))))


def test_one_slice_of_a_volume_is_a_part_of_it() -> None:
    stem = nn.Conv3d(1, WIDTH, 4, 4)
    for at in (0, 1, 2):
        record = only(
            lambda x, at=at: attend(rows(x[:, :, at : at + 1])), 1, 1, 12, 12, 16, stem=stem
        )
        assert (grid_of(record), cells(record)) == ((3, 3, 4), grid_cells((3, 3, 4), at))
    flat = only(lambda x: attend(rows(x)), 1, 1, 4, 12, 16, stem=stem)
    assert (grid_of(flat), cells(flat)) == ((1, 3, 4), list(range(12)))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("by", [(0, 0, -1, -6), (0, 0, -3, -3), (-4, -4, 0, 0)])
def test_rows_that_padding_cuts_off_leave_a_part_of_the_grid(
    by: tuple[int, ...], kernel: int
) -> None:
    layer = nn.Conv2d(WIDTH, WIDTH, kernel, padding=kernel // 2)
    record = only(lambda x: attend(rows(layer(F.pad(x, by)))), 1, 3, 32, 36)
    chosen = slice(-by[2], 8 + by[3]), slice(-by[0], 9 + by[1])
    assert (grid_of(record), cells(record)) == ((8, 9), grid_cells((8, 9), *chosen))


LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "reshaped": lambda x: x.reshape(len(x), -1, WIDTH),
    "sorted": lambda x: rows(x).sort(1).values,
    "shuffled": lambda x: rows(x)[:, torch.randperm(24)],
    "mixed": lambda x: rows(x).cumsum(1),
    "pooled by a network": lambda x: rows(x).mean(2, keepdim=True).expand(-1, -1, WIDTH).clone(),
    "another input": lambda x: torch.randn(len(x), 24, WIDTH),
}


@pytest.mark.parametrize("way", LOST)
def test_what_sorts_gathers_or_mixes_tokens_ends_what_is_known(way: str) -> None:
    record = only(lambda x: attend(LOST[way](x)))
    assert unknown(record)
    with pytest.raises(InputError, match=r"call av\.locate\(model, images\)"):
        maps.received(record)


def test_convolutions_over_something_else_are_no_grid() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.conv = nn.Embedding(9, WIDTH), nn.Conv2d(WIDTH, WIDTH, 1)

        def forward(self, ids: Tensor) -> Tensor:
            return attend(rows(self.conv(self.words(ids).mT.unflatten(2, (4, 4)))))

    (record,) = seen_in(Words(), torch.randint(0, 9, (2, 16))).values()
    assert unknown(record)


@pytest.mark.parametrize(
    ("stem", "known"),
    [
        (nn.Conv2d(3, WIDTH, 3, 2, 1), True),
        (nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), nn.MaxPool2d(3, 2, 1)), True),
        (nn.Sequential(nn.Conv2d(3, WIDTH, 5), nn.Conv2d(WIDTH, WIDTH, 5)), True),  # the middle
        (nn.Sequential(nn.Conv2d(3, WIDTH, 4, 4), nn.AdaptiveAvgPool2d(2)), True),
        (nn.Sequential(nn.ZeroPad2d((0, 16, 0, 16)), nn.Conv2d(3, WIDTH, 4, 4)), False),
    ],
)
def test_a_grid_whose_places_lie_half_a_cell_off_is_none(stem: nn.Module, known: bool) -> None:
    record = only(lambda x: attend(rows(x)), 1, 3, 16, 16, stem=stem)
    assert unknown(record) is not known
    if known and record.places is not None:
        assert record.places.keys.error < 0.5


@pytest.mark.parametrize("way", ["slices", "one copy"])
def test_four_places_that_are_merged_make_one_of_half_the_grid(way: str) -> None:
    def merged(x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        if way == "slices":
            parts = [y[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
            return torch.cat(parts, -1).flatten(1, 2)
        return y.unflatten(2, (3, 2)).unflatten(1, (2, 2)).movedim(3, 2).flatten(3).flatten(1, 2)

    model = Made(lambda x: attend(model.merge(F.layer_norm(merged(x), (4 * WIDTH,)))))
    (record,) = seen_in(model, torch.randn(2, 3, 16, 24)).values()
    assert (record.key_grid, cells(record)) == ((2, 3), list(range(6)))


def test_a_token_that_a_layer_reads_alone_is_the_class_token_wherever_it_stands() -> None:
    def last(x: Tensor) -> Tensor:
        tokens = attend(torch.cat([rows(x), model.token[:, :1].expand(len(x), -1, -1)], 1))
        return F.linear(tokens[:, -1], model.token[0, :, :])

    model = Made(last)
    (record,) = seen_in(model, torch.randn(2, 3, 16, 24)).values()
    assert record.places is not None
    assert record.places.keys.role == (*["place"] * 24, "class")
    assert record.weights is not None
    drawn = maps.class_row(record)
    torch.testing.assert_close(drawn, record.weights[:, 0, 24, :24].unflatten(1, (4, 6)))


def test_a_lone_register_is_no_class_token() -> None:
    def pooled(x: Tensor) -> Tensor:
        register = model.token[:, :1].expand(len(x), -1, -1)
        return attend(torch.cat([register, rows(x)], 1))[:, 1:].mean(1)

    model = Made(pooled)
    (record,) = seen_in(model, torch.randn(2, 3, 16, 24)).values()
    assert (record.prefix, record.key_grid) == (1, (4, 6))
    with pytest.raises(InputError, match="no class token"):
        maps.class_row(record)


def test_an_image_within_lists_and_mappings_is_found() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Made(lambda x: attend(rows(x)))

        def forward(self, batch: list[dict[str, Tensor]]) -> Tensor:
            found: Tensor = self.inner(torch.stack([item["image"] for item in batch]))
            return found

    (record,) = seen_in(Nested(), [{"image": torch.randn(3, 16, 24)}] * 2).values()
    assert record.key_grid == (4, 6)
    assert maps.received(record).shape == (2, 4, 6)


@pytest.mark.parametrize(("h", "w", "grid"), [
    (16, 24, (4, 6)), (17, 25, (4, 6)), (19, 27, (5, 7)), (19, 24, (5, 6)), (39, 63, (10, 16)),
])  # fmt: skip
def test_patches_that_do_not_divide_the_image_are_drawn_where_they_are(
    h: int, w: int, grid: tuple[int, int]
) -> None:
    record = only(lambda x: attend(rows(x)), 1, 3, h, w)
    assert record.places is not None
    keys = record.places.keys
    assert (keys.grid, keys.status) == (grid, "proven")
    for i, cell in enumerate(keys.cell):
        middle = 4 * (i // (w // 4)) + 2, 4 * (i % (w // 4)) + 2
        drawn = (cell // grid[1] + 0.5) * h / grid[0], (cell % grid[1] + 0.5) * w / grid[1]
        assert abs(middle[0] - drawn[0]) < 0.5 * h / grid[0]
        assert abs(middle[1] - drawn[1]) < 0.5 * w / grid[1]


GRID = list(range(24))
BEFORE: dict[str, tuple[Callable[[Tensor], Tensor], list[int] | None]] = {
    "mirrored": (lambda x: x.flip(-1), None),
    "rotated": (lambda x: x.rot90(2, (2, 3)), None),
    "transposed twice over": (lambda x: x.mT.flip(2).mT, None),
    "shuffled by rows": (lambda x: x[:, :, torch.arange(16).roll(4)], None),
    "rolled": (lambda x: x.roll(4, 2), None),
    "a part of it": (lambda x: F.pad(x[:, :, 4:], (0, 0, 0, 4)), None),
    "another tensor of its size": (lambda x: torch.ones_like(x) + x.mean(), None),
    "channels turned round": (lambda x: x.flip(1), GRID),
    "normalised": (lambda x: (x - torch.ones(1, 3, 1, 1)) / x.new_ones(3, 1, 1), GRID),
    "laid out by channels": (lambda x: x.contiguous(memory_format=torch.channels_last), GRID),
    "stacked from a list": (lambda x: torch.stack(list(x)), GRID),
    "mirrored back": (lambda x: x.flip(-1).mul(2).flip(-1), GRID),
}


@pytest.mark.parametrize("way", BEFORE)
def test_what_happens_to_the_image_before_the_first_layer_is_followed(way: str) -> None:
    change, found = BEFORE[way]

    class Before(Made):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(change(x))

    (record,) = seen_in(Before(lambda x: attend(rows(x))), torch.randn(2, 3, 16, 24)).values()
    assert unknown(record) if found is None else cells(record) == found


def test_channels_last_and_frames_are_read_by_what_the_layer_is_given() -> None:
    class Before(Made):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.movedim(-1, 1) if x.dim() == 4 else x.flatten(0, 1))

    model = Before(lambda x: attend(rows(x)))
    (record,) = seen_in(model, torch.randn(2, 16, 24, 3)).values()
    assert cells(record) == GRID
    (record,) = seen_in(model, torch.randn(2, 3, 3, 16, 24)).values()  # three frames
    assert record.key_grid == (4, 6)


def test_tokens_by_head_that_a_model_is_given_are_no_pixels() -> None:
    class Attend(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x) * x.sigmoid()

    for record in seen_in(Attend(), torch.randn(2, 4, 24, 8)).values():
        assert unknown(record)


def test_volumes_have_three_sides() -> None:
    stem = nn.Conv3d(1, WIDTH, 4, 4)
    record = only(lambda x: attend(rows(x)), 1, 1, 8, 12, 16, stem=stem)
    assert record.key_grid == (2, 3, 4)
    assert maps.received(record).shape == (1, 2, 3, 4)


class Sampling(nn.Module):
    """Deformable attention in plain torch, whose boxes scale the offsets of sampling points."""

    def __init__(self, levels: int = 2) -> None:
        super().__init__()
        self.stem, self.levels = nn.Conv2d(3, WIDTH, 4, 4), levels
        self.queries, self.box = nn.Parameter(torch.randn(5, WIDTH)), nn.Linear(WIDTH, 4)
        self.offsets, self.weigh = nn.Linear(WIDTH, 2 * 12 * levels), nn.Linear(WIDTH, 12 * levels)
        self.cross = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        values = self.stem(x)
        b, levels, heads, points = len(x), self.levels, 2, 6
        tokens = rows(values)
        q = self.cross(self.queries.expand(b, -1, -1), tokens, tokens)[0]
        box = self.box(q).sigmoid()[:, :, None, None, None]
        offsets = self.offsets(q).view(b, 5, heads, levels, points, 2)
        at = 2 * (box[..., :2] + offsets / points * box[..., 2:] * 0.5) - 1
        weights = self.weigh(q).view(b, 5, heads, levels * points).softmax(-1)
        weights = weights.view(b, 5, heads, levels, points)
        maps_ = values.view(b * heads, -1, *values.shape[2:])
        sampled = [
            F.grid_sample(maps_, at[:, :, :, i].transpose(1, 2).flatten(0, 1), align_corners=False)
            for i in range(levels)
        ]
        flat = weights.transpose(1, 2).reshape(b * heads, 1, 5, levels * points)
        out = (torch.stack(sampled, -2).flatten(-2) * flat).sum(-1)
        self.truth = weights.flatten(3).transpose(1, 2)
        return out


@pytest.mark.parametrize("b", [1, 2, 3])
@pytest.mark.parametrize("levels", [1, 2])
def test_deformable_sampling_is_attention_at_any_batch_size(b: int, levels: int) -> None:
    torch.manual_seed(0)
    model = Sampling(levels)
    seen = seen_in(model, torch.randn(b, 3, 16, 24))
    assert not seen.gates, "the sigmoid of a box is no gate"
    _, sampled = seen.values()
    assert sampled.kind == "attention"
    assert sampled.weights is not None
    assert torch.equal(sampled.weights, model.truth)
    assert sampled.key_grid is None
    assert sampled.places is not None
    assert set(sampled.places.keys.role) == {"point"}


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_between_learned_queries_is_seen(need_weights: bool) -> None:
    torch.manual_seed(0)
    model = Made(lambda x: x)
    attention = model.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def decode(x: Tensor) -> Tensor:
        q = model.token.expand(len(x), -1, -1)
        q = q + attention(q + 1, q, q, need_weights=need_weights)[0]
        return q @ x.flatten(2)

    model.after = decode
    record = seen_in(model, torch.randn(2, 3, 16, 24))["attention"]
    q = model.token.expand(2, -1, -1)
    truth = attention(q + 1, q, q, average_attn_weights=False)[1]
    assert record.weights is not None
    torch.testing.assert_close(record.weights, truth)
    assert unknown(record)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_attention_in_slices_is_one_record(size: int) -> None:
    def sliced(x: Tensor) -> Tensor:
        y = rows(x).unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1)
        out = torch.zeros_like(y)
        for i in range(0, len(y), size):
            part = y[i : i + size]
            out[i : i + size] = torch.bmm(torch.bmm(part, part.mT).softmax(-1), part)
        return out

    def whole(x: Tensor) -> Tensor:
        y = rows(x).unflatten(2, (2, -1)).transpose(1, 2)
        return (y @ y.mT).softmax(-1) @ y

    record, truth = only(sliced), only(whole)
    assert record.weights is not None
    assert truth.weights is not None
    torch.testing.assert_close(record.weights, truth.weights)
    assert (record.key_grid, truth.key_grid) == ((4, 6), (4, 6))


class Blocks(nn.Module):
    """A stem, tokens, equal blocks of attention, and a layer that reads a token or all cells."""

    def __init__(self, depth: int = 4, tokens: int = 1, read: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, tokens, WIDTH))
        self.read = read
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = rows(self.stem(x))
        y = torch.cat([self.token.expand(len(y), -1, -1), y], 1)
        for block in self.blocks:
            y = y + block(attend(F.layer_norm(y, (WIDTH,)))).relu()
        first = self.token.shape[1]
        logits: Tensor = self.head(y[:, self.read] if self.read < first else y[:, first:].mean(1))
        return logits


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each origin that is computed from now on; none is remembered yet."""
    found: list[object] = []
    find = followed_ops._found
    monkeypatch.setattr(followed_ops, "_found", lambda *given: found.append(0) or find(*given))
    lineage._remembered.shrink(-1)
    return found


def test_equal_blocks_later_batches_and_later_watches_compute_no_origin_anew(
    computed: list[object],
) -> None:
    counts = []
    for depth in (2, 5):
        batches = [torch.randn(2, 3, 16, 24) for _ in range(3)]
        for _, seen in stream(Blocks(depth), batches, reduce="received"):
            counts.append(len(computed))
            grids = {record.key_grid for record in seen.values()}
            roles = {record.places.keys.role[0] for record in seen.values() if record.places}
            assert (grids, roles, len(seen)) == ({(4, 6)}, {"class"}, depth)
    assert counts == [counts[0]] * 6
    assert counts[0]


def test_a_token_that_only_an_earlier_watch_saw_read_has_no_role() -> None:
    def attended(x: Tensor) -> Tensor:
        return attend(torch.cat([model.token[:, :1].expand(len(x), -1, -1), rows(x)], 1))

    def by_token(x: Tensor) -> Tensor:
        return F.linear(attended(x)[:, 0], model.token[0])

    def by_mean(x: Tensor) -> Tensor:
        return F.linear(attended(x).mean(1), model.token[0])

    model, image = Made(by_token), torch.randn(2, 3, 16, 24)
    for head, role in ((by_token, "class"), (by_mean, "other"), (by_token, "class")):
        model.after = head
        (record,) = seen_in(model, image).values()
        assert record.places is not None
        assert record.places.keys.role[0] == role


def test_large_origins_are_forgotten_with_the_watch(
    computed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, counts = torch.randn(2, 3, 16, 24), []
    for most in (lineage._KEPT, 0):
        monkeypatch.setattr(lineage, "_KEPT", most)
        for _ in range(2):
            seen_in(Blocks(), image)
            counts.append(len(computed))
            computed.clear()
    first, second, third, fourth = counts
    assert second == third == 0  # the first watch's are still there; then they were too large
    assert first == fourth > 0


def test_places_are_right_where_no_origin_is_remembered(
    computed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "_ORIGINS", 0)
    for record in seen_in(Blocks(), torch.randn(2, 3, 16, 24)).values():
        assert (record.key_grid, cells(record)) == ((4, 6), [-1, *range(24)])
    assert computed


def test_places_do_not_depend_on_what_was_watched_before() -> None:
    """Each model's first watch is made by a thread of its own, which remembers nothing."""

    def windowed(x: Tensor) -> Tensor:
        y = x.unflatten(2, (2, 2)).unflatten(4, (2, 3))  # (b, c, rows, 2, columns, 3)
        return attend(y.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)).mean(1)

    def told(model: nn.Module) -> list[str]:
        seen = seen_in(model, torch.ones(2, 3, 16, 24))
        return [
            f"{name} {one.key_grid} {one.query_grid} {one.prefix} {one.places} {one.images}"
            for name, one in seen.items()
        ]

    torch.manual_seed(0)
    ways = [windowed, lambda x: attend(rows(x)), lambda x: attend(rows(x.flip(2))),
            lambda x: attend(rows(x.mT.contiguous()))]  # fmt: skip
    models = [Made(way) for way in ways] + [Blocks(3)]
    models += [Blocks(1, tokens, read) for tokens in (1, 2) for read in range(tokens + 1)]
    alone = []
    for model in models:
        with ThreadPoolExecutor(1) as first:
            alone.append(first.submit(told, model).result())
    assert len({str(one) for one in alone}) == len(models)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(models)), 3))
    for number in order:
        assert told(models[number]) == alone[number]


def test_tokens_that_join_in_the_same_way_keep_their_own_roles() -> None:
    def twice(x: Tensor) -> Tensor:
        tokens, (read, unread) = rows(x), model.token[:, :2].expand(len(x), -1, -1).split(1, 1)
        first = attend(torch.cat([read, tokens], 1))
        second = attend(torch.cat([unread, tokens], 1))
        return F.linear(first[:, 0], model.token[0]) + second[:, 1:].mean((1, 2))[:, None]

    model = Made(twice)
    with torch.no_grad(), watch(model.eval()) as seen:
        model(torch.randn(2, 3, 16, 24))
    roles = [one.places.keys.role[0] for one in seen.values() if one.places is not None]
    assert roles == ["class", "other"]


def test_exported_and_traced_models_keep_places_and_names() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, WIDTH, 4, 4), Block()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.block(rows(self.stem(x))[:, None])
            return out

    image = torch.randn(1, 3, 16, 24)
    exported = torch.export.export(Net().eval(), (image,)).module()
    (record,) = seen_in_place(exported, image).values()
    assert (record.name, record.key_grid) == ("block", (4, 6))


def seen_in_place(model: nn.Module, image: Tensor) -> Capture:
    """An exported model has no `eval`."""
    with torch.no_grad(), watch(model) as seen:
        model(image)
    return seen


@pytest.mark.parametrize(
    ("reorder", "proven"),
    [
        (lambda x: x.flip(0), False),
        (lambda x: torch.cat([x[1:], x[:1]]), False),
        (lambda x: torch.cat([x[:1] * 2, x[1:] * 2]), False),
        (lambda x: x[torch.tensor([1, 0])], False),
        (lambda x: torch.cat([x[:1], x[1:]]), True),
        (lambda x: x.flip(-1), True),
    ],
)
def test_images_whose_order_is_not_certain_are_not_proven(
    reorder: Callable[[Tensor], Tensor], proven: bool
) -> None:
    """Row 0 of the weights would be drawn on image 0, whichever it is."""
    seen = seen_in(Made(lambda x: attend(rows(reorder(x)))), torch.randn(2, 3, 16, 24))
    (record,) = seen.values()
    assert (record.places is not None) is proven


def test_ops_that_move_nothing_are_not_followed() -> None:
    """Activations in place and factories are the most frequent ops beside convolutions."""
    aten = torch.ops.aten
    for op in (aten.relu_.default, aten.silu_.default, aten.mul_.Scalar, aten.clamp_.default):
        assert followed_ops.followed(op) is None
    for op in (aten.add_.Tensor, aten.masked_fill_.Scalar, aten.relu.default, aten.zero_.default):
        assert followed_ops.followed(op) is not None
    assert followed_ops.tensors(aten.empty.memory_format) == 0
    assert followed_ops.tensors(aten.cat.default) == 1
