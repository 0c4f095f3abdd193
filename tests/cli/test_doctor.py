"""`attnviz doctor`, as typed: models by name, runs by folder, exit codes and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attnviz.cli import run
from attnviz.cli.model_arguments import build
from attnviz.errors import InputError
from tests.cli.trained import write_trained

QUICK = ["--size", "32", "--count", "3", "--setting", "width=8"]


def test_an_error_is_exit_code_1_and_its_remedy_is_printed(capsys) -> None:
    assert run(["doctor", "attnviz:mha_reshape", "--size", "96", "--count", "3"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("attnviz:mha_reshape: 1 error")
    assert "error   scrambled-tokens at features.attention.attend" in out
    assert "do:   transpose, do not reshape" in out


def test_no_error_is_exit_code_0_and_json_is_all_there_is(capsys) -> None:
    assert run(["doctor", "attnviz:mha", "attnviz:cbam", *QUICK, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["examined"]
    assert (first["name"], second["name"]) == ("attnviz:mha", "attnviz:cbam")
    assert first["checked"] == {"attention": 1, "gates": 0}
    assert all(one["severity"] != "error" for one in first["findings"])


def test_a_run_is_examined_with_its_weights_and_its_test_images(tmp_path, capsys) -> None:
    write_trained(tmp_path)
    assert run(["doctor", str(tmp_path), "--json", "--trained", "yes"]) in (0, 1)
    (one,) = json.loads(capsys.readouterr().out)["examined"]
    assert one["name"] == "mha-0"
    assert one["checked"]["attention"] == 1


def test_one_s_own_callable_is_found_from_the_current_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "mynets_of_a_test.py").write_text(
        "from torch import nn\nclass Nets:\n    @staticmethod\n    def small(width=3):\n"
        "        return nn.Conv2d(3, width, 1)\nmade = nn.Flatten()\nother = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    model = build("mynets_of_a_test:Nets.small", width=5)
    assert isinstance(model, nn.Conv2d)
    assert model.out_channels == 5
    assert isinstance(build("mynets_of_a_test:made"), nn.Flatten)
    with pytest.raises(InputError, match="to be callable, got 3"):
        build("mynets_of_a_test:other")
    with pytest.raises(InputError, match="did you mean 'made'"):
        build("mynets_of_a_test:mode")
    with pytest.raises(InputError, match=r"did not take \{'depth': 2\}"):
        build("mynets_of_a_test:Nets.small", depth=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no_such_module_at_all:f"], "cannot import 'no_such_module_at_all'"),
        (["attnviz:mhaa"], "did you mean 'mha'"),
        (["torchvision:resnet19"], "torchvision has no model 'resnet19'; nearest are resnet18"),
        (["json:loads"], "did not take no arguments"),
        (["builtins:list"], "to return a torch module, got list"),
        (["attnviz:cnn", "--setting", "width"], "--setting: expected KEY=VALUE, got 'width'"),
        (["attnviz:cnn", "--normalise", "imagenett"], "did you mean 'imagenet'"),
        (["attnviz:cnn", "--trained", "maybe"], "expected one of auto, no, yes"),
        (["attnviz:cnn", "--count", "0"], "--count: expected 1 or more, got 0"),
        (["attnviz:cnn", "--weights", "nowhere.safetensors"], "nowhere.safetensors cannot be"),
    ],
)
def test_what_cannot_be_examined_is_one_line_and_exit_code_2(words, message, capsys) -> None:
    assert run(["doctor", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("attnviz: ")
    assert said.count("\n") == 1


def test_images_and_weights_may_be_given(tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures" / "deeper"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    model = build("attnviz:cbam", width=8)
    with torch.no_grad():
        model.get_submodule("features.attention.spatial.conv").weight.zero_()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "model": state}, tmp_path / "cbam.pt")  # a training's checkpoint
    words = ["doctor", "attnviz:cbam", *QUICK, "--images", str(tmp_path / "pictures"),
             "--weights", str(tmp_path / "cbam.pt"), "--trained", "yes"]  # fmt: skip
    assert run(words) == 0
    assert "gate-constant at features.attention.spatial" in capsys.readouterr().out
    assert run(["doctor", "attnviz:cbam", "--images", str(tmp_path)]) in (0, 1)
    (tmp_path / "empty").mkdir()
    assert run(["doctor", "attnviz:cbam", "--images", str(tmp_path / "empty")]) == 2
    assert "found none" in capsys.readouterr().err


def test_sarif_names_rules_modules_and_levels(capsys) -> None:
    words = ["attnviz:mha_reshape", "--size", "96", "--count", "3"]
    assert run(["doctor", *words, "--format", "sarif"]) == 1
    log = json.loads(capsys.readouterr().out)
    assert log["version"] == "2.1.0"
    (examined,) = log["runs"]
    (result, *_) = examined["results"]
    assert (result["ruleId"], result["level"]) == ("scrambled-tokens", "error")
    (location,) = result["locations"][0]["logicalLocations"]
    assert location["fullyQualifiedName"].endswith(":features.attention.attend")
    assert {rule["id"] for rule in examined["tool"]["driver"]["rules"]} == {
        one["ruleId"] for one in examined["results"]
    }
    assert examined["invocations"] == [
        {"executionSuccessful": True, "toolExecutionNotifications": []}
    ]


def test_what_was_not_examined_is_neither_clean_nor_exit_code_0(tmp_path, capsys) -> None:
    write_trained(tmp_path)
    (weights,) = tmp_path.rglob("model.safetensors")
    manifest = next(tmp_path.rglob("run.json"))
    header = json.loads(manifest.read_text())
    weights.unlink()
    header["files"] = {k: v for k, v in header["files"].items() if k != "model.safetensors"}
    manifest.write_text(json.dumps(header))
    assert run(["doctor", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "not examined: the run has no weights (model.safetensors)" in out
    assert "nothing wrong was found" not in out
    assert run(["doctor", str(tmp_path), "--format", "sarif"]) == 2
    (examined,) = json.loads(capsys.readouterr().out)["runs"]
    assert examined["invocations"][0]["executionSuccessful"] is False


def test_one_that_fails_does_not_hide_the_others_and_is_named_with_its_reason(capsys) -> None:
    assert run(["doctor", "attnviz:mhaa", "attnviz:cbam", *QUICK, "--json"]) == 2
    first, second = json.loads(capsys.readouterr().out)["examined"]
    assert "did you mean 'mha'" in first["not_examined"][0]
    assert first["headline"].startswith("attnviz:mhaa: not examined: ")
    assert (second["name"], second["not_examined"]) == ("attnviz:cbam", [])
    assert run(["doctor", "attnviz:mha", *QUICK, "--format", "xml"]) == 2
    assert "unknown format 'xml': expected one of json, sarif, text" in capsys.readouterr().err


def test_a_checkpoint_alone_says_how_to_give_its_model(tmp_path, capsys) -> None:
    torch.save({}, tmp_path / "some.pt")
    assert run(["doctor", str(tmp_path / "some.pt")]) == 2
    assert "holds weights without their model; attnviz doctor FACTORY" in capsys.readouterr().err
