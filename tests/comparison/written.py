"""Small run folders whose scores are known, written by the library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attnviz.runs import Run, save_dataset, save_run

SETTINGS: dict[str, Any] = {"patch_size": 8, "lr": 0.001, "epochs": 3}


def dataset(root: Path, n: int = 12) -> str:
    """`n` grey images with an 8 × 8 patch in the first two thirds of them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (n, 32, 32, 3)).astype(np.uint8)
    masks, boxes = np.zeros((n, 32, 32), dtype=bool), np.zeros((n, 4), dtype=np.int64)
    for i in range(2 * n // 3):
        x, y = rng.integers(0, 24, 2)
        boxes[i] = x, y, x + 8, y + 8
        masks[i, y : y + 8, x : x + 8] = True
    images[masks] = 255
    labels = masks.any((1, 2)).astype(np.int64)
    return str(save_dataset(root, images=images, masks=masks, boxes=boxes, labels=labels, info={}))


def write_run(
    root: Path,
    variant: str,
    seed: int | None = 0,
    *,
    energy: float = 0.5,
    settings: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
    digest: str | None = None,
    samples: pd.DataFrame | None = None,
    name: str | None = None,
) -> Run:
    """A complete run of one variant whose energy lies around the number given."""
    digest = dataset(root) if digest is None else digest
    frame = sample_table(root, digest, energy, seed or 0) if samples is None else samples
    grids = np.random.default_rng(seed or 0).random((len(frame), 8, 8)).astype(np.float32)
    told = {
        "accuracy": 11 / 12,
        "map": "attend",
        "metrics": {
            "attend": {"energy_pointing_game": {"chance": 0.06, "centre": 0.08, "redrawn": 0.8}}
        },
    }
    return save_run(
        root / (name or f"{variant}-{seed}"),
        variant=variant,
        settings={**SETTINGS, "variant": variant, "seed": seed, **(settings or {})},
        seed=seed,
        samples=frame,
        maps={"attend": grids},
        curves=[
            {"epoch": i, "train_loss": 1 / (i + 1), "val_loss": 1.1 / (i + 1), "val_accuracy": 0.9}
            for i in range(3)
        ],
        summary={**told, **(summary or {})},
        dataset=digest,
    )


def sample_table(root: Path, digest: str, energy: float, seed: int) -> pd.DataFrame:
    """Samples with two metrics of one map; NaN where there is no patch."""
    from attnviz.runs import open_dataset

    boxes, labels = open_dataset(root, digest).boxes(), open_dataset(root, digest).labels()
    rng = np.random.default_rng([seed, round(1000 * energy)])
    scores = np.where(labels == 1, energy + rng.normal(0, 0.02, len(labels)), np.nan)
    correct = np.arange(len(labels)) != 0
    return pd.DataFrame(
        {
            "index": np.arange(len(labels)),
            "label": labels,
            "logit": np.where(labels == 1, 2.0, -2.0),
            "probability": np.where(labels == 1, 0.88, 0.12),
            "prediction": np.where(correct, labels, 1 - labels),
            "correct": correct,
            **{name: boxes[:, i] for i, name in enumerate(["x0", "y0", "x1", "y1"])},
            "attend/energy_pointing_game": scores,
            "attend/pointing_game": np.where(labels == 1, (scores > 0.5) * 1.0, np.nan),
            "gradcam/energy_pointing_game": scores / 2,
        }
    )
