"""The tests check shapes at run time, where a shape is named."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from attnviz import metrics, runs
from attnviz.inputs import AnyMaps
from attnviz.shapes import Maps
from tests.checker import names_a_shape


def written_out(maps: jaxtyping.Float[torch.Tensor, "b h w"]) -> None: ...


def by_an_alias(maps: Maps | None) -> None: ...


def by_a_union(maps: AnyMaps) -> None: ...


def returned() -> Maps: ...  # type: ignore[empty-body]


def without(count: int, name: str | None = None) -> list[torch.Tensor]: ...  # type: ignore[empty-body]


def test_what_names_a_shape_is_told_from_what_does_not() -> None:
    assert all(map(names_a_shape, (written_out, by_an_alias, by_a_union, returned)))
    assert not names_a_shape(without)


def test_a_public_function_refuses_another_shape() -> None:
    masks = torch.ones(2, 4, 4, dtype=torch.bool)
    with pytest.raises(jaxtyping.TypeCheckError):
        metrics.pointing_game(torch.rand(2, 3, 4, 4), masks)
    with pytest.raises(jaxtyping.TypeCheckError):
        metrics.pointing_game(torch.rand(3, 4, 4), masks)
    assert not hasattr(runs.list_runs, "__wrapped__")
