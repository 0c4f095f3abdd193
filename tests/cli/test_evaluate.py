"""`attnviz evaluate` gives what `attnviz.evaluate` gives, from words and folders alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

import attnviz as av
from attnviz.cli import run
from attnviz.cli.evaluate import _by_file
from attnviz.cli.model_arguments import build
from attnviz.data import mask_folder
from attnviz.errors import InputError

FACTORY = """
import torch
from torch import nn
from attnviz.layers import CBAM

def net(classes=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), CBAM(8), nn.Conv2d(8, 8, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )
"""
NORMALISED = ["--mean", "0.5", "0.4", "0.3", "--std", "0.25"]
CLASSES = ["stripes", "dots"]  # not in alphabetical order


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images of 40 × 56 pixels with masks, as a folder and as COCO's annotations."""
    (tmp_path / "evaluated_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    images, annotations = [], []
    for k in range(4):
        name = CLASSES[k % 2]
        for where in ("images", "masks"):
            (tmp_path / where / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 255, (40, 56, 3), dtype=np.uint8)
        mask = np.zeros((40, 56), np.uint8)
        mask[8:24, 4 * k : 4 * k + 20] = 255
        Image.fromarray(pixels).save(tmp_path / "images" / name / f"{k}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / name / f"{k}.png")
        images.append({"id": k, "file_name": f"{name}/{k}.png", "height": 40, "width": 56})
        annotations.append({"image_id": k, "category_id": k % 2, "bbox": [4 * k, 8, 20, 16],
                            "area": 320})  # fmt: skip
    categories = [{"id": 0, "name": "stripes"}, {"id": 1, "name": "dots"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, float]]:
    """The scores that the command prints as JSON, map → metric → mean."""
    assert run(["evaluate", *words, "--no-findings", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    return {name: {key: one["mean"] for key, one in scores.items()}
            for name, scores in told["metrics"].items()}  # fmt: skip


def test_the_command_scores_what_the_function_scores_from_masks_and_from_coco(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluated_factory:net", "--images", "images", *NORMALISED, "--size", "40x56"]
    masks = ["--masks", "masks", "--labels", "folder", "--classes", *CLASSES]
    told = evaluated(capsys, *words, *masks)
    transform = Compose([ToTensor(), Normalize((0.5, 0.4, 0.3), (0.25,) * 3)])
    data = mask_folder("images", "masks", transform=transform, labels="folder", classes=CLASSES)
    result = av.evaluate(build("evaluated_factory:net"), data, findings=False)
    assert set(told) == set(result.maps) == {"gate_map", "channel_gated"}
    for name, scores in told.items():
        for key, mean in scores.items():
            assert mean == pytest.approx(result.summary[name][key]["mean"], abs=1e-6), key
    coco = evaluated(capsys, *words, "--coco", "annotations.json", "--classes", *CLASSES)
    for name, scores in told.items():
        assert coco[name] == pytest.approx(scores, abs=1e-6)


def test_a_run_holds_what_it_takes_and_lies_in_no_other_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "evaluated_factory:net", "--images", "images", "--masks", "masks",
             "--labels", "folder", "--classes", *CLASSES, *NORMALISED, "--setting", "seed=3",
             "--no-findings", "--faithfulness", "2", "--knockout", "2", "--rows", "1"]  # fmt: skip
    assert run([*words, "--out", "runs/cbam-s3", "--variant", "mine", "--seed", "3"]) == 0
    assert "gate_map" in capsys.readouterr().out
    found = av.open_run("runs/cbam-s3")
    assert (found.state, found.variant, found.seed) == ("complete", "mine", 3)
    assert found.settings["factory"] == "evaluated_factory:net"
    assert found.settings["model"] == {"seed": 3}
    assert found.mean == pytest.approx([0.5, 0.4, 0.3], abs=1e-6)
    assert found.std == pytest.approx([0.25] * 3, abs=1e-6)
    assert list(found.classes) == CLASSES
    assert found.samples()["label"].tolist() == [1, 1, 0, 0]
    assert found.summary["knockout"]
    assert found.samples()["gate_map/deletion_auc"].notna().sum() == 2
    assert found.verify() == []
    assert run([*words, "--out", "runs/cbam-s3/inside"]) == 2
    assert "is a run" in capsys.readouterr().err
    assert run([*words, "--out", "runs/cbam-s3"]) == 2
    assert "complete run" in capsys.readouterr().err


def test_a_folder_of_hugging_face_brings_its_size_normalisation_and_weights(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8, num_labels=2,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained("saved")
    stated = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    Path("saved/preprocessor_config.json").write_text(json.dumps(stated))
    told = evaluated(capsys, "hf:saved", "--images", "images", "--masks", "masks")
    assert "class_row" in told
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(build("hf:saved")(images).logits, model(images).logits)
    with pytest.raises(InputError, match="hf:saved takes no --setting, got depth"):
        build("hf:saved", depth=1)
    Path("saved/preprocessor_config.json").write_text("{")
    assert run(["evaluate", "hf:saved", "--images", "images", "--masks", "masks"]) == 2
    assert "preprocessor_config.json: expected JSON" in capsys.readouterr().err
    (weights,) = Path("saved").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"config.json and weights as .safetensors"):
        build("hf:saved")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--masks", "masks"], "has no known normalisation"),
        (["--masks", "masks", "--mean", "0.5"], "expected both --mean and --std"),
        (["--masks", "masks", "--mean", "0.5", "--std", "0"], "--std: expected positive"),
        (["--masks", "masks", *NORMALISED, "--size", "4x4x4"], "expected a size in pixels"),
        ([*NORMALISED], "one of the arguments --masks --coco is required"),
        (
            ["--masks", "masks", *NORMALISED, "--labels", "folder", "--classes", "dots", "lines"],
            "unknown class of stripes/",
        ),
        (
            ["--coco", "annotations.json", *NORMALISED, "--labels", "folder"],
            "with --coco an image's label is its largest object's",
        ),
        (
            ["--masks", "masks", "--mean", "128", "--std", "64"],
            "--mean: expected numbers from 0 to 1, of pixels from 0 to 1, got (128.0",
        ),
        (["--masks", "masks", "--mean", "0.5", "--std", "64"], "divide those of pixels from 0 to"),
        (["--masks", "masks", *NORMALISED, "--categories", "dots"], "--categories: belongs to"),
        (
            ["--masks", "masks", *NORMALISED, "--labels", "evaluated_factory.py"],
            "expected a CSV file with the columns name and label",
        ),
        (["--masks", "masks", *NORMALISED, "--labels", "no.csv"], "'folder' or a CSV file"),
        (["--masks", "masks", *NORMALISED, "--maps", "receivd"], "unknown map 'receivd'"),
        (["--masks", "masks", *NORMALISED, "--target", "last"], "unknown target 'last': did you"),
        (
            ["--masks", "masks", *NORMALISED, "--calibration-images", "images"],
            "with either --calibration-masks or --calibration-coco",
        ),
    ],
)
def test_bad_words_are_one_line_that_says_what_was_expected(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(["evaluate", "evaluated_factory:net", "--images", "images", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["0", "-1", "2"], [0, -1, 2]),
        (["1.0", "", "2.0"], [1, None, 2]),  # as pandas writes whole numbers beside empty cells
        (["0.5", "1", "NaN"], [0.5, 1.0, None]),
        (["cat", "", "3"], ["cat", None, "3"]),
    ],
)
def test_a_column_of_numbers_stays_one_beside_empty_and_negative_cells(
    cells: list[str], labels: list[object], tmp_path: Path
) -> None:
    file = tmp_path / "labels.csv"
    rows = [f"{name},{cell}" for name, cell in zip(("a", "b", "x\\c"), cells, strict=True)]
    file.write_text("\n".join(["name,label", *rows]))
    found = _by_file(str(file), "label")
    assert found == dict(zip(("a", "b", "x/c"), labels, strict=True))
    assert [type(value) for value in found.values()] == [type(value) for value in labels]


@pytest.mark.parametrize("cells", [["0_2", "4_6", "8_12"], ["inf", "1", "2"]])
def test_cells_that_only_python_takes_for_numbers_are_text(
    cells: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(["name,label", *(f"{i},{cell}" for i, cell in enumerate(cells))]))
    assert list(_by_file(str(file), "label").values()) == cells


def test_groups_stay_text_and_one_name_has_one_value(tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    file.write_text("name,group\na,01\nb,1\na,01\n")
    assert _by_file(str(file), "group") == {"a": "01", "b": "1"}
    file.write_text("name,group\na,01\na,1\n")
    with pytest.raises(InputError, match="expected one group for each name, a has 01 and 1"):
        _by_file(str(file), "group")


def test_images_without_a_label_in_the_file_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "labels.csv").write_text("name,label\nstripes/0.png,0\n1,1\n2,\n3,1\n")
    words = ["--images", "images", "--masks", "masks", *NORMALISED, "--labels", "labels.csv"]
    assert run(["evaluate", "evaluated_factory:net", *words]) == 2
    assert "labels: 1 images have none, such as 2.png" in capsys.readouterr().err
