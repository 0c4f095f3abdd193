"""What a run's curves, places and siblings say: training that failed, leaked, or cost too much.

Read from the run folder alone; no model is rebuilt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.findings import Finding, Findings
from attnviz.errors import RunError
from attnviz.runs import Run, list_runs

if TYPE_CHECKING:
    from pandas import DataFrame

LEARNED = 0.95
"""Nothing was learned if the training loss never falls below this part of its first value."""

ROSE, BY = 1.25, 0.02
"""Validation loss that ends at this multiple of its best, and by this much above it, rose."""

FEWER = 0.8
"""Places repeat if there are fewer different ones than this part of what chance gives."""

DEARER = 1.5
"""From this multiple of the plain network's cost on it is worth a note."""

_KNOWN = 0.05  # a first loss below this leaves nothing to learn
_Z = 1.645
_PLAIN = "cnn"
_OF_SPLITS = ("shared-photographs", "shared-places")


def diagnose_run(run: Run, plain: Run | None = None) -> Findings:
    """Say what went wrong in a training.

    Args:
        run: A run, complete or not.
        plain: The plain network's run, to compare cost with. By default the run of variant `cnn`
            beside it that has the same seed and test images.

    Returns:
        The findings, the worst first.

    Raises:
        RunError: A file of the run cannot be read.
    """
    curves = run.curves()
    found = [*curve_findings(curves, kept_best="best_epoch" in run.summary)]
    if run.state == "complete":
        found += _answer_findings(run)
        found += _place_findings(run)
        found += _split_findings(run)
        found += _cost_findings(run, plain or _sibling(run))
    return Findings(found, name=run.id)


def curve_findings(curves: DataFrame, *, kept_best: bool = False) -> Iterator[Finding]:
    """What the curves of a training show.

    Args:
        curves: One row an epoch, with `epoch`, `train_loss` and `val_loss`.
        kept_best: Whether the weights of the best epoch were kept, so that what came after it
            did no harm.
    """
    if not {"train_loss", "val_loss"} <= set(curves.columns) or not len(curves):
        return
    train, val = (_column(curves, name) for name in ("train_loss", "val_loss"))
    epochs = _column(curves, "epoch") if "epoch" in curves else np.arange(1.0, len(curves) + 1)
    broken = ~(np.isfinite(train) & np.isfinite(val))
    if broken.any():
        yield finding("diverged", "run", epoch=int(epochs[np.argmax(broken)]))
        return
    if len(train) < 2:
        return
    if train[0] > _KNOWN and train.min() > LEARNED * train[0]:
        yield finding(
            "no-learning", "run", epochs=len(train), first=float(train[0]), last=float(train[-1])
        )
        return
    best = int(np.argmin(val))
    if val[-1] > ROSE * val[best] and val[-1] - val[best] > BY and train[-1] < train[best]:
        yield finding(
            "overfitting", "run", "note" if kept_best else None,
            last=float(val[-1]), best=float(val[best]), epoch=int(epochs[best]),
            train=float(train[-1]),
        )  # fmt: skip


def diagnose_split(
    *,
    train_boxes: NDArray[Any] | None = None,
    test_boxes: NDArray[Any] | None = None,
    size: tuple[int, int] | None = None,
    train_images: NDArray[Any] | None = None,
    test_images: NDArray[Any] | None = None,
    train_photographs: Sequence[Any] | NDArray[Any] | None = None,
    test_photographs: Sequence[Any] | NDArray[Any] | None = None,
) -> Findings:
    """Say whether a test set leaks into its training set, or the other way round.

    Args:
        train_boxes: `(n, 4)`, `[x0, y0, x1, y1)` of the training patches; zeros where none is.
        test_boxes: The same of the test.
        size: Height and width of the images, to know how many places there are.
        train_images: `(n, h, w, 3)` bytes, with or without patches.
        test_images: The same of the test.
        train_photographs: What each training image was cut from, any name or number.
        test_photographs: The same of the test.

    Returns:
        The findings; empty where nothing is shared beyond chance, or nothing was given.
    """
    found: list[Finding] = []
    if train_photographs is not None and test_photographs is not None:
        both = np.isin(np.asarray(test_photographs), np.asarray(train_photographs))
        if both.any():
            found.append(finding("shared-photographs", "data", images=int(both.sum())))
    if not found and train_images is not None and test_images is not None:
        same = shared_images(train_images, test_images)
        if same:
            found.append(finding("shared-photographs", "data", images=same))
    if train_boxes is not None and test_boxes is not None and size is not None:
        found += _shared_places(_placed(train_boxes), _placed(test_boxes), size)
    return Findings(found)


