"""`evaluate` gives what its parts give one by one, for any model, and says what it cannot do."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import attnviz as av
from attnviz.data.samples import Sample
from attnviz.errors import InputError, RunError
from attnviz.evaluation import CheckFailed, evaluate
from attnviz.evaluation.calibration import _box_at
from attnviz.maps import resized
from attnviz.metrics.counted import counted_thresholds
from attnviz.runs import start_run
from attnviz.runs.documents import sealed
from attnviz.testing import assert_looks_at
from tests.evaluation.made import Attending, Listed, Patches, SeveralSizes, convolutions


def test_scores_are_those_of_watch_map_and_metric_by_hand() -> None:
    model, data = Attending().eval(), Patches(10)
    result = evaluate(model, data, batch=10, findings=False)
    images = torch.stack([data[i].image for i in range(10)])
    masks = torch.stack([data[i].mask for i in range(10)])
    with torch.no_grad(), av.watch(model) as seen:
        model(images)
    record = next(iter(seen.values()))
    by_hand = av.localization(av.received(record, size=(32, 32)), masks)
    for key in ("energy_pointing_game", "pointing_game", "pixel_auroc", "oracle_iou"):
        np.testing.assert_allclose(result.samples[f"received/{key}"], by_hand[key], atol=1e-4)
    np.testing.assert_allclose(result.raw("received"), av.received(record), atol=1e-7)
    assert result.primary == "received"


def test_images_come_in_their_order_whatever_the_batch() -> None:
    model, data = Attending(), Patches(11)
    one, other = (evaluate(model, data, batch=b, findings=False) for b in (1, 4))
    assert one.samples["name"].tolist() == [f"{i}.png" for i in range(11)]
    assert one.samples["group"].tolist() == [f"g{i % 3}" for i in range(11)]
    column = "received/energy_pointing_game"
    np.testing.assert_allclose(one.samples[column], other.samples[column], atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(Attending(), nn.Dropout()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, Patches(3))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_vision_transformer_of_others_gives_class_row_and_rollout() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
    )
    data = Patches(6, classes=3)
    result = evaluate(model, data, attributions=["saliency"], findings=False)
    assert result.primary == "class_row"
    assert {"class_row", "rollout", "saliency"} == set(result.maps)
    assert result.raw("rollout").shape == (6, 4, 4)
    assert "1 maps of earlier layers are left out: layers=True" in str(result)
    every = evaluate(model, data, layers=True, findings=False)
    assert {"class_row", "rollout", "class_row.blocks.0.attn"} == set(every.maps)
    pd.testing.assert_series_equal(
        every.samples["class_row/pixel_ap"], result.samples["class_row/pixel_ap"]
    )


class ClassLast(nn.Module):
    """A vision transformer whose class token stands last, behind its places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens, self.token.expand(len(x), -1, -1)], 1)
        found: Tensor = self.head(self.block(tokens)[:, -1])
        return found


def test_places_are_measured_and_a_class_token_that_stands_last_shifts_no_map() -> None:
    model, data = ClassLast().eval(), Patches(4, classes=2)
    result = evaluate(model, data, maps=["received"], findings=False)
    images = torch.stack([data[i].image for i in range(4)])
    with torch.no_grad(), av.watch(model) as seen:
        model(images)
    (record,) = seen.values()
    assert record.weights is not None
    right = record.weights.mean((1, 2))[:, :16].view(4, 4, 4)
    np.testing.assert_allclose(result.raw("received"), right, atol=1e-6)
    assert not result.unmeasured


def test_a_model_without_attention_is_given_grad_cam_at_its_last_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    result = evaluate(model, Patches(4, classes=2), findings=False)
    assert result.maps == ["layer_gradcam"]
    assert result.layers["layer_gradcam"] == "2"
    with pytest.raises(InputError, match="neither attention nor gates"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), Patches(4, classes=2))


def test_thresholds_come_from_the_calibration_split_alone() -> None:
    model, data, other = Attending(), Patches(6), Patches(9, seed=5)
    result = evaluate(model, data, calibration=other, findings=False)
    images = torch.stack([other[i].image for i in range(9)])
    masks = torch.stack([other[i].mask for i in range(9)])
    with torch.no_grad(), av.watch(model.eval()) as seen:
        model(images)
    maps = av.received(next(iter(seen.values())), size=(32, 32))
    tau = av.calibrate_threshold(maps, masks, "iou")
    assert result.thresholds["received"]["max_iou"] == pytest.approx(tau, abs=1e-5)
    assert "max_iou" not in evaluate(model, data, findings=False).summary["received"]
    assert "calibration=" in str(evaluate(model, data, findings=False))


class Interrupted(Patches):
    """A data set that is interrupted when a certain image is read the first time."""

    def __getitem__(self, index: int) -> Sample:
        if index == 7 and 7 not in self.read:
            self.read.append(7)
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_an_interrupted_evaluation_goes_on_to_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import attnviz.evaluation.evaluation as module

    monkeypatch.setattr(module, "PIECE", 3)
    monkeypatch.setattr("attnviz.evaluation.identity.LOOKED_AT", 1)
    model = Attending()
    whole = evaluate(model, Patches(12), save=tmp_path / "whole", findings=False)
    monkeypatch.setattr("attnviz.evaluation.saving.kept", lambda *_: (whole_digest(tmp_path), []))
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, Interrupted(12), save=tmp_path / "halted", findings=False)
    assert av.open_run(tmp_path / "halted").state == "stopped"
    data = Patches(12)
    again = evaluate(model, data, save=tmp_path / "halted", findings=False)
    # the first image is looked at to plan; then only the pieces that are missing are computed
    assert [number for number in data.read if number][:6] == [6, 7, 8, 9, 10, 11]
    pd.testing.assert_frame_equal(again.samples, whole.samples)
    run = av.open_run(tmp_path / "halted")
    assert run.state == "complete"
    assert run.verify() == []
    assert not (tmp_path / "halted" / "pieces").exists() or not list(
        (tmp_path / "halted" / "pieces").iterdir()
    )


