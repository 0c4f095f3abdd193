"""Runs of one's own are measured, attributed and examined again; evaluations are compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import attnviz as av
from attnviz.cli import run
from attnviz.data import samples_of
from attnviz.data.samples import Sample
from attnviz.errors import InputError
from attnviz.evaluation.stored import StoredRun
from tests.evaluation.made import Attending, Listed, Patches

FACTORY = "tests.evaluation.made:Attending"


def prepared(picture):  # type: ignore[no-untyped-def]
    """Normalised with numbers of its own for each channel."""
    shares = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    return (shares - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.25


def pictures() -> Samples:
    bytes_ = [
        {"image": ((one.image + 1) * 127.5).byte(), "mask": one.mask, "label": one.label}
        for one in (Patches(6, classes=2)[i] for i in range(6))
    ]
    return samples_of(bytes_, transform=prepared)


def stored(root: Path, *, factory: str | None = FACTORY, seed: int = 0) -> Path:
    """A run called `cnn` of a model of one's own."""
    model = Attending(2)
    with torch.no_grad():
        model.head.weight.add_(0.1 * seed)
    settings = {"model": {"classes": 2}} | ({} if factory is None else {"factory": factory})
    path = root / f"cnn-{seed}"
    av.evaluate(
        model, pictures(), save=path, variant="cnn", seed=seed,
        settings=settings, findings=False, faithfulness=6,
    )  # fmt: skip
    return path


def test_commands_take_a_factory_for_runs_of_one_s_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored(tmp_path)
    before = av.open_run(path).samples()
    words = ["--metrics", "--faithfulness", "deletion_auc", "--knockout", "--json"]
    assert run(["measure", str(path), *words]) == 2
    said = capsys.readouterr().err
    assert f"its model was built by {FACTORY}" in said
    assert "--model" in said
    assert run(["measure", str(path), *words, "--model", FACTORY]) == 0
    after = av.open_run(path)
    column = "received/deletion_auc"
    np.testing.assert_allclose(
        after.samples()[column], before[column], atol=2e-3
    )  # maps are kept as fp16
    assert {row["name"] for row in after.summary["knockout"]} == {"attention.attend"}
    assert run(["attribute", str(path), "--method", "saliency", "--model", FACTORY]) == 0
    assert av.open_run(path).maps("saliency").shape == (6, 32, 32)
    capsys.readouterr()
    assert run(["doctor", str(path), "--model", FACTORY, "--json"]) in (0, 1)
    (found,) = json.loads(capsys.readouterr().out)["examined"]
    assert found["checked"]["attention"] == 1


def test_the_images_of_a_run_are_normalised_as_they_were(tmp_path: Path) -> None:
    path = stored(tmp_path)
    bench = StoredRun(path)
    mean, std = bench.normalisation
    assert mean == pytest.approx((0.5, 0.4, 0.3), abs=1e-5)
    assert std == pytest.approx((0.25,) * 3, abs=1e-5)
    black, white = bench.value_range
    assert black == pytest.approx((-2, -1.6, -1.2), abs=1e-4)
    assert white == pytest.approx((2, 2.4, 2.8), abs=1e-4)
    data = pictures()
    expected = torch.stack([data[i].image for i in (4, 1)])
    torch.testing.assert_close(bench.batch([4, 1]).images, expected, atol=1e-5, rtol=0)


def test_a_run_called_like_a_reference_model_is_not_taken_for_it(tmp_path: Path) -> None:
    path = stored(tmp_path, factory=None)
    with pytest.raises(InputError, match=r"does not say that its model is one of attnviz\.models"):
        _ = StoredRun(path).model
    with pytest.raises(InputError, match="its weights do not fit the model given"):
        _ = StoredRun(path, build=lambda: Attending(3)).model


