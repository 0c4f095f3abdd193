"""Write the tables and figures of experiments/results from a folder of runs.

    uv run python docs/write_results.py RUNS

Runs that answer the same question are compared with each other, over seeds and images. The words
around the tables, in experiments/results/README.md, are written by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from attnviz.compare import Comparison, compare
from attnviz.runs import Run, list_runs, open_run

RESULTS = Path(__file__).parent.parent / "experiments" / "results"
METRICS = ("energy_pointing_game", "pointing_game", "max_iou")
FOUND = 0.9
"""The share of validation images in which a map must hit the patch to have found it."""


def asked(run: Run) -> str:
    """The question of a run: the preset's name."""
    settings = run.settings
    return str(settings["shape"] if settings["question"] == "patch" else settings["question"])


def grouped(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Question → variant → runs, one per seed."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault(asked(run), {}).setdefault(run.variant, []).append(run)
    return groups


def trained(variants: dict[str, list[Run]]) -> str:
    """How the networks answered, and when their maps found the patch, as a table."""
    lines = [
        "| variant | seeds | accuracy, lowest to highest | loss, mean | found at epoch | s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for variant, runs in variants.items():
        accuracy = sorted(run.summary["accuracy"] for run in runs)
        loss = sum(run.summary["loss"] for run in runs) / len(runs)
        seconds = sum(run.summary["seconds"] for run in runs) / len(runs)
        epochs = [found_at(run) for run in runs]
        lines.append(
            f"| `{variant}` | {len(runs)} | {accuracy[0]:.3f} to {accuracy[-1]:.3f} | {loss:.3f} | "
            f"{', '.join(epochs)} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def found_at(run: Run) -> str:
    """The first epoch after which the map hits the patch in most validation images."""
    curves = run.curves()
    if "val_pointing_game" not in curves:
        return "–"
    hit = curves[curves["val_pointing_game"] >= FOUND]
    return "never" if hit.empty else str(int(hit["epoch"].iloc[0]))


def section(question: str, variants: dict[str, list[Run]], ranking: Comparison) -> str:
    """What a page says of one question."""
    return "\n\n".join(
        [
            f"## {question}",
            ranking.to_markdown(METRICS),
            f"![Energy in the patch by variant, {question}]({question}.png)",
            trained(variants),
        ]
    )


def measured_on(runs: Sequence[Run]) -> str:
    """On what, in a sentence."""
    one = runs[0]
    chosen, machine = one.settings, one.environment
    hours = sum(run.summary["seconds"] for run in runs) / 3600
    return (
        f"{len(runs)} runs on {machine['device']}, {machine['threads']} thread each, "
        f"{hours:.1f} hours of training; {chosen['train_images']} training images of "
        f"{chosen['data']}, {chosen['test_images']} test images, {chosen['side']} × "
        f"{chosen['side']}, patches in a box of {chosen['size']} × {chosen['size']}. *Found at "
        f"epoch* is, seed by seed, the first epoch after which the map's maximum lies on the patch "
        f"in {FOUND:.0%} of the {chosen['follow']} validation images that are followed."
    )


def main(arguments: Sequence[str]) -> None:
    """Write tables.md, scores.csv and a figure per question."""
    runs = [open_run(one.location) for one in list_runs(arguments[0]).complete]
    parts, tables = [f"# Tables\n\n{measured_on(runs)}"], []
    order = sorted({run.variant for run in runs})
    RESULTS.mkdir(exist_ok=True)
    for question, variants in grouped(runs).items():
        ranking = compare(variants, metrics=METRICS)
        ranking.figure(order=order).savefig(RESULTS / f"{question}.png", dpi=110)
        parts.append(section(question, variants, ranking))
        tables.append(ranking.table.assign(question=question))
    (RESULTS / "tables.md").write_text("\n\n".join(parts) + "\n")
    pd.concat(tables).to_csv(RESULTS / "scores.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main(sys.argv[1:])