def whole_digest(root: Path) -> str | None:
    return av.open_run(root / "whole").dataset


def test_another_evaluation_s_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Attending()
    evaluate(model, Patches(4), save=tmp_path / "a", findings=False)
    with pytest.raises(RunError, match="holds a complete run; save= needs"):
        evaluate(model, Patches(4), save=tmp_path / "a", findings=False)
    monkeypatch.setattr("attnviz.evaluation.saving.kept", lambda *_: (None, []))
    monkeypatch.setattr("attnviz.evaluation.identity.LOOKED_AT", 1)
    few = ["iou_at_area"]
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, Interrupted(9), save=tmp_path / "b", findings=False, metrics=few)
    with pytest.raises(RunError, match="begun with another evaluation"):
        evaluate(model, Patches(9), save=tmp_path / "b", findings=False)


class Stopped(Patches):
    """A data set whose image 5 cannot be read once scores are computed."""

    def __getitem__(self, index: int) -> Sample:
        if index == 5 and any(frame.function == "piece_of" for frame in inspect.stack()):
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": Patches(9, classes=3, seed=4)}, "another data set .its images, masks, labels"),
        ({"target": 1}, "begun with another target; save= to a new folder"),
        ({"target": lambda y: y[:, 0]}, "begun with another target"),
        ({"calibration": Patches(3, seed=6)}, "begun with another calibration"),
        ({"calibration": None}, "begun with another calibration"),
        ({"seed": 1}, "begun with another seed"),
        ({"variant": "b"}, "begun with another variant"),
        ({"metrics": ["pixel_auroc"]}, r"begun with another evaluation \(metrics\)"),
        ({}, None),
    ],
)  # fmt: skip
def test_a_resumed_run_has_the_data_target_and_names_of_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str | None
) -> None:
    import attnviz.evaluation.evaluation as module

    monkeypatch.setattr(module, "PIECE", 4)
    first = {
        "data": Patches(9, classes=3), "calibration": Patches(3, seed=5), "seed": 0,
        "variant": "a", "findings": False, "attributions": ["saliency"],
    }  # fmt: skip
    model = Attending(3)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, save=tmp_path / "a", **{**first, "data": Stopped(9, classes=3)})
    if message is None:
        evaluate(model, save=tmp_path / "a", **first)
        settings = av.open_run(tmp_path / "a").settings
        assert (settings["target"], settings["evaluation"]["target"]) == ("label", "label")
        return
    with pytest.raises(RunError, match=message):
        evaluate(model, save=tmp_path / "a", **{**first, **changes})
    assert av.open_run(tmp_path / "a").state == "stopped"


def test_a_run_of_an_earlier_version_that_notes_no_target_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import attnviz.evaluation.evaluation as module

    monkeypatch.setattr(module, "PIECE", 4)
    model = Attending(3)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, Stopped(9, classes=3), save=tmp_path / "a", findings=False)
    header = json.loads((tmp_path / "a" / "run.json").read_text())
    del header["settings"]["target"]
    for name in ("data", "calibration", "target"):
        del header["settings"]["evaluation"][name]
    (tmp_path / "a" / "run.json").write_bytes(sealed(header))
    evaluate(model, Patches(9, classes=3), save=tmp_path / "a", findings=False)
    assert av.open_run(tmp_path / "a").state == "complete"


def test_runs_of_other_targets_are_not_ranked(tmp_path: Path) -> None:
    for target in ("label", "predicted"):
        evaluate(
            Answer(lambda y: y.mean((2, 3))), with_labels([0, 2, 1, 0]), target=target,
            findings=False, variant=target, save=tmp_path / target,
        )  # fmt: skip
    with pytest.raises(InputError, match=r"answer different questions: target: label \(label"):
        av.compare(tmp_path)


def test_evaluations_of_other_targets_are_not_ranked(tmp_path: Path) -> None:
    found = [
        evaluate(
            Answer(lambda y: y.mean((2, 3))), with_labels([0, 2, 1, 0]), target=target,
            findings=False, variant=str(target),
        )
        for target in ("label", 1)
    ]  # fmt: skip
    with pytest.raises(InputError, match="answer different questions: target: label"):
        av.compare(found)
    assert found[1].save(tmp_path / "a").settings["target"] == 1


def test_processes_compute_the_same_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import attnviz.evaluation.evaluation as module

    monkeypatch.setattr(module, "PIECE", 4)
    model, data = Attending(), Patches(8)
    alone = evaluate(model, data, findings=False)
    spread = evaluate(model, data, findings=False, workers=2)
    pd.testing.assert_frame_equal(alone.samples, spread.samples, check_exact=True)


class Answer(nn.Module):
    """A convolution whose output is shaped by a function."""

    def __init__(self, shape: Any, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.shape = nn.Conv2d(3, classes, 3, padding=1), shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(self.conv(x))


def with_labels(labels: list[Any]) -> Listed:
    made = Patches(len(labels))
    samples = [made[i] for i in range(len(labels))]
    return Listed(
        [Sample(s.image, s.mask, None, None, y) for s, y in zip(samples, labels, strict=True)]
    )


@pytest.mark.parametrize(
    ("shape", "classes", "labels", "columns"),
    [
        (lambda y: y.mean((1, 2, 3)), 1, [0, 1, 1], {"probability", "correct"}),
        (lambda y: y.mean((2, 3)), 3, [0, 2, 1], {"probability", "confidence", "correct"}),
        (lambda y: {"logits": y.mean((2, 3))}, 3, [0, 2, 1], {"probability", "correct"}),
        (lambda y: (y.mean((2, 3)), None), 3, [0, 2, 1], {"probability", "correct"}),
        (
            lambda y: y.mean((2, 3)), 3,
            [torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0])],
            {"confidence", "correct"},
        ),
        (lambda y: y.mean((1, 2, 3)), 1, [0.5, 2.5, 1.25], {"prediction", "loss"}),
        (lambda y: {"out": y}, 3, [0, 2, 1], {"probability"}),
        (lambda y: y.mean((2, 3)), 3, [None] * 3, set()),
    ],
    ids=["binary", "classes", "logits", "tuple", "several", "regression", "segments", "embedding"],
)  # fmt: skip
def test_outputs_of_every_form_are_read(
    shape: Any, classes: int, labels: list[Any], columns: set[str]
) -> None:
    result = evaluate(Answer(shape, classes), with_labels(labels), findings=False)
    assert columns <= set(result.samples)
    assert result.maps == ["layer_gradcam"]


