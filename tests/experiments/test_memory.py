"""What a run costs is its own, and a compiled training is the same training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from attnviz import open_run
from experiments import memory
from experiments.memory import peak_bytes, restart_peak
from experiments.running import run_training
from tests.experiments.tiny import TINY

CPU = torch.device("cpu")
LARGE = 200 << 20


def held(size: int) -> None:
    np.ones(size, np.uint8).sum()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux's own /proc")
def test_a_peak_is_of_what_came_since_it_was_restarted() -> None:
    held(LARGE)
    before = peak_bytes(CPU)
    restart_peak(CPU)
    fresh = peak_bytes(CPU)
    assert fresh < before - LARGE // 2
    held(LARGE)
    assert fresh + LARGE // 2 < peak_bytes(CPU) < fresh + 2 * LARGE


def test_where_there_is_no_proc_the_peak_is_the_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "nothing")
    restart_peak(CPU)
    assert peak_bytes(CPU) > 50 << 20


def test_a_run_says_what_it_took(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, variant="cnn")
    run = open_run(run_training(settings, tmp_path).path)
    images = settings.train_images * settings.epochs
    assert run.summary["images_per_second"] == pytest.approx(
        images / run.summary["seconds"], rel=0.05
    )
    assert 50 << 20 < run.summary["peak_bytes"] < 32 << 30
    assert run.environment["device"]
    assert run.environment["threads"] >= 1


@pytest.mark.usefixtures("unchecked")  # the compiler would trace the checks of shapes as well
@pytest.mark.parametrize("variant", ["mha", "cbam", "vit"])
def test_a_compiled_training_is_the_same_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    plain = dataclasses.replace(TINY, variant=variant)
    compiled = dataclasses.replace(plain, compile=True)
    called: list[object] = []

    def compile_(forward: Callable[..., object]) -> object:
        called.append(forward)
        return torch._dynamo.optimize("eager")(forward)  # no C++ compiler is asked for

    monkeypatch.setattr(torch, "compile", compile_)
    one, other = (run_training(settings, tmp_path) for settings in (plain, compiled))
    assert len(called) == 1
    weights = one.weights(), other.weights()
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        np.testing.assert_allclose(weights[0][name], weights[1][name], atol=1e-5, err_msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_set_lies_there_and_patches_are_put_in_there(tmp_path: Path) -> None:
    from experiments.training import Loader

    device = torch.device("cuda")
    settings = dataclasses.replace(TINY, device="cuda", precision="auto", threads=0)
    asked = Loader(settings, "train", device).batch(torch.arange(8))
    assert {part.device.type for part in asked} == {"cuda"}
    here = Loader(settings, "train", CPU).batch(torch.arange(8))
    torch.testing.assert_close(asked.images.cpu(), here.images)
    run = run_training(settings, tmp_path)
    assert run.environment["device"] == torch.cuda.get_device_name()
    assert 0 < run.summary["peak_bytes"] < 8 << 30
