"""A metric from outside the package is known everywhere by its definition alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import attnviz as av
from attnviz import definitions
from attnviz.definitions import DEFINITIONS
from attnviz.errors import InputError
from attnviz.metrics import DEFAULT, METRICS, LocalizationMeter
from tests.metrics import made, twins


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Metrics that a test registers are gone after it."""
    tables: tuple[Any, ...] = (METRICS, definitions._DEFINED)
    before, added = [dict(table) for table in tables], set(definitions._ADDED)
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    definitions._ADDED.clear()
    definitions._ADDED.update(added)


def defined(**changes: Any) -> av.MetricDefinition:
    given: dict[str, Any] = {
        "key": "outside_share",
        "title": "outside share",
        "meaning": "The share of the map's mass outside the mask.",
        "source": "the tests",
        "better": "lower",
        "bound": 0.0,
    }
    return av.MetricDefinition(**given | changes)


def outside(maps: Tensor, masks: Tensor) -> Tensor:
    mass = maps.clamp(min=0).flatten(1)
    return (mass * ~masks.flatten(1)).sum(1) / mass.sum(1)


def test_the_packages_metrics_are_those_that_are_defined() -> None:
    assert tuple(METRICS) == DEFAULT == definitions.built_in("localization", "concentration")
    assert set(twins.BY_KEY) == set(METRICS)
    for key, metric in METRICS.items():
        assert metric.definition is DEFINITIONS[key]
        assert metric.function.__name__ == key