def test_targets_choose_what_an_attribution_explains() -> None:
    model = Answer(lambda y: y.mean((2, 3)))
    data = with_labels([0, 2, 1])
    images = torch.stack([data[i].image for i in range(3)])
    logits = model(images)
    targets = {"label": [0, 2, 1], "predicted": logits.argmax(1), 1: 1}
    for target, index in targets.items():
        result = evaluate(model, data, attributions=["saliency"], target=target, findings=False)  # type: ignore[arg-type]  # a union of literals
        right = av.attribute(model, images, method="saliency", target=index)
        np.testing.assert_allclose(result.raw("saliency"), right.numpy(), atol=1e-6)
    own = evaluate(model, data, attributions=["saliency"], target=lambda y: y.square().sum(1),
                   findings=False)  # fmt: skip
    assert own.raw("saliency").shape == (3, 32, 32)


def test_targets_are_indices_of_any_type_and_names_of_classes() -> None:
    model, data = Answer(lambda y: y.mean((2, 3))), with_labels([0, 2, 1])
    options: dict[str, Any] = {"attributions": ["saliency"], "findings": False}
    right = evaluate(model, data, target=1, **options)
    for target in (np.int64(1), "dog"):
        found = evaluate(model, data, target=target, classes=["cat", "dog", "owl"], **options)  # type: ignore[arg-type]  # what is tested
        assert found.target == 1
        np.testing.assert_array_equal(found.raw("saliency"), right.raw("saliency"))
    without = with_labels([None] * 3)
    for target in ("predicted", 1):
        found = evaluate(model, without, target=target, **options)  # type: ignore[arg-type]  # a union of literals
        want = evaluate(model, data, target=target, **options)  # type: ignore[arg-type]  # the same
        np.testing.assert_array_equal(found.raw("saliency"), want.raw("saliency"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lable", "unknown target 'lable': did you mean 'label'"),
        ("dgo", "unknown target 'dgo': did you mean 'dog'"),
        (1.0, "a class's name or a function of the outputs, got 1.0"),
        (torch.tensor(1), "expected 'label', 'predicted', an index"),
        ([0, 1, 2], "each image has a target of its own by 'label' and 'predicted' only"),
        (True, "expected 'label', 'predicted', an index"),
        (9, "target: expected an output from 0 to 2, got 9"),
        (-1, "target: expected an output from 0 to 2, got -1"),
    ],
)
@pytest.mark.parametrize("attending", [False, True])
def test_other_targets_are_refused(
    attending: bool, target: Any, message: str, unchecked: None
) -> None:
    model = Attending(3) if attending else Answer(lambda y: y.mean((2, 3)))
    with pytest.raises(InputError, match=message):
        evaluate(
            model, with_labels([0, 2, 1]), target=target, classes=["cat", "dog", "owl"],
            findings=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    "labels",
    [[np.float64(0), np.float64(2), np.float64(1)], [torch.tensor(float(k)) for k in (0, 2, 1)]],
)
def test_whole_numbers_are_classes_of_whatever_type(labels: list[Any], unchecked: None) -> None:
    model = Answer(lambda y: y.mean((2, 3)))
    options: dict[str, Any] = {"attributions": ["saliency"], "findings": False}
    right = evaluate(model, with_labels([0, 2, 1]), **options)
    found = evaluate(model, with_labels(labels), **options)
    pd.testing.assert_frame_equal(found.samples, right.samples)


@pytest.mark.parametrize("kind", [float, np.bool_, np.float32, lambda k: torch.tensor(float(k))])
def test_labels_0_and_1_of_one_output_are_binary_of_whatever_type(
    kind: Any, unchecked: None
) -> None:
    model = Answer(lambda y: y.mean((1, 2, 3)), 1)
    right = evaluate(model, with_labels([0, 1, 1]), findings=False)
    found = evaluate(model, with_labels([kind(k) for k in (0, 1, 1)]), findings=False)
    assert found.accuracy == right.accuracy
    np.testing.assert_array_equal(found.samples["correct"], right.samples["correct"])


def test_labels_of_one_output_other_than_0_and_1_are_of_a_regression() -> None:
    model = Answer(lambda y: y.mean((1, 2, 3)), 1)
    for labels in ([1, 5, 3], [5, 1, 3]):
        found = evaluate(model, with_labels(labels), findings=False).samples
        assert "correct" not in found
        np.testing.assert_allclose(found["loss"], (found["prediction"] - labels) ** 2)


def test_labels_count_though_the_first_image_has_none() -> None:
    model = Answer(lambda y: y.mean((2, 3)))
    first = evaluate(model, with_labels([None, 0, 2, 1]), target="predicted", findings=False)
    last = evaluate(model, with_labels([0, 2, 1, None]), target="predicted", findings=False)
    assert first.samples["label"].tolist()[1:] == [0, 2, 1]
    assert set(first.samples) == set(last.samples)
    assert first.samples["correct"].notna().tolist() == [False, True, True, True]


