"""The board of variants and metrics, as a table for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from attnviz.comparison.board import ordinal
from attnviz.definitions import DEFINITIONS, is_lower_better, metric_title, short_title
from dashboard.table import Cell, Column, Row


def board_of(board: pd.DataFrame, metric: str) -> tuple[list[Column], list[Row]]:
    """Columns and rows of a board, in the order of one metric.

    Args:
        board: As of `attnviz.comparison.board`.
        metric: The metric that ranks.
    """
    metrics = list(dict.fromkeys(board["metric"]))
    by_metric: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in metrics}
    for row in board.to_dict("records"):
        by_metric[row["metric"]][row["variant"]] = row
    columns = [Column("variant", "variant", sorts=False)]
    for name in metrics:
        known = DEFINITIONS.get(name)
        columns.append(
            Column(
                name, short_title(name), f"Rank by this: {known.meaning}" if known else "",
                number=True, chosen=name == metric, down=not is_lower_better(name),
            )
        )  # fmt: skip
    ranks = {name: row["rank"] for name, row in by_metric[metric].items()}
    order = sorted(ranks, key=lambda name: ranks[name] if np.isfinite(ranks[name]) else np.inf)
    rows = [
        Row(
            str(variant),
            (Cell(str(variant)), *(_cell(by_metric[name][variant], name) for name in metrics)),
        )
        for variant in order
    ]
    return columns, rows


def _cell(row: Mapping[str, Any], metric: str) -> Cell:
    if not np.isfinite(row["mean"]):
        return Cell("–", words=f"{metric_title(metric)}: not scored")
    rank = int(row["rank"])
    below = bool(row["below"])
    chance = f", chance {row['chance']:.3f}" if np.isfinite(row["chance"]) else ""
    words = f"{metric_title(metric)} {row['mean']:.3f}, {ordinal(rank)}{chance}"
    if below:
        words += ", no better than chance"
    return Cell(f"{row['mean']:.3f}", ordinal(rank), below, rank == 1, words)
