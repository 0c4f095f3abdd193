"""`attnviz measure`, as typed: scores of the maps that runs hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from attnviz.cli import run
from attnviz.faithfulness import deletion_auc, knockout, randomisation
from attnviz.maps import resized
from attnviz.metrics import agreement, localization
from attnviz.runs import amend_run, open_run
from tests.cli.test_attribute import rebuilt
from tests.cli.trained import COUNT, pictures, write_trained


def on_images(found, name):
    return resized(torch.from_numpy(found.maps(name)), (32, 32), "bilinear")


def test_every_localisation_metric_of_every_map_is_added(tmp_path, capsys):
    before = write_trained(tmp_path)
    assert run(["measure", str(tmp_path)]) == 0
    found = open_run(before.path)
    _, masks, _ = pictures()
    expected = localization(on_images(found, "received"), masks)
    samples = found.samples()
    for key, score in expected.items():
        np.testing.assert_allclose(samples[f"received/{key}"], score, rtol=1e-6, err_msg=key)
    assert not [c for c in samples.columns if c.startswith(("received.heads/", "received@0001/"))]
    summary = found.summary["metrics"]["received"]
    assert set(summary) == set(expected)
    assert summary["pointing_game"]["n"] == COUNT
    assert not found.verify()
    assert "energy_pointing_game" in capsys.readouterr().out


def test_a_folder_that_a_run_links_to_is_not_touched(tmp_path):
    """Nor by the words for faithfulness and knockout, which write as well."""
    before = write_trained(tmp_path / "runs")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.safetensors").write_text("years of work")
    (before.path / "gates").symlink_to(tmp_path / "thesis")
    assert run(["measure", str(tmp_path / "runs"), "--knockout", "--images", "2"]) == 0
    assert (tmp_path / "thesis" / "chapter.safetensors").read_text() == "years of work"
    assert [(f.file, f.kind) for f in open_run(before.path).verify()] == [("gates", "link")]


def test_maps_with_heads_are_averaged_when_asked_for(tmp_path):
    before = write_trained(tmp_path)
    words = ["--maps", "received.heads", "--metrics", "energy_pointing_game", "--json"]
    assert run(["measure", str(tmp_path), *words]) == 0
    found = open_run(before.path)
    _, masks, _ = pictures()
    heads = torch.from_numpy(found.maps("received.heads")).mean(1)
    upsampled = resized(heads, (32, 32), "bilinear")
    expected = localization(upsampled, masks, ["energy_pointing_game"])["energy_pointing_game"]
    scores = found.samples()["received.heads/energy_pointing_game"]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_thresholds_of_the_validation_images_are_used(tmp_path):
    found = write_trained(tmp_path)
    with amend_run(found.path) as writer:
        writer.finish({"thresholds": {"received": {"max_iou": 0.4, "iou": 0.4}}})
    assert run(["measure", str(tmp_path), "--json"]) == 0
    _, masks, _ = pictures()
    expected = localization(on_images(found, "received"), masks, ["max_iou"], threshold=0.4)
    scores = open_run(found.path).samples()["received/max_iou"]
    np.testing.assert_allclose(scores, expected["max_iou"], rtol=1e-6)


def test_faithfulness_asks_the_model_about_the_first_images(tmp_path):
    before = write_trained(tmp_path)
    words = ["--metrics", "--faithfulness", "deletion_auc", "avg_drop", "--images", "2"]
    assert run(["measure", str(tmp_path), *words, "--steps", "5", "--baseline", "mean"]) == 0
    found = open_run(before.path)
    pixels, _, _ = pictures()
    expected = deletion_auc(
        rebuilt(found), pixels[:2].float() / 127.5 - 1, on_images(found, "received")[:2],
        steps=5, baseline="mean",
    )  # fmt: skip
    scores = found.samples()["received/deletion_auc"]
    np.testing.assert_allclose(scores[:2], expected, rtol=1e-5)
    assert scores[2:].isna().all()
    summary = found.summary["metrics"]["received"]
    assert summary["deletion_auc"]["valid"] == 2
    assert summary["pointing_game"] == {"mean": 0.5}  # from before, since --metrics named none
    assert "received/road_morf" not in found.samples().columns


def test_agreement_and_the_randomisation_check_are_added(tmp_path):
    before = write_trained(tmp_path)
    layer = ["--layer", "features.conv3"]
    assert run(["attribute", str(tmp_path), "--method", "layer_gradcam", *layer, "--json"]) == 0
    words = ["--metrics", "--agree-with", "layer_gradcam", "--mprt", "--images", "3", "--json"]
    assert run(["measure", str(tmp_path), *words]) == 0
    found = open_run(before.path)
    samples = found.samples()
    expected = agreement(on_images(found, "received"), on_images(found, "layer_gradcam"))
    for key, score in expected.items():
        np.testing.assert_allclose(samples[f"received/agreement_{key}"], score, rtol=1e-6)
    assert "layer_gradcam/agreement_spearman" not in samples.columns
    pixels, _, _ = pictures()
    check = randomisation(
        rebuilt(found), pixels[:3].float() / 127.5 - 1, "layer_gradcam", layer="features.conv3"
    )
    np.testing.assert_allclose(samples["layer_gradcam/mprt"][:3], check.mprt, rtol=1e-6)
    assert "received/mprt" not in samples.columns


def test_knockout_is_kept_in_the_summary(tmp_path, capsys):
    before = write_trained(tmp_path)
    words = ["--metrics", "pointing_game", "--knockout", "--images", "4"]
    assert run(["measure", str(tmp_path), *words]) == 0
    found = open_run(before.path)
    pixels, _, _ = pictures()
    table = knockout(rebuilt(found), pixels[:4].float() / 127.5 - 1).table
    kept = found.summary["knockout"]
    assert [(row["name"], row["head"], row["way"]) for row in kept] == list(
        zip(table["name"], table["head"], table["way"], strict=True)
    )
    np.testing.assert_allclose([row["effect"] for row in kept], table["effect"], atol=1e-6)
    assert "replaced" in capsys.readouterr().out


def test_json_is_json_and_nothing_else(tmp_path, capsys):
    write_trained(tmp_path)
    assert run(["measure", str(tmp_path), "--metrics", "pointing_game", "--json"]) == 0
    captured = capsys.readouterr()
    (report,) = json.loads(captured.out)["runs"]
    assert report["metrics"]["received"]["pointing_game"]["n"] == COUNT
    assert captured.err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--maps", "receive"], "unknown map of mha-0 'receive': did you mean 'received'"),
        (["--maps", "received@0001"], "of all 6 images, 'received@0001' holds (2, 8, 8)"),
        (["--metrics", "pointing"], "unknown metric 'pointing'"),
        (["--faithfulness", "deletion"], "did you mean 'deletion_auc'"),
        (["--agree-with", "saliency"], "unknown map of mha-0 'saliency'"),
        (["--images", "0"], "--images: expected 1 or more, got 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_run_alone(tmp_path, capsys, words, message):
    found = write_trained(tmp_path)
    before = (found.path / "run.json").read_bytes()
    assert run(["measure", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (found.path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["measure", ".", "--metrics", "pointing_game"],
        ["attribute", ".", "--method", "saliency"],
        ["doctor", "."],
    ],
)
def test_a_run_may_be_named_from_within_its_folder(tmp_path, monkeypatch, capsys, words) -> None:
    monkeypatch.chdir(write_trained(tmp_path).path)
    assert run(words) in (0, 1)
    assert capsys.readouterr().err == ""


def test_a_run_or_map_that_is_named_twice_is_measured_once(tmp_path, capsys) -> None:
    place = str(write_trained(tmp_path).path)
    words = ["--maps", "received", "received", "--metrics", "pointing_game", "--json"]
    assert run(["measure", place, place, *words]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 1
