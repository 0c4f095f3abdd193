"""Faults of a split: test images or patch places that the training images share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnviz.diagnosis.registry import Observation, observed, rule
from attnviz.diagnosis.run_diagnosis import Split, Training
from attnviz.errors import RunError

FEWER = 0.8
"""Places repeat if there are fewer different ones than this part of what chance gives."""

_Z = 1.645
_BLOCKS = 6


@rule(
    code="shared-photographs",
    severity="error",
    summary="Test images show what training images show.",
    meaning="{images} test images show what training images show: the test measures memory",
    evidence={"images": "number of such test images"},
    threshold="half of the blocks equal",
    remedy="split by photograph before you cut or patch, not after",
    appearance="Right for the wrong reason.",
    cause="Split after cropping or augmenting.",
    method=f"By the names given, or by comparing blocks of {_BLOCKS} × {_BLOCKS} byte for byte: "
    "half of them equal is a copy with a patch. `attnviz.diagnosis.diagnose_split`.",
    subject="split",
)
def shared_photographs(split: Split) -> Iterator[Observation]:
    same = 0
    if split.train_photographs is not None and split.test_photographs is not None:
        both = np.isin(np.asarray(split.test_photographs), np.asarray(split.train_photographs))
        same = int(both.sum())
    if not same and split.train_images is not None and split.test_images is not None:
        same = shared_images(split.train_images, split.test_images)
    if same:
        yield observed("data", images=same)


@rule(
    code="shared-places",
    severity="warning",
    summary="Test patches lie where training patches lie.",
    meaning="{share:.0%} of the test's patches lie exactly where a training patch lies, chance "
    "would give {expected:.0%}: a network can learn the places by heart",
    evidence={
        "share": "share of test patches at the place of a training patch, 0 to 1",
        "expected": "the same for places drawn at random, 0 to 1",
    },
    threshold="five points and two standard errors above chance",
    remedy="draw places from (seed, index), with another seed for each split: "
    "av.inject_patch(images, seed=…, indices=…)",
    appearance="Right on the test, lost elsewhere.",
    cause="One random generator per batch ties places to positions in the batch, so that few "
    "places exist and splits share them.",
    method="The share is above the expected one by five points and two standard errors. "
    "`attnviz.diagnosis.diagnose_split`.",
    subject="split",
)
def shared_places(split: Split) -> Iterator[Observation]:
    if split.train_boxes is None or split.test_boxes is None or split.size is None:
        return
    train, test = _placed(split.train_boxes), _placed(split.test_boxes)
    if not len(train) or not len(test):
        return
    known = {tuple(box) for box in train.tolist()}
    share = float(np.mean([tuple(box) in known for box in test.tolist()]))
    places = _possible(test, split.size)
    expected = _distinct(len(train), places) / places
    margin = _Z * math.sqrt(max(expected * (1 - expected), 1e-9) / len(test))
    if share > expected + 2 * margin + 0.05:
        yield observed("data", share=share, expected=expected)


@rule(
    code="unlikely-places",
    severity="warning",
    summary="Test patches lie at fewer places than chance gives.",
    meaning="the test's {patches} patches lie at only {places} different places, where "
    "{expected:.0f} are expected: places repeat from batch to batch",
    evidence={
        "patches": "number of patches",
        "places": "number of different places",
        "expected": "expected number of different places",
    },
    threshold=f"fewer than {FEWER:g} of the expected",
    remedy="pass indices: av.inject_patch(images, seed=…, indices=numbers_in_the_data_set)",
    appearance="The same few spots.",
    cause="A generator that is seeded anew for each batch.",
    method=f"Less than {FEWER:.0%} of the number of different places that chance gives.",
    subject="run",
)
def unlikely_places(training: Training) -> Iterator[Observation]:
    run = training.run
    if run is None or run.dataset is None:
        return
    try:
        dataset = run.test_set()
        boxes, (height, width) = _placed(dataset.boxes()), dataset.size
        several = len(np.unique(dataset.sizes(), axis=0)) > 1
    except RunError:
        return
    if several:  # boxes of images of several sizes are different places anyhow
        return
    if len(boxes) < 2:
        return
    places, expected = different_places(boxes, (height, width))
    if places < FEWER * expected:
        yield observed("data", patches=len(boxes), places=places, expected=expected)


def different_places(boxes: NDArray[Any], size: tuple[int, int]) -> tuple[int, float]:
    """The number of different places of patches, and the number that chance gives.

    Args:
        boxes: `(n, 4)`.
        size: Height and width of the images.
    """
    return len(np.unique(boxes, axis=0)), _distinct(len(boxes), _possible(boxes, size))


def shared_images(train: NDArray[Any], test: NDArray[Any], *, blocks: int = _BLOCKS) -> int:
    """The number of test images that are training images, up to a patch.

    An image is cut into `blocks × blocks`; it is another's copy if half of its blocks that are not
    flat are found byte for byte at the same places.

    Args:
        train: `(n, h, w, c)`.
        test: `(m, h, w, c)`.
        blocks: In a row and in a column.
    """
    known: dict[tuple[int, bytes], set[int]] = {}
    for number, image in enumerate(train):
        for key in _blocks(image, blocks):
            known.setdefault(key, set()).add(number)
    copies = 0
    for image in test:
        keys = list(_blocks(image, blocks))
        votes: dict[int, int] = {}
        for key in keys:
            for number in known.get(key, ()):
                votes[number] = votes.get(number, 0) + 1
        copies += bool(keys) and max(votes.values(), default=0) * 2 >= len(keys)
    return copies


def _blocks(image: NDArray[Any], count: int) -> Iterator[tuple[int, bytes]]:
    h, w = image.shape[0] // count, image.shape[1] // count
    for i in range(count * count):
        y, x = divmod(i, count)
        block = image[y * h : (y + 1) * h, x * w : (x + 1) * w]
        if np.ptp(block):
            yield i, block.tobytes()


def _placed(boxes: NDArray[Any]) -> NDArray[Any]:
    """The boxes of images that have a patch."""
    boxes = np.asarray(boxes)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def _possible(boxes: NDArray[Any], size: tuple[int, int]) -> int:
    """The number of possible places for patches of this size."""
    wide, high = np.median(boxes[:, 2:] - boxes[:, :2], axis=0)
    return max(1, int((size[0] - high + 1) * (size[1] - wide + 1)))


def _distinct(draws: int, places: int) -> float:
    """Expected number of different places among so many draws, `n (1 − (1 − 1/n)^draws)`."""
    return places * -math.expm1(draws * math.log1p(-1 / places)) if places > 1 else 1.0