class TestOwnMetric:
    def test_is_scored_beside_the_others(self) -> None:
        av.metric(defined())(outside)
        maps, masks = made.noise(5, 8, 8), made.boxes(5, 8, 3)
        masks[0] = False
        table = av.localization(maps, masks, ["energy_pointing_game", "outside_share"])
        whole = table["energy_pointing_game"] + table["outside_share"]
        assert whole[0].isnan()
        assert whole[1:].tolist() == pytest.approx([1.0] * 4)
        assert table.why("outside_share")[0] == "the mask is empty"
        assert "outside_share" in repr(table)
        assert "outside_share" not in av.localization(maps, masks), "not in the default set"

    def test_batches_and_meters_give_the_same(self) -> None:
        av.metric(defined())(lambda maps, masks: outside(maps, masks).numpy())
        maps, masks = made.noise(6, 8, 8), made.boxes(6, 8, 3)
        meter = LocalizationMeter(["outside_share"])
        for part in (slice(0, 2), slice(2, 6)):
            meter.update(maps[part], masks[part])
        whole = av.localization(maps, masks, ["outside_share"])["outside_share"]
        assert torch.equal(meter.compute()["outside_share"], whole)

    def test_has_reference_levels_by_its_own_direction(self) -> None:
        av.metric(defined())(outside)
        level = av.baselines(made.boxes(20, 24, 6), (6, 6), ["outside_share"])["outside_share"]
        assert level["bound"] == 0.0
        assert level["redrawn"] < level["chance"]

    def test_compares_by_its_own_direction(self) -> None:
        av.metric(defined())(outside)
        rng = np.random.default_rng(0)
        low, high = 0.2 + 0.01 * rng.random((2, 3, 20))
        scores = {"b": {"outside_share": high + 0.4}, "a": {"outside_share": low}}
        result = av.compare(scores, primary="outside_share", resamples=100)
        assert result.variants == ["a", "b"]
        assert "outside share" in repr(result)

    def test_needs_its_threshold_and_finds_it(self) -> None:
        def reached(maps: Tensor, masks: Tensor, *, threshold: float) -> Tensor:
            return 1 - (maps.flatten(1).amax(1) - threshold).abs()

        av.metric(defined(key="reached", better="higher", threshold=True))(reached)
        maps, masks = 0.37 * torch.ones(3, 4, 4), made.boxes(3, 4, 2)
        maps[:, 0, 0] = 0
        with pytest.raises(InputError, match="reached: expected a threshold, got none"):
            av.localization(maps, masks, ["reached"])
        tau = av.calibrate_threshold(maps, masks, "reached", grid=100)
        assert tau == pytest.approx(0.37)
        table = av.localization(maps, masks, ["reached"], threshold=tau)
        assert table["reached"].tolist() == pytest.approx([1.0] * 3)
        assert table.thresholds == {"reached": tau}

    def test_cannot_change_the_maps_of_its_neighbours(self) -> None:
        def rude(maps: Tensor, masks: Tensor) -> Tensor:
            masks[:] = True
            return maps.zero_().flatten(1).sum(1)

        av.metric(defined())(rude)
        maps, masks = made.noise(3, 8, 8), made.boxes(3, 8, 3)
        kept = maps.clone(), masks.clone()
        table = av.localization(maps, masks, ["outside_share", "pixel_ap"])
        assert torch.equal(maps, kept[0])
        assert torch.equal(masks, kept[1])
        assert torch.equal(table["pixel_ap"], av.localization(*kept, ["pixel_ap"])["pixel_ap"])

    @pytest.mark.parametrize("wrong", [torch.rand(2), torch.rand(3, 1), 0.5, None])
    def test_scores_of_another_shape_are_refused(self, wrong: Any) -> None:
        av.metric(defined())(lambda maps, masks: wrong)
        with pytest.raises(InputError, match="outside_share: expected one score per map"):
            av.localization(made.noise(3, 4, 4), made.boxes(3, 4, 2), ["outside_share"])

    def test_replaces_one_of_its_own_key_but_none_of_the_package(self) -> None:
        av.metric(defined())(outside)
        av.metric(defined(title="again"))(outside)
        assert METRICS["outside_share"].definition.title == "again"
        for taken in (defined(key="iou"), DEFINITIONS["iou"]):
            with pytest.raises(InputError, match="the package has a metric of that key"):
                av.metric(taken)
        with pytest.raises(InputError, match="expected the family localization"):
            av.metric(defined(family="faithfulness"))

    def test_is_known_to_report_and_comparison_in_another_process(self, tmp_path: Path) -> None:
        """A process that never saw the code reads name and direction out of the run folder."""
        av.metric(defined())(outside)
        from tests.comparison.written import dataset, sample_table, write_run

        digest = dataset(tmp_path)
        for variant, energy in (("a", 0.2), ("b", 0.6)):
            table = sample_table(tmp_path, digest, energy, 0)
            table["attend/outside_share"] = 1 - table["attend/energy_pointing_game"]
            write_run(tmp_path, variant, samples=table, digest=digest)
        code = (
            "import sys, attnviz as av\n"
            "from attnviz.report import write_report\n"
            "result = av.compare(sys.argv[1], primary='outside_share', resamples=50)\n"
            "write_report(sys.argv[1], sys.argv[2], primary='outside_share')\n"
            "from attnviz.definitions import DEFINITIONS\n"
            "print(result.variants, DEFINITIONS['outside_share'].title)\n"
        )
        page = tmp_path / "report.html"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(page)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "['b', 'a'] outside share"
        assert "The share of the map&#x27;s mass outside the mask." in page.read_text()


VOLUMES = [(3, 4, 5), (2, 3, 2, 3)]


def _planar_twin(key: str) -> bool:
    return key.startswith("max_box")


