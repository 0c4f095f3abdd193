"""Scores by metric, with the reasons for every NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from attnviz.display import html_of
from attnviz.errors import unknown_name
from attnviz.metrics.options import Options
from attnviz.metrics.reasons import Reason
from attnviz.metrics.registry import METRICS
from attnviz.text import table


class ScoreTable(dict[str, Tensor]):
    """Scores by metric, each (b,) float64, with the reasons of every NaN.

    A plain dict in every other respect.

    Attributes:
        flags: The `Reason` flags of each image, (b,) int64.
        options: The options under which the scores were computed.
        masks: The masks of `localization`, from which a notebook computes chance; else None.
    """

    def __init__(self, scores: Mapping[str, Tensor], flags: Tensor, options: Options) -> None:
        super().__init__(scores)
        self.flags = flags
        self.options = options
        self.masks: Any = None

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of each metric that has one."""
        return {key: self.options.tau(key) for key in self if METRICS[key].thresholded}

    def why(self, key: str) -> list[str | None]:
        """For each image why this metric has no score, or None where it has one.

        Raises:
            InputError: The table has no such metric.
        """
        if key not in self:
            raise unknown_name("metric", key, self)
        return in_words(self.flags, METRICS[key].blocked_under(self.options))

    def summary(
        self, *, group: Any = None, confidence: float = 0.95
    ) -> dict[str, dict[str, float | int]]:
        """By metric the mean over the images that have a score, and its interval.

        The interval is of these images' population, for this one training (docs/intervals.md).

        Args:
            group: Each image's group (photograph, patient, video), (b,): images of one group are no
                independent ones. Each its own if None.
            confidence: The interval's level.

        Returns:
            Metric → `mean`, `low`, `high` (NaN where there is none), `valid` (images that have a
            score) and `n` (all).

        Raises:
            InputError: There is not one group for each image.
        """
        from attnviz.statistics.summary import summarised

        rows = {
            key: summarised(key, scores.cpu().numpy(), group=group, confidence=confidence)
            for key, scores in self.items()
        }
        return {
            key: {name: math.nan if one is None else one for name, one in row.items()}
            for key, row in rows.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "masks": None}  # a copy in another process goes without them

    def _repr_html_(self) -> str:
        return html_of(self)

    def __repr__(self) -> str:
        tau = self.thresholds
        head = ("metric", "mean", "95 % interval", "scored", *(["τ"] if tau else []))
        rows = []
        for key, row in self.summary().items():
            known = row["low"] == row["low"]
            ends = f"{row['low']:.4f} to {row['high']:.4f}" if known else ""
            shown = f"{tau[key]:.4g}" if key in tau else ""
            line = (key, f"{row['mean']:.4f}", ends, f"{row['valid']} of {row['n']}", shown)
            rows.append(line[: len(head)])
        return "\n".join([table(head, rows, right=(1, 2), rule=True), *self.missing()])

    def missing(self) -> list[str]:
        """How many images have no score, by reason."""
        return [
            f"{int((self.flags & int(reason) != 0).sum())} × {reason.words}"
            for reason in Reason
            if any(reason in METRICS[key].blocked_under(self.options) for key in self)
            and bool((self.flags & int(reason)).any())
        ]


def in_words(flags: Tensor, blocked: Reason) -> list[str | None]:
    """For each image the blocking reasons in words, or None where none holds."""
    return [Reason(flag & int(blocked)).words or None for flag in np.asarray(flags.cpu()).tolist()]
