"""Metrics of sets that do not fit into memory: update with batches, merge workers, compute.

Scores are a few numbers an image, so a meter keeps them all and loses nothing: what it computes
is, to the last bit, what one call on the whole set would have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from attnviz.errors import InputError
from attnviz.inputs import AnyMaps, AnyMasks
from attnviz.metrics.batching import batches, joined
from attnviz.metrics.localization import compute_scores
from attnviz.metrics.options import TOP, Sign, Threshold, checked_options
from attnviz.metrics.pxap import PixelPool
from attnviz.metrics.registry import DEFAULT, chosen_metrics
from attnviz.metrics.score_table import ScoreTable


class LocalizationMeter:
    """`localization` in pieces: exact, and mergeable across workers.

    A meter can be pickled: each worker fills one, and `merge` joins them.

    Args:
        metrics: As in `localization`.
        threshold: As in `localization`.
        k: As in `localization`.
        tolerance: As in `localization`.
        sign: As in `localization`.
        pixels: Whether to keep all pixels, four bytes each, for `pxap`.

    Raises:
        InputError: An unknown metric, a metric without its threshold, an option out of range.

    Examples:
        >>> import torch
        >>> meter = LocalizationMeter(["pointing_game"])
        >>> for seed in range(3):
        ...     meter.update(torch.rand(4, 8, 8), torch.ones(4, 8, 8, dtype=torch.bool))
        >>> meter.compute().summary()
        {'pointing_game': {'mean': 1.0, 'valid': 12, 'n': 12}}
    """

    def __init__(
        self,
        metrics: Sequence[str] = DEFAULT,
        *,
        threshold: Threshold | None = None,
        k: int | float = TOP,
        tolerance: int | float = 0,
        sign: Sign = "positive",
        pixels: bool = False,
    ) -> None:
        self.options = checked_options(threshold=threshold, k=k, tolerance=tolerance, sign=sign)
        self.metrics = chosen_metrics(metrics, self.options)
        self._pool = PixelPool() if pixels else None
        self._tables: list[ScoreTable] = []
        self._indices: list[Tensor] = []

    def __len__(self) -> int:
        return sum(len(table.flags) for table in self._tables)

    def update(self, maps: AnyMaps, masks: AnyMasks, index: Iterable[int] | None = None) -> None:
        """Score a few more images.

        Args:
            maps: Raw maps, (b, *places).
            masks: Where the object is, (b, *places).
            index: The number of each image in the whole set. With it `compute` puts the images in
                order, and an image that two workers saw (a distributed sampler fills up the last
                batch) counts once. Required at every update or at none.

        Raises:
            InputError: Wrong shapes, dtypes or devices, or an index that does not fit.
        """
        table = compute_scores(maps, masks, self.metrics, self.options)
        numbers = self._checked_index(index, len(table.flags))
        if self._pool is not None:
            for batch in batches(maps, masks):
                self._pool.add(batch)
        on_cpu = {key: scores.cpu() for key, scores in table.items()}
        self._tables.append(ScoreTable(on_cpu, table.flags.cpu(), self.options))
        if numbers is not None:
            self._indices.append(numbers)

    def merge(self, other: LocalizationMeter) -> LocalizationMeter:
        """Append the scores of another meter.

        Args:
            other: A meter of the same metrics and options. It is left as it is.

        Returns:
            This meter.

        Raises:
            InputError: The meters measure different things.
        """
        mine = (self.metrics, self.options, self._pool is None)
        if mine != (other.metrics, other.options, other._pool is None):
            raise InputError(
                "merge: expected a meter of the same metrics and options, got "
                f"{other.metrics} under {other.options} to go with {self.metrics} under "
                f"{self.options}"
            )
        if len(self) and len(other) and bool(self._indices) != bool(other._indices):
            raise InputError("merge: expected both meters to have an index or neither")
        self._tables += other._tables
        self._indices += other._indices
        if self._pool is not None and other._pool is not None:
            self._pool.merge(other._pool)
        return self

    def compute(self) -> ScoreTable:
        """The scores of all images, in the order of their index or of the updates.

        Returns:
            As from `localization`, on the CPU.
        """
        flags = joined([table.flags for table in self._tables], torch.int64)
        scores = {
            key: joined([table[key] for table in self._tables], torch.float64)
            for key in self.metrics
        }
        if self._indices:
            order = _once_each(torch.cat(self._indices))
            flags, scores = flags[order], {key: found[order] for key, found in scores.items()}
        return ScoreTable(scores, flags, self.options)

    def pxap(self) -> float:
        """The average precision of all pixels seen; an image seen twice counts twice.

        Returns:
            As from `pxap`.

        Raises:
            InputError: The meter was made without `pixels=True`.
        """
        if self._pool is None:
            raise InputError("pxap: expected a meter that keeps pixels; make it with pixels=True")
        return self._pool.average_precision()

    def _checked_index(self, index: Iterable[int] | None, size: int) -> Tensor | None:
        if len(self) and (index is not None) != bool(self._indices):
            raise InputError("index: expected it with every update or with none")
        if index is None:
            return None
        numbers = torch.as_tensor(index if isinstance(index, Tensor) else list(index)).cpu()
        if numbers.shape != (size,) or numbers.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"index: expected {size} integers, one for each map, got "
                f"{tuple(numbers.shape)} of {numbers.dtype}"
            )
        return numbers.long()


def _once_each(numbers: Tensor) -> Tensor:
    """Where each number first stands, in order of the numbers."""
    ordered, places = numbers.sort(stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return places[new]
