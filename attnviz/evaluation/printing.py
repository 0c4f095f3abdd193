"""An evaluation as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnviz.comparison.text import aligned

if TYPE_CHECKING:
    from attnviz.evaluation.result import Evaluation


def printed(result: Evaluation, metrics: Sequence[str]) -> str:
    """The table of maps and metrics, what is missing, and what was found."""
    lines = [_first_line(result)]
    rows = [("map", "metric", "mean", "95 % CI", "chance", "redrawn", "valid")]
    main = [name for name in result.maps if name in result.main_maps]
    for name in main:
        for key in metrics:
            numbers = result.summary[name].get(key)
            if numbers is not None:
                span = f"[{_number(numbers['low'])}, {_number(numbers['high'])}]"
                rows.append(
                    (name, key, _number(numbers["mean"]), span, _number(numbers.get("chance")),
                     _number(numbers.get("redrawn")), f"{numbers['valid']}/{numbers['n']}")
                )  # fmt: skip
    lines += aligned(rows)
    if len(main) < len(result.maps):
        lines.append(f"and {len(result.maps) - len(main)} maps of earlier layers, see .table")
    lines += [f"no map {name}: {why}" for name, why in result.left_out.items()]
    if not result.calibrated_on:
        lines.append("metrics that need a threshold are left out: give calibration=, other images")
    if result.findings is not None:
        lines.append(str(result.findings.headline))
    return "\n".join(lines)


def _first_line(result: Evaluation) -> str:
    seed = "" if result.seed is None else f", seed {result.seed}"
    line = f"{result.variant}{seed}: {len(result.samples)} images"
    if not math.isnan(result.accuracy):
        line += f", accuracy {result.accuracy:.3f}"
    groups = result.samples["group"].nunique() if "group" in result.samples else 0
    return line + (f", {groups} groups" if groups else "")


def _number(value: Any) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"
