"""Whether a test set was seen in training: its photographs, or the places of its patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnviz.diagnosis import Findings, diagnose_split
from experiments.data.photos import PHOTOGRAPHS
from experiments.settings import Settings
from experiments.training import Loader


def split_findings(settings: Settings) -> Findings:
    """Compare a run's test images and patches with the training's as its first epoch has them.

    Returns:
        `shared-photographs` and `shared-places`, where they are; empty for a split that is clean.
    """
    train, test = (Loader(settings, split, torch.device("cpu")) for split in ("train", "test"))
    names: dict[str, list[str] | None] = {"train": None, "test": None}
    if settings.data == "photos":
        names = {split: [_scene(name) for name in PHOTOGRAPHS[split]] for split in names}
    return diagnose_split(
        train_boxes=_boxes(train),
        test_boxes=_boxes(test),
        size=(settings.side, settings.side),
        train_images=_pixels(train),
        test_images=_pixels(test),
        train_photographs=names["train"],
        test_photographs=names["test"],
    )


def _boxes(loader: Loader) -> NDArray[Any]:
    boxes = torch.cat([loader.batch(numbers).boxes for numbers in loader.batches()])
    return np.asarray(boxes)


def _pixels(loader: Loader) -> NDArray[Any]:
    return np.asarray(loader.pixels.permute(0, 2, 3, 1))


def _scene(name: str) -> str:
    """The left and the right picture of a stereo pair show one scene."""
    return name.removesuffix("_left").removesuffix("_right")
