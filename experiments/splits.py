"""A split of an experiment as a data set of `attnviz.evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attnviz.data.samples import Sample
from experiments.loading import groups
from experiments.questions import Asked
from experiments.settings import Settings
from experiments.training import Loader

RANGE = ((-1.0,) * 3, (1.0,) * 3)
"""What black and white pixels are for the models."""


class Split:
    """Images of a split with their patches, made one by one.

    Args:
        settings: Of the run.
        name: `"train"`, `"val"` or `"test"`.
        numbers: Which of its images; all if not given.
    """

    thing = "patch"

    def __init__(self, settings: Settings, name: str, numbers: Sequence[int] | None = None) -> None:
        self.loader = Loader(settings, name, torch.device("cpu"))
        self.numbers = list(range(len(self.loader)) if numbers is None else numbers)
        self.groups = groups(settings, name)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        number = self.numbers[index]
        asked = self.asked([number])
        return Sample(
            image=asked.images[0],
            mask=asked.masks[0],
            label=int(asked.labels[0]),
            group=None if self.groups is None else self.groups[number],
            value_range=RANGE,
        )

    def asked(self, numbers: Sequence[int]) -> Asked:
        """Images of these numbers in the split, with masks, boxes and labels."""
        return self.loader.batch(torch.tensor(list(numbers), dtype=torch.int64))


def with_patch(split: Split, count: int) -> list[int]:
    """The numbers of the first `count` images of a split that have something to find."""
    found: list[int] = []
    for numbers in torch.tensor(split.numbers).split(100):
        if len(found) < count:
            there = split.loader.batch(numbers).masks.flatten(1).any(1)
            found += numbers[there].tolist()
    return found[:count]
