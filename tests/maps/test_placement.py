"""Maps draw what a layout says, and refuse where nothing says which token is which place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attnviz import maps
from attnviz.errors import InputError
from attnviz.places import Layout
from attnviz.token_places import Places, RecordPlaces
from tests.maps.stand_ins import StandIn


def weights(b: int = 1, heads: int = 2, q: int = 5, k: int = 5, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(b, heads, q, k, generator=draw).softmax(-1)


def both(cell: list[int], role: list[str], grid=(2, 2), image=None, grids=()) -> RecordPlaces:
    image = None if image is None else tuple(image)
    one = Places(grid, tuple(cell), tuple(role), image, grids, "measured", error=0.1)
    return RecordPlaces(one, one)


LAST = both([0, 1, 2, 3, -1], [*["place"] * 4, "class"])
"""A class token that stands last."""

JUMBLED = both([2, -1, 0, 3, 1], ["place", "register", "place", "place", "place"])
"""A register in second place, and patches in another order."""


def test_a_class_token_that_stands_last_is_read_and_left_out() -> None:
    a = weights(2)
    assert_close(maps.received(a, layout=LAST), a.mean((1, 2))[:, :4].view(2, 2, 2))
    assert_close(maps.class_row(a, layout=LAST), a.mean(1)[:, 4, :4].view(2, 2, 2))
    assert_close(maps.rollout([a, a], layout=LAST), maps.rollout([a, a], layout=LAST, read="class"))


def test_tokens_in_any_order_are_drawn_at_their_places() -> None:
    a = weights()
    mean = a.mean((1, 2))[0]
    true = torch.tensor([[mean[2], mean[4]], [mean[0], mean[3]]])
    assert_close(maps.received(a, layout=JUMBLED)[0], true)
    row = a.mean(1)[0, 3]  # the place (1, 1) is token 3
    true = torch.tensor([[row[2], row[4]], [row[0], row[3]]])
    assert_close(maps.query_row(a, (1, 1), layout=JUMBLED)[0], true)


def test_registers_are_no_class_token() -> None:
    with pytest.raises(InputError, match=r"has no class token.*register"):
        maps.class_row(weights(), layout=JUMBLED)
    with pytest.raises(InputError, match="has no class token"):
        maps.rollout([weights()], read="class", layout=JUMBLED)
    a = [weights(seed=i) for i in range(3)]
    assert_close(maps.rollout(a, layout=JUMBLED), maps.rollout(a, read="received", layout=JUMBLED))


def test_layers_with_their_tokens_in_another_order_have_no_product() -> None:
    records = [StandIn(name=n, weights=weights(seed=i)) for i, n in enumerate("ab")]
    with pytest.raises(InputError, match="hold their tokens in another order"):
        maps.rollout(records, layout=Layout({"a": LAST, "b": JUMBLED}))


def test_a_layout_is_looked_up_by_the_records_name() -> None:
    record = StandIn(name="block", weights=weights())
    layout = Layout({"block": LAST})
    assert_close(maps.received(record, layout=layout), maps.received(record, layout=LAST))
    with pytest.raises(InputError, match="no places of 'other'"):
        maps.received(StandIn(name="other", weights=weights()), layout=layout)
    with pytest.raises(InputError, match="bare weights have no name"):
        maps.received(weights(), layout=layout)


def test_unknown_places_are_refused_with_the_line_that_helps() -> None:
    with pytest.raises(InputError, match=r"call av\.locate\(model, images\) and pass layout="):
        maps.received(StandIn(weights=weights()))
    unknown = RecordPlaces(Places(reason="too noisy"), Places(reason="too noisy"))
    for draw in (maps.received, maps.class_row, maps.head_max, maps.rollout):
        with pytest.raises(InputError, match="is unknown \\(too noisy\\)"):
            draw(StandIn(weights=weights()), layout=unknown)


def test_a_layout_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"its layout tells of 5 keys, and it has 1 · 7"):
        maps.received(weights(q=7, k=7), layout=LAST)


def test_words_have_no_map_but_the_places_that_attend_to_them_do() -> None:
    words = Places(None, (-1,) * 3, ("word",) * 3, status="measured")
    pair = RecordPlaces(Places.row_by_row((2, 2)), words)
    a = weights(2, q=4, k=3)
    with pytest.raises(InputError, match=r"they are word.*use key_column"):
        maps.received(a, layout=pair)
    assert_close(maps.key_column(a, 1, layout=pair), a.mean(1)[..., 1].view(2, 2, 2))
    each = maps.key_column(a, torch.tensor([0, 2]), heads="each", layout=pair)
    assert_close(each[1], a[1, :, :, 2].view(2, 2, 2))
    with pytest.raises(InputError, match="expected a key from 0 to 2"):
        maps.key_column(a, 3, layout=pair)
    with pytest.raises(InputError, match="are no places of a grid"):
        maps.key_column(weights(q=3, k=4), 0, layout=RecordPlaces(words, pair.queries))


def test_two_images_in_one_prompt_are_two_maps() -> None:
    cell, image = [-1, 0, 1, -1, 0, 1], [-1, 0, 0, -1, 1, 1]
    layout = both(cell, ["word" if c < 0 else "place" for c in cell], (1, 2), image)
    a = weights(q=6, k=6)
    mean = a.mean((1, 2))[0]
    drawn = maps.received(a, layout=layout)
    assert_close(drawn, torch.stack([mean[1:3], mean[4:6]])[:, None])
    rows = maps.query_row(a, (0, 1), layout=layout)
    assert_close(rows, torch.stack([a.mean(1)[0, 2, 1:3], a.mean(1)[0, 5, 4:6]])[:, None])


def test_images_that_are_packed_and_kept_apart_are_drawn_as_if_alone() -> None:
    first, second = weights(q=4, k=4), weights(q=4, k=4, seed=1)
    packed = torch.zeros(1, 2, 8, 8)
    packed[..., :4, :4], packed[..., 4:, 4:] = first, second
    layout = both([0, 1, 2, 3] * 2, ["place"] * 8, (2, 2), [0] * 4 + [1] * 4)
    alone = both([0, 1, 2, 3], ["place"] * 4)
    true = torch.cat([maps.received(one, layout=alone) for one in (first, second)])
    assert_close(maps.received(packed, layout=layout), true)


def test_images_on_grids_of_their_own_are_drawn_one_at_a_time() -> None:
    layout = both([0, 1, 0, 1], ["place"] * 4, None, [0, 0, 1, 1], ((1, 2), (2, 1)))
    a = weights(q=4, k=4)
    with pytest.raises(InputError, match="lie on grids of 1 × 2, 2 × 1; draw one at a time"):
        maps.received(a, layout=layout)
    one = RecordPlaces(layout.queries.of(1), layout.keys.of(1))
    assert maps.received(a, layout=one).shape == (1, 2, 1)


def test_padding_counts_neither_as_key_nor_as_query() -> None:
    whole = weights(q=4, k=4)
    padded = torch.full((1, 2, 6, 6), 0.25)
    padded[..., :4, :4], padded[..., 4:] = whole, 0.0
    for draw in (maps.received, maps.head_max, maps.head_min, maps.head_mean):
        drawn = draw(padded, grid=(2, 3))
        assert_close(drawn.flatten()[:4], draw(whole, grid=(2, 2)).flatten())
        assert float(drawn.flatten()[4:].abs().max()) == 0
    assert_close(
        maps.rollout([padded], grid=(2, 3)).flatten()[:4],
        maps.rollout([whole], grid=(2, 2)).flatten(),
    )


def test_windows_of_a_layout_are_laid_back() -> None:
    cell = [0, 1, 4, 5, 2, 3, -1, -1]
    layout = both(cell, ["place" if c >= 0 else "padding" for c in cell], (2, 4))
    a = weights(4, q=4, k=4)  # two images, two windows each
    drawn = maps.received(a, layout=layout)
    mean = a.mean((1, 2)).view(2, 8)
    for image in range(2):
        flat = drawn[image].flatten()
        assert_close(flat[[0, 1, 4, 5, 2, 3]], mean[image, :6])
        assert float(flat[[6, 7]].abs().max()) == 0


def test_instances_that_lie_anywhere_are_drawn_where_they_are_said_to() -> None:
    places = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 2], [2, 0], [2, 2], [2, 3]])
    a = weights(1, 1, 1, 7)
    true = torch.zeros(1, 3, 4)
    true[0, places[:, 0], places[:, 1]] = a[0, 0, 0]
    assert_close(maps.received(a, places=places, grid=(3, 4)), true)
    with pytest.raises(InputError, match="expected 7 of them inside the grid 2 × 4"):
        maps.received(a, places=places, grid=(2, 4))
    with pytest.raises(InputError, match="together with grid="):
        maps.received(a, places=places)


def test_volumes_have_maps_with_three_axes() -> None:
    a = weights(2, q=9, k=9)
    drawn = maps.class_row(a, grid=(2, 2, 2), prefix=1)
    assert_close(drawn, a.mean(1)[:, 0, 1:].view(2, 2, 2, 2))
    assert maps.received(a, (4, 6), grid=(2, 2, 2), prefix=1).shape == (2, 2, 4, 6)
    assert_close(maps.query_row(a, (1, 0, 1), grid=(2, 2, 2), prefix=1),
                 a.mean(1)[:, 6, 1:].view(2, 2, 2, 2))  # fmt: skip
    with pytest.raises(InputError, match="a place with 3 coordinates"):
        maps.query_row(a, (1, 1), grid=(2, 2, 2), prefix=1)


def test_a_class_row_kept_while_watching_is_that_of_the_first_token_only() -> None:
    a = weights()
    record = StandIn(reduced={"class_row": a[:, :, 0]}, name="block")
    first = both([-1, 0, 1, 2, 3], ["class", *["place"] * 4])
    assert_close(maps.class_row(record, layout=first), maps.class_row(a, layout=first))
    with pytest.raises(InputError, match="was reduced to the row of its first token"):
        maps.class_row(record, layout=LAST)


def test_padding_is_neither_key_nor_query() -> None:
    """Rows of padding are uniform, no numbers or zero: all of their logits are masked alike."""
    alone = weights(b=1, q=4, k=4)
    for row in (1 / 6, float("nan"), 0.0):
        padded = torch.full((1, 2, 6, 6), row)
        padded[..., :4, :] = torch.cat([alone, torch.zeros(1, 2, 4, 2)], -1)
        drawn = maps.received(padded, grid=(2, 3), prefix=0).flatten()
        assert_close(drawn[:4], maps.received(alone, grid=(2, 2), prefix=0).flatten())
        assert not drawn[4:].any()


def test_uniform_rows_alone_are_no_padding() -> None:
    uniform = torch.full((1, 2, 4, 4), 0.25)
    assert_close(maps.received(uniform, grid=(2, 2), prefix=0), torch.full((1, 2, 2), 0.25))
    causal = weights(q=4, k=4).tril()
    causal = causal / causal.sum(-1, keepdim=True)
    drawn = maps.received(causal, grid=(2, 2), prefix=0).flatten()
    assert_close(drawn, causal.mean((1, 2))[0])
