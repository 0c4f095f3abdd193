"""What a tracker takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attnviz.trackers.pictures import Picture

if TYPE_CHECKING:
    from pandas import DataFrame


@runtime_checkable
class Tracker(Protocol):
    """Where a training's numbers and pictures go. Any object with these four methods is one."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """The numbers of one epoch."""

    def pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        """The pinned images under the map of this name at one epoch."""

    def table(self, name: str, table: DataFrame, step: int) -> None:
        """A table, such as that of the last scores."""

    def finish(self) -> None:
        """Everything was given."""


def scores_table(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> DataFrame:
    """One row per map and metric: mean, interval, counts and reference levels.

    Args:
        metrics: A run's `summary["metrics"]`.
    """
    from pandas import DataFrame

    return DataFrame(
        [
            {"map": name, "metric": key, **numbers}
            for name, by_metric in metrics.items()
            for key, numbers in by_metric.items()
        ]
    )
