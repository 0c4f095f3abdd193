"""Train six variants once each, measure them, and describe where their maps lie.

The settings keep it below three minutes on two cores. It trains one seed: what it prints describes
these trainings and ranks nothing; `sweep --seeds 5` compares variants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnviz.comparison import compare
from attnviz.figures import comparison_picture
from attnviz.runs import Run, open_run
from attnviz.text import table as columns

VARIANTS = ("cnn", "mha_reshape", "mha", "mha_conv1d", "cbam_channel", "cbam")
SETTINGS: Mapping[str, Any] = {
    "side": 64, "size": 12, "train_images": 640, "test_images": 360, "epochs": 6, "batch": 16,
}  # fmt: skip
"""What differs from the defaults of a training; 360 test crops are 40 of each photograph."""

PICTURE = "comparison.png"
_SHOWN = 4


def table(runs: Sequence[Run]) -> str:
    """One row per run: accuracy and loss, scores of its primary map, seconds of training."""
    head = (
        "variant", "map", "accuracy", "loss", "energy (photographs)", "pointing", "IoU",
        "chance", "mask redrawn", "train s",
    )  # fmt: skip
    return columns(head, [_row(run) for run in runs], rule=True)


def _row(run: Run) -> tuple[Any, ...]:
    """What could not be computed is None: the loss of a training that diverged, IoU without τ."""
    name = run.summary["map"]
    scores = run.summary["metrics"][name]
    energy = scores["energy_pointing_game"]
    return (
        run.variant,
        name,
        run.summary["accuracy"],
        run.summary["loss"],
        None if energy["mean"] is None else f"{energy['mean']:.3f}{_photographs(run, name)}",
        scores["pointing_game"]["mean"],
        scores.get("max_iou", {}).get("mean"),
        energy["chance"],
        energy["redrawn"],
        f"{run.summary['seconds']:.0f}",
    )


def _photographs(run: Run, name: str) -> str:
    """The lowest and the highest mean energy of a test photograph, if photographs are named."""
    column = f"{name}/energy_pointing_game"
    samples = run.samples()
    if "group" not in samples:
        return ""
    means = samples.groupby("group")[column].mean().dropna()
    return f" ({means.min():.3f} to {means.max():.3f})"


def picture(runs: Sequence[Run], root: Path) -> Path:
    """The same four images in every variant, box drawn, score below; where it was written."""
    dataset = runs[0].test_set()
    shown = np.flatnonzero(dataset.labels() > 0)[:_SHOWN].tolist()
    maps, scores, titles = {}, {}, {}
    for run in runs:
        name = run.summary["map"]
        maps[run.variant] = run.maps(name, shown)
        column = f"{name}/energy_pointing_game"
        scores[run.variant] = run.samples([column])[column].to_numpy()[shown]
        titles[run.variant] = name.replace("_", " ")
    path = root / PICTURE
    comparison_picture(
        dataset.images(shown), maps, dataset.boxes()[shown], scores, path, titles=titles
    )
    return path


def measured_on(runs: Sequence[Run]) -> str:
    """On how many trainings, images and photographs the table rests."""
    samples = runs[0].samples()
    crops = f"{len(samples)} test images"
    if "group" in samples:
        crops = f"{len(samples)} crops of {samples['group'].nunique()} test photographs"
    return f"One training each (seed {runs[0].seed}), {crops} that no training has seen."


def show(root: Path, run_ids: Sequence[str]) -> str:
    """The text of a finished quickstart: table, sentence, the doctor's findings, next steps."""
    runs = [open_run(root / run_id) for run_id in run_ids]
    parts = [table(runs), measured_on(runs), compare(runs).sentence]
    diagnoses = [f"{run.variant}: {run.summary['diagnosis']}" for run in runs]
    if leaks := {
        one["code"]: f"The split: {one['severity']} {one['code']}: {one['meaning']}"
        for run in runs
        for one in run.summary["findings"]
        if one["where"] == "data"
    }:
        parts.append("\n".join(leaks.values()))
    parts.append("The doctor on these trainings:\n" + "\n".join(f"  {line}" for line in diagnoses))
    parts.append(f"The same images in every variant: {picture(runs, root)}")
    parts.append(f"Look around:  uv run --no-dev attnviz dashboard {root}")
    return "\n\n".join(parts)