def test_no_command_takes_a_run_for_the_reference_model_it_is_called_like(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored(tmp_path, factory=None)
    assert av.open_run(path).variant == "cnn"
    for words in (
        ["measure", str(path), "--metrics", "--faithfulness", "deletion_auc", "--images", "2"],
        ["attribute", str(path), "--method", "saliency"],
        ["doctor", str(path)],
    ):
        assert run(words) == 2, words
        assert "does not say that its model is one of attnviz.models" in capsys.readouterr().err
        assert run([*words, "--model", FACTORY, "--setting", "classes=2"]) in (0, 1), words
    capsys.readouterr()
    samples = av.open_run(path).samples()
    assert samples["received/deletion_auc"].notna().sum() == 2
    assert samples["saliency/pixel_auroc"].notna().any()


def test_evaluations_are_compared_with_their_groups_and_with_runs() -> None:
    data = Patches(9, classes=2)
    good, other = Attending(2), Attending(2)
    with torch.no_grad():
        other.stem.weight.neg_()
    evaluated = {
        name: [av.evaluate(model, data, variant=name, seed=seed, findings=False) for seed in (0, 1)]
        for name, model in (("good", good), ("other", other))
    }
    by_list = av.compare([*evaluated["good"], *evaluated["other"]], resamples=50)
    by_name = av.compare(evaluated, resamples=50)
    assert by_list.table.equals(by_name.table)
    assert set(by_list.variants) == {"good", "other"}
    mean = evaluated["good"][0].summary["received"]["energy_pointing_game"]["mean"]
    rows = by_list.of("energy_pointing_game").set_index("variant")
    assert rows.loc["good", "mean"] == pytest.approx(mean, abs=1e-9)
    with pytest.raises(InputError, match="different images"):
        av.compare([evaluated["good"][0], av.evaluate(other, Patches(9, seed=3), findings=False)])


def test_seeds_of_a_saved_evaluation_are_replicates(tmp_path: Path) -> None:
    paths = [stored(tmp_path, seed=seed) for seed in (0, 1)]
    result = av.compare(tmp_path, resamples=50)
    assert result.variants == ["cnn"]
    assert result.table["seeds"].iloc[0] == 2
    assert not any("trained unlike" in note for note in result.notes)
    assert len(paths) == 2


def evaluated(root: Path, samples: list[Sample], **options: object) -> Path:
    """A run of these images."""
    path = root / "own"
    settings = {"factory": FACTORY, "model": {"classes": 2}}
    av.evaluate(
        Attending(2), Listed(samples), save=path, settings=settings, findings=False, **options,
    )  # type: ignore[arg-type]  # options of several types  # fmt: skip
    return path


def test_maps_are_not_scored_again_without_the_pixels_that_were_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [Patches(4, classes=2)[i] for i in range(4)]
    ignore = torch.zeros(32, 32, dtype=torch.bool)
    ignore[:, 28:] = True
    path = evaluated(tmp_path, [replace(one, ignore=ignore & ~one.mask) for one in made])
    before = av.open_run(path).samples()
    for words in (
        ["measure", str(path)],
        ["measure", str(path), "--metrics", "pixel_auroc"],
        ["attribute", str(path), "--method", "saliency", "--model", FACTORY],
    ):
        assert run(words) == 2
        assert "some pixels counted neither as inside nor as outside" in capsys.readouterr().err
    words = ["--metrics", "--faithfulness", "deletion_auc", "--model", FACTORY]
    words += ["--normalise", "symmetric"]
    assert run(["measure", str(path), *words]) == 0
    after = av.open_run(path)
    assert after.verify() == []
    pd.testing.assert_frame_equal(after.samples()[before.columns], before)


def test_scores_of_annotated_boxes_stay_when_maps_are_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [Patches(6, classes=2)[i] for i in range(6)]
    samples = []
    for k, one in enumerate(made):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[k : k + 10, 6:28] = True
        boxes = torch.tensor([[6, k, 14, k + 10], [14, k, 28, k + 10]])
        samples.append(replace(one, mask=mask, boxes=boxes))
    keys = ["energy_pointing_game", "max_box_acc_v2"]
    path = evaluated(tmp_path, samples, calibration=Listed(samples), metrics=keys)
    before = av.open_run(path).samples()["received/max_box_acc_v2"]
    assert run(["measure", str(path), "--metrics", "max_box_acc_v2"]) == 2
    assert "is of boxes that were annotated, of which a run does" in capsys.readouterr().err
    assert run(["measure", str(path)]) == 0
    after = av.open_run(path)
    assert after.samples()["received/max_box_acc_v2"].equals(before)
    assert after.summary["metrics"]["received"]["max_box_acc_v2"]["valid"] == 6
    assert "received/pixel_auroc" in after.samples()


def stretched(one: Sample) -> Sample:
    """Normalised, and not told how."""
    return replace(one, image=one.image * 2 + 0.3)


def doubled(one: Sample) -> Sample:
    """With a mask of twice the image's size."""
    assert one.mask is not None
    mask = one.mask.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return replace(one, mask=mask, boxes=None, value_range=((-1.0,) * 3, (1.0,) * 3))


def shades(one: Sample) -> Sample:
    """From −1 to 1, but some from 0 to 1: of both it is not known what they were."""
    return replace(one, image=one.image.abs() if one.name == "1.png" else one.image)


@pytest.mark.parametrize("change", [stretched, doubled, shades])
def test_a_model_is_not_run_on_other_images_than_those_that_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Sample], Sample]
) -> None:
    path = evaluated(tmp_path, [change(Patches(4, classes=2)[i]) for i in range(4)])
    assert av.open_run(path).settings["evaluation"]["lacks"][-1] == "the model's images"
    for words in (
        ["measure", "--metrics", "--faithfulness", "deletion_auc"],
        ["measure", "--metrics", "--knockout"],
        ["attribute", "--method", "saliency"],
        ["doctor"],
    ):
        assert run([words[0], str(path), *words[1:], "--model", FACTORY,
                    "--normalise", "imagenet"]) == 2  # fmt: skip
        said = capsys.readouterr().err
        assert "are not those that the model took: these had another size" in said
    assert run(["measure", str(path), "--metrics", "pixel_auroc"]) == 0


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_images_that_are_shades_serve_again(tmp_path: Path, low: float) -> None:
    made = [Patches(4, classes=2)[i] for i in range(4)]
    samples = [replace(one, image=one.image if low else (one.image + 1) / 2) for one in made]
    path = evaluated(tmp_path, samples)
    assert "lacks" not in av.open_run(path).settings["evaluation"]
    scale = ["--normalise", "symmetric"] if low else ["--mean", "0", "--std", "1"]
    assert run(["attribute", str(path), "--model", FACTORY, "--method", "saliency", *scale]) == 0


