"""The metrics inside torchmetrics."""

from __future__ import annotations

import math
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from attnviz.errors import InputError
from attnviz.metrics import localization
from tests.metrics import made

torchmetrics = pytest.importorskip("torchmetrics")
from attnviz.metrics import LocalizationMetric  # noqa: E402  # after the skip

MAPS, MASKS = made.noise(12, 10, 10), made.boxes(12, 10, 4)
MAPS[3, 0, 0], MASKS[7] = math.nan, False
KEYS = ("pointing_game", "pixel_auroc", "max_iou")
WHOLE = localization(MAPS, MASKS, KEYS, threshold=0.5)


def metric() -> LocalizationMetric:
    return LocalizationMetric(KEYS, threshold=0.5)


def assert_means(found: dict[str, Any]) -> None:
    for key, row in WHOLE.summary().items():
        assert float(found[key]) == pytest.approx(row["mean"])
        assert int(found[f"{key}_valid"]) == row["valid"] == 10


def test_it_computes_the_means_and_how_many_were_valid() -> None:
    ours = metric()
    for start in (0, 5, 10):
        ours.update(MAPS[start : start + 5], MASKS[start : start + 5])
    assert_means(ours.compute())
    for key, scores in ours.scores().items():
        assert torch.equal(scores.nan_to_num(-1), WHOLE[key].nan_to_num(-1))


def test_it_resets_clones_and_joins_a_collection() -> None:
    collection = torchmetrics.MetricCollection({"where": metric()})
    collection.update(MAPS, MASKS)
    assert {key.removeprefix("where_") for key in collection.compute()} >= set(KEYS)
    ours = metric()
    step = ours(MAPS[:5], MASKS[:5])
    assert float(step["pointing_game"]) == float(WHOLE["pointing_game"][:5].nanmean())
    ours.update(MAPS[5:], MASKS[5:])
    assert_means(ours.compute())
    assert_means(ours.clone().compute())
    ours.reset()
    ours.update(MAPS, MASKS)
    assert_means(ours.compute())


def one_of_two(rank: int, meeting: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    try:
        ours, part = metric(), (slice(0, 7), slice(7, 12))[rank]
        ours.update(MAPS[part], MASKS[part])
        answers.put({key: float(value) for key, value in ours.compute().items()})
    finally:
        dist.destroy_process_group()


def test_two_processes_compute_the_means_of_all(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    args = (tmp_path / "meeting").as_uri(), answers
    workers = [context.Process(target=one_of_two, args=(rank, *args)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    for means in found:
        assert_means(means)


def test_options_are_checked_at_once() -> None:
    with pytest.raises(InputError, match="iou: expected a threshold, got none"):
        LocalizationMetric(["iou"])


def test_without_torchmetrics_the_rest_works_and_the_metric_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "import attnviz.metrics as m\n"
        "m.LocalizationMeter()\n"
        "try:\n    m.LocalizationMetric\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("UnsupportedError LocalizationMetric: expected torchmetrics")
    assert "pip install 'attnviz[torchmetrics]'" in ran.stdout
