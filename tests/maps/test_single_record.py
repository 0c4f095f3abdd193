"""Maps of one record's weights, against loops that read like the formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import attnviz as av
from attnviz import maps
from attnviz.capture import Record, Windows
from attnviz.errors import InputError
from tests.maps.stand_ins import StandIn, attention, gate

PREFIXES = pytest.mark.parametrize("prefix", [0, 1, 3])


def twin(record, column) -> torch.Tensor:
    """A map, place by place: `column(A, k)` for the (heads, q, k) of one image."""
    h, w = record.key_grid
    out = torch.zeros(len(record.weights), h, w)
    for i, one in enumerate(record.weights):
        for y in range(h):
            for x in range(w):
                out[i, y, x] = column(one, record.prefix + y * w + x)
    return out


@PREFIXES
def test_received_is_the_mean_of_each_places_column(prefix):
    record = attention(prefix=prefix)

    def column(a, k):
        total = 0.0
        for head in a:
            for query in head:
                total += float(query[k])
        return total / (a.shape[0] * a.shape[1])

    assert_close(maps.received(record), twin(record, column))


@PREFIXES
def test_class_row_is_the_first_tokens_row_over_the_places(prefix):
    record = attention(prefix=prefix)
    if not prefix:
        with pytest.raises(InputError, match="no class token"):
            maps.class_row(record)
        return
    expected = twin(record, lambda a, k: sum(float(head[0, k]) for head in a) / len(a))
    assert_close(maps.class_row(record, grid=record.key_grid, prefix=prefix), expected)
    if prefix > 1:  # which of them is the class token, if any, is not known
        with pytest.raises(InputError, match="no class token that is known"):
            maps.class_row(record)


@PREFIXES
def test_query_row_is_the_row_of_that_place(prefix):
    record = attention(prefix=prefix)
    query = prefix + 2 * 5 + 1
    expected = twin(record, lambda a, k: sum(float(head[query, k]) for head in a) / len(a))
    assert_close(maps.query_row(record, (2, 1)), expected)


def test_query_row_is_not_disturbed_by_rows_that_are_not_numbers():
    record = attention()
    expected = maps.query_row(record, (2, 1))
    record.weights[:, :, 0] = torch.nan
    assert torch.equal(maps.query_row(record, (2, 1)), expected)


def test_query_row_takes_a_place_per_image():
    record = attention()
    places = torch.tensor([[0, 4], [2, 1]])
    both = maps.query_row(record, places)
    assert_close(both[0], maps.query_row(record, (0, 4))[0])
    assert_close(both[1], maps.query_row(record, (2, 1))[1])


@PREFIXES
@pytest.mark.parametrize("fuse", ["max", "min"])
def test_head_max_and_min_fuse_entry_by_entry_before_the_queries_are_averaged(prefix, fuse):
    record = attention(prefix=prefix)
    pick = {"max": max, "min": min}[fuse]

    def column(a, k):
        values = [pick(float(head[q, k]) for head in a) for q in range(a.shape[1])]
        return sum(values) / len(values)

    assert_close(getattr(maps, f"head_{fuse}")(record), twin(record, column))


@pytest.mark.parametrize("name", ["weights", "received", "head_mean"])
def test_head_mean_says_the_same_as_received_whatever_was_kept(name):
    record = attention(prefix=1)
    expected = maps.received(record)
    if name != "weights":
        kept = {"received": record.weights.mean(2), "head_mean": record.weights.mean(1)}[name]
        record = replace(record, weights=None, reduced={name: kept})
    assert_close(maps.head_mean(record), expected)


@pytest.mark.parametrize("outside", [False, True])
def test_rows_inside_averages_the_rows_of_the_covered_places(outside):
    record = attention(grid=(2, 3), prefix=1)
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 0:2, 0:2] = True  # the whole cell (0, 0)
    masks[1, 1, 2:4] = True  # half of the cell (0, 1)
    masks[1, 2:4, 4] = True  # half of the cell (1, 2)

    def share(i, y, x):
        cell = masks[i, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].float().mean()
        return float(1 - cell if outside else cell)

    expected = torch.zeros(2, 2, 3)
    for i in range(2):
        total = 0.0
        for y in range(2):
            for x in range(3):
                row = record.weights[i, :, 1 + 3 * y + x, 1:].mean(0).reshape(2, 3)
                expected[i] += share(i, y, x) * row
                total += share(i, y, x)
        expected[i] /= total
    assert_close(maps.rows_inside(record, masks, outside=outside), expected)


def test_rows_inside_of_an_empty_mask_is_not_a_number_for_that_image_alone():
    masks = torch.zeros(2, 3, 5, dtype=torch.bool)
    masks[1, 0, 0] = True
    drawn = maps.rows_inside(attention(), masks)
    assert drawn[0].isnan().all()
    assert drawn[1].isfinite().all()
    assert maps.rows_inside(attention(), ~torch.zeros_like(masks), outside=True).isnan().all()


@pytest.mark.parametrize(
    "draw",
    [
        maps.received,
        maps.class_row,
        lambda record, **options: maps.query_row(record, (1, 2), **options),
        lambda record, **options: maps.rows_inside(
            record, torch.ones(2, 6, 10, dtype=torch.bool), **options
        ),
    ],
)
def test_heads_are_averaged_kept_apart_or_chosen(draw):
    record = attention(prefix=1)
    each = draw(record, heads="each", size=(6, 10))
    assert each.shape == (2, 3, 6, 10)
    assert_close(each.mean(1), draw(record, size=(6, 10)))
    assert_close(each[:, 2], draw(record, heads=2, size=(6, 10)))


def test_uniform_attention_makes_a_flat_map_of_one_over_the_tokens():
    record = StandIn(weights=torch.full((1, 2, 13, 13), 1 / 13), prefix=1, key_grid=(3, 4))
    for draw in (maps.received, maps.class_row, maps.head_mean, maps.head_max, maps.head_min):
        assert_close(draw(record), torch.full((1, 3, 4), 1 / 13))


def test_received_sums_to_one_less_what_the_leading_tokens_took():
    record = attention(prefix=2)
    took = record.weights[..., :2].mean((1, 2)).sum(-1)
    assert_close(maps.received(record).sum((1, 2)), 1 - took)


def test_more_queries_than_keys_is_read_on_the_keys_grid():
    weights = torch.rand(2, 3, 24, 6).softmax(-1)
    record = StandIn(weights=weights, query_grid=(4, 6), key_grid=(2, 3))
    assert_close(maps.received(record), weights.mean((1, 2)).reshape(2, 2, 3))
    assert_close(maps.query_row(record, (3, 5)), weights[:, :, 23].mean(1).reshape(2, 2, 3))
    assert maps.rows_inside(record, torch.ones(2, 8, 12, dtype=torch.bool)).shape == (2, 2, 3)


def test_a_bare_tensor_does_once_its_grid_is_said():
    record = attention(prefix=1)
    assert_close(av.received(record.weights, grid=(3, 5), prefix=1), maps.received(record))
    with pytest.raises(InputError, match=r"which of its 16 keys are which places is unknown"):
        maps.received(record.weights)


@pytest.mark.parametrize("heads", [3, None])
def test_a_record_that_was_reduced_while_watching_gives_the_same_map(heads):
    whole = attention(prefix=1)
    columns = whole.weights.mean(2) if heads else whole.weights.mean((1, 2))
    reduced = StandIn(prefix=1, key_grid=(3, 5), reduced={"received": columns})
    assert_close(maps.received(reduced), maps.received(whole))
    with pytest.raises(InputError, match=r"'block.attn' holds no weights.*\['received'\]"):
        maps.class_row(reduced)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_are_float32_whatever_the_weights_are(dtype):
    record = attention(dtype=dtype)
    drawn = maps.received(record)
    assert drawn.dtype == torch.float32
    assert_close(drawn, record.weights.double().mean((1, 2)).reshape(2, 3, 5).float())


def test_maps_are_detached_and_the_weights_stay_as_they_were():
    record = attention()
    before = record.weights.clone()
    record.weights.requires_grad_()
    for draw in (maps.received, maps.head_max):
        assert not draw(record, size=(6, 10)).requires_grad
    assert torch.equal(record.weights, before)


def test_an_images_map_does_not_depend_on_the_others():
    record = attention(b=5)
    one = StandIn(weights=record.weights[3:4], query_grid=(3, 5), key_grid=(3, 5))
    for draw in (maps.received, maps.head_max, lambda r: maps.query_row(r, (0, 0))):
        assert_close(draw(record)[3:4], draw(one))


def test_what_is_no_attention_or_does_not_fit_is_refused_with_the_remedy():
    record = attention()
    with pytest.raises(InputError, match=r"'block.gate' is a gate.*use gate_map"):
        maps.received(gate())
    with pytest.raises(InputError, match=r"expected keys = prefix \+ h·w, got 15 = 0 \+ 4·4"):
        maps.received(record, grid=(4, 4))
    with pytest.raises(InputError, match=r"inside the 3 × 5 grid of queries, got \[\[3, 0\]"):
        maps.query_row(record, (3, 0))
    with pytest.raises(InputError, match="number below 3"):
        maps.received(record, heads=3)
    with pytest.raises(InputError, match="4 masks for 2 images"):
        maps.rows_inside(record, torch.ones(4, 3, 5, dtype=torch.bool))


def test_weights_of_another_shape_are_refused(unchecked):
    with pytest.raises(InputError, match=r"expected weights \(b, heads, q, k\), got \(15, 15\)"):
        maps.received(torch.rand(15, 15), grid=(3, 5))
    with pytest.raises(InputError, match="expected 'mean', 'each' or a number"):
        maps.received(attention(), heads="max")


def windowed(b=2, shift=0, seed=0):
    """Attention within the four 2 × 3 windows of a 4 × 6 grid, rolled by `shift` places."""
    grid, size = (4, 6), (2, 3)
    place = torch.arange(24).reshape(grid).roll((-shift, -shift), (0, 1))
    cells = place.reshape(2, 2, 2, 3).permute(0, 2, 1, 3).reshape(4, 6)
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(b * 4, 2, 6, 6, generator=draw).softmax(-1)
    windows = Windows(count=4, size=size, grid=grid, cells=cells)
    return Record(
        "swin.attn", "attention", weights, query_grid=grid, key_grid=grid, windows=windows
    )


def unwindowed(record):
    """The same as attention over the whole image, zero between windows."""
    count = record.windows.count
    whole = torch.zeros(len(record.weights) // count, 2, 24, 24)
    for i in range(len(record.weights)):
        for q, place in enumerate(record.windows.cells[i % count]):
            for k, other in enumerate(record.windows.cells[i % count]):
                whole[i // count, :, place, other] = record.weights[i, :, q, k]
    return StandIn(weights=whole, query_grid=(4, 6), key_grid=(4, 6))


@pytest.mark.parametrize("shift", [0, 1])
def test_windows_are_laid_back_onto_the_image(shift):
    record = windowed(shift=shift)
    whole = unwindowed(record)
    # A window's columns are averaged over its own 6 queries, not over all 24 places.
    for heads in ("mean", "each", 1):
        assert_close(maps.received(record, heads=heads), 4 * maps.received(whole, heads=heads))
    assert_close(maps.head_max(record), 4 * maps.head_max(whole))
    assert_close(maps.query_row(record, (3, 1)), maps.query_row(whole, (3, 1)))
    masks = torch.zeros(2, 8, 12, dtype=torch.bool)
    masks[0, 1:6, 2:9] = masks[1, 3:4, :] = True
    for outside in (False, True):
        drawn = maps.rows_inside(record, masks, outside=outside)
        assert_close(drawn, maps.rows_inside(whole, masks, outside=outside))


def test_leading_tokens_of_windows_are_no_places():
    plain = windowed()
    n, heads, q, k = plain.weights.shape
    weights = torch.zeros(n, heads, q + 1, k + 1)
    weights[:, :, 1:, 1:], weights[:, :, 0, 0] = plain.weights, 1.0
    record = replace(plain, weights=weights, prefix=1)
    assert_close(maps.query_row(record, (3, 1)), maps.query_row(plain, (3, 1)))
    assert_close(maps.received(record) * 7, maps.received(plain) * 6)  # one query more
