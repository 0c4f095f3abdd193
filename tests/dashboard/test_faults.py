"""Faults that readers once met on the pages, each by what they saw; others are in test_browser."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import attnviz as av
from attnviz.runs import amend_run, open_run, save_dataset, save_run
from tests.dashboard import made_runs
from tests.dashboard.test_pages import opened, tables, words
from tests.evaluation.made import Attending, Patches

LAYERS = [f"blocks.{k}.attn" for k in range(12)]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a transformer with twelve layers of four heads, a map and its heads kept of each."""
    root = tmp_path_factory.mktemp("deep")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (4, 32, 32, 3)).astype(np.uint8)
    masks = np.zeros((4, 32, 32), bool)
    masks[:2, 4:12, 4:12] = True
    digest = save_dataset(root, images=images, masks=masks, info={})
    table: dict[str, Any] = {"index": range(4), "x0": [4, 4, 0, 0], "y0": [4, 4, 0, 0],
                             "x1": [12, 12, 0, 0], "y1": [12, 12, 0, 0]}  # fmt: skip
    maps = {}
    for layer in LAYERS:
        heads = rng.random((4, 4, 4, 4), dtype=np.float32)
        maps[f"received.{layer}"] = heads.mean(1)
        maps[f"received.{layer}.heads"] = heads
        table[f"received.{layer}/energy_pointing_game"] = [*rng.random(2), np.nan, np.nan]
    run = save_run(
        root / "vit", variant="vit", settings={}, seed=0, samples=pd.DataFrame(table),
        dataset=digest, maps=maps, summary={"map": "received.blocks.11.attn"},
    )  # fmt: skip
    assert run.verify() == []
    return root


def test_the_gallery_offers_the_map_of_every_layer(deep: Path, monkeypatch: Any) -> None:
    at = opened(monkeypatch, "gallery", deep)
    assert len(at.selectbox(key="choose_map").options) == len(LAYERS)


def test_heads_of_twelve_layers_are_told_apart_and_named(deep: Path, monkeypatch: Any) -> None:
    """Not 48 tiles in rows of eight with "head 1" twelve times."""
    given = tables(monkeypatch)
    packed: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "attnviz.figures.packing.pack", lambda *parts, **more: packed.append((*parts, more)) or b""
    )
    for scale in ("own", "shared"):
        packed.clear()
        at = opened(monkeypatch, "heads", deep, scale=scale)
        assert not at.error
        board = next(one for one in given if one["label"].startswith("Heads of"))
        assert [row.cells[0].text for row in board["rows"].values()] == [
            f"received.{layer}" for layer in LAYERS
        ]
        cells = [cell for row in board["rows"].values() for cell in row.cells[1:]]
        assert len({cell.words for cell in cells}) == 48
        assert all(cell.tint for cell in cells)
        every = next(one for one in packed if len(one[1]) == 48)
        assert len({tile.title for tile in every[1]}) == 48
        assert every[-1]["columns"] == 4
        assert every[2][0].shared == (scale == "shared")
    at = opened(monkeypatch, "sample", deep)
    assert "Heads are on the page Heads, layer by layer." in words(at)


def test_of_many_variants_the_best_are_shown(tmp_path: Path, monkeypatch: Any) -> None:
    """A sweep is no page of 14,300 pixels: fifteen variants, and how many there are."""
    made_runs.sweep(tmp_path, 63, n=8)
    given = tables(monkeypatch)
    asked: list[Any] = []
    from dashboard import run_cache

    real = run_cache.samples
    monkeypatch.setattr(run_cache, "samples", lambda run: asked.append(run.id) or real(run))
    at = opened(monkeypatch, "compare", tmp_path)
    assert "15 of 21 variants, those with the best mean" in words(at)
    board = next(one for one in given if "Variants" in one["label"])
    assert len(board["rows"]) == 15
    assert 0 < len(set(asked)) <= 45  # the tables of those that are shown


def test_attention_is_not_listed_as_an_attribution(good_root: Path, monkeypatch: Any) -> None:
    said = words(opened(monkeypatch, "attributions", good_root))
    assert "mha · received" in said
    assert "Captum" not in said
    assert "own map shows what its attention or gate computed" in said


def test_agreement_is_of_images_with_an_object(
    good_root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    for name in ("mha-0", "datasets"):
        shutil.copytree(good_root / name, tmp_path / name)
    table = open_run(tmp_path / "mha-0").samples()
    marked = table["x1"] > table["x0"]
    table["received/agreement_spearman"] = np.where(marked, 0.5, -1.0)
    with amend_run(tmp_path / "mha-0") as writer:
        writer.samples(table)
    drawn: list[str] = []
    monkeypatch.setattr("dashboard.controls.draw", lambda *_, alt, **__: drawn.append(alt))
    opened(monkeypatch, "attributions", tmp_path)
    assert any("mha · received +0.50 (+0.50 to +0.50)" in alt for alt in drawn), drawn


def test_a_user_s_run_has_its_chance_and_its_classes(tmp_path: Path, monkeypatch: Any) -> None:
    av.evaluate(
        Attending(3).eval(), Patches(6, classes=3), classes=["healthy", "benign", "malignant"],
        thing="lesion", save=tmp_path / "mine", variant="mine", seed=0, findings=False,
    )  # fmt: skip
    plotted: list[Any] = []
    monkeypatch.setattr("dashboard.dot_plot.dots", lambda rows, *_, **__: plotted.append(rows))
    opened(monkeypatch, "compare", tmp_path)
    assert plotted
    assert np.isfinite(plotted[0]["chance"]).all()
    at = opened(monkeypatch, "gallery", tmp_path)
    assert "malignant" in at.selectbox(key="choose_class").options
