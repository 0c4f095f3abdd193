"""Leak checks: test photographs or patch places that training has seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnviz.diagnosis import Findings, diagnose_split
from experiments.loading import groups
from experiments.settings import Settings
from experiments.training import Loader


def split_findings(settings: Settings) -> Findings:
    """Compare a run's test images and patches with the training's as its first epoch has them.

    Returns:
        `shared-photographs` and `shared-places`, where they are; empty for a split that is clean.
    """
    train, test = (Loader(settings, split, torch.device("cpu")) for split in ("train", "test"))
    return diagnose_split(
        train_boxes=_boxes(train),
        test_boxes=_boxes(test),
        size=(settings.side, settings.side),
        train_images=_pixels(train),
        test_images=_pixels(test),
        train_photographs=groups(settings, "train"),
        test_photographs=groups(settings, "test"),
    )


def _boxes(loader: Loader) -> NDArray[Any]:
    boxes = torch.cat([loader.batch(numbers).boxes for numbers in loader.batches()])
    return np.asarray(boxes)


def _pixels(loader: Loader) -> NDArray[Any]:
    return np.asarray(loader.pixels.permute(0, 2, 3, 1))