@pytest.mark.parametrize("missing", [float("nan"), torch.tensor(float("nan"))])
def test_a_label_that_is_nan_is_none(missing: Any, unchecked: None) -> None:
    for shape, outputs, labels in (((2, 3), 3, [2, missing]), ((1, 2, 3), 1, [1, missing])):
        model = Answer(lambda y, shape=shape: y.mean(shape), outputs)
        found = evaluate(model, with_labels(labels), target="predicted", findings=False)
        assert found.samples["label"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("shape", "outputs", "labels", "message"),
    [
        ((2, 3), 3, [0, 3], "item 1: expected a label from 0 to 2, got 3"),
        ((2, 3), 3, [0, -1], "item 1: expected a label from 0 to 2, got -1"),
        ((2, 3), 3, [0, 0.5, 1], None),
        ((2, 3), 3, ["a", "b"], "item 0: expected a label that is a finite number, or None where"),
        ((2, 3), 3, [0, [0, 1]], r"expected a label that is a finite number, .* got \[0, 1\]"),
        ((2, 3), 3, [float("inf")] * 2, "expected a label that is a finite number, .* got inf"),
        (
            (2, 3), 3, [torch.tensor([0, 1, 1]), torch.tensor([0, 1])],
            r"item 1: expected a label of 3 classes, as a vector, got \(2,\)",
        ),
        (
            (2, 3), 3, [torch.tensor([0, 1, 1]), 1],
            "item 1: expected a label of 3 classes, as a vector, got 1",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", ["label", "predicted"])
def test_labels_that_no_output_has_are_named(
    target: Any, shape: Any, outputs: int, labels: list[Any], message: str | None, unchecked: None
) -> None:
    model, data = Answer(lambda y: y.mean(shape), outputs), with_labels(labels)
    if message is None:
        assert "correct" not in evaluate(model, data, target=target, findings=False).samples
        return
    with pytest.raises(InputError, match=message):
        evaluate(model, data, target=target, findings=False)


def test_labels_of_another_kind_than_those_looked_at_first_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("attnviz.evaluation.identity.LOOKED_AT", 2)
    with pytest.raises(InputError, match="item 1: expected a label 0 or 1 of a model of one"):
        evaluate(Answer(lambda y: y.mean((1, 2, 3)), 1), with_labels([0, 5, 1]), findings=False)
    with pytest.raises(InputError, match="item 1: expected no label, as of the images that were"):
        evaluate(Answer(lambda y: y.mean((2, 3))), with_labels([None, 1, None]), findings=False)


@pytest.mark.parametrize(
    ("shape", "classes", "label"),
    [
        (lambda y: y.mean((2, 3)), 3, 0),
        (lambda y: y.mean((1, 2, 3)), 1, 0),
        (lambda y: y.mean((2, 3)), 3, torch.tensor([0, 0, 0])),
    ],
)
def test_an_answer_that_is_no_number_is_neither_right_nor_wrong(
    shape: Any, classes: int, label: Any
) -> None:
    model = Answer(lambda y: shape(y) * torch.nan, classes)
    found = evaluate(model, with_labels([label] * 3), findings=False)
    assert np.isnan(found.accuracy)
    assert found.samples["prediction"].isna().all()
    assert "3 with outputs that are NaN or infinite" in str(found)


def test_a_model_s_mistakes_are_counted() -> None:
    model = Answer(lambda y: y.mean((2, 3)))
    data = with_labels([0, 2, 1])
    predicted = model(torch.stack([data[i].image for i in range(3)])).argmax(1)
    result = evaluate(model, data, findings=False, classes=["cat", "dog", "owl"])
    right = predicted == torch.tensor([0, 2, 1])
    assert result.accuracy == pytest.approx(float(right.double().mean()))
    assert set(result.by("class")["class"]) == {"cat", "dog", "owl"}


def sample(**changes: Any) -> Sample:
    made = Patches(1)[0]
    return Sample(
        **{"image": made.image, "mask": made.mask, "label": 0, "name": "a.png", **changes}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.full((3, 32, 32), torch.nan)}, "item 1 .a.png.: the image holds NaN"),
        ({"image": torch.zeros(3, 32, 32).byte()}, r"expected an image .* torch\.uint8"),
        ({"mask": torch.zeros(20, 32, dtype=torch.bool)}, "same transform"),
        ({"mask": torch.zeros(32, 32)}, "booleans"),
        ({"boxes": torch.tensor([[0, 0, 40, 8]])}, r"item 1 \(a.png\): expected boxes .* inside"),
        ({"boxes": torch.tensor([[8, 0, 8, 8]])}, "inside the 32 × 32 image"),
        ({"ignore": torch.zeros(8, 8, dtype=torch.bool)}, "ignored pixels of the mask's size"),
    ],
)  # fmt: skip
def test_bad_input_is_named_by_item_and_file(
    changes: dict[str, Any], message: str, unchecked: None
) -> None:
    data = Listed([sample(), sample(**changes)])
    with pytest.raises(InputError, match=message):
        evaluate(Attending(), data, findings=False)


def test_ignored_pixels_need_a_mask(unchecked: None) -> None:
    ignore = torch.zeros(32, 32, dtype=torch.bool)
    with pytest.raises(InputError, match="ignored pixels without a mask"):
        evaluate(Attending(), Listed([sample(mask=None, ignore=ignore)]), findings=False)


def test_what_is_no_sample_is_refused(unchecked: None) -> None:
    mixed = Listed([sample(), (torch.zeros(3, 32, 32), 1)])  # type: ignore[list-item]  # the point
    with pytest.raises(InputError, match=r"item 1: expected an attnviz\.data\.Sample, got tuple"):
        evaluate(Attending(), mixed, findings=False)


def test_a_label_is_needed_where_it_is_the_target() -> None:
    data = with_labels([0, None])
    with pytest.raises(InputError, match="item 1: target='label' and no label; give labels"):
        evaluate(Answer(lambda y: y.mean((2, 3))), data, findings=False)
    several = with_labels([torch.tensor([0, 1])])
    with pytest.raises(InputError, match="labels of 2 classes and outputs"):
        evaluate(Answer(lambda y: y.mean((2, 3))), several, findings=False)


def test_calibration_needs_images_with_masks() -> None:
    bare = Listed([Sample(Patches(1)[0].image, None, label=0)])
    with pytest.raises(InputError, match="expected calibration images with masks, got none"):
        evaluate(Attending(), Patches(2), calibration=bare, findings=False)