class TestPlaces:
    @pytest.mark.parametrize("places", VOLUMES)
    @pytest.mark.parametrize("key", [key for key in DEFAULT if not _planar_twin(key)])
    def test_a_volume_scores_what_its_twin_says(self, key: str, places: tuple[int, ...]) -> None:
        maps = (made.noise(4, *places) * 6).round() / 6
        masks = made.noise(4, *places, seed=1) > 0.6
        found = av.localization(maps, masks, [key], k=0.3, threshold=twins.THRESHOLDS)[key]
        twin: Callable[..., float] = twins.BY_KEY[key]
        if key == "pointing_game":
            twin = twins.pointing_game_anywhere
        wanted = [twin(a, g) for a, g in zip(maps.numpy(), masks.numpy(), strict=True)]
        assert found.tolist() == pytest.approx(wanted, abs=1e-12)

    @pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2.9, 40])
    def test_the_tolerance_of_a_volume_is_a_ball(self, tolerance: float) -> None:
        maps = (made.noise(12, 4, 5, 6) * 20).round()
        masks = made.noise(12, 4, 5, 6, seed=1) > 0.97
        masks[:, 0, 0, 0] = True
        found = av.localization(maps, masks, ["pointing_game"], tolerance=tolerance)
        wanted = [
            twins.pointing_game_anywhere(a, g, tolerance)
            for a, g in zip(maps.numpy(), masks.numpy(), strict=True)
        ]
        assert found["pointing_game"].tolist() == pytest.approx(wanted)

    def test_a_volume_of_one_slice_scores_as_its_image_to_the_last_bit(self) -> None:
        maps, masks = made.noise(6, 12, 12), made.boxes(6, 12, 4)
        flat = av.localization(maps, masks, threshold=0.5)
        deep = av.localization(maps[:, None], masks[:, None], threshold=0.5)
        assert set(flat) - set(deep) == {"max_box_acc", "max_box_acc_v2"}
        for key, scores in deep.items():
            assert torch.equal(scores, flat[key]), key

    def test_boxes_refuse_volumes(self) -> None:
        maps, masks = made.noise(2, 3, 4, 4), made.noise(2, 3, 4, 4, seed=1) > 0.5
        calls: list[Callable[[], Any]] = [
            lambda: av.localization(maps, masks, ["max_box_acc"], threshold=0.5),
            lambda: av.metrics.max_box_acc_v2(maps, masks, threshold=0.5),
            lambda: av.calibrate_threshold(maps, masks, "max_box_acc"),
            lambda: av.baselines(masks, (2, 2, 2), ["max_box_acc"]),
            lambda: LocalizationMeter(["max_box_acc"], threshold=0.5).update(maps, masks),
        ]
        for call in calls:
            with pytest.raises(InputError, match=r"expected maps \(b, h, w\), got \(2, 3, 4, 4\)"):
                call()

    def test_volumes_have_reference_levels(self) -> None:
        masks = torch.zeros(8, 8, 8, 8, dtype=torch.bool)
        masks[:, 2:5, 2:5, 2:5] = True
        found = av.baselines(masks, (4, 4, 4), calibration=masks)
        assert set(found) == set(DEFAULT) - {"max_box_acc", "max_box_acc_v2"}
        energy = found["energy_pointing_game"]
        assert energy["chance"] == pytest.approx(27 / 512)
        assert energy["fixed"] == energy["bound"] == 1.0
        assert energy["chance"] < energy["redrawn"] < 1.0
        assert found["mass_lift"]["bound"] == pytest.approx(512 / 27)
        with pytest.raises(InputError, match="grid: expected 3 sizes from 1"):
            av.baselines(masks)
        with pytest.raises(InputError, match="expected 2 or 3 place axes"):
            av.baselines(masks[None], (1, 2, 2, 2))

    def test_agreement_and_pxap_take_volumes(self) -> None:
        one, other = made.noise(3, 8, 9, 10), made.noise(3, 8, 9, 10, seed=1)
        same = av.agreement(one, one)
        assert all(scores.tolist() == pytest.approx([1.0] * 3) for scores in same.values())
        flat = av.agreement(one.flatten(2), other.flatten(2))
        deep = av.agreement(one, other)
        assert torch.equal(flat["spearman"], deep["spearman"])
        assert torch.equal(flat["topk_iou"], deep["topk_iou"])
        masks = other > 0.8
        assert av.metrics.pxap(one, masks) == av.metrics.pxap(one.flatten(2), masks.flatten(2))
        tau = av.calibrate_threshold(one, masks)
        assert tau == av.calibrate_threshold(one.flatten(2), masks.flatten(2))
