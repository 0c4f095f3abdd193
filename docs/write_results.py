"""Write the tables and figures of experiments/results from a folder of runs.

    uv run python docs/write_results.py RUNS

Runs that answer the same question are compared with each other, over seeds and images. The words
around the tables, in experiments/results/README.md, are written by hand.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from attnviz.comparison import Comparison, compare
from attnviz.models import build_model, variants
from attnviz.runs import Run, list_runs, open_run
from experiments.presets import PRESETS, asked
from experiments.ranking import METRICS, questions
from experiments.settings import Settings

RESULTS = Path(__file__).parent.parent / "experiments" / "results"
FOUND = 0.9
"""The share of validation images in which a map must hit the patch to have found it."""

FAULTS = {
    "mha_reshape": ("mha", "a reshape where a transpose belonged"),
    "pointwise_channels": ("pointwise", "the product contracts the places"),
    "linear_tokens_channels": ("linear_tokens", "tokens and features are swapped"),
    "raw_scores": ("raw_scores_softmax", "no softmax"),
    "cbam_channel": ("cbam", "no spatial gate by default"),
}
"""As published → the repaired form, and what was wrong."""

GRAVE = ("error", "warning")
MOVED = "placement"
SIDES = (48, 96)

Groups = Mapping[str, Sequence[Run]]


def in_order(complete: Sequence[Run]) -> list[Run]:
    """Runs by question and variant, in the order in which `experiments` lists them, and by seed."""
    presets, names = list(PRESETS), list(variants())

    def key(run: Run) -> tuple[int, int, int, int]:
        question = asked(Settings.from_dict(run.settings))
        place = presets.index(question) if question in presets else len(presets)
        return place, names.index(run.variant), run.settings["placement"] or 0, run.seed or 0

    return sorted((open_run(one.location) for one in complete), key=key)


def grouped(runs: Sequence[Run]) -> dict[str, Groups]:
    """Question → variant → runs, one per seed; runs whose attention was moved are their own."""
    moved = [run for run in runs if run.settings["placement"] is not None]
    found = asked_alike([run for run in runs if run.settings["placement"] is None])
    return found | {f"{MOVED}_{question}": by for question, by in asked_alike(moved).items()}


def asked_alike(runs: Sequence[Run]) -> dict[str, Groups]:
    """Question → variant → runs."""
    by_settings = {Settings.from_dict(run.settings).run_id: run for run in runs}
    plan = [Settings.from_dict(run.settings) for run in runs]
    return {
        question or asked(plan[0]): {
            name: [by_settings[one.run_id] for one in seeds] for name, seeds in named.items()
        }
        for question, named in questions(plan).items()
    }


def trained(groups: Groups) -> str:
    """How the networks answered, what their maps and their attention are to them, as a table."""
    lines = [
        "| variant | map | accuracy, lowest to highest | loss | found at epoch | knockout "
        "| the doctor |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for variant, runs in groups.items():
        accuracy = sorted(run.summary["accuracy"] for run in runs)
        loss = sum(run.summary["loss"] for run in runs) / len(runs)
        lines.append(
            f"| `{variant}` | {runs[0].summary['map']} | {accuracy[0]:.3f} to {accuracy[-1]:.3f} "
            f"| {loss:.3f} | {', '.join(found_at(run) for run in runs)} | {worth(runs)} "
            f"| {diagnosed(runs)} |"
        )
    return "\n".join(lines)


def faults(groups: Groups) -> str:
    """What each published fault costs, as a table: the two forms and their paired difference."""
    lines = [
        "| as published | the fault | energy | pointing | accuracy | repaired | energy | pointing "
        "| accuracy | energy gained |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, (repaired, fault) in FAULTS.items():
        if name in groups and repaired in groups:
            pair = compare({one: groups[one] for one in (name, repaired)}, metrics=METRICS)
            lines.append(
                f"| {scores(pair, name, groups, fault)} | {scores(pair, repaired, groups)} "
                f"| {gained(pair, repaired)} |"
            )
    return "\n".join(lines)


def scores(pair: Comparison, name: str, groups: Groups, *more: str) -> str:
    """A variant's cells: its name and map, energy, pointing and accuracy."""
    rows = [pair.of(metric).set_index("variant").loc[name] for metric in METRICS[:2]]
    own = f"`{name}`, {groups[name][0].summary['map']}"
    means = [rows[0]["mean"], rows[1]["mean"], rows[0]["accuracy"]]
    return " | ".join([own, *more, *(f"{one:.2f}" for one in means)])


def gained(pair: Comparison, repaired: str) -> str:
    """The energy of the repaired form minus the other's, with its paired interval."""
    row = pair.differences.iloc[0]
    sign = 1 if row["variant"] == repaired else -1
    low, high = sorted(sign * row[end] for end in ("low", "high"))
    return f"{sign * row['difference']:+.2f} [{low:+.2f} to {high:+.2f}]"


def worth(runs: Sequence[Run]) -> str:
    """By how much the logit moves when the head or gate that matters most is cut; seeds' mean."""
    sizes = [[row["size"] for row in run.summary["knockout"]] for run in runs]
    return f"{sum(map(max, sizes)) / len(runs):.2f}" if all(sizes) else "–"


