"""`Places` hold one cell and role per token, and survive JSON."""

from __future__ import annotations

import json

import pytest

from attnviz.errors import InputError
from attnviz.token_places import Places, RecordPlaces


def test_tokens_row_by_row_follow_those_that_are_no_places() -> None:
    places = Places.row_by_row((2, 3), ("class", "register"))
    assert places.cell == (-1, -1, 0, 1, 2, 3, 4, 5)
    assert places.role == ("class", "register", *["place"] * 6)
    assert (len(places), places.known, places.images, places.error) == (8, True, None, 0.0)
    assert str(places) == "2×3 (1 class, 1 register, 6 places)"


def test_every_token_needs_a_cell_and_a_role() -> None:
    with pytest.raises(InputError, match="one cell, role and image per token"):
        Places((2, 2), (0, 1, 2, 3), ("place",))
    with pytest.raises(InputError, match="one cell, role and image per token"):
        Places((2, 2), (0, 1), ("place", "place"), image=(0,))


def test_cells_lie_on_their_grid() -> None:
    with pytest.raises(InputError, match="expected cells from −1 to 3"):
        Places((2, 2), (0, 4), ("place", "place"))


def test_places_survive_json() -> None:
    several = Places(
        None, (0, -1, 1), ("place", "word", "place"), (0, -1, 1), ((1, 1), (1, 2)), "measured",
        error=0.2,
    )  # fmt: skip
    unknown = Places(reason="too noisy")
    for one in (several, Places.row_by_row((2, 3))):
        assert Places.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    again = RecordPlaces.from_dict(json.loads(json.dumps(RecordPlaces(several, unknown).to_dict())))
    assert again.queries == several
    assert again.keys.reason == "too noisy"
    assert str(again.keys) == "unknown: too noisy"
    assert str(several) == "1×1, 1×2 (2 places, 1 word)"


def test_one_image_of_several_is_taken_out() -> None:
    both = Places(
        None, (0, -1, 1), ("place", "word", "place"), (0, -1, 1), ((1, 1), (1, 2)), "measured"
    )
    second = both.of(1)
    assert (second.grid, second.cell, second.role) == (
        (1, 2),
        (-1, -1, 1),
        ("other", "word", "place"),
    )
    assert Places.row_by_row((2, 3)).of(0).grid == (2, 3)
