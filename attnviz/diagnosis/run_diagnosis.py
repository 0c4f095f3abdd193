"""`diagnose_run` and `diagnose_split`: faults of a training, read from its run or its data.

No model is rebuilt.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from attnviz.diagnosis.findings import Finding, Findings
from attnviz.diagnosis.registry import findings_of, named
from attnviz.errors import InputError
from attnviz.runs import Run, list_runs

if TYPE_CHECKING:
    from pandas import DataFrame

_PLAIN = "cnn"
_OF_SPLITS = ("shared-photographs", "shared-places")


@dataclass(frozen=True)
class Training:
    """What rules on a run examine.

    Attributes:
        curves: One row an epoch, with `epoch`, `train_loss` and `val_loss`.
        kept_best: Whether the weights of the best epoch were kept.
        run: The run if it is complete, else None.
        plain: The plain network's run, to compare cost with, or None.
    """

    curves: DataFrame
    kept_best: bool = False
    run: Run | None = None
    plain: Run | None = None


@dataclass(frozen=True)
class Split:
    """What rules on a split examine; every field as in `diagnose_split`."""

    train_boxes: NDArray[Any] | None = None
    test_boxes: NDArray[Any] | None = None
    size: tuple[int, int] | None = None
    train_images: NDArray[Any] | None = None
    test_images: NDArray[Any] | None = None
    train_photographs: Sequence[Any] | NDArray[Any] | None = None
    test_photographs: Sequence[Any] | NDArray[Any] | None = None


def diagnose_run(run: Run, plain: Run | None = None) -> Findings:
    """Diagnose a training from its run.

    Args:
        run: A run, complete or not.
        plain: The plain network's run, to compare cost with. By default the run of variant `cnn`
            beside it that has the same seed and test images.

    Returns:
        The findings, the worst first.

    Raises:
        RunError: A file of the run cannot be read.
    """
    kept_best, complete = "best_epoch" in run.summary, run.state == "complete"
    training = Training(
        run.curves(), kept_best, run if complete else None,
        (plain or _sibling(run)) if complete else None,
    )  # fmt: skip
    found = findings_of("run", training)
    return Findings([*found, *_stored(run)] if complete else found, name=run.id)


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
    """Diagnose whether a test set shares images or patch places with its training set.

    Args:
        train_boxes: `(n, 4)`, `[x0, y0, x1, y1)` of the training patches; zeros where none is.
        test_boxes: The same of the test.
        size: Height and width of the images, which gives the number of possible places.
        train_images: `(n, h, w, 3)` bytes, with or without patches.
        test_images: The same of the test.
        train_photographs: The photograph of each training image, any name or number.
        test_photographs: The same of the test.

    Returns:
        The findings; empty where nothing is shared beyond chance, or nothing was given.
    """
    return Findings(
        findings_of(
            "split",
            Split(
                train_boxes, test_boxes, size, train_images, test_images,
                train_photographs, test_photographs,
            ),
        )
    )  # fmt: skip


def _stored(run: Run) -> list[Finding]:
    """Findings on the split from the training; its images are not kept with the run."""
    found = []
    for one in run.summary.get("findings") or ():
        if isinstance(one, dict) and one.get("code") in _OF_SPLITS:
            with suppress(KeyError, TypeError, InputError):  # evidence of another version
                found.append(named(one["code"]).finding("data", **one["evidence"]))
    return found


def _sibling(run: Run) -> Run | None:
    """The plain network's run beside this one, of the same test images, seed and device."""
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