def test_labels_outside_the_classes_are_named() -> None:
    data = with_labels([0, 7])
    with pytest.raises(InputError, match=r"item 1: expected a label from 0 to 2, got 7"):
        evaluate(Answer(lambda y: y.mean((2, 3))), data, findings=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet18"}, "an instance of torch.nn.Module, got 'resnet18'; attnviz.build_"),
        ({"model": Attending}, "expected a model, .* got the class Attending"),
        ({"model": lambda x: x}, "expected a model, .* got function"),
        ({"device": "gpu"}, "device: expected one that torch has here, .* got 'gpu'"),
        ({"device": "cuda:99"}, "device: expected one that torch has here"),
        ({"faithfulness": [99]}, "faithfulness: expected how many images, .* from 0 to 2, got 99"),
        ({"faithfulness": -1}, "faithfulness: expected how many images, .* got -1"),
        ({"faithfulness": {"images": [3]}}, "faithfulness: expected how many images, .* got 3"),
        ({"faithfulness": [0.5]}, r"faithfulness: expected how many images, .* got 0\.5"),
        ({"knockout": [77]}, "knockout: expected how many images, .* from 0 to 2, got 77"),
        ({"faithfulness": np.array([0])}, "faithfulness: expected how many images, .* got array"),
        ({"knockout": "all"}, "knockout: expected how many images, .* got 'all'"),
        (
            {"attributions": {"saliency": None}},
            r"attributions: expected arguments of saliency by name, such as \{\}, got None",
        ),
        ({"attributions": "saliency"}, "attributions: expected a list of names, got the text 'sal"),
        ({"metrics": "pointing_game"}, "metrics: expected a list of names, got the text 'pointing"),
        ({"maps": "received"}, "maps: expected a list of names, got the text 'received'"),
    ],
)
def test_arguments_of_another_kind_are_refused_before_the_work(
    options: dict[str, Any], message: str, unchecked: None
) -> None:
    data = Patches(3)
    with pytest.raises(InputError, match=message):
        evaluate(**{"model": Attending(), "data": data, **options})
    assert set(data.read) <= {0}


def test_numbers_of_images_are_of_any_integer_type() -> None:
    found = evaluate(
        Attending(), Patches(3), faithfulness=(np.int64(0), 2), knockout=np.int64(2), findings=False
    )  # type: ignore[call-overload]  # what is tested
    assert found.samples["received/deletion_auc"].notna().tolist() == [True, False, True]


