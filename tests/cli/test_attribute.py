"""`attnviz attribute`, as typed: maps and their scores become part of complete runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from attnviz.attribution import attribute
from attnviz.cli import run
from attnviz.maps import resized
from attnviz.metrics import localization
from attnviz.models import build_model
from attnviz.runs import open_run, start_run
from tests.cli.trained import COUNT, pictures, write_trained


def rebuilt(found):
    model = build_model(found.variant, width=8)
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in found.weights().items()})
    return model.eval()


def test_the_map_and_its_scores_are_those_of_the_trained_model(tmp_path, capsys):
    before = write_trained(tmp_path)
    words = ["--layer", "features.conv3", "--sign", "abs"]
    assert run(["attribute", str(tmp_path), "--method", "layer_gradcam", *words]) == 0
    found = open_run(before.path)
    assert found.state == "complete"
    assert not found.verify()
    pixels, masks, _ = pictures()
    expected = attribute(
        rebuilt(found), pixels.float() / 127.5 - 1, layer="features.conv3", sign="abs", size="own"
    )
    stored = torch.from_numpy(found.maps("layer_gradcam"))
    assert stored.shape == (COUNT, 8, 8)
    torch.testing.assert_close(stored, expected, rtol=1e-3, atol=float(expected.max()) * 1e-3)
    about = found.about("maps/layer_gradcam")
    assert about == {
        "method": "layer_gradcam", "layer": "features.conv3", "sign": "abs", "seed": 0,
    }  # fmt: skip

    scores = localization(resized(expected, (32, 32), "bilinear"), masks)
    samples = found.samples()
    for key, score in scores.items():
        np.testing.assert_allclose(samples[f"layer_gradcam/{key}"], score, rtol=1e-6)
    summary = found.summary["metrics"]["layer_gradcam"]["energy_pointing_game"]
    assert summary["mean"] == pytest.approx(float(scores["energy_pointing_game"].nanmean()))
    assert (summary["valid"], summary["n"]) == (4, 6)
    assert summary["low"] <= summary["mean"] <= summary["high"]
    assert summary["chance"] == pytest.approx(64 / 1024)
    out = capsys.readouterr().out
    assert "mha-0: maps/layer_gradcam 6 × 8 × 8" in out
    assert "4/6" in out


def test_what_the_run_held_before_stays(tmp_path):
    before = write_trained(tmp_path)
    kept = before.samples()
    run(["attribute", str(before.path), "--method", "saliency", "--name", "gradient", "--json"])
    found = open_run(before.path)
    assert set(found.map_names) == {*before.map_names, "gradient"}
    assert found.samples()[kept.columns].equals(kept)
    assert found.summary["metrics"]["received"] == {"pointing_game": {"mean": 0.5}}
    assert found.summary["accuracy"] == 1.0
    assert found.maps("gradient").shape == (COUNT, 32, 32)


@pytest.mark.parametrize("name", ["gates", "maps"])
def test_a_folder_that_a_run_links_to_is_not_touched(tmp_path, capsys, name):
    before = write_trained(tmp_path / "runs", "cnn")  # it has no maps
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "saliency.safetensors").write_text("years of work")
    (before.path / name).symlink_to(tmp_path / "thesis")
    code = run(["attribute", str(tmp_path / "runs"), "--method", "saliency"])
    assert code == (0 if name == "gates" else 2)
    assert ("maps: is a symbolic link" in capsys.readouterr().err) == (name == "maps")
    files = [path.name for path in (tmp_path / "thesis").iterdir()]
    assert files == ["saliency.safetensors"]
    assert (tmp_path / "thesis" / files[0]).read_text() == "years of work"


def test_json_is_json_and_nothing_else(tmp_path, capsys):
    write_trained(tmp_path, "cnn")
    words = ["--method", "integrated_gradients", "--option", "n_steps=3", "--baseline", "mean"]
    assert run(["attribute", str(tmp_path), *words, "--json"]) == 0
    captured = capsys.readouterr()
    (report,) = json.loads(captured.out)["runs"]
    assert (report["id"], report["map"]) == ("cnn-0", "integrated_gradients")
    assert report["shape"] == [COUNT, 32, 32]
    assert captured.err == ""


def test_a_map_is_not_overwritten_unless_asked_for(tmp_path, capsys):
    found = write_trained(tmp_path, "cnn")
    words = ["attribute", str(tmp_path), "--method", "saliency", "--json"]
    assert run(words) == 0
    first = open_run(found.path).maps("saliency")
    assert run(words) == 2
    assert "already has a map 'saliency': pass --name or --replace" in capsys.readouterr().err
    assert run([*words, "--sign", "signed", "--replace"]) == 0
    again = open_run(found.path)
    assert not np.array_equal(again.maps("saliency"), first)
    assert again.about("maps/saliency")["sign"] == "signed"
    assert not again.verify()


def test_methods_are_listed(capsys):
    assert run(["attribute", "anywhere", "--methods"]) == 0
    assert "integrated_gradients" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "gradcam"], "did you mean 'layer_gradcam'"),
        (["--method", "layer_gradcam"], "the last convolution is not certain"),
        (["--method", "saliency", "--option", "abs"], "expected KEY=VALUE, got 'abs'"),
        (["--method", "saliency", "--option", "steps=3"], "unknown option of saliency 'steps'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_run_alone(tmp_path, capsys, words, message):
    found = write_trained(tmp_path, "cbam")
    before = (found.path / "run.json").read_bytes()
    assert run(["attribute", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("attnviz: ")
    assert message in error
    assert error.count("\n") == 1
    assert (found.path / "run.json").read_bytes() == before


def test_runs_that_cannot_be_asked_are_named(tmp_path, capsys):
    start_run(tmp_path, "young", variant="cnn", settings={}, seed=0).stop("by hand")
    assert run(["attribute", str(tmp_path), "--method", "saliency"]) == 2
    assert "young is stopped" in capsys.readouterr().err
    write_trained(tmp_path, "cnn", weights=False)
    assert run(["attribute", str(tmp_path), "--method", "saliency"]) == 2
    assert "model.safetensors" in capsys.readouterr().err
