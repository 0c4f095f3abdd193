"""What identifies a data set: some of its images, evenly spaced, as the model takes them.

A data set may be larger than memory and slow to read, so it is not read as a whole: an evaluation
that goes on with an interrupted one reads these images anew and compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.data.samples import Sample, Samples, checked

LOOKED_AT = 32
"""The most images that are read."""


def spaced(count: int, most: int) -> list[int]:
    """Numbers of up to `most` of `count` images, evenly spaced, the first and the last among them.

    Args:
        count: Images in the data set.
        most: Images that are wanted.
    """
    numbers = np.linspace(0, count - 1, min(count, most)).round().astype(int)
    return [int(number) for number in np.unique(numbers)]


class Look:
    """What some images of a data set show of all; they are read once, when that is first wanted.

    Args:
        samples: The data set.

    Raises:
        InputError: A sample whose mask, boxes or values cannot be right; it is named.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    @property
    def labels(self) -> list[Any]:
        """Their labels, None where one has none."""
        return self._read[0]

    @property
    def digest(self) -> str:
        """Of their pixels, masks, ignored pixels, boxes, labels and groups, and of the count."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[list[Any], str]:
        digest = hashlib.blake2b(repr(len(self.samples)).encode(), digest_size=8)
        labels = []
        for index in spaced(len(self.samples), LOOKED_AT):
            sample = checked(self.samples[index], index)
            labels.append(sample.label)
            for content in _contents(sample):
                digest.update(content)
        return labels, digest.hexdigest()


def _contents(sample: Sample) -> Iterator[Any]:
    for tensor in (sample.image, sample.mask, sample.ignore, sample.boxes):
        yield repr(None if tensor is None else (tensor.dtype, tuple(tensor.shape))).encode()
        if tensor is not None:
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    label = sample.label.tolist() if isinstance(sample.label, Tensor) else sample.label
    yield repr((label, sample.group)).encode()
