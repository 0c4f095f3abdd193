"""Runs of users' own data: volumes, videos, mixed sizes, no masks, no classes, a single image."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import Tensor, nn

import attnviz as av
import dashboard.table
from attnviz.data.samples import Sample
from attnviz.report import write_report
from attnviz.runs import amend_run, open_dataset, save_dataset, save_run
from tests.dashboard.test_pages import PAGES, opened, tables, words
from tests.evaluation.made import Attending, Listed, Patches, SeveralSizes, convolutions

DEPTH = 6


class Twice(nn.Module):
    """A regression whose one attention is called twice: its maps are `…` and `…#1`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attending(1)

    def forward(self, x: Tensor) -> Tensor:
        places = self.inner.attention(self.inner.attention(self.inner.stem(x)))
        found: Tensor = self.inner.head(places.mean((2, 3)))
        return found


def unmarked(index: int) -> Sample:
    """An image without mask, box or label, every second one."""
    made = Patches(8)[index]
    return made if index % 2 else Sample(made.image, name=made.name, value_range=((-1,), (1,)))


def unlabelled(count: int) -> Listed:
    """Images with masks and without classes."""
    made = [Patches(count)[index] for index in range(count)]
    return Listed([replace(one, label=None) for one in made])


@pytest.fixture(scope="module")
def own_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of each kind of data, beside each other."""
    root = tmp_path_factory.mktemp("own")
    kinds: dict[str, tuple[nn.Module, Any, dict[str, Any]]] = {
        "mixed": (convolutions(), SeveralSizes(4), {}),
        "unmarked": (Attending(1), Listed([unmarked(i) for i in range(4)]), {}),
        "regression": (Twice(), unlabelled(4), {"heads": True, "layers": True}),
        "single": (Attending(3), Patches(1, classes=3), {"rows": 1, "classes": ["a", "b", "c"]}),
    }
    for name, (model, data, options) in kinds.items():
        av.evaluate(
            model.eval(), data, save=root / name, variant=name, seed=0, findings=False, **options
        )
    volumes(root)
    volumes(root, axis="frame")
    return root


def volumes(root: Path, *, axis: str = "slice") -> str:
    """Two volumes of six slices; in slice 4 of the first a square on which its map lies."""
    rng = np.random.default_rng(axis == "frame")
    images = rng.integers(0, 90, (2, DEPTH, 24, 32, 3)).astype(np.uint8)
    masks = np.zeros(images.shape[:-1], bool)
    masks[0, 4, 8:16, 8:16] = True
    masks[0, 3, 9:12, 9:12] = True
    images[masks] = 250
    digest = save_dataset(root, images=images, masks=masks, info={"axis": axis})
    maps = np.full((2, DEPTH // 2, 6, 8), 0.1, np.float32)
    maps[0, 2, 2:4, 2:4] = 1.0  # its last third lies over slices 4 and 5
    table = pd.DataFrame(
        {
            "index": [0, 1], "label": [1, 0], "x0": [8, 0], "y0": [8, 0], "x1": [16, 0],
            "y1": [16, 0], "received/energy_pointing_game": [0.5, np.nan],
        }
    )  # fmt: skip
    save_run(
        root / f"volume-{axis}", variant=f"volume-{axis}", seed=0, settings={}, dataset=digest,
        samples=table, maps={"received": maps, "received.heads": np.stack([maps, maps], 1)},
        summary={"map": "received"}, thing="lesion",
    )  # fmt: skip
    return digest


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_every_kind_without_a_gap(page, own_root, monkeypatch):
    """No error, no exception, no `None` and no `nan` on a page."""
    for run in sorted(path.name for path in own_root.iterdir() if path.name != "datasets"):
        at = opened(monkeypatch, page, own_root, runs=run, run=run)
        assert not at.exception, (run, at.exception)
        assert not at.error, (run, at.error)
        assert not re.search(r"\b(nan|None)\b(?! of these)", words(at)), (run, words(at))


class TestWords:
    def rows(self, root: Path, tmp_path: Path, about: dict[str, Any], shape: Any) -> Path:
        """A copy of the run of a single image, with rows of which one side is words."""
        copy = Path(shutil.copytree(root / "single", tmp_path / "single"))
        shutil.copytree(root / "datasets", tmp_path / "datasets")
        with amend_run(copy) as writer:
            values = np.zeros(shape, np.float32)
            values[..., 1] = 1.0
            writer.rows("cross", values, images=[0], about=about)
        return tmp_path

    def test_keys_that_are_words_are_listed_by_their_text(self, own_root, tmp_path, monkeypatch):
        about = {"query_grid": [8, 8], "key_words": ["a", "cat<b>", "sat"]}
        root = self.rows(own_root, tmp_path, about, (1, 2, 64, 3))
        given = tables(monkeypatch)
        monkeypatch.setattr("dashboard.word_rows.table", dashboard.table.table)
        at = opened(monkeypatch, "sample", root, image=0, rows="single/cross")
        assert "Attention that each word takes" in words(at)
        rows = list(given[-1]["rows"].values())
        assert [row.cells[0].text for row in rows] == ["cat<b>", "a", "sat"]
        assert [cell.text for cell in rows[0].cells[1:]] == ["1.000", "1.000"]

    def test_queries_that_are_words_have_a_map_each(self, own_root, tmp_path, monkeypatch):
        about = {"key_grid": [8, 8], "query_words": ["a", "cat"]}
        root = self.rows(own_root, tmp_path, about, (1, 2, 2, 64))
        at = opened(monkeypatch, "sample", root, image=0, rows="single/cross")
        assert "Where each word attends to" in words(at)
        assert not at.error


class TestVolumes:
    def test_a_dataset_gives_the_slice_with_most_of_its_object_or_the_one_named(self, own_root):
        held = open_dataset(own_root, digest_of(own_root))
        assert held.depth == DEPTH
        assert held.size == (24, 32)
        cut = held.cut([0, 1])
        assert cut.at.tolist() == [4, DEPTH // 2]
        assert cut.images.shape == (2, 24, 32, 3)
        assert cut.box(0) == (8, 8, 16, 16)
        assert cut.box(1) is None
        assert held.cut([0], 3).box() == (9, 9, 12, 12)
        held.check()
        assert cut.layers(3).tolist() == [2, 1]
        with pytest.raises(av.InputError, match="slice 6: expected one from 0 to 5"):
            held.cut([0], DEPTH)
        with pytest.raises(av.InputError, match="layers: expected slices of volumes, got images"):
            replace(cut, at=None, depth=None).layers(3)

    def test_a_map_on_a_coarser_grid_is_cut_where_the_slice_lies(self, own_root):
        cut = open_dataset(own_root, digest_of(own_root)).cut([0], 4)
        maps = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
        assert cut.of(maps).tolist() == [[[2.0]]]
        assert cut.of(maps[:, None]).shape == (1, 1, 1, 1)

    @pytest.mark.parametrize("axis", ["slice", "frame"])
    def test_gallery_and_sample_have_a_slider_bound_to_the_address(
        self, axis, own_root, monkeypatch
    ):
        run = f"volume-{axis}"
        at = opened(monkeypatch, "sample", own_root, runs=run, image=0)
        assert f"{axis} 4 of {DEPTH}" in words(at)
        assert "lesion at columns 8 to 15" in words(at)
        at.select_slider(key="slices").set_value(1).run()
        assert at.query_params["slice"] == "1"
        assert f"{axis} 1 of {DEPTH}, no lesion" in words(at)
        at = opened(monkeypatch, "gallery", own_root, run=run, slice=99)
        assert "expected a whole number from 0 to 5" in words(at)
        assert at.select_slider(key="slices").value == "object"

    def test_the_report_shows_a_slice(self, own_root, tmp_path):
        write_report([own_root / "volume-slice"], tmp_path / "page.html")
        assert "cannot be shown" not in (tmp_path / "page.html").read_text()


def digest_of(root: Path) -> str:
    """The test images of the run of volumes."""
    from attnviz.runs import open_run

    return str(open_run(root / "volume-slice").dataset)


def test_the_report_has_a_section_per_question(own_root, tmp_path):
    """Runs on different images are ranked apart, each under the name of its question."""
    study = write_report(own_root, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert not study.refusal
    for number in range(1, 7):
        assert f'id="question-{number}-ranking"' in page
    assert "cannot be shown" not in page


def test_a_tensor_of_volumes_of_two_sizes_is_refused(tmp_path):
    def batch(depth: int) -> dict[str, np.ndarray]:
        shape = (1, depth, 8, 8)
        return {"images": np.zeros((*shape, 3), np.uint8), "masks": np.zeros(shape, bool)}

    with pytest.raises(av.InputError, match="expected volumes of one size"):
        save_dataset(tmp_path, [batch(2), batch(3)], info={})
