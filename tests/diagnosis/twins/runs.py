"""Trainings and splits with faults, each beside its mended twin."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from attnviz.diagnosis import Findings, diagnose_run, diagnose_split
from attnviz.runs import open_run, save_dataset, save_run
from tests.diagnosis.twins.twin import Twin

Curves = list[tuple[float, float]]
"""Training and validation loss of each epoch."""


def train(rate: float, epochs: int = 6, *, width: int = 4, data: int = 200) -> Curves:
    """Fit a line by gradient descent; `width` random features, `data` training points."""
    noise = torch.Generator().manual_seed(0)
    x, y = torch.randn(200 + data, width, generator=noise), torch.randn(200 + data, generator=noise)
    y = y * 0.5 + x[:, 0]
    weights = torch.zeros(width, requires_grad=True)
    curves = []
    for _ in range(epochs):
        loss, held_out = (((x[part] @ weights - y[part]) ** 2).mean()
                          for part in (slice(200, None), slice(200)))  # fmt: skip
        curves.append((loss.item(), held_out.item()))
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - rate * gradient).detach().requires_grad_()
    return curves


def rate_of_zero() -> Curves:
    return train(rate=1e-6)


def rate_that_learns() -> Curves:
    return train(rate=0.1)


def rate_too_large() -> Curves:
    return train(rate=1e20)


def too_few_images() -> Curves:
    return train(rate=0.1, width=30, data=20, epochs=400)


def more_images() -> Curves:
    return train(rate=0.1, width=30, data=2000, epochs=400)


def hardly_trained() -> dict[str, Any]:
    return {"accuracy": 0.52}


def trained_longer() -> dict[str, Any]:
    return {"accuracy": 0.93}


def attention_early() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), Tokens(8), nn.MaxPool2d(4))


def attention_late() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(4), Tokens(8))


class Tokens(nn.Module):
    """Attention over the places of a feature map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = x.flatten(2).mT
        return self.attend(t, t, t)[0].mT.unflatten(2, x.shape[2:])


def places(seed: int, n: int = 400, size: int = 16, side: int = 96) -> np.ndarray:
    """`(n, 4)` boxes of patches at random places."""
    corner = np.random.default_rng(seed).integers(0, side - size + 1, (n, 2))
    return np.concatenate([corner, corner + size], 1)


def one_generator() -> dict[str, Any]:
    return {"train_boxes": places(seed=0), "test_boxes": places(seed=0), "size": (96, 96)}


def own_generator() -> dict[str, Any]:
    return {"train_boxes": places(seed=0), "test_boxes": places(seed=1), "size": (96, 96)}


def crops_split() -> dict[str, Any]:
    photographs = np.repeat(np.arange(20), 4)  # four crops of each photograph
    crops = np.random.default_rng(0).permutation(80)
    return {
        "train_photographs": photographs[crops[:60]],
        "test_photographs": photographs[crops[60:]],
    }


def photographs_split() -> dict[str, Any]:
    photographs = np.repeat(np.arange(20), 4)
    return {"train_photographs": photographs[:60], "test_photographs": photographs[60:]}


def seeded_per_batch() -> np.ndarray:
    return np.concatenate([places(seed=0, n=20) for _ in range(10)])


def seeded_once() -> np.ndarray:
    return places(seed=0, n=200)


def write_run(
    root: Path, *, curves: Curves = ((0.7, 0.7), (0.35, 0.36)), variant: str = "mha",
    boxes: np.ndarray | None = None, settings: dict[str, Any] | None = None, **summary: Any,
) -> Any:  # fmt: skip
    """A complete run of 200 test images, half of them with a patch."""
    boxes = places(seed=2, n=200) if boxes is None else boxes.copy()
    labels = np.arange(200) % 2
    boxes[labels == 0] = 0
    digest = save_dataset(
        root, images=np.zeros((200, 96, 96, 3), np.uint8), masks=np.zeros((200, 96, 96), bool),
        boxes=boxes, labels=labels, info={},
    )  # fmt: skip
    save_run(
        root / variant, variant=variant, settings=settings or {}, seed=0, dataset=digest,
        samples=pd.DataFrame({"index": range(200), "label": labels}),
        curves=[{"epoch": n, "train_loss": train, "val_loss": val}
                for n, (train, val) in enumerate(curves, 1)],
        summary={"accuracy": 0.95, "seconds": 100.0, "epochs": 2, "peak_bytes": 10**9} | summary,
    )  # fmt: skip
    return open_run(root / variant)


def _of_run(**given: Any) -> Findings:
    with tempfile.TemporaryDirectory() as root:
        return diagnose_run(write_run(Path(root), **given))


def _of_curves(curves: Curves) -> Findings:
    return _of_run(curves=curves)


def _of_boxes(boxes: np.ndarray) -> Findings:
    return _of_run(boxes=boxes)


def _beside_plain(model: nn.Module) -> Findings:
    """A run whose cost is counted in places² that attend, beside a plain one."""
    places: list[int] = []
    attend = next(part for part in model.modules() if isinstance(part, nn.MultiheadAttention))
    attend.register_forward_pre_hook(lambda _, args: places.append(args[0].shape[1]))
    model(torch.zeros(1, 3, 34, 34))
    cost = 1 + places[0] ** 2 / 1e6
    cuda = {"device": "cuda"}
    with tempfile.TemporaryDirectory() as root:
        write_run(Path(root), variant="cnn", settings=cuda, seconds=100.0, peak_bytes=10**9)
        peak = int(cost * 10**9)
        return diagnose_run(
            write_run(Path(root), settings=cuda, seconds=100 * cost, peak_bytes=peak)
        )


def _of_split(given: dict[str, Any]) -> Findings:
    return diagnose_split(**given)


def _twin(code: str, severity: str, faulty: Callable, mended: Callable, examine: Callable) -> Twin:
    return Twin(code, severity, faulty, mended, (faulty, mended), examine)


RUNS: dict[str, Twin] = {
    "learning rate of zero": _twin(
        "no-learning", "error", rate_of_zero, rate_that_learns, _of_curves
    ),
    "learning rate too large": _twin(
        "diverged", "error", rate_too_large, rate_that_learns, _of_curves
    ),
    "too few images": _twin("overfitting", "warning", too_few_images, more_images, _of_curves),
    "accuracy of the majority": _twin(
        "not-above-majority", "warning", hardly_trained, trained_longer,
        lambda summary: _of_run(**summary),
    ),
    "places seeded per batch": _twin(
        "unlikely-places", "warning", seeded_per_batch, seeded_once, _of_boxes
    ),
    "places of one generator": _twin(
        "shared-places", "warning", one_generator, own_generator, _of_split
    ),
    "crops split": _twin(
        "shared-photographs", "error", crops_split, photographs_split, _of_split
    ),
    "attention before the pool": _twin(
        "slower-than-plain", "note", attention_early, attention_late, _beside_plain
    ),
    "weights of many places": _twin(
        "heavier-than-plain", "note", attention_early, attention_late, _beside_plain
    ),
}  # fmt: skip
