"""Positions are laid on the grid that they form, and on none where several fit or none does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnviz.places.snapping import agrees, snapped


def centres(*grid: int) -> Tensor:
    axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


SHARP = [0.0, 0.0, 0.0]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_any_order_on_any_grid_is_found(h: int, w: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(h * w, generator=generator)
    noise = (torch.rand(h * w, 2, generator=generator) - 0.5) * 0.4
    points = centres(h, w)[order] + noise / torch.tensor([h, w])
    found = snapped(points, SHARP)
    if min(h, w) > 2:
        assert found.grid == (h, w)
    if found.grid == (h, w):
        assert list(found.cell) == order.tolist()
        assert found.error < 0.5
    else:
        assert found.grid is None


def test_some_cells_lie_on_the_coarsest_grid_that_holds_them() -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))[:20]
    found = snapped(centres(8, 8)[order], SHARP)
    assert (found.grid, list(found.cell)) == ((8, 8), order.tolist())


def test_rows_that_leave_room_for_another_one_are_a_part() -> None:
    two = centres(3, 4)[:8]
    for points, cells in ((two, range(8)), (two + torch.tensor([1 / 3, 0]), range(4, 12))):
        found = snapped(points, [0.29 / 3, 0.29 / 4])
        assert (found.grid, found.cell) == ((3, 4), tuple(cells))
        fields = points[None].expand(2, -1, -1)
        assert agrees(points, fields, [0.29 / 3, 0.29 / 4], (2, 4), torch.arange(8)) is None


def test_one_row_is_a_grid_only_of_tokens_that_see_from_end_to_end() -> None:
    row = centres(1, 9)
    fields, cells = row[None].expand(2, -1, -1), torch.arange(9)
    assert snapped(row, [0.2, 0.03], 1).grid == (1, 9)
    assert agrees(row, fields, [0.2, 0.03], (1, 9), cells, 1) is not None
    assert snapped(row, [0.03, 0.03]).grid is None
    assert agrees(row, fields, [0.03, 0.03], (1, 9), cells) is None


def test_cells_on_few_rows_are_of_a_grid_whose_cells_are_as_large_as_what_tokens_see() -> None:
    """Columns 1 and 4 of 9 lie where those of 3 do."""
    rows = (torch.arange(9, dtype=torch.float64) + 0.5) / 9
    columns = torch.tensor([1, 3], dtype=torch.float64) / 6
    points = torch.cartesian_prod(rows, columns)
    assert snapped(points, [0.29 / 9, 0.29 / 9]).grid is None
    found = snapped(points, [0.29 / 9, 0.29 / 3])
    assert (found.grid, found.cell[:4]) == ((9, 3), (0, 1, 3, 4))


def test_a_view_cut_off_at_the_border_moves_inwards_and_is_expected_to() -> None:
    torch.manual_seed(0)
    sides, spread = (7, 9), 0.13
    pixels = centres(70, 90)
    points = []
    for centre in centres(*sides):
        weight = (-((pixels - centre) / spread).square().sum(1) / 2).exp()
        points.append((weight[:, None] * pixels).sum(0) / weight.sum())
    found = snapped(torch.stack(points), [spread, spread])
    assert (found.grid, found.cell) == (sides, tuple(range(63)))


@pytest.mark.parametrize("seed", range(5))
def test_points_anywhere_form_no_grid(seed: int) -> None:
    points = torch.rand(48, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert snapped(points, SHARP).grid is None


def test_points_that_cover_a_part_of_the_image_form_no_full_grid() -> None:
    assert snapped(centres(6, 6) * 0.5, SHARP).grid != (6, 6)
    assert snapped(centres(6, 6) * 0.5 + 0.25, SHARP).grid != (6, 6)


@pytest.mark.parametrize("h", [48, 51, 52, 53, 55, 62])
@pytest.mark.parametrize("w", [80, 85, 87, 119])
def test_patches_that_do_not_divide_the_image_lie_where_they_are(h: int, w: int) -> None:
    sides, rows = torch.tensor([h, w]), h // 8 * (w // 8)
    points = (centres(h // 8, w // 8) * torch.tensor([h // 8 * 8, w // 8 * 8])) / sides
    found = snapped(points, SHARP)
    assert found.grid is not None
    assert len(set(found.cell)) == rows
    cell, (gh, gw) = torch.tensor(found.cell), found.grid
    drawn = torch.stack([(cell // gw + 0.5) / gh, (cell % gw + 0.5) / gw], 1)
    off = ((drawn - points) * torch.tensor([gh, gw])).abs().max()
    assert off < 0.5
    assert found.error == pytest.approx(float(off), abs=1e-6)


def test_rows_that_are_all_shifted_by_half_a_cell_keep_their_grid() -> None:
    found = snapped(centres(7, 7) - 0.48 / 7, SHARP)
    assert (found.grid, found.cell) == ((7, 7), tuple(range(49)))
    assert found.error == pytest.approx(0.48)


def noisy(order: Tensor, amount: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, len(order), 2, generator=generator, dtype=torch.float64) * amount / 12
    fields = centres(12, 12)[order] + noise
    return fields.mean(0), fields


def test_an_expected_order_is_confirmed_within_the_noise_and_no_other_is() -> None:
    rows = torch.arange(144)
    blocks = rows.view(6, 2, 6, 2).transpose(1, 2).flatten()  # four neighbours together
    for amount in (0.3, 0.8):
        points, fields = noisy(rows, amount)
        assert agrees(points, fields, SHARP, (12, 12), rows) is not None
        for other in (blocks, rows.view(12, 12).T.flatten(), rows.flip(0), rows.roll(1)):
            assert agrees(points, fields, SHARP, (12, 12), other) is None
        assert agrees(points, fields, SHARP, (9, 16), rows) is None
        points, fields = noisy(blocks, amount)
        assert agrees(points, fields, SHARP, (12, 12), rows) is None


def test_rows_that_see_far_are_not_taken_for_some_of_a_finer_grid() -> None:
    """Four rows, measured nearer to each other than they lie (MobileViT): seven is no answer."""
    rows = torch.tensor([0.22, 0.36, 0.5, 0.64], dtype=torch.float64)
    columns = (torch.arange(6, dtype=torch.float64) + 0.5) / 6
    points = torch.cartesian_prod(rows, columns)
    assert snapped(points, [0.15, 0.1]).grid in (None, (4, 6))
