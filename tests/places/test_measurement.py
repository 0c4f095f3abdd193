"""Tokens are found where the construction of a model puts them, or places are refused."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnviz.capture import watch
from attnviz.errors import InputError
from attnviz.places import Layout, Places, locate, measurement
from attnviz.token_places import NO_QUERIES, RecordPlaces
from tests.places import nets


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(h: int = 32, w: int = 48, b: int = 1) -> Tensor:
    return torch.randn(b, 3, h, w)


def calls(model: nn.Module) -> list[int]:
    """Counts the forward passes of a model from now on."""
    count = [0]
    model.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    return count


def slow_cells(
    model: nn.Module, x: Tensor, names: tuple[str, ...], grid: tuple[int, int]
) -> list[list[set[int]]]:
    """For each key of each layer the patches that move it, one at a time, attention at zero."""

    def keys(image: Tensor) -> list[Tensor]:
        zero = {"*": "zero"}
        with torch.no_grad(), watch(model, edit=zero, operands=True) as seen:
            model(image)
        found = [seen[name].key for name in names]
        return [key.transpose(1, 2).flatten(2).flatten(0, 1) for key in found if key is not None]

    base = keys(x)
    ph, pw = x.shape[2] // grid[0], x.shape[3] // grid[1]
    moved: list[list[set[int]]] = [[set() for _ in tokens] for tokens in base]
    for cell in range(grid[0] * grid[1]):
        y, z = divmod(cell, grid[1])
        other = x.clone()
        other[..., y * ph : (y + 1) * ph, z * pw : (z + 1) * pw] += 1
        for cells, here, there in zip(moved, base, keys(other), strict=True):
            for token in (there - here).abs().sum(1).nonzero()[:, 0].tolist():
                cells[token].add(cell)
    return moved


@pytest.mark.parametrize(
    ("before", "after", "read"),
    [(0, 0, None), (1, 0, 0), (2, 0, 0), (5, 0, 0), (4, 0, None), (0, 1, -1), (1, 3, 0)],
)
def test_a_token_lies_where_the_one_patch_lies_that_moves_it(
    before: int, after: int, read: int | None
) -> None:
    model, x = nets.Plain(before, after, read).eval(), images()
    layout, names = locate(model, x), ("blocks.0", "blocks.1")
    for name, slow in zip(names, slow_cells(model, x, names, (4, 6)), strict=True):
        for places in (layout[name].queries, layout[name].keys):
            assert places.status == "measured"
            assert places.grid == (4, 6)
            assert [set() if c < 0 else {c} for c in places.cell] == slow
            assert places.error < 0.5


def test_the_class_token_is_the_one_that_the_head_reads() -> None:
    first = locate(nets.Plain(5, 0, 0), images())["blocks.1"].keys
    assert first.role[:6] == ("class", *["register"] * 4, "place")
    last = locate(nets.Plain(0, 1, -1), images())["blocks.1"].keys
    assert (last.role[-1], last.cell[-1], last.cell[0]) == ("class", -1, 0)
    third = locate(nets.Plain(4, 0, 2), images())["blocks.1"].keys
    assert third.role[:4] == ("register", "register", "class", "register")
    none = locate(nets.Plain(4, 0, None), images())["blocks.1"].keys
    assert set(none.role) == {"register", "place"}


def test_any_order_of_tokens_is_found() -> None:
    order = torch.randperm(24)
    places = locate(nets.Plain(1, 0, 0, order), images())["blocks.0"].keys
    assert places.cell == (-1, *order.tolist())


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_are_laid_back_shift_and_padding_included(b: int, shift: int) -> None:
    model = nets.Windowed(shift)
    places = locate(model, images(40, 24, b))["block"]
    for side in (places.queries, places.keys):
        assert side.grid == (10, 6)
        assert list(side.cell) == model.cells(10, 6)
        assert side.image is None  # the same for every image
        assert all((c < 0) == (r == "padding") for c, r in zip(side.cell, side.role, strict=True))


def test_visible_patches_of_a_masked_autoencoder_are_found_image_by_image() -> None:
    model, x = nets.Masked(), images(64, 64, 2)
    torch.manual_seed(5)
    layout = locate(model, x)
    torch.manual_seed(5)
    model(x)  # draws what locate saw: it starts from the caller's own random state
    places = layout["block"].keys
    assert places.grid == (8, 8)
    assert list(places.cell) == model.kept.flatten().tolist()
    assert places.image == (*[0] * 16, *[1] * 16)


def test_random_states_are_those_from_before() -> None:
    before = torch.get_rng_state()
    locate(nets.Masked(), images(64, 64))
    model = nets.Masked()
    torch.set_rng_state(before)
    locate(model, torch.zeros(1, 3, 64, 64) + torch.arange(64))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("slots", [(2,), (2, 5), (0, 7), (3, 3)])
def test_words_and_the_images_of_one_prompt_are_told_apart(slots: tuple[int, ...]) -> None:
    model, ids = nets.Prompt(slots), torch.arange(7)[None]
    x = images(24, 32, len(slots))
    layout = locate(model, x, inputs=lambda same: {"ids": ids, "images": same})
    cell: list[int] = []
    image: list[int] = []
    for word in range(8):
        for number, slot in enumerate(slots):
            if slot == word:
                cell, image = cell + list(range(12)), image + [number] * 12
        if word < 7:
            cell, image = [*cell, -1], [*image, -1]
    for name in ("blocks.0", "blocks.1"):
        keys = layout[name].keys
        assert (keys.grid, list(keys.cell)) == ((3, 4), cell), name
        assert keys.image == (tuple(image) if len(slots) > 1 else None)
        assert "place" not in {r for r, c in zip(keys.role, keys.cell, strict=True) if c < 0}


class Asked(nn.Module):
    """Learned queries, as many as there are words, look at the image; the words stand apart.

    Args:
        table: How the words are read: `"embedding"`, `"index"` or `"select"`.
    """

    def __init__(self, table: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.table = nn.Conv2d(3, nets.WIDTH, 8, 8), table
        self.words = nn.Parameter(torch.randn(20, nets.WIDTH))
        self.queries = nn.Parameter(torch.randn(1, 7, nets.WIDTH))
        self.cross, self.text = nets.Cross(), nets.Block()

    def forward(self, images: Tensor, input_ids: Tensor, positions: Tensor) -> Tensor:
        if self.table == "embedding":
            words = nn.functional.embedding(input_ids, self.words)
        elif self.table == "index":
            words = self.words[input_ids]
        else:
            words = self.words.index_select(0, input_ids.flatten()).view(1, -1, nets.WIDTH)
        queries = self.queries + nn.functional.embedding(positions, self.words)
        seen = self.cross(queries, self.stem(images).flatten(2).mT)
        return (seen.mean(1) + self.text(words).mean(1)).sum(1)


@pytest.mark.parametrize("table", ["embedding", "index", "select"])
@pytest.mark.parametrize("named", [True, False])
def test_tokens_are_words_if_what_is_read_for_their_numbers_moves_them(
    table: str, named: bool
) -> None:
    """As many learned queries as there are words are none."""
    model, ids = Asked(table).eval(), torch.tensor([[3, 9, 4, 4, 11, 2, 0]])
    positions = torch.arange(7)[None]

    def inputs(images: Tensor) -> Any:
        if named:
            return {"images": images, "input_ids": ids, "positions": positions}
        return images, ids, positions

    layout = locate(model, torch.randn(1, 3, 32, 48), inputs=inputs)
    assert set(layout["cross"].queries.role) == {"query"}
    assert set(layout["cross"].keys.role) == {"place"}
    assert set(layout["text"].keys.role) == {"word"}
    assert layout.passes <= 15


def test_other_tensors_given_to_the_model_are_words() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.cross = nn.Conv2d(3, nets.WIDTH, 8, 8), nets.Cross()

        def forward(self, x: Tensor, text: Tensor) -> Tensor:
            return self.cross(self.stem(x).flatten(2).mT, text)

    text = torch.randn(1, 24, nets.WIDTH)  # as many as there are patches
    places = locate(Text(), images(), inputs=lambda x: (x, text))["cross"]
    assert places.queries.grid == (4, 6)
    assert set(places.keys.role) == {"word"}
    assert places.keys.grid is None


def test_learned_queries_are_no_places_even_if_as_many_as_patches() -> None:
    layout = locate(nets.Decoder(24), images())
    assert layout["encoder"].keys.grid == (4, 6)
    assert layout["cross"].keys.grid == (4, 6)
    assert set(layout["cross"].queries.role) == {"query"}
    for name in ("own", "last"):
        if name in layout:  # attention between parameters alone may not be seen
            assert layout[name].keys.grid is None
            assert set(layout[name].keys.cell) == {-1}


def test_convolutions_that_see_far_still_tell_the_grid() -> None:
    model = nets.Hybrid()
    places = locate(model, images(96, 128))["block"].keys
    assert (places.grid, places.cell) == ((12, 16), tuple(range(192)))


def test_what_lies_behind_attention_without_a_residual_is_measured_or_unknown() -> None:
    layout = locate(nets.Halving(), images(32, 48))
    assert layout["first"].keys.grid == (8, 12)
    last = layout["last"].keys
    assert last.grid == (4, 6)
    assert last.cell == tuple(range(24))


def test_channels_are_no_places() -> None:
    layout = locate(nets.Channels(), images(48, 64))
    channels = next(one for name, one in layout.items() if name != "last")
    assert set(channels.keys.cell) <= {-1}
    assert layout["last"].keys.grid == (6, 8)


@pytest.mark.parametrize("model", [nets.Pyramid, nets.Mirrored])
def test_tokens_on_no_single_grid_are_unknown_with_the_reason(model: type[nn.Module]) -> None:
    places = locate(model(), images(64, 64))["block"].keys
    assert places.status == "unknown"
    assert places.reason
    assert places.cell == ()


def test_volumes_and_video_have_three_axes() -> None:
    volume = nets.Plain(1, 0, 0, axes=3, channels=1)
    places = locate(volume, torch.randn(2, 1, 16, 24, 32))["blocks.1"].keys
    assert (places.grid, places.cell) == ((2, 3, 4), (-1, *range(24)))

    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nets.Plain(1, 0, 0, axes=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.transpose(1, 2))

    places = locate(Video(), torch.randn(1, 16, 3, 16, 24))["net.blocks.1"].keys
    assert places.grid == (2, 2, 3)
    with pytest.raises(InputError, match="pass channels=1"):
        locate(volume, torch.randn(1, 1, 4, 8, 8))


def test_images_of_two_sizes_have_grids_of_their_own_and_padding() -> None:
    places = locate(nets.Padded(), [torch.randn(3, 32, 48), torch.randn(3, 24, 32)])["block"].keys
    assert (places.grid, places.grids) == (None, ((4, 6), (3, 4)))
    assert places.cell == (*range(24), *range(12), *[-1] * 12)
    assert places.role[36:] == ("padding",) * 12
    assert places.of(1).grid == (3, 4)
    assert places.of(1).cell == (*[-1] * 24, *range(12), *[-1] * 12)
    with pytest.raises(InputError, match="below 2"):
        places.of(2)


def test_a_model_is_left_as_it_was_and_runs_fifteen_times_at_most() -> None:
    model = nets.Hybrid().train()
    model(images(64, 64, 2))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    count = calls(model)
    layout = locate(model, images(64, 64, 2))
    assert layout.passes == count[0] <= 15
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state) is False  # the images were drawn since


def test_a_layout_is_remembered_by_model_and_shape_and_forgotten_with_the_model() -> None:
    model = nets.Plain()
    count = calls(model)
    first = locate(model, images())
    passes = count[0]
    assert locate(model, images()) is first
    assert count[0] == passes
    assert locate(model, images(48, 48))["blocks.0"].keys.grid == (6, 6)
    assert locate(model, images(), remember=False) is not first


def test_a_remembered_layout_keeps_no_model_alive() -> None:
    model = nets.Plain()
    locate(model, images())
    known = weakref.ref(model)
    del model
    gc.collect()
    assert known() is None


def test_a_model_that_draws_is_measured_every_time() -> None:
    model, x = nets.Masked(), images(64, 64)
    torch.manual_seed(1)
    one = locate(model, x)["block"].keys.cell
    torch.manual_seed(2)
    assert locate(model, x)["block"].keys.cell != one


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_places_do_not_depend_on_the_precision(dtype: torch.dtype) -> None:
    model = nets.Plain(5).to(dtype)
    keys = locate(model, images().to(dtype))["blocks.1"].keys
    assert (keys.grid, keys.cell) == ((4, 6), (*[-1] * 5, *range(24)))


def test_places_are_found_under_autocast() -> None:
    model = nets.Plain(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        keys = locate(model, images())["blocks.1"].keys
        assert torch.is_autocast_enabled("cpu")
    assert (keys.grid, keys.cell) == ((4, 6), (*[-1] * 5, *range(24)))


def test_a_layout_prints_one_line_per_record_and_survives_json() -> None:
    layout = locate(
        nets.Prompt((2, 5)), images(24, 32, 2), inputs=lambda x: (torch.arange(7)[None], x)
    )
    again = Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again["blocks.0"] == layout["blocks.0"]
    assert again.passes == layout.passes
    lines = repr(layout).splitlines()
    assert len(lines) == 2 + len(layout) + 1
    assert "3×4" in lines[2]
    with pytest.raises(InputError, match=r"no places of 'blocks\.9'"):
        layout["blocks.9"]


def test_a_layout_counts_unknown_keys_and_unknown_queries() -> None:
    known, no_queries = Places(status="measured"), Places(reason=NO_QUERIES)
    unknown = Places(reason="the measured positions form no grid")
    one = Layout({"a": RecordPlaces(unknown, known)}, 1)
    last = "1 record, 0 with unknown keys, 1 with unknown queries, 1 forward pass"
    assert repr(one).splitlines()[-1] == last
    several = {"a": (known, unknown), "b": (no_queries, known), "c": (unknown, unknown)}
    layout = Layout({name: RecordPlaces(*pair) for name, pair in several.items()}, 9)
    last = "3 records, 2 with unknown keys, 1 with unknown queries, 9 forward passes"
    assert repr(layout).splitlines()[-1] == last


def patches_of(grid: tuple[int, int], *chosen: slice, patch: int = 8) -> tuple[Places, list[int]]:
    """Where some patches are measured that a watch does not follow, and where they are."""
    truth = torch.arange(grid[0] * grid[1]).view(grid)[chosen].flatten()
    model = nets.Plain(0, read=None, order=truth, patch=patch)
    found = locate(model, images(grid[0] * patch, grid[1] * patch))
    return found["blocks.0"].keys, truth.tolist()


ALL = slice(None)
PARTS = {
    "row 1": (slice(1, 2), ALL),
    "row 3": (slice(3, 4), ALL),
    "row 6": (slice(6, 7), ALL),
    "the last row": (slice(7, 8), ALL),
    "column 2": (ALL, slice(2, 3)),
    "rows 6 and 7": (slice(6, 8), ALL),
    "rows 3 and 4": (slice(3, 5), ALL),
    "the first and the last row": (slice(None, None, 7), ALL),
    "the last patch": (slice(7, 8), slice(7, 8)),
    "an inner patch": (slice(3, 4), slice(4, 5)),
    "a corner": (slice(5, 8), slice(5, 8)),
}


@pytest.mark.parametrize("part", PARTS)
def test_some_patches_are_not_drawn_over_the_whole_image(part: str) -> None:
    places, truth = patches_of((8, 8), *PARTS[part])
    if places.known:
        assert (places.grid, list(places.cell)) == ((8, 8), truth)
    else:
        assert places.reason


def test_two_rows_of_three_are_measured_as_such_and_the_rows_of_a_half_as_well() -> None:
    places, truth = patches_of((3, 4), slice(0, 2), ALL)
    assert (places.grid, list(places.cell)) == ((3, 4), truth)
    places, truth = patches_of((8, 8), slice(0, 4), ALL)
    assert (places.grid, list(places.cell)) == ((8, 8), truth)


@pytest.mark.parametrize(
    ("stem", "size", "grid"),
    [
        (nn.Conv2d(3, nets.WIDTH, 8, 8), (8, 64), (1, 8)),
        (nn.Conv2d(3, nets.WIDTH, 4, 4), (64, 4), (16, 1)),
        (nn.Conv3d(3, nets.WIDTH, (1, 8, 8), (1, 8, 8)), (1, 32, 32), (1, 4, 4)),
        (nn.Conv3d(3, nets.WIDTH, (16, 8, 8), (16, 8, 8)), (16, 32, 32), (1, 4, 4)),
    ],
)
def test_one_row_of_tokens_that_see_the_image_from_end_to_end_is_a_grid(
    stem: nn.Module, size: tuple[int, ...], grid: tuple[int, ...]
) -> None:
    count = torch.tensor(grid).prod()
    model = nets.Plain(0, read=None, order=torch.arange(int(count)), axes=len(size))
    model.stem = stem
    places = locate(model, torch.randn(1, 3, *size), channels=1)["blocks.0"].keys
    assert (places.grid, places.status) == (grid, "measured")
    assert places.cell == tuple(range(int(count)))


def test_measured_places_on_another_grid_than_the_proven_ones_are_refused() -> None:
    cells, roles = tuple(range(8)), ("place",) * 8
    proven = Places((3, 4), cells, roles, status="proven", error=0.0)
    found = measurement._settled(Places((2, 4), cells, roles, status="measured", error=0.3), proven)
    assert (found.status, found.grid) == ("unknown", None)
    assert found.reason == "the measured places are others than those followed from a feature map"
    same = measurement._settled(Places((3, 4), cells, roles, status="measured", error=0.3), proven)
    assert (same.grid, same.error) == ((3, 4), 0.0)


def test_what_is_no_image_is_refused() -> None:
    model = nets.Plain()
    with pytest.raises(InputError, match="expected images"):
        locate(model, torch.randn(3, 32))
    with pytest.raises(InputError, match="expected images"):
        locate(model, [])


def test_a_model_without_attention_has_an_empty_layout() -> None:
    assert len(locate(nn.Conv2d(3, 4, 3), images())) == 0
