"""The result of a sweep: one comparison per question, over seeds, photographs and images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from attnviz.comparison import Comparison, compare
from attnviz.comparison.from_runs import asks
from attnviz.runs import Run, open_run
from experiments.axes import Grid, shown
from experiments.presets import ASKING, asked
from experiments.progress_table import rows, standing
from experiments.running import Outcome
from experiments.settings import Settings

METRICS = ("energy_pointing_game", "pointing_game", "max_iou")


def rankings(plan: Grid, root: Path, outcomes: Sequence[Outcome]) -> dict[str, Comparison]:
    """The complete runs of a sweep, compared wherever they have the same task.

    Args:
        plan: The runs.
        root: Where they are.
        outcomes: Of the runs, in the plan's order.

    Returns:
        Question, as `questions` names it, → a comparison with a row per variant and setting.
    """
    whole = {one.settings.run_id for one in outcomes if one.state in ("done", "reused")}
    compared: dict[str, Comparison] = {}
    for question, variants in questions(plan).items():
        groups = {
            name: [open_run(root / one.run_id) for one in runs if one.run_id in whole]
            for name, runs in variants.items()
        }
        if any(groups.values()):
            compared[question] = compare(
                {k: v for k, v in groups.items() if v}, metrics=_scored(groups.values())
            )
    return compared


def _scored(groups: Iterable[Sequence[Run]]) -> list[str]:
    """Those of `METRICS` that all runs have: a map that is constant everywhere has no IoU."""
    scores = [run.summary["metrics"][run.summary["map"]] for runs in groups for run in runs]
    return [name for name in METRICS if all(name in one for one in scores)]


def questions(plan: Sequence[Settings]) -> dict[str, dict[str, list[Settings]]]:
    """Question → variant, with its other settings within that question → its seeds.

    A question has the name of its preset, such as `"ring"`, with the other settings that set it
    from the plan's other questions; `""` where there is only one.
    """
    asking = [name for name in Grid(tuple(plan)).axes if asks(name)]
    sizes = [name for name in asking if name not in ASKING]
    found: dict[str, list[Settings]] = {}
    for settings in plan:
        words = [asked(settings)] if len(sizes) < len(asking) else []
        words += [_said(settings, name) for name in sizes]
        found.setdefault(", ".join(words), []).append(settings)
    return {question: _by_name(Grid(tuple(runs))) for question, runs in found.items()}


def _by_name(runs: Grid) -> dict[str, list[Settings]]:
    named: dict[str, list[Settings]] = {}
    for settings in runs:
        given = [name for name in runs.axes if getattr(settings, name) is not None]
        words = ", ".join(_said(settings, name) for name in given)
        named.setdefault(f"{settings.variant} {words}".strip(), []).append(settings)
    return named


def _said(settings: Settings, name: str) -> str:
    return f"{name.replace('_', ' ')} {shown(getattr(settings, name))}"


def report(plan: Grid, root: Path, outcomes: Sequence[Outcome]) -> str:
    """The last table of a sweep, its rankings, and what failed."""
    ends = [standing(one, root, what) for one, what in zip(plan, outcomes, strict=True)]
    parts = [rows(plan, ends)]
    for name, ranking in rankings(plan, root, outcomes).items():
        parts.append(f"{name}\n{ranking!r}" if name else repr(ranking))
    return "\n\n".join(parts)
