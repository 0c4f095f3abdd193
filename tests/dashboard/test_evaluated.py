"""Runs of `attnviz.evaluate` with a user's model, classes and object: every page opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import attnviz as av
from tests.dashboard.made_runs import edited
from tests.dashboard.test_pages import PAGES, opened, words
from tests.evaluation.made import Attending, Patches, SeveralSizes, convolutions

CLASSES = ["healthy", "benign", "malignant"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of a model with three classes, its images in three groups."""
    root = tmp_path_factory.mktemp("evaluated")
    av.evaluate(
        Attending(3).eval(), Patches(12, classes=3), classes=CLASSES, thing="lesion",
        save=root / "mine", variant="mine", seed=0,
    )  # fmt: skip
    return root


def test_every_page_opens_and_names_the_object(evaluated, monkeypatch):
    for page in PAGES:
        at = opened(monkeypatch, page, evaluated)
        assert at.title[0].value
        assert not at.error, (page, at.error)
        said = words(at)
        assert page == "try_it" or "patch" not in said.lower(), (page, said)
        if page in ("compare", "gallery", "sample"):
            assert "lesion" in said, page


def test_few_groups_are_noted_where_the_data_is_described(evaluated, monkeypatch):
    at = opened(monkeypatch, "about", evaluated)
    assert "3 groups of images: expected at least 4" in words(at)


def test_the_report_names_the_object(evaluated, tmp_path):
    from attnviz.report import write_report

    write_report([evaluated / "mine"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Which variant looks at the lesion?" in page
    assert "patch" not in page.lower()


def test_images_of_several_sizes_are_shown_side_by_side_and_alone(tmp_path, monkeypatch):
    av.evaluate(convolutions(), SeveralSizes(5), save=tmp_path / "mine", findings=False)
    for page in ("gallery", "sample"):
        at = opened(monkeypatch, page, tmp_path)
        assert not at.error, (page, at.error)
        assert "layer_gradcam" in words(at) or "object" in words(at)


def test_a_model_that_the_command_line_names_answers_live(evaluated, tmp_path, monkeypatch):
    """Its factory comes from the command line; its classes are called by their names."""
    assert "--model MODULE:FACTORY" in words(opened(monkeypatch, "try_it", evaluated))
    factory = {"factory": "tests.evaluation.made:Attending", "settings": {"classes": 3}}
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    edited(tmp_path / "mine", variant="cnn")  # a reference model's name makes it none
    assert "is of a model of its own, cnn" in words(opened(monkeypatch, "try_it", tmp_path))
    monkeypatch.setenv("ATTNVIZ_MODEL", json.dumps(factory))
    at = opened(monkeypatch, "try_it", evaluated)
    assert not at.error, at.error
    assert any(f"The model says {name}: p" in words(at) for name in CLASSES)
    monkeypatch.setenv("ATTNVIZ_MODEL", json.dumps({"factory": "no.such:thing"}))
    at = opened(monkeypatch, "try_it", evaluated)
    assert "no.such" in words(at)
