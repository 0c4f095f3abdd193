"""Rows of attention lie where the run notes it, and nowhere where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import attnviz as av
import dashboard.table
from attnviz.errors import InputError
from attnviz.runs import open_dataset, open_run, save_dataset, save_run
from dashboard.row_places import noted, placed_rows, read_rows
from tests.dashboard.test_pages import opened, tables, words
from tests.evaluation.made import Patches
from tests.evaluation.test_evaluation import ClassLast

RNG = np.random.default_rng(0)


def rows(queries: int, keys: int, parts: int = 1) -> np.ndarray:
    """Rows of two heads that sum to one."""
    return RNG.dirichlet(np.ones(keys), (parts, 2, queries)).astype(np.float32)


def test_grids_and_leading_tokens_are_taken_as_they_are_noted():
    given = rows(7, 7)
    found = placed_rows(given, {"query_grid": [2, 3], "key_grid": [2, 3], "prefix": 1})
    np.testing.assert_array_equal(found.rows, given[0])
    assert (found.query_grid, found.key_grid, found.prefix) == ((2, 3), (2, 3), 1)


def test_cells_put_every_token_at_its_place():
    """Keys in any order, the class token last; queries are all places."""
    given, cell = rows(4, 7), [3, 0, 5, 1, 4, 2, -1]
    about = {"query_grid": [2, 2], "key_places": {"grid": [2, 3], "cell": cell}}
    found = placed_rows(given, about)
    assert (found.query_grid, found.key_grid, found.prefix) == ((2, 2), (2, 3), 1)
    for token, place in enumerate(cell):
        np.testing.assert_array_equal(found.rows[..., place + 1], given[0][..., token])


def test_leading_queries_that_the_keys_do_not_have_are_left_out():
    places = {"grid": [1, 3], "cell": [2, -1, -1, 0, 1]}
    found = placed_rows(rows(5, 4), {"query_places": places, "key_grid": [1, 3], "prefix": 1})
    assert (found.rows.shape, found.prefix) == ((2, 3, 4), 1)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({}, "which of the 9 tokens is which place is not noted"),
        ({"query_grid": [3, 3]}, "which of the 9 tokens is which place is not noted"),
        ({"query_grid": [2, 4], "key_grid": [2, 4]}, "the grid 2 × 4 with 0 leading tokens"),
        ({"query_grid": [3, 3], "key_grid": "3×3"}, "not noted"),
        ({"query_grid": [3, 3], "key_grid": [-3, -3]}, "not noted"),
        ({"query_grid": [3, 3], "key_grid": [1, 3, 3]}, "1 × 3 × 3 is not one of these images"),
        ({"query_places": {"grid": [3, 3], "cell": [0] * 9}}, "not one token for each place"),
        ({"query_places": {"grid": [10**9, 10**9], "cell": [0] * 9}}, "not one token for each"),
        ({"query_places": {"grid": [3, 3], "cell": ["x"] * 9}}, "one cell for each token"),
        ({"query_places": {"grid": [3, 3], "cell": [[0], [1, 2]]}}, "one cell for each token"),
        ({"windows": {"grid": [3, 3], "cells": [[0, 1]]}}, "expected cells of the"),
        ({"windows": {"grid": [3, 3], "cells": [list(range(1, 10))]}}, "expected cells of the"),
        ({"windows": {"grid": [100, 100], "cells": [list(range(9))]}}, "too many to show"),
        ({"windows": {}}, "does not fit the rows"),
    ],
)
def test_what_is_not_noted_or_does_not_fit_is_said_and_not_guessed(about: dict[str, Any], said):
    with pytest.raises(InputError, match=said):
        placed_rows(rows(9, 9), about)


def test_several_parts_need_windows():
    with pytest.raises(InputError, match="2 parts of one image"):
        placed_rows(rows(4, 4, 2), {"query_grid": [2, 2], "key_grid": [2, 2]})


def test_of_a_volume_the_rows_of_the_slice_that_is_shown(tmp_path: Path):
    images = np.zeros((1, 4, 4, 6, 3), np.uint8)
    masks = np.zeros((1, 4, 4, 6), bool)
    held = open_dataset(tmp_path, save_dataset(tmp_path, images=images, masks=masks, info={}))
    given = rows(13, 13)
    about = {"query_grid": [2, 2, 3], "key_grid": [2, 2, 3], "prefix": 1}
    found = placed_rows(given, about, held.cut([0], 3))
    own = [0, *range(7, 13)]
    np.testing.assert_array_equal(found.rows, given[0][:, own][:, :, own])
    assert found.query_grid == (2, 3)
    with pytest.raises(InputError, match="2 × 3 is not one of these images"):
        placed_rows(rows(6, 6), {"query_grid": [2, 3], "key_grid": [2, 3]}, held.cut([0]))


def saved(root: Path, **given: Any) -> Any:
    """A run with an image of noise for each of two numbers."""
    images = np.random.default_rng(1).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    masks = np.zeros((2, 32, 32), bool)
    masks[:, 4:12, 4:12] = True
    digest = save_dataset(root, images=images, masks=masks, info={})
    table = pd.DataFrame({"index": [0, 1], "received/energy_pointing_game": [0.2, 0.4]})
    maps = {"received": np.ones((2, 4, 4), np.float32), **given.pop("maps", {})}
    return save_run(
        root / "mine", variant="mine", settings={}, seed=0, samples=table, dataset=digest,
        maps=maps, summary={"map": "received"}, **given,
    )  # fmt: skip


def swin() -> nn.Module:
    """Attention within shifted windows."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    made: nn.Module = timm.models.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2),
        num_classes=2,
    )  # fmt: skip
    return made.eval()


