"""Volumes and videos are evaluated as images are: maps, scores, a run that the dashboard shows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import attnviz as av
from attnviz.cli import run as command
from attnviz.data.samples import Sample, channel_axis, displayed
from attnviz.errors import InputError
from tests.dashboard.test_pages import PAGES, opened, words
from tests.evaluation.made import Listed
from tests.places.nets import Plain

SIDES = (8, 16, 24)


def volume(index: int, *, channels: int = 1, video: bool = False) -> Sample:
    """Noise with a bright box, in another place for every number."""
    draw = torch.Generator().manual_seed(index)
    image, mask = torch.rand(channels, *SIDES, generator=draw), torch.zeros(SIDES, dtype=torch.bool)
    z, y, x = index % 4, 4 * (index % 3), 8 * (index % 2)
    mask[z : z + 4, y : y + 6, x : x + 8] = True
    image[:, mask] += 2
    image = image.movedim(0, 1) if video else image
    return Sample(image, mask, label=index % 2, name=f"{index}.nii")


class Classified(nn.Module):
    """A transformer of volumes; of videos the channels come second."""

    def __init__(self, channels: int = 1, *, video: bool = False, classes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.video, self.body = video, Plain(axes=3, patch=4, channels=channels)
        self.head = nn.LazyLinear(classes)
        self.head(torch.zeros(1, self.body(torch.zeros(1, channels, *SIDES)).shape[-1]))

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x.movedim(1, 2) if self.video else x)
        return self.head(found if found.ndim == 2 else found[:, 0])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("volumes")
    for name, channels, video in (("ct", 1, False), ("clip", 3, True)):
        data = Listed([volume(i, channels=channels, video=video) for i in range(5)])
        held = Listed([volume(i + 7, channels=channels, video=video) for i in range(4)])
        av.evaluate(
            Classified(channels, video=video).eval(), data, calibration=held, heads=True, rows=2,
            thing="lesion", variant=name, seed=0, save=root / name,
        )  # fmt: skip
    return root


@pytest.mark.parametrize(("name", "channels", "video"), [("ct", 1, False), ("clip", 3, True)])
def test_maps_and_scores_are_those_by_hand(
    evaluated: Path, name: str, channels: int, video: bool
) -> None:
    model = Classified(channels, video=video).eval()
    samples = [volume(i, channels=channels, video=video) for i in range(5)]
    images, masks = (torch.stack([getattr(s, key) for s in samples]) for key in ("image", "mask"))
    layout = av.locate(model, images[:1], channels=2 if video else 1)
    with torch.no_grad(), av.watch(model) as seen:
        model(images)
    found = av.open_run(evaluated / name)
    key = found.summary["map"]
    record = seen[found.summary["layers"][key]]
    right = getattr(av, key)(record, layout=layout)
    assert right.shape == (5, 2, 4, 6)
    np.testing.assert_allclose(found.maps(key), right, rtol=2**-9, atol=1e-6)
    large = getattr(av, key)(record, layout=layout, size=SIDES)
    for metric in ("energy_pointing_game", "pixel_auroc"):
        scores = av.localization(large, masks, metrics=[metric])[metric]
        np.testing.assert_allclose(found.samples()[f"{key}/{metric}"], scores, atol=1e-5)
    tau = found.summary["thresholds"][key]["max_iou"]
    scores = av.localization(large, masks, metrics=["max_iou"], threshold=tau)["max_iou"]
    np.testing.assert_allclose(found.samples()[f"{key}/max_iou"], scores, atol=1e-5)
    assert not [column for column in found.samples() if "box" in column]
    levels = found.summary["metrics"][key]["energy_pointing_game"]
    assert levels["chance"] == pytest.approx(float(masks.float().mean()))
    heads = getattr(av, key)(record, layout=layout, heads="each")
    np.testing.assert_allclose(found.maps(f"{key}.heads"), heads, rtol=2**-9, atol=1e-6)
    held = found.test_set()
    assert held.depth == SIDES[0]
    assert np.array_equal(held.masks(), masks)
    assert held.info.get("axis") == ("frame" if video else "slice")
    assert np.array_equal(held.images([1])[0], displayed(samples[1]).numpy())
    assert found.verify() == []


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_them_without_a_gap(page: str, evaluated: Path, monkeypatch: Any) -> None:
    for run in ("ct", "clip"):
        at = opened(monkeypatch, page, evaluated, runs=run, run=run)
        assert not at.error, (run, at.error)
        assert not re.search(r"\b(nan|None)\b(?! of these)", words(at)), (run, words(at))
        if page in ("gallery", "sample"):
            assert at.select_slider(key="slices").label.startswith(
                "Slice" if run == "ct" else "Frame"
            )
        if page == "sample":
            assert "Attention within this slice" in words(at)


def test_stored_maps_are_scored_again_and_the_model_is_refused_in_words(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluated / "ct"
    before = av.open_run(path).samples()
    assert command(["measure", str(path)]) == 0
    after = av.open_run(path).samples()
    column = f"{av.open_run(path).summary['map']}/energy_pointing_game"
    np.testing.assert_allclose(after[column], before[column], atol=2e-3)
    assert command(["measure", str(path), "--metrics", "--faithfulness", "deletion_auc"]) == 2
    capsys.readouterr()
    factory = ["--model", "tests.evaluation.test_volumes:Classified"]
    assert command(["attribute", str(path), "--method", "saliency", *factory]) == 2
    assert "kept as bytes and not as the model takes them" in capsys.readouterr().err


def test_tuples_of_tensors_are_read() -> None:
    data = [(s.image, s.mask, s.label) for s in (volume(0), volume(1))]
    result = av.evaluate(Classified().eval(), data, findings=False)
    plain = av.evaluate(Classified().eval(), Listed([volume(0), volume(1)]), findings=False)
    assert result.summary == plain.summary


def test_what_is_of_images_alone_is_refused_before_the_work() -> None:
    data, model = Listed([volume(0)]), Classified().eval()
    for options, said in (
        ({"attributions": ["saliency"]}, r"attributions are of images \(b, c, h, w\), got"),
        ({"faithfulness": 1}, "faithfulness and knockout are of images"),
        ({"knockout": 1}, "faithfulness and knockout are of images"),
        ({"metrics": ["max_box_acc"]}, "boxes are drawn in images only"),
    ):
        with pytest.raises(InputError, match=said):
            av.evaluate(model, data, **options)
    plain = nn.Sequential(nn.Conv3d(1, 2, 4, 4), nn.Flatten(), nn.LazyLinear(2))
    plain(volume(0).image[None])
    with pytest.raises(InputError, match="no attention or gate of the model has a map of these"):
        av.evaluate(plain, data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask": torch.zeros(16, 24, dtype=torch.bool)}, r"expected a mask \(d, h, w\)"),
        ({"mask": torch.zeros(8, 24, 16, dtype=torch.bool)}, "8 × 16 × 24, got 8 × 24 × 16"),
        ({"mask": torch.zeros(5, 16, 24, dtype=torch.bool)}, "8 × 16 × 24, got 5 × 16 × 24"),
        ({"image": torch.zeros(9, 8, 16, 24), "mask": None}, "holds channels is not clear"),
    ],
)
def test_masks_that_do_not_fit_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        av.evaluate(Classified().eval(), Listed([replace(volume(0), **change)]), findings=False)


def test_channels_are_where_the_mask_has_no_axis() -> None:
    four = torch.zeros(4, 3, 16, 24)
    of = lambda *shape: torch.zeros(shape, dtype=torch.bool)  # noqa: E731
    assert channel_axis(Sample(four, of(3, 16, 24))) == 0
    assert channel_axis(Sample(four, of(4, 16, 24))) == 1
    assert channel_axis(Sample(torch.zeros(3, 9, 4, 4))) == 0
    assert displayed(Sample(four, of(4, 16, 24))).shape == (4, 16, 24, 3)
