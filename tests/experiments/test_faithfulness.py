"""The model is asked whether what a map shows matters to it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import attnviz as av
from attnviz.faithfulness import DEFAULT, faithfulness_scores, knockout
from attnviz.maps import resized
from attnviz.models import build_model
from attnviz.runs import Run, open_dataset
from experiments.evaluation import STEPS
from experiments.running import run_training
from tests.experiments.tiny import TINY

ASKED = dataclasses.replace(TINY, faithful=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_training(ASKED, tmp_path_factory.mktemp("runs"))


def the_model_and_its_images(run: Run) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    model = build_model("mha").eval()
    model.load_state_dict({name: torch.tensor(array) for name, array in run.weights().items()})
    dataset = open_dataset(run.path.parent, str(run.dataset))
    images = torch.tensor(dataset.images()).permute(0, 3, 1, 2).float() / 127.5 - 1
    return model, images, torch.tensor(dataset.masks())


def first_with_a_patch(masks: torch.Tensor) -> torch.Tensor:
    return masks.flatten(1).any(1).nonzero()[:3, 0]


def drawn(model: nn.Module, images: torch.Tensor, name: str) -> torch.Tensor:
    """The maps before a run rounds them to float16, which matters where they are nearly flat."""
    if name == "layer_gradcam":
        return av.attribute(model, images, layer="features.conv3", size="own")
    with torch.no_grad(), av.watch(model) as seen:
        model(images)
    return av.received(next(record for record in seen.values() if record.kind == "attention"))


def test_a_run_keeps_the_faithfulness_of_each_map(run: Run) -> None:
    model, images, masks = the_model_and_its_images(run)
    numbers = first_with_a_patch(masks)
    table = run.samples()
    for name in ("received", "layer_gradcam"):
        maps = drawn(model, images[numbers], name)
        scores = faithfulness_scores(
            model, images[numbers], resized(maps, (32, 32), "bilinear"), steps=STEPS
        )
        for key in DEFAULT:
            column = table[f"{name}/{key}"].to_numpy()
            assert np.allclose(column[numbers], scores[key].numpy(), atol=2e-2), (name, key)
            assert np.isnan(np.delete(column, numbers)).all()
            assert run.summary["metrics"][name][key]["valid"] <= 3


def test_a_run_keeps_what_each_head_is_worth(run: Run) -> None:
    model, images, masks = the_model_and_its_images(run)
    expected = knockout(model, images[first_with_a_patch(masks)]).table
    kept = run.summary["knockout"]
    assert [(row["name"], row["head"], row["way"]) for row in kept] == list(
        zip(expected["name"], expected["head"], expected["way"], strict=True)
    )
    assert np.allclose([row["effect"] for row in kept], expected["effect"], atol=1e-2)
    text = json.loads((run.path / "run.json").read_text())
    assert text["summary"]["knockout"] == kept


@pytest.mark.parametrize(("variant", "faithful"), [("mha", 0), ("cnn", 3)])
def test_what_cannot_be_asked_is_left_out(tmp_path: Path, variant: str, faithful: int) -> None:
    run = run_training(dataclasses.replace(ASKED, variant=variant, faithful=faithful), tmp_path)
    assert run.summary["knockout"] == []
    named = {column.partition("/")[2] for column in run.samples()}
    assert set(DEFAULT) <= named if faithful else not set(DEFAULT) & named
