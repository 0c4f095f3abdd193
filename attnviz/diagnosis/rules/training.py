"""Faults of a training that its curves and test accuracy show."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from attnviz.diagnosis.registry import Observation, observed, rule
from attnviz.diagnosis.run_diagnosis import Training

LEARNED = 0.95
"""Nothing was learned if the training loss never falls below this part of its first value."""

ROSE, BY = 1.25, 0.02
"""Validation loss that ends at this multiple of its best, and by this much above it, rose."""

_LITTLE = 0.05  # a first loss below this leaves nothing to learn
_Z = 1.645


@rule(
    code="diverged",
    severity="error",
    summary="The loss is not finite.",
    meaning="the loss is not finite from epoch {epoch} on",
    evidence={"epoch": "first such epoch"},
    remedy="lower the learning rate, clip gradients, and look for rows with all keys masked",
    appearance="Empty.",
    cause="Learning rate, [half precision](half-precision.md), rows with all keys masked.",
    method="The first epoch whose training or validation loss is NaN or infinite.",
    subject="run",
)
def diverged(training: Training) -> Iterator[Observation]:
    train, val, epochs = _losses(training)
    broken = ~(np.isfinite(train) & np.isfinite(val))
    if broken.any():
        yield observed("run", epoch=int(epochs[np.argmax(broken)]))


@rule(
    code="no-learning",
    severity="error",
    summary="The training loss did not fall.",
    meaning="after {epochs} epochs the training loss is {last:.3g}, it began at {first:.3g}: "
    "nothing was learned",
    evidence={
        "epochs": "number of epochs",
        "first": "training loss of the first epoch",
        "last": "training loss of the last epoch",
    },
    threshold=f"loss never below {LEARNED:g} of the first",
    remedy="check the learning rate, that labels and images belong together, and that parameters "
    "are in the optimiser",
    appearance="As random as at the start.",
    cause="Learning rate, labels in another order than images, parameters not in the optimiser, a "
    "detached graph. Overfit eight images first, and print the norms of the gradients.",
    method=f"The training loss never falls below {LEARNED:.0%} of the first epoch's.",
    subject="run",
    explained_by=("diverged",),
)
def no_learning(training: Training) -> Iterator[Observation]:
    train, _, _ = _losses(training)
    if len(train) > 1 and train[0] > _LITTLE and train.min() > LEARNED * train[0]:
        yield observed("run", epochs=len(train), first=float(train[0]), last=float(train[-1]))


@rule(
    code="overfitting",
    severity="warning",
    summary="Validation loss rose while training loss fell.",
    meaning="validation loss is {last:.3g} at the end and was {best:.3g} in epoch {epoch}, while "
    "the training loss fell to {train:.3g}",
    evidence={
        "last": "validation loss of the last epoch",
        "best": "smallest validation loss",
        "epoch": "epoch of the smallest validation loss",
        "train": "training loss of the last epoch",
    },
    threshold=f"last loss above {ROSE:g} times the best and {BY:g} above it",
    remedy="stop at the best epoch, draw new patch places in every epoch, or take more images",
    appearance="Often on single pixels of training images.",
    cause="Too few images, or patch places that repeat from epoch to epoch.",
    method=f"The last validation loss is {ROSE:g} times the best and {BY} above it, and the "
    "training loss fell after the best epoch. A note where the best epoch's weights were kept.",
    subject="run",
    explained_by=("diverged", "no-learning"),
)
def overfitting(training: Training) -> Iterator[Observation]:
    train, val, epochs = _losses(training)
    if len(train) < 2:
        return
    best = int(np.argmin(val))
    if val[-1] > ROSE * val[best] and val[-1] - val[best] > BY and train[-1] < train[best]:
        yield observed(
            "run", "note" if training.kept_best else None,
            last=float(val[-1]), best=float(val[best]), epoch=int(epochs[best]),
            train=float(train[-1]),
        )  # fmt: skip


@rule(
    code="not-above-majority",
    severity="warning",
    summary="The model is no more accurate than the commonest label.",
    meaning="test accuracy is {accuracy:.1%}, and always giving the commonest label would give "
    "{majority:.1%}",
    evidence={
        "accuracy": "test accuracy, 0 to 1",
        "majority": "share of the commonest label, 0 to 1",
    },
    threshold=f"within {_Z:g} standard errors",
    remedy="train longer, or make the task easier first (a larger patch); a map of such a model "
    "says nothing",
    appearance="Meaningless.",
    cause="Too short a training, or too hard a task.",
    method=f"Test accuracy is within {_Z} standard errors of the commonest label's share.",
    subject="run",
)
def not_above_majority(training: Training) -> Iterator[Observation]:
    run = training.run
    if run is None:
        return
    accuracy = run.summary.get("accuracy")
    samples = run.samples(["label"]) if "samples.parquet" in run.files else None
    if not isinstance(accuracy, float | int) or samples is None or not len(samples):
        return
    counts = samples["label"].value_counts(normalize=True)
    majority = float(counts.max())
    margin = _Z * math.sqrt(majority * (1 - majority) / len(samples))
    if len(counts) > 1 and accuracy <= majority + margin:
        yield observed("run", accuracy=float(accuracy), majority=majority)


def _losses(training: Training) -> tuple[NDArray[np.float64], ...]:
    """Training loss, validation loss and epoch numbers; empty where they are missing."""
    curves, empty = training.curves, np.empty(0)
    if not {"train_loss", "val_loss"} <= set(curves.columns) or not len(curves):
        return empty, empty, empty
    train, val = (
        curves[name].to_numpy(dtype=np.float64, na_value=math.nan)
        for name in ("train_loss", "val_loss")
    )
    counted = np.arange(1.0, len(curves) + 1)
    epochs = curves["epoch"].to_numpy(dtype=np.float64) if "epoch" in curves else counted
    return train, val, epochs