def diagnosed(runs: Sequence[Run]) -> str:
    """The doctor's errors and warnings, with the number of seeds where it found them."""
    found = Counter(
        code
        for run in runs
        for code in {one["code"] for one in run.summary["findings"] if one["severity"] in GRAVE}
    )
    ranked = sorted(found.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{code} ({count})" for code, count in ranked) or "–"


def found_at(run: Run) -> str:
    """The first epoch after which the map hits the patch in most validation images."""
    curves = run.curves()
    if "val_pointing_game" not in curves:
        return "–"
    hit = curves[curves["val_pointing_game"] >= FOUND]
    return "never" if hit.empty else str(int(hit["epoch"].iloc[0]))


def costs(groups: Groups) -> str:
    """What one image costs in operations, as a table: multiples of what it costs without attention.

    They are counted on the untrained model; a multiplication and an addition are two.
    """
    lines = [
        "| variant | " + " | ".join(f"operations at {side} px" for side in SIDES) + " |",
        "| --- |" + " ---: |" * len(SIDES),
    ]
    for name, runs in groups.items():
        settings = runs[0].settings
        ratios = [
            operations(runs[0].variant, side, **settings["model"]) / operations("cnn", side)
            for side in SIDES
        ]
        lines.append(f"| `{name}` | " + " | ".join(f"{one:.1f} ×" for one in ratios) + " |")
    return "\n".join(lines)


def operations(variant: str, side: int, **model: Any) -> int:
    """Of one image, forward."""
    network = build_model(variant, **model).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, side, side))
    return counter.get_total_flops()


def section(question: str, groups: Groups, ranking: Comparison) -> str:
    """What a page says of one question."""
    return "\n\n".join(
        [
            f"## {question}",
            ranking.to_markdown(METRICS),
            f"![Energy in the patch by variant, {question}]({question}.png)",
            trained(groups),
            *([faults(groups)] if FAULTS.keys() & groups.keys() else []),
            *([costs(groups)] if question.startswith(MOVED) else []),
        ]
    )


def overview(rankings: Mapping[str, Comparison], order: Sequence[str]) -> Figure:
    """Answered and looked, side by side, variants by questions."""
    size = (2.6 + 1.5 * len(rankings), 0.9 + 0.27 * len(order))
    figure = Figure(figsize=size, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    matrix(left, "accuracy", rankings, order, lambda row: row["accuracy"])
    matrix(right, "energy in the patch", rankings, order, lambda row: row["mean"])
    return figure


def matrix(
    axes: Axes,
    title: str,
    rankings: Mapping[str, Comparison],
    order: Sequence[str],
    value: Callable[[pd.DataFrame], pd.Series],
) -> None:
    """A number for each variant and question, on one scale from 0 to 1."""
    columns = [
        value(ranking.of(METRICS[0]).set_index("variant").reindex(list(order)))
        for ranking in rankings.values()
    ]
    values = np.stack(columns, axis=1).astype(float)
    axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for i, j in np.argwhere(np.isfinite(values)):
        ink = "black" if values[i, j] > 0.6 else "white"
        axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(rankings)), list(rankings), fontsize=8)
    axes.set_yticks(range(len(order)), list(order), fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)


def measured_on(runs: Sequence[Run]) -> str:
    """On what, in a sentence."""
    one = runs[0]
    chosen, machine = one.settings, one.environment
    return (
        f"{_photographs(one)} {len(runs)} runs on {machine['device']}, "
        f"{chosen['threads'] or machine['threads']} "
        f"thread each; "
        f"{chosen['train_images']} training images of "
        f"{chosen['data']}, {chosen['test_images']} test images, {chosen['side']} × "
        f"{chosen['side']}, patches in a box of {chosen['size']} × {chosen['size']}. *Found at "
        f"epoch* is, seed by seed, the first epoch after which the map's maximum lies on the patch "
        f"in {FOUND:.0%} of the {chosen['follow']} validation images that are followed. "
        "*Knockout* is the mean size of the change of the logit, over images and seeds, when the "
        "head or gate that matters most is taken away: a head zeroed or made uniform, a gate "
        f"opened; {chosen['faithful']} test images. *The doctor* lists its errors and warnings, "
        "and for how many seeds."
    )


def _photographs(run: Run) -> str:
    """How many test photographs the intervals rest on."""
    samples = run.samples()
    if "group" in samples:
        return f"Tested on crops of {samples['group'].nunique()} photographs."
    return (
        "**Tested on crops of two photographs, which the intervals take for independent images: "
        "they are too narrow for other photographs, and no ranking here holds beyond these two.**"
    )


def main(arguments: Sequence[str]) -> None:
    """Write tables.md, scores.csv, seeds.csv, a figure per question and one over all."""
    runs = in_order(list_runs(arguments[0]).complete)
    rankings: dict[str, Comparison] = {}
    parts = [f"# Tables\n\n{measured_on(runs)}"]
    tables: list[pd.DataFrame] = []
    seeds: list[pd.DataFrame] = []
    order = list(dict.fromkeys(run.variant for run in runs))
    RESULTS.mkdir(exist_ok=True)
    for question, groups in grouped(runs).items():
        ranking = compare(groups, metrics=METRICS)
        ranking.figure(order=list(groups)).savefig(RESULTS / f"{question}.png", dpi=110)
        parts.append(section(question, groups, ranking))
        if not question.startswith(MOVED):
            rankings[question] = ranking
        tables.append(ranking.table.assign(question=question))
        seeds.append(ranking.by_seed.assign(question=question))
    overview(rankings, order).savefig(RESULTS / "overview.png", dpi=110)
    (RESULTS / "tables.md").write_text("\n\n".join(parts) + "\n")
    for name, rows in (("scores", tables), ("seeds", seeds)):
        pd.concat(rows).to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main(sys.argv[1:])