def test_a_run_is_not_written_over_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"file is a file; save= needs a folder for the run \(--out"):
        evaluate(Attending(), Patches(2), save=tmp_path / "file", findings=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(RunError, match="notes holds files that are no run; save= needs a new"):
        evaluate(Attending(), Patches(2), save=tmp_path / "notes", findings=False)
    assert not (tmp_path / "datasets").exists()


def test_a_map_that_the_model_has_not_is_said_where_grad_cam_is_scored_instead() -> None:
    found = evaluate(convolutions(), Patches(3, classes=2), maps=["class_row"], findings=False)
    assert found.maps == ["layer_gradcam"]
    said = "no map class_row: the model has no attention or gate that this map is of"
    assert f"{said}; layer_gradcam is scored instead" in str(found)
    some = evaluate(Attending(), Patches(3), maps=["received", "class_row"], findings=False)
    assert some.maps == ["received"]
    assert "no map class_row" in str(some)
    assert "scored instead" not in str(some)


def test_the_table_says_why_no_image_has_a_score() -> None:
    empty = torch.zeros(32, 32, dtype=torch.bool)
    data = Listed(
        [Sample(one.image, empty, label=0) for one in map(Patches(2).__getitem__, (0, 1))]
    )
    told = "received: no image could be scored: "
    assert f"{told}no mask has anything in it" in str(evaluate(Attending(), data, findings=False))
    broken = convolutions()
    with torch.no_grad():
        for weight in broken.parameters():
            weight.fill_(torch.nan)
    said = str(evaluate(broken, Patches(3, classes=2), findings=False))
    assert "layer_gradcam: no image could be scored: its maps are NaN or infinite" in said
    assert told not in str(evaluate(Attending(), Patches(3), findings=False))


def test_demands_that_cannot_be_read_and_metrics_without_scores_are_refused() -> None:
    found = evaluate(Attending(), Patches(3), findings=False)
    for demand in (">= 1.2.3", ">= .", 0.3, ">= "):
        with pytest.raises(InputError, match=r"expected a demand such as '>= \.3', got"):
            found.check(energy_pointing_game=demand)  # type: ignore[arg-type]  # one is a number
    found.check(energy_pointing_game=">= .0", pixel_auroc=">= 0.")
    with pytest.raises(InputError, match="max_iou of received needs a threshold: evaluate with"):
        found.check(max_iou=">= .3")
    with pytest.raises(InputError, match="unknown metric 'pointing': did you mean 'pointing_game'"):
        found.to_latex(["pointing"])


def test_unknown_names_are_refused_before_the_work() -> None:
    data = Patches(3)
    for options, message in (
        ({"maps": ["recieved"]}, "did you mean 'received'"),
        ({"metrics": ["energy"]}, "unknown metric"),
        ({"attributions": ["salience"]}, "did you mean 'saliency'"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(Attending(), data, **options)  # type: ignore[arg-type]  # one of them each
    assert set(data.read) <= {0}


def test_ignored_pixels_count_neither_way() -> None:
    made = Patches(1)[0]
    assert made.mask is not None
    ignore = torch.zeros(32, 32, dtype=torch.bool)
    ignore[made.mask.nonzero()[:, 0].min() + 4 :] = True  # the lower half of the patch
    model = Attending()
    result = evaluate(
        model, Listed([Sample(made.image, made.mask, ignore=ignore, label=0)]), findings=False
    )
    large = torch.nn.functional.interpolate(
        torch.from_numpy(result.raw("received"))[None], size=(32, 32), mode="bilinear"
    )[0, 0]
    inside = large[made.mask & ~ignore].sum() / large[~ignore].sum()
    score = result.samples["received/energy_pointing_game"][0]
    assert score == pytest.approx(float(inside), abs=1e-5)


def partly_ignored(count: int, seed: int = 0) -> Listed:
    """Images of which a strip at the right and below counts neither way, as in VOC."""
    made = Patches(count, seed=seed)
    found = []
    for index in range(count):
        one = made[index]
        assert one.mask is not None
        ignore = torch.zeros(32, 32, dtype=torch.bool)
        ignore[:, 20 + index % 8 :] = ignore[22:] = True
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[4 + index % 5 : 14, 3 : 9 + index % 4] = True
        found.append(Sample(one.image, mask, None, ignore, 0))
    return Listed(found)


def test_reference_levels_and_thresholds_are_of_the_pixels_that_count() -> None:
    """A slow twin: chance, and the best of all thresholds, with the ignored pixels taken out."""
    data, held = partly_ignored(6), partly_ignored(5, seed=3)
    keys = ["energy_pointing_game", "pixel_auroc", "mass_lift", "max_iou", "max_box_acc"]
    model = Attending()
    result = evaluate(model, data, calibration=held, metrics=keys, findings=False)
    shares = [float(s.mask.sum() / (~s.ignore).sum()) for s in data.samples]
    found = result.summary["received"]
    assert found["energy_pointing_game"]["chance"] == pytest.approx(np.mean(shares))
    assert found["mass_lift"]["chance"] == pytest.approx(1)
    assert found["mass_lift"]["bound"] == pytest.approx(np.mean([1 / share for share in shares]))
    assert found["pixel_auroc"]["chance"] == pytest.approx(0.5)
    assert "max_box_acc" not in found  # no image of the calibration split is whole

    raw = torch.from_numpy(evaluate(model, held, findings=False).raw("received"))
    large = resized(raw, (32, 32), "bilinear").double()
    counted = [
        (one[~s.ignore], s.mask[~s.ignore]) for one, s in zip(large, held.samples, strict=True)
    ]
    scaled = [((one - one.min()) / (one.max() - one.min()), mask) for one, mask in counted]

    def iou(tau: float) -> float:
        return float(np.mean([((one >= tau) & mask).sum() / ((one >= tau) | mask).sum()
                              for one, mask in scaled]))  # fmt: skip

    best = max(iou(float(tau)) for one, _ in scaled for tau in one)
    assert iou(result.tau("received", "max_iou")) == pytest.approx(best)


def test_no_threshold_is_best_where_maps_say_nothing_and_pixels_are_ignored() -> None:
    maps = torch.zeros(1, 4, 4)
    maps[0, 0] = maps[0, 1, 0] = 1  # half of the mask among five pixels: IoU 1/6, of all 2/8
    mask, ignore = torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, :2] = True
    ignore[0, 2:] = True
    assert counted_thresholds(maps, mask, ignore, ["iou"]) == {"iou": 0.0}


def test_levels_are_of_the_pixels_that_count(unchecked: None) -> None:
    masks, ignore = torch.zeros(2, 8, 8, dtype=torch.bool), torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[:, :4, :4] = ignore[:, 4:] = ignore[0, :, :2] = True
    found = av.baselines(masks, (4, 4), ["energy_pointing_game", "max_iou"], ignore=ignore)
    assert found["energy_pointing_game"]["chance"] == pytest.approx((8 / 24 + 16 / 32) / 2)
    assert found["max_iou"]["redrawn"] == 1
    with pytest.raises(InputError, match="ignore: max_box_acc is of whole images; leave out"):
        av.baselines(masks, (4, 4), ["max_box_acc"], ignore=ignore)
    with pytest.raises(InputError, match=r"ignore: expected bool \(2, 8, 8\) as the masks"):
        av.baselines(masks, (4, 4), ignore=ignore[:1])


def test_thresholds_of_boxes_are_chosen_by_the_annotated_boxes() -> None:
    made = Patches(8)
    both = [[[6, k, 14, k + 10], [14, k, 28, k + 10]] for k in range(8)]
    samples = []
    for k, boxes in enumerate(both):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[k : k + 10, 6:28] = True
        samples.append(Sample(made[k].image, mask, torch.tensor(boxes), None, 0))
    data, model = Listed(samples), Attending()
    key = "max_box_acc_v2"
    result = evaluate(model, data, calibration=data, metrics=[key], findings=False)
    large = resized(torch.from_numpy(result.raw("received")), (32, 32), "bilinear")
    masks = torch.stack([s.mask for s in samples if s.mask is not None])
    boxes = [s.boxes for s in samples]
    assert result.tau("received", key) == av.calibrate_threshold(large, masks, key, boxes=boxes)
    assert result.tau("received", key) != av.calibrate_threshold(large, masks, key)
    small = Sample(made[0].image, masks[0], torch.tensor([[6, 0, 14, 10], [0, 0, 1, 1]]), None, 0)
    halved = _box_at(small, (32, 32), (16, 16))
    assert halved is not None
    assert halved.tolist() == [[3, 0, 7, 5], [0, 0, 1, 1]]


def test_images_of_different_sizes_are_scored_at_their_own() -> None:
    small, large = Patches(2), Patches(2, side=48)
    data = Listed([small[0], large[0], small[1], large[1]])
    model = Attending()
    mixed = evaluate(model, data, findings=False)
    alone = evaluate(model, small, findings=False)
    key = "received/energy_pointing_game"
    np.testing.assert_allclose(mixed.samples[key][[0, 2]], alone.samples[key], atol=1e-6)
    assert mixed.samples[key].notna().all()


def test_an_image_without_a_mask_has_no_score_and_no_zero() -> None:
    made = Patches(2)
    data = Listed([made[0], Sample(made[1].image, None, label=1)])
    result = evaluate(Attending(), data, findings=False)
    scores = result.samples["received/energy_pointing_game"]
    assert scores.notna().tolist() == [True, False]
    assert result.summary["received"]["energy_pointing_game"]["valid"] == 1


def test_a_run_is_complete_readable_and_ranked(tmp_path: Path) -> None:
    for seed in (0, 1):
        model = Attending(2)
        with torch.no_grad():
            model.head.weight.add_(0.1 * seed)
        result = evaluate(
            model, Patches(12, classes=2), save=tmp_path / f"own-{seed}", variant="own",
            seed=seed, thing="lesion", classes=["no", "yes"], rows=2, knockout=2, faithfulness=2,
        )  # fmt: skip
    assert result.raw("received").shape == (12, 8, 8)  # of a saved one, read from its run
    run = av.open_run(tmp_path / "own-0")
    assert run.verify() == []
    assert run.summary["thing"] == "lesion"
    assert run.summary["map"] == "received"
    assert run.rows("received").shape[0] == 2
    assert run.test_set().images().shape == (12, 32, 32, 3)
    assert "received/deletion_auc" in run.samples()
    assert av.compare(tmp_path).variants == ["own"]


def test_a_check_fails_with_the_interval_in_its_message() -> None:
    result = evaluate(Attending(), Patches(8), findings=False)
    assert result.check(energy_pointing_game="> 0") is result
    with pytest.raises(CheckFailed, match=r"\[95 % CI .* on 8 of 8 images, demanded >= \.9"):
        result.check(energy_pointing_game=">= .9")
    with pytest.raises(InputError, match=r"such as '>= \.3'"):
        result.check(energy_pointing_game="big")
    with pytest.raises(AssertionError):
        assert_looks_at(Attending(), Patches(8), energy_pointing_game=">= .9")
    with pytest.raises(InputError, match="expected a demand"):
        assert_looks_at(Attending(), Patches(8))


def test_the_table_latex_and_figure_show_every_map() -> None:
    result = evaluate(Attending(), Patches(8), findings=False)
    assert {"map", "metric", "mean", "low", "high", "chance", "valid", "n"} <= set(result.table)
    assert "received" in result.to_latex()
    assert result.figure().axes
    assert len(result.worst(3)) == 3
    assert "received" in str(result)


def test_heads_are_scored_one_by_one_and_the_best_is_chosen_on_the_calibration_split(
    tmp_path: Path,
) -> None:
    model, data, other = Attending().eval(), Patches(6), Patches(9, seed=5)
    result = evaluate(
        model, data, calibration=other, heads=True, rows=2, findings=False, save=tmp_path / "run"
    )

    def by_hand(split: Patches) -> np.ndarray:
        samples = [split[i] for i in range(len(split))]
        with torch.no_grad(), av.watch(model) as seen:
            model(torch.stack([one.image for one in samples]))
        maps = av.received(next(iter(seen.values())), size=(32, 32), heads="each")
        masks = torch.stack([one.mask for one in samples])
        return np.stack(
            [av.localization(maps[:, h], masks)["energy_pointing_game"] for h in range(4)], 1
        )

    np.testing.assert_allclose(result.head_scores("received"), by_hand(data), atol=1e-5)
    held = by_hand(other)
    mean_of_heads = result.chosen["received"]
    assert mean_of_heads["of"] == 5  # four heads and their mean
    best = int(held.mean(0).argmax())
    assert mean_of_heads["head"] == best
    assert mean_of_heads["score"] == pytest.approx(held.mean(0)[best], abs=1e-5)
    chosen = result.heads.query("choice != '' and metric == 'energy_pointing_game'")
    assert chosen["head"].tolist() == [best]
    assert chosen["mean"].item() == pytest.approx(by_hand(data).mean(0)[best], abs=1e-5)
    assert f"received, head {best} is best on 9 calibration images" in str(result)
    run = av.open_run(tmp_path / "run")
    assert run.maps("received.heads").shape == (6, 4, 8, 8)
    assert run.rows("received").shape == (2, 4, 64, 64)
    assert run.summary["chosen"]["received"]["head"] == best
    assert "head_scores.safetensors" in run.files
    with pytest.raises(InputError, match="no heads of 'received' by 'max_iou'"):
        result.head_scores("received", "max_iou")


def test_no_layer_or_head_is_chosen_on_the_images_that_are_reported() -> None:
    result = evaluate(Attending(), Patches(4), heads=True, findings=False)
    assert result.chosen == {}
    assert set(result.heads["choice"]) == {""}


def test_whole_attention_is_kept_for_as_many_images_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from attnviz.evaluation import saving

    for room, count in ((saving.ROWS_BYTES, 3), (2 * 4 * 4 * 64 * 64 + 1, 2), (100, 0)):
        monkeypatch.setattr(saving, "ROWS_BYTES", room)
        result = evaluate(Attending(), Patches(4), rows=3, findings=False)
        assert sum(len(rows.weights) for rows in result.rows.values()) == count


def test_an_evaluation_is_written_into_a_run_that_holds_more(tmp_path: Path) -> None:
    model, data = Attending(), Patches(4)
    with start_run(tmp_path, "both", variant="mine", settings={}, seed=0) as writer:
        writer.curve(epoch=1, loss=0.5)
        result = evaluate(model, data, save=writer, findings=False)
        summary = result.write(writer, model)
        writer.finish(summary | {"loss": 0.25})
    run = av.open_run(tmp_path / "both")
    assert (run.state, run.summary["loss"], run.verify()) == ("complete", 0.25, [])
    pd.testing.assert_frame_equal(run.samples(), result.samples)
    assert set(run.files) == {
        "curves.jsonl", "maps/received.safetensors", "model.safetensors", "samples.parquet"
    }  # fmt: skip
    assert not (tmp_path / "both" / "pieces").exists()


def test_pieces_of_another_model_in_the_same_run_are_not_taken(tmp_path: Path) -> None:
    data, other = Patches(4), Attending()
    with torch.no_grad():
        other.stem.weight.neg_()
    with start_run(tmp_path, "both", variant="mine", settings={}, seed=0) as writer:
        evaluate(other, data, save=writer, findings=False)
        result = evaluate(Attending(), data, save=writer, findings=False)
        writer.finish(result.write(writer))
    pd.testing.assert_frame_equal(
        av.open_run(tmp_path / "both").samples(),
        evaluate(Attending(), data, findings=False).samples,
    )


def test_faithfulness_takes_numbers_of_images_and_options() -> None:
    from attnviz.faithfulness import faithfulness_scores

    model, data = Attending().eval(), Patches(5)
    options = {"images": [1, 3], "steps": 4, "metrics": ["deletion_auc"]}
    result = evaluate(model, data, faithfulness=options, findings=False)
    images = torch.stack([data[i].image for i in (1, 3)])
    maps = torch.from_numpy(result.raw("received"))[[1, 3]]
    large = torch.nn.functional.interpolate(maps[:, None], (32, 32), mode="bilinear")[:, 0]
    right = faithfulness_scores(model, images, large, steps=4, metrics=["deletion_auc"])
    column = result.samples["received/deletion_auc"]
    np.testing.assert_allclose(column[[1, 3]], right["deletion_auc"], atol=1e-5)
    assert column[[0, 2, 4]].isna().all()


def test_images_of_several_sizes_are_scored_kept_and_measured_again_at_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import attnviz.evaluation.evaluation as module
    from attnviz.cli import run as command
    from attnviz.report import write_report

    monkeypatch.setattr(module, "PIECE", 4)  # the second piece begins with another size
    data, path = SeveralSizes(9), tmp_path / "runs" / "mine"
    result = evaluate(convolutions(), data, save=path, findings=False)
    for index in (1, 5):
        alone = evaluate(convolutions(), Listed([data[index]]), findings=False)
        key = "layer_gradcam/energy_pointing_game"
        assert result.samples[key][index] == pytest.approx(alone.samples[key][0], abs=1e-6)
    run = av.open_run(path)
    kept = run.test_set()
    assert kept.sizes().tolist() == [list(data[i].mask.shape) for i in range(9)]
    for index in range(9):
        assert np.array_equal(kept.masks([index])[0], data[index].mask)
    assert run.verify() == []
    assert sorted(run.about("maps/layer_gradcam")["grids"]) == [[5, 9], [7, 7], [9, 7]]
    monkeypatch.setattr("attnviz.cli.scoring.build", lambda *_, **__: convolutions())
    monkeypatch.setattr("attnviz.cli.model_arguments.build", lambda *_, **__: convolutions())
    words = [str(path), "--model", "my:net", "--json", "--mean", ".5", "--std", ".5"]
    assert command(["attribute", *words, "--method", "saliency"]) == 0
    assert command(["measure", *words]) == 2
    assert "had the grids 5 × 9, 7 × 7, 9 × 7 and are kept on one" in capsys.readouterr().err
    few = ["--faithfulness", "deletion_auc", "--images", "4"]
    assert command(["measure", *words, *few, "--maps", "saliency", "--metrics"]) == 2
    assert "attnviz evaluate scores them, with --faithfulness" in capsys.readouterr().err
    assert command(["measure", *words, "--maps", "saliency", "--metrics", "--mprt"]) == 0
    assert av.open_run(path).samples()["saliency/pixel_auroc"].notna().all()
    faithful = {"findings": False, "faithfulness": [1, 5]}
    several = evaluate(convolutions(), data, **faithful).samples
    for index in (1, 5):
        one = evaluate(convolutions(), Listed([data[index]]), findings=False, faithfulness=[0])
        for key in ("layer_gradcam/deletion_auc", "layer_gradcam/road_combined"):
            assert several[key][index] == pytest.approx(one.samples[key][0], abs=1e-5)
    write_report([path], tmp_path / "page.html")
    assert 'width="' in (tmp_path / "page.html").read_text()


def test_attributions_of_a_saved_evaluation_are_checked_by_randomisation_as_they_were_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from attnviz.cli import run as command
    from attnviz.faithfulness import randomisation

    for place in ("scoring", "model_arguments"):
        monkeypatch.setattr(f"attnviz.cli.{place}.build", lambda *_, **__: convolutions())
    model, data = convolutions(), Patches(4)
    drawn = {
        "cam": {"method": "layer_gradcam", "layer": model[0], "sign": "abs"},
        "occlusion": {"sliding_window_shapes": (3, 8, 8), "strides": (3, 8, 8)},
        "path": {"method": "integrated_gradients", "baseline": torch.zeros(3, 32, 32)},
    }
    path = tmp_path / "runs" / "mine"
    result = evaluate(model, data, attributions=drawn, save=path, findings=False, variant="mine")
    assert result.layers["cam"] == "0"
    words = ["measure", str(path), "--model", "my:net", "--mean", ".5", "--std", ".5", "--metrics"]
    assert command([*words, "--mprt"]) == 2
    said = capsys.readouterr().err
    assert "'path' was drawn with baseline that a run cannot hold" in said
    assert command([*words, "--mprt", "--maps", "cam", "occlusion"]) == 0
    samples = av.open_run(path).samples()
    pixels = torch.from_numpy(av.open_run(path).test_set().images(list(range(4))))
    images = (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    target = [int(data[i].label or 0) for i in range(4)]
    for name in ("cam", "occlusion"):
        options = {"method": name, **drawn[name]} | ({"layer": "0"} if name == "cam" else {})
        check = randomisation(model, images, options.pop("method"), target=target, **options)
        np.testing.assert_allclose(samples[f"{name}/mprt"], check.mprt, rtol=1e-5, err_msg=name)


def test_reference_levels_are_those_of_all_masks_at_the_map_s_own_thresholds() -> None:
    from attnviz.metrics import METRICS, baselines

    data, other = Patches(5), Patches(6, seed=5)
    result = evaluate(Attending(), data, calibration=other, findings=False)
    masks, held = (torch.stack([d[i].mask for i in range(len(d))]) for d in (data, other))
    expected = baselines(
        masks, (8, 8), tuple(METRICS), threshold=dict(result.thresholds["received"]),
        calibration=held,
    )  # fmt: skip
    for key, levels in expected.items():
        for level, value in levels.items():
            assert result.summary["received"][key][level] == pytest.approx(value, abs=1e-9), key
