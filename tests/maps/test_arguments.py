"""Wrong arguments of maps: each function says what it expected, what came and what helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import attnviz as av
from attnviz import maps
from attnviz.capture import Record
from attnviz.errors import InputError
from attnviz.token_places import Places, RecordPlaces

pytestmark = pytest.mark.usefixtures("unchecked")

WEIGHTS = torch.rand(1, 2, 16, 16).softmax(-1)
RECORD = Record("attn", "attention", WEIGHTS, shape=(1, 2, 16, 16))
MASK = torch.ones(1, 8, 8, dtype=torch.bool)
GRID = {"grid": (4, 4)}

DRAW: dict[str, Callable[[Any], Any]] = {
    "received": lambda source: av.received(source, **GRID),
    "class_row": lambda source: av.class_row(source, grid=(3, 5), prefix=1),
    "head_mean": lambda source: av.head_mean(source, **GRID),
    "head_max": lambda source: av.head_max(source, **GRID),
    "head_min": lambda source: maps.head_min(source, **GRID),
    "query_row": lambda source: av.query_row(source, (0, 0), **GRID),
    "key_column": lambda source: av.key_column(source, 0, **GRID),
    "rows_inside": lambda source: av.rows_inside(source, MASK, **GRID),
    "rollout": lambda source: av.rollout(source, **GRID),
    "gradient_weighted": lambda source: av.gradient_weighted(source, torch.zeros(1), **GRID),
    "attention_gradcam": lambda source: av.attention_gradcam(source, torch.zeros(1), **GRID),
    "gate_map": av.gate_map,
    "channel_gated": av.channel_gated,
    "key_map": lambda source: av.key_map(source, 0, **GRID),
    "token_map": lambda source: av.token_map(source, 0),
    "object_maps": lambda source: av.object_maps(source, **GRID),
    "maps_of": av.maps_of,
    "primary": maps.primary,
    "drawings": maps.drawings,
    "resized": lambda source: maps.resized(source, (8, 8), "bilinear"),
}
NO_SOURCES: tuple[Any, ...] = (
    None, "attn", 3, np.zeros((1, 2, 16, 16)), ["attn"], [np.zeros(3)], {"attn": "x"},
    {"attn": RecordPlaces(Places(), Places())}, nn.Linear(2, 2), object(),
)  # fmt: skip


@pytest.mark.parametrize("name", DRAW)
def test_what_is_no_record_is_an_error_of_ours(name: str) -> None:
    for source in NO_SOURCES:
        with pytest.raises(InputError, match=r"expected|got"):
            DRAW[name](source)


def test_the_remedy_fits_what_came() -> None:
    for source, remedy in (
        ([WEIGHTS, WEIGHTS], "pass the records that hold them"),
        (nn.Linear(2, 2), "run it within `with av.watch"),
        (np.zeros(3), "make a tensor of it by torch.from_numpy"),
        ({"attn": RecordPlaces(Places(), Places())}, "a layout goes into layout="),
        (["attn"], r"pass the record of this name, seen\[name\]"),
    ):
        with pytest.raises(InputError, match=remedy):
            av.key_map(source, 0, **GRID)


OPTIONS: dict[str, tuple[Any, ...]] = {
    "size": ("big", (0, 3), 3, (4,), (4.5, 3), (1, 2, 3, 4)),
    "heads": ("all", 9, None, 1.5, True),
    "interpolation": ("cubic", None),
    "grid": ("x", 4, (0, 4), (4, "a"), (True, 16)),
    "layout": (3, "x", [1], {}, {"attn": 3}),
    "places": ("x", 3, [[0, 0]], torch.rand(16, 2)),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_another_kind_are_errors_of_ours(option: str) -> None:
    arguments: dict[Any, tuple[Any, ...]] = {
        av.received: (), av.key_column: (0,), av.query_row: ((0, 0),), av.rows_inside: (MASK,)
    }  # fmt: skip
    for draw, given in arguments.items():
        for value in OPTIONS[option]:
            with pytest.raises(InputError):
                draw(RECORD, *given, **{"grid": (4, 4), option: value})


@pytest.mark.parametrize(
    ("draw", "given", "options"),
    [
        (av.key_map, (1.5,), {}),
        (av.key_map, (None,), {}),
        (av.key_map, (["a"],), {}),
        (av.key_map, (0,), {"steps": "x"}),
        (av.key_map, (0,), {"layers": 3}),
        (av.object_maps, (), {"queries": "a"}),
        (av.object_maps, (torch.zeros(1, 16, 4),), {"mask": "x"}),
        (av.object_maps, (), {"points": "x"}),
        (av.query_row, ("x",), {}),
        (av.query_row, (None,), {}),
        (av.query_row, (3,), {}),
        (av.key_column, ("x",), {}),
        (av.key_column, (0.5,), {}),
        (av.rows_inside, ("x",), {}),
    ],
)
def test_numbers_and_masks_of_another_kind_are_errors_of_ours(
    draw: Callable[..., Tensor], given: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="expected"):
        draw(RECORD, *given, **GRID, **options)


def test_layouts_layers_and_points_say_what_they_are_to_be() -> None:
    with pytest.raises(InputError, match="key_map: layers: expected globs on dotted names, got 3"):
        av.key_map(RECORD, 0, layers=3, **GRID)  # type: ignore[arg-type]
    with av.watch(nn.Identity(), empty=True) as seen:
        pass
    with pytest.raises(InputError, match=r"token_map: layout: expected what av\.locate returns"):
        av.token_map(seen, 0, layout=3)  # type: ignore[arg-type]
    points = Places(None, (-1,) * 16, ("point",) * 16, status="proven")
    unknown = Record("attn", "attention", WEIGHTS, places=RecordPlaces(Places(), points))
    with pytest.raises(InputError, match="are sampling points, and where they lie is not known"):
        av.object_maps(unknown)
    with pytest.raises(InputError, match=r"points: expected attnviz\.capture\.SamplingPoints, got"):
        av.object_maps(unknown, points="x")  # type: ignore[arg-type]


def test_lists_of_records_are_drawn_as_a_capture_is() -> None:
    found = av.maps_of([RECORD])
    assert list(found.left_out) == ["received"]
    with pytest.raises(InputError, match="weights have no name and no places"):
        av.maps_of([WEIGHTS])
