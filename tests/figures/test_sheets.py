"""Many tiles on one sheet, and the same images in every variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnviz.errors import InputError
from attnviz.figures import comparison_picture, contact_sheet, head_rows, overlay
from attnviz.figures.sheets import _cut


def tile(value: int) -> np.ndarray:
    return np.full((10, 20, 3), value, np.uint8)


class TestContactSheet:
    def test_tiles_lie_in_rows(self) -> None:
        sheet = contact_sheet([tile(v) for v in (10, 20, 30)], columns=2, gap=4)
        assert sheet.shape == (2 * 14 + 4, 2 * 24 + 4, 3)
        for value, y, x in ((10, 4, 4), (20, 4, 28), (30, 18, 4)):
            assert (sheet[y : y + 10, x : x + 20] == value).all()
        assert (sheet[18:28, 28:48] == 255).all()

    def test_captions_lie_below_their_tiles(self) -> None:
        bare = contact_sheet([tile(9)], columns=1)
        told = contact_sheet([tile(9)], ["a\nb"], columns=1, size=10)
        assert told.shape[0] == bare.shape[0] + 2 * 14
        assert (told[18:-8] < 255).any()
        assert (told[:8] == 255).all()

    def test_long_captions_are_cut_within_the_tile(self) -> None:
        assert _cut("short", 200, 10) == "short"
        cut = _cut("a very long name of a variant", 60, 10)
        assert cut.endswith("…")
        assert "a very long name".startswith(cut[:-1])
        assert _cut("wide", 1, 10) == ""
        sheet = contact_sheet([tile(255), tile(255)], ["W" * 50, ""], columns=2)
        assert (sheet[:, 8 + 20 :] == 255).all()

    def test_enlarging(self) -> None:
        assert (contact_sheet([tile(9)], scale=3, gap=0)[:30, :60] == 9).all()

    @pytest.mark.parametrize(
        ("tiles", "options", "message"),
        [
            ([], {}, "at least one tile, column and pixel, got 0, 8 and 1"),
            ([tile(1)], {"columns": 0}, "got 1, 0 and 1"),
            ([tile(1)], {"captions": []}, "expected a caption per tile, got 0 for 1"),
            ([tile(1), np.zeros((3, 3))], {}, r"tiles of one size, got \[\(3, 3\), \(10, 20\)\]"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, tiles: list[Any], options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            contact_sheet(tiles, **options)


class TestHeadRows:
    def test_the_image_then_every_head(self) -> None:
        rows = np.random.default_rng(0).random((3, 5, 5))
        sheet = head_rows(tile(100), rows, scale=2)
        for i, row in enumerate(rows):
            x = 8 + (i + 1) * 48
            np.testing.assert_array_equal(sheet[8:28, x : x + 40], overlay(tile(100), row, scale=2))

    def test_the_place_is_marked_in_every_tile(self) -> None:
        rows = np.random.default_rng(0).random((2, 5, 5))
        plain, marked = head_rows(tile(9), rows), head_rows(tile(9), rows, place=(4, 7))
        pink = (marked == (255, 47, 185)).all(-1) & ~(plain == (255, 47, 185)).all(-1)
        columns = np.flatnonzero(pink.any(0))
        assert len(np.split(columns, np.flatnonzero(np.diff(columns) > 10) + 1)) == 3

    def test_rows_of_one_query_are_expected(self) -> None:
        with pytest.raises(InputError, match=r"rows \(heads, h, w\), got shape \(5, 5\)"):
            head_rows(tile(1), np.ones((5, 5)))


class TestComparisonPicture:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    boxes = np.array([[2, 2, 6, 6], [8, 8, 12, 12]])

    def maps(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(1)
        return {name: rng.random((2, 4, 4)) for name in ("cnn", "mha")}

    def test_a_row_per_image_a_column_per_variant(self) -> None:
        scores = {"cnn": [0.1, 0.25], "mha": [0.7, np.nan]}
        figure = comparison_picture(self.images, self.maps(), self.boxes, scores)
        tiles = figure.axes[:-1]
        assert len(tiles) == 2 * 3
        assert [axes.get_title() for axes in tiles[:3]] == ["image", "cnn", "mha"]
        texts = [axes.get_xlabel() for axes in tiles]
        assert texts == ["", "energy 0.10", "energy 0.70", "", "energy 0.25", "energy –"]

    def test_each_tile_is_the_overlay_of_its_image_and_map(self) -> None:
        maps = self.maps()
        tiles = comparison_picture(self.images, maps, self.boxes).axes
        expected = overlay(self.images[1], maps["mha"][1], self.boxes[1], scale=4)
        np.testing.assert_array_equal(tiles[5].images[0].get_array(), expected)

    def test_the_scaling_is_stated(self) -> None:
        words = [t.get_text() for t in comparison_picture(self.images, self.maps()).texts]
        assert words == ["raw maps, upsampled bilinearly; each map from 0 to its own maximum"]
        fixed = comparison_picture(self.images, self.maps(), self.boxes, vmax=0.5)
        assert "all maps from 0 to 0.5; box: the patch" in fixed.texts[0].get_text()

    def test_it_is_written_as_png(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "picture.png"
        comparison_picture(self.images, self.maps(), path=path, dpi=50)
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > 150
        assert [entry.name for entry in path.parent.iterdir()] == ["picture.png"]

    def test_the_same_picture_is_the_same_file(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            comparison_picture(self.images, self.maps(), path=tmp_path / name, dpi=50)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"maps_by_variant": {"cnn": np.ones((3, 4, 4))}}, "expected 2 of cnn, got 3"),
            ({"scores_by_variant": {"cnn": [1.0]}}, "expected 2 of cnn scores, got 1"),
            ({"boxes": [[0, 0, 1, 1]]}, "expected 2 of boxes, got 1"),
            ({"maps_by_variant": {}}, "got 2 images and 0 variants"),
        ],
    )
    def test_what_is_wrong_is_named(self, change: dict[str, Any], message: str) -> None:
        given = {"images": self.images, "maps_by_variant": self.maps(), **change}
        with pytest.raises(InputError, match=message):
            comparison_picture(**given)