def test_runs_with_the_same_weights_are_noted_as_copies(tmp_path: Path) -> None:
    for seed in (0, 1):
        av.evaluate(
            Attending(2), Patches(12), save=tmp_path / f"a-{seed}", variant="a", seed=seed,
            findings=False,
        )  # fmt: skip
    (note,) = (one for one in av.compare(tmp_path).notes if "was the seed applied?" in one)
    assert note.startswith("a: the scores of seeds 0, 1 are the same on all 12 images")


def test_a_run_that_does_not_say_its_target_is_compared(tmp_path: Path) -> None:
    """Runs of older versions, and those that a Monitor or `save_run` wrote."""
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Attending(2)
        with torch.no_grad():
            model.head.weight.add_(0.1 * seed)
        path = tmp_path / f"a-{seed}"
        av.evaluate(model, Patches(12), save=path, variant="a", seed=seed, findings=False)
    header = json.loads((path / "run.json").read_text())
    header["settings"].pop("target")
    (path / "run.json").write_text(json.dumps(header))
    assert set(av.compare(tmp_path).table["seeds"]) == {2}
    header["settings"]["target"] = "predicted"
    (path / "run.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match="target"):
        av.compare(tmp_path)


def test_images_whose_black_and_white_are_known_are_kept_as_the_model_took_them(
    tmp_path: Path,
) -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], 0.25
    black, white = ((level - mean) / std for level in (0, 1))
    known = tuple(tuple(one.flatten().tolist()) for one in (black, white))
    data = []
    for one in (Patches(6, classes=2)[i] for i in range(6)):
        shades = ((one.image + 1) * 127.5).round() / 255 * 0.8
        box = torch.tensor([[4, 4, 20, 20]])
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[4:20, 4:20] = True
        mask[10, 10] = False
        image = (shades - mean) / std
        data.append(replace(one, image=image, mask=mask, boxes=box, value_range=known))
    path = tmp_path / "a"
    av.evaluate(Attending(2), Listed(data), save=path, variant="a", findings=False)
    evaluation = av.open_run(path).settings["evaluation"]
    assert not evaluation.get("lacks")
    assert evaluation["mean"] == pytest.approx([0.5, 0.4, 0.3], abs=1e-6)
