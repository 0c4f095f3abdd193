"""Write docs/systems.md from runs of every reference model.

    uv run python docs/write_systems.py RUNS

The runs are made one by one with the command that the page names.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from attnviz.runs import Run, list_runs, open_run

HERE = Path(__file__).parent
SAME = "the same"


class System(NamedTuple):
    """What a system's text says and what its code does."""

    text: str
    code: str


GROUPS: dict[str, dict[str, System]] = {
    "The main tutorial": {
        "cnn": System("three convolutions, a mean, one logit", SAME),
        "mha_reshape": System(
            "every place attends to every other, four heads",
            "a `reshape` from `(b, c, h, w)` to `(b, h·w, c)` makes tokens of runs of one "
            "channel's pixels; none belongs to a place",
        ),
        "mha": System("the same", "repaired: a transpose makes a token of each place"),
        "mha_conv1d": System(
            "the same by 1 × 1 convolutions, full-width heads",
            "the text; scores as a sum over `(b, channels, places, places)`, fused here",
        ),
        "cbam_channel": System(
            "a channel gate, then a spatial gate", "`no_spatial=True` by default: channels alone"
        ),
        "cbam": System("the same", "repaired: both gates"),
    },
    "Other tutorials": {
        "mha_early": System(
            "`nn.MultiheadAttention` between the pixels, before the first convolution",
            "the text; at 96 × 96 one head's weights are 340 MB an image, fused here",
        ),
        "pointwise_channels": System(
            "1 × 1 convolutions make queries, keys and values; places attend to places",
            "the product contracts the places: channels attend to channels",
        ),
        "pointwise": System("the same", "repaired"),
        "linear_tokens_channels": System(
            "linear queries, keys and values after batch norm; places attend to places",
            "tokens and features are swapped before the linear layers: they mix places, and fit "
            "images of one size",
        ),
        "linear_tokens": System("the same", "repaired"),
        "raw_scores": System(
            "the smallest self-attention",
            "no softmax: a row's weights have any sign and any sum (divided here by the number of "
            "places)",
        ),
        "raw_scores_softmax": System("the same", "repaired"),
    },
    "What one would try today": {
        "mha_position": System("`mha` with a positional code, the main tutorial's outlook", SAME),
        "non_local": System("a non-local block with residual", "not scaled, as its paper has it"),
        "learned_query": System("one learned query in the place of the mean", SAME),
        "vit": System("a small vision transformer: class token, three blocks", SAME),
        "se": System("squeeze and excitation, a channel gate", SAME),
        "eca": System("efficient channel attention, a channel gate", SAME),
        "bam": System("bottleneck attention, one gate for each channel and place", SAME),
    },
}

_HEAD = """\
# Systems

Every system of the tutorials behind this project, and what one would try today, by the name that
`attnviz.build_model` knows it by: what its text says, what its code does, and what was measured.
Where text and code differ both are there. *Energy* is the share of the map that lies on the patch,
*pointing* how often the map's maximum does; *doctor* what `attnviz.diagnose` found in the trained
model, errors in bold. {photographs}

{measured}

This page is written by `docs/write_systems.py`."""

_COLUMNS = "| name | its text | its code | doctor | map | accuracy | energy | pointing |"


def page(runs: Iterable[Run]) -> str:
    """The whole page."""
    found = {run.variant: run for run in runs}
    parts = [_HEAD.format(measured=_measured(found), photographs=_photographs(found["mha"]))]
    for title, systems in GROUPS.items():
        rows = [_row(name, system, found[name]) for name, system in systems.items()]
        rule = "| " + " | ".join(["---"] * (_COLUMNS.count("|") - 1)) + " |"
        parts.append(f"## {title}\n\n" + "\n".join([_COLUMNS, rule, *rows]))
    return "\n\n".join(parts) + "\n"


def _row(name: str, system: System, run: Run) -> str:
    scores = run.summary["metrics"][run.summary["map"]]
    energy, pointing = scores["energy_pointing_game"], scores["pointing_game"]
    cells = (
        f"`{name}`", system.text, system.code, _doctor(run), run.summary["map"].replace("_", " "),
        f"{run.summary['accuracy']:.3f}",
        f"{energy['mean']:.3f}",
        f"{pointing['mean']:.3f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _doctor(run: Run) -> str:
    codes = {
        one["code"]: f"[{one['code']}](doctor/{one['code']}.md)"
        for one in run.summary["findings"]
        if one["where"] not in ("data", "input")
    }
    errors = {one["code"] for one in run.summary["findings"] if one["severity"] == "error"}
    return ", ".join(f"**{link}**" if c in errors else link for c, link in codes.items()) or "–"


def _photographs(run: Run) -> str:
    """On how many photographs and trainings the numbers rest."""
    samples = run.samples()
    count = str(samples["group"].nunique()) if "group" in samples else "two"  # the old data's
    return (
        f"**One training each, tested on crops of {count} photographs**: the numbers describe "
        "these trainings, which another seed or other photographs may turn round, and rank nothing."
    )


def _measured(found: dict[str, Run]) -> str:
    """On what, with which command."""
    some = found["mha"]
    chosen, early = some.settings, found["mha_early"].settings
    energy = some.summary["metrics"][some.summary["map"]]["energy_pointing_game"]
    flags = " ".join(
        f"--{name.replace('_', '-')} {chosen[name]}"
        for name in (
            "train_images",
            "val_images",
            "test_images",
            "epochs",
            "batch",
            "follow",
            "threads",
        )
    )
    total = sum(run.summary["seconds"] for run in found.values())
    words = (
        f"One seed, {chosen['train_images']} training images of {chosen['data']}, "
        f"{chosen['epochs']} epochs, {chosen['test_images']} test images of {chosen['side']} × "
        f"{chosen['side']} with a {chosen['size']} × {chosen['size']} white square in half of "
        f"them, {some.environment['device']}, {some.environment['threads']} thread, "
        f"{total / 60:.0f} minutes of training in all; `mha_early` on {early['side']} × "
        f"{early['side']} with {early['size']} × {early['size']} squares, since a CPU needs "
        f"minutes an epoch for more. Chance is {energy['chance']:.3f}, the mask redrawn on 24 × 24 "
        f"{energy['redrawn']:.3f}. One seed and so little training say what these layers can do "
        "in minutes, not which of them is best."
    )
    command = f"uv run python -m experiments train --variant NAME {flags}"
    lines = " \\\n    ".join(textwrap.wrap(command, 92))
    return f"{textwrap.fill(words, 100)}\n\n```sh\n{lines}\n```"


def main(arguments: list[str]) -> None:
    """Write the page from the complete runs of a folder."""
    runs = [open_run(one.location) for one in list_runs(arguments[0]).complete]
    (HERE / "systems.md").write_text(page(runs))


if __name__ == "__main__":
    main(sys.argv[1:])
