"""The images that a monitor looks at: held in memory, in an order that begins evenly spread."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from attnviz.data.samples import Sample, class_names
from attnviz.data.sources import samples_of
from attnviz.errors import InputError
from attnviz.model_state import seeded

MOST = 64
"""Images that are held; of a larger set those that are evenly spaced."""


class Calibration(Sequence[Sample]):
    """A few images of a data set, and what they show.

    Args:
        data: Whatever `attnviz.data.samples_of` reads.

    Attributes:
        classes: The names of the classes, where the data set has them.
        thing: What the masks show, where the data set says so.
        order: The images with a mask first; every beginning of it is spread over the whole.
    """

    def __init__(self, data: Any) -> None:
        samples = samples_of(data)
        if not len(samples):
            raise InputError("monitor: expected at least one image, got none")
        chosen = np.linspace(0, len(samples) - 1, min(len(samples), MOST)).round().astype(int)
        self._samples = [samples[int(index)] for index in np.unique(chosen)]
        self.classes = class_names(samples)
        self.thing = getattr(samples, "thing", None)
        spread = sorted(range(len(self)), key=_spread)
        self.order = sorted(spread, key=lambda index: not self.shows(index))

    def shows(self, index: int) -> bool:
        """Whether a mask says where the object is in this image."""
        mask = self._samples[index].mask
        return mask is not None and bool(mask.any())

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return all(sample.label is not None for sample in self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return self._samples[index]


@contextmanager
def undisturbed() -> Iterator[None]:
    """The random generators of Python, numpy and torch as before, whatever the block draws."""
    state = random.getstate()
    try:
        with seeded(0):
            yield
    finally:
        random.setstate(state)


def _spread(index: int) -> float:
    """A number of the van der Corput sequence 0, 1/2, 1/4, 3/4, 1/8 and so on."""
    share, part = 0.0, 0.5
    while index:
        share, part, index = share + part * (index & 1), part / 2, index >> 1
    return share