def shared_images(train: NDArray[Any], test: NDArray[Any], *, blocks: int = 6) -> int:
    """How many test images are training images, but for a patch.

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


def _column(curves: DataFrame, name: str) -> NDArray[np.float64]:
    return curves[name].to_numpy(dtype=np.float64, na_value=math.nan)


def _answer_findings(run: Run) -> Iterator[Finding]:
    """Whether the answers beat the commonest one."""
    accuracy = run.summary.get("accuracy")
    samples = run.samples(["label"]) if "samples.parquet" in run.files else None
    if not isinstance(accuracy, float | int) or samples is None or not len(samples):
        return
    counts = samples["label"].value_counts(normalize=True)
    majority = float(counts.max())
    margin = _Z * math.sqrt(majority * (1 - majority) / len(samples))
    if len(counts) > 1 and accuracy <= majority + margin:
        yield finding("not-above-majority", "run", accuracy=float(accuracy), majority=majority)


def _place_findings(run: Run) -> Iterator[Finding]:
    """Whether the test's patches lie at as many places as they should."""
    if run.dataset is None:
        return
    try:
        dataset = run.test_set()
        boxes, height, width = _placed(dataset.boxes()), *dataset.images([0]).shape[1:3]
    except RunError:
        return
    if len(boxes) < 2:
        return
    expected = _different(len(boxes), _room(boxes, (height, width)))
    places = len(np.unique(boxes, axis=0))
    if places < FEWER * expected:
        yield finding(
            "unlikely-places", "data", patches=len(boxes), places=places, expected=expected
        )


def _split_findings(run: Run) -> Iterator[Finding]:
    """What the training said of its split: the training images are not kept with the run."""
    for one in run.summary.get("findings") or ():
        if isinstance(one, dict) and one.get("code") in _OF_SPLITS:
            with suppress(KeyError, TypeError, ValueError):  # evidence that somebody else wrote
                yield finding(one["code"], "data", **one["evidence"])


def _placed(boxes: NDArray[Any]) -> NDArray[Any]:
    """The boxes of images that have a patch."""
    boxes = np.asarray(boxes)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def _room(boxes: NDArray[Any], size: tuple[int, int]) -> int:
    """How many places there are for patches of this size."""
    wide, high = np.median(boxes[:, 2:] - boxes[:, :2], axis=0)
    return max(1, int((size[0] - high + 1) * (size[1] - wide + 1)))


def _different(draws: int, places: int) -> float:
    """How many different places so many draws hit, in expectation."""
    return places * -math.expm1(draws * math.log1p(-1 / places)) if places > 1 else 1.0


def _shared_places(
    train: NDArray[Any], test: NDArray[Any], size: tuple[int, int]
) -> Iterator[Finding]:
    if not len(train) or not len(test):
        return
    known = {tuple(box) for box in train.tolist()}
    share = float(np.mean([tuple(box) in known for box in test.tolist()]))
    places = _room(test, size)
    expected = _different(len(train), places) / places
    margin = _Z * math.sqrt(max(expected * (1 - expected), 1e-9) / len(test))
    if share > expected + 2 * margin + 0.05:
        yield finding("shared-places", "data", share=share, expected=expected)


def _sibling(run: Run) -> Run | None:
    """The plain network's run beside this one, on the same question and with the same seed."""
    if run.variant == _PLAIN:
        return None
    for other in list_runs(run.path.parent):
        if (
            other.variant == _PLAIN
            and other.state == "complete"
            and other.seed == run.seed
            and other.dataset == run.dataset
            and other.environment.get("device") == run.environment.get("device")
        ):
            return other
    return None


def _cost_findings(run: Run, plain: Run | None) -> Iterator[Finding]:
    if plain is None:
        return
    own, other = _per_epoch(run), _per_epoch(plain)
    reached, plainly = (one.summary.get("accuracy", math.nan) for one in (run, plain))
    if own and other and own > DEARER * other:
        yield finding(
            "slower-than-plain", "run", seconds=own, ratio=own / other,
            accuracy=float(reached), plain_accuracy=float(plainly),
        )  # fmt: skip
    if not str(run.settings.get("device", "")).startswith("cuda"):
        return  # a process's own peak holds whatever it did before
    memory = [float(one.summary.get("peak_bytes") or 0) for one in (run, plain)]
    if memory[1] and memory[0] > DEARER * memory[1]:
        yield finding(
            "heavier-than-plain", "run", megabytes=memory[0] / 1e6, ratio=memory[0] / memory[1]
        )


def _per_epoch(run: Run) -> float:
    epochs = run.summary.get("epochs") or len(run.curves())
    return float(run.summary.get("seconds") or 0) / epochs if epochs else 0.0