def test_windows_lie_where_they_were_cut_and_nothing_between_them(tmp_path: Path):
    model = swin()
    with torch.no_grad(), av.watch(model) as seen:
        model(torch.randn(2, 3, 32, 32))
    run = saved(tmp_path, records=seen.values())
    for name, record in seen.attention.items():
        assert len(run.row_images(name)) == 2 * record.windows.count
        for image in (0, 1):
            found = placed_rows(read_rows(run, name, image), noted(run, name))
            h, w = record.windows.grid
            assert found.query_grid == (h, w)
            np.testing.assert_allclose(found.rows.sum(-1), 1, atol=1e-2)
            mean = found.rows.mean((0, 1)).reshape(h, w)
            right = av.received(record)[image].numpy()
            np.testing.assert_allclose(mean / mean.sum(), right / right.sum(), atol=1e-4)
            assert (found.rows > 0).sum(-1).max() <= record.weights.shape[-1]


def test_an_evaluation_keeps_whole_attention_of_windows_and_of_tokens_in_any_order(tmp_path: Path):
    data = Patches(3, classes=2)
    for name, model in (("swin", swin()), ("last", ClassLast().eval())):
        av.evaluate(model, data, save=tmp_path / name, rows=2, findings=False)
        run = open_run(tmp_path / name)
        (kept,) = run.row_names
        assert sorted(set(run.row_images(kept))) == [0, 1]
        with torch.no_grad(), av.watch(model) as seen:
            model(torch.stack([data[i].image for i in range(2)]))
        record = list(seen.attention.values())[-1]
        if name == "last":
            assert run.about(f"rows/{kept}")["key_places"]["cell"] == [*range(16), -1]
            right = record.weights.mean((1, 2))[:, :16].view(2, 4, 4).numpy()
        else:
            right = av.received(record).numpy()
        for image in (0, 1):
            found = placed_rows(read_rows(run, kept, image), noted(run, kept))
            map_ = found.rows[..., found.prefix :].mean((0, 1)).reshape(found.key_grid)
            np.testing.assert_allclose(
                map_ / map_.sum(), right[image] / right[image].sum(), atol=1e-3
            )


