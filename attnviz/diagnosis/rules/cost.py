"""Cost of a training beside that of the plain network."""

from __future__ import annotations

import math
from collections.abc import Iterator

from attnviz.diagnosis.registry import Observation, observed, rule
from attnviz.diagnosis.run_diagnosis import Training
from attnviz.runs import Run

DEARER = 1.5
"""Cost from this multiple of the plain network's on is a note."""


@rule(
    code="slower-than-plain",
    severity="note",
    summary="An epoch takes more than 1.5 times the plain network's.",
    meaning="an epoch takes {seconds:.3g} s, {ratio:.2f} times that of the plain CNN, which "
    "reaches {plain_accuracy:.1%} against {accuracy:.1%}",
    evidence={
        "seconds": "seconds per epoch",
        "ratio": "over those of the plain network",
        "accuracy": "test accuracy, 0 to 1",
        "plain_accuracy": "test accuracy of the plain network, 0 to 1",
    },
    threshold=f"ratio above {DEARER:g}",
    remedy="place attention after the last pool, or keep the plain network",
    appearance="–",
    cause="Attention at an early layer costs O(n²) of many places.",
    method="Seconds per epoch of this run and of the `cnn` beside it, of the same seed, test "
    "images and device.",
    subject="run",
)
def slower(training: Training) -> Iterator[Observation]:
    run, plain = training.run, training.plain
    if run is None or plain is None:
        return
    own, other = _per_epoch(run), _per_epoch(plain)
    accuracy, plainly = (float(one.summary.get("accuracy", math.nan)) for one in (run, plain))
    if own and other and own > DEARER * other:
        yield observed(
            "run", seconds=own, ratio=own / other, accuracy=accuracy, plain_accuracy=plainly
        )


@rule(
    code="heavier-than-plain",
    severity="note",
    summary="Training takes more than 1.5 times the plain network's memory.",
    meaning="training takes {megabytes:,.0f} MB at its peak, {ratio:.2f} times that of the plain "
    "CNN",
    evidence={
        "megabytes": "peak device memory in MB",
        "ratio": "over that of the plain network",
    },
    threshold=f"ratio above {DEARER:g}",
    remedy="use the fused kernel (F.scaled_dot_product_attention), or fewer places",
    appearance="–",
    cause="Weights written out, `(b, heads, n, n)` per layer.",
    method="Peak device memory, on GPUs only: the peak of a process includes earlier work.",
    subject="run",
)
def heavier(training: Training) -> Iterator[Observation]:
    run, plain = training.run, training.plain
    if run is None or plain is None:
        return
    if not str(run.settings.get("device", "")).startswith("cuda"):
        return
    own, other = (float(one.summary.get("peak_bytes") or 0) for one in (run, plain))
    if other and own > DEARER * other:
        yield observed("run", megabytes=own / 1e6, ratio=own / other)


def _per_epoch(run: Run) -> float:
    epochs = run.summary.get("epochs") or len(run.curves())
    return float(run.summary.get("seconds") or 0) / epochs if epochs else 0.0
