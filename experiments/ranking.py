"""What a sweep found: one ranking per question, with intervals over seeds and images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnviz.compare import Comparison, compare
from attnviz.compare.recorded import asks
from attnviz.runs import Run, open_run
from experiments.axes import Grid, shown
from experiments.board import rows, standing
from experiments.running import Outcome
from experiments.settings import Settings

METRICS = ("energy_pointing_game", "pointing_game", "max_iou")


def rankings(plan: Grid, root: Path, outcomes: Sequence[Outcome]) -> dict[str, Comparison]:
    """The complete runs of a sweep, compared wherever they answer the same question.

    Args:
        plan: The runs.
        root: Where they are.
        outcomes: What became of them, in the plan's order.

    Returns:
        The question's own settings, such as `"shape ring"`, → a comparison with a row per variant
        and setting. A question that is asked throughout has the name `""`.
    """
    questions: dict[str, dict[str, list[Run]]] = {}
    for settings, outcome in zip(plan, outcomes, strict=True):
        if outcome.state in ("done", "reused"):
            groups = questions.setdefault(_question(plan, settings), {})
            groups.setdefault(_name(plan, settings), []).append(open_run(root / settings.run_id))
    return {name: compare(groups, metrics=METRICS) for name, groups in questions.items()}


def report(plan: Grid, root: Path, outcomes: Sequence[Outcome]) -> str:
    """The last table of a sweep, its rankings, and what failed."""
    ends = [standing(one, root, what) for one, what in zip(plan, outcomes, strict=True)]
    parts = [rows(plan, ends)]
    for name, ranking in rankings(plan, root, outcomes).items():
        parts.append(f"{name}\n{ranking!r}" if name else repr(ranking))
    return "\n\n".join(parts)


def _question(plan: Grid, settings: Settings) -> str:
    return _listed(settings, [name for name in plan.axes if asks(name)])


def _name(plan: Grid, settings: Settings) -> str:
    own = [name for name in plan.axes if not asks(name)]
    given = [name for name in own if getattr(settings, name) is not None]
    return f"{settings.variant} {_listed(settings, given)}".strip()


def _listed(settings: Settings, names: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {shown(getattr(settings, name))}" for name in names)