@pytest.mark.parametrize("page", ["sample", "heads"])
def test_rows_without_grids_break_no_page_and_are_listed_by_number(page, tmp_path, monkeypatch):
    """17 tokens, of which a square root would make a grid of 4 × 4 with one left over."""
    values = np.zeros((1, 2, 17, 17), np.float32)
    values[..., 3] = 1
    saved(tmp_path, rows={"attend": values, "square": np.full((1, 1, 16, 16), 1 / 16)})
    given = tables(monkeypatch)
    monkeypatch.setattr("dashboard.word_rows.table", dashboard.table.table)
    for name in ("attend", "square"):
        at = opened(monkeypatch, page, tmp_path, image=0, rows=f"mine/{name}", head=f"{name}~1")
        assert not at.error
        assert not at.warning
        assert "is which place is not noted" in words(at)
    if page == "sample":
        assert "listed by number" in words(at) or "by token" in given[-2]["label"]
        first = next(one for one in given if "by token" in one["label"])
        (top, *_) = first["rows"].values()
        assert [cell.text for cell in top.cells] == ["token 3", "1.000", "1.000"]


def test_rows_whose_places_only_a_layout_names_are_shown(tmp_path, monkeypatch):
    layout = {"grid": [4, 4], "cell": [*range(15, -1, -1), -1]}
    both = {"attend": {"queries": layout, "keys": layout}}
    run = saved(tmp_path, rows={"attend": rows(17, 17)}, layouts=both)
    found = placed_rows(read_rows(run, "attend", 0), noted(run, "attend"))
    assert found.prefix == 1
    at = opened(monkeypatch, "sample", tmp_path, image=0)
    assert not at.error
    assert "have no places" not in words(at)


class TestMapsOfWords:
    def test_each_word_has_its_text_and_its_map(self, tmp_path, monkeypatch):
        """The same words for all images, or other words for each."""
        maps = RNG.random((2, 3, 4, 4), dtype=np.float32)
        saved(
            tmp_path, maps={"prompt": maps, "answer": maps},
            about={
                "maps/prompt": {"words": ["a", "cat<b>", "sat"]},
                "maps/answer": {"words": [["one", "two", "three"], ["four"]]},
            },
        )  # fmt: skip
        drawn: list[Any] = []
        monkeypatch.setattr("dashboard.word_rows.pack", lambda *given, **_: drawn.append(given))
        monkeypatch.setattr("dashboard.word_rows.gallery", lambda *_, **__: None)
        at = opened(monkeypatch, "sample", tmp_path, image=1)
        assert not at.error
        assert "Where does each word look?" in words(at)
        said = {tuple(tile.title for tile in given[1]): given[2][0].values for given in drawn}
        assert set(said) == {("a", "cat<b>", "sat"), ("four",)}
        np.testing.assert_allclose(said["a", "cat<b>", "sat"], maps[1], rtol=2**-10)
        np.testing.assert_allclose(said["four",], maps[1, :1], rtol=2**-10)
        assert "kept no maps head by head" in words(opened(monkeypatch, "heads", tmp_path))

    @pytest.mark.parametrize(
        ("words_", "shape", "said"),
        [
            (["a"], (2, 3, 4, 4), r"got maps \(2, 3, 4, 4\) and 1 words"),
            ([["a"]], (2, 3, 4, 4), "words of 1 images"),
            ([["a"] * 4, []], (2, 3, 4, 4), "words of 2 images"),
            ("abc", (2, 3, 4, 4), "and str"),
            (["a", "b"], (2, 4, 4), r"expected maps \(n, words, h, w\)"),
        ],
    )
    def test_other_words_than_maps_are_refused(self, words_, shape, said, tmp_path):
        maps = {"prompt": np.zeros(shape, np.float32)}
        with pytest.raises(InputError, match=said):
            saved(tmp_path, maps=maps, about={"maps/prompt": {"words": words_}})

    def test_notes_beside_arrays_that_are_not_there_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="unknown array of about 'rows/received'"):
            saved(tmp_path, about={"rows/received": {}})
