"""How much of a training's time measuring may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from attnviz.errors import InputError

Clock = Callable[[], float]
"""A monotonic clock: seconds from any beginning."""


@dataclass
class Budget:
    """The account of a training's time: what it took, and what measuring took beside it.

    Time between two measurements is training. The cost of a measurement is taken to be a fixed part
    and a part for each image, both as they were last time.

    Attributes:
        share: What measuring may take of the training time; None sets no limit.
        clock: Where time is read.
        trained: Seconds of training so far.
        spent: Seconds of measuring so far.
        fixed: Seconds of a measurement that do not depend on the number of images.
        each: Seconds per image.
    """

    share: float | None
    clock: Clock = time.perf_counter
    trained: float = 0.0
    spent: float = 0.0
    fixed: float = 0.0
    each: float = 0.0
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share < 1:
            raise InputError(
                f"monitor: expected a budget between 0 and 1, the share of training time, or None "
                f"for no limit; got {self.share}"
            )
        self._since = self.clock()

    def begin(self) -> None:
        """End a stretch of training."""
        now = self.clock()
        self.trained += now - self._since
        self._since = now

    def end(self) -> float:
        """End a stretch of measuring; the seconds that it took."""
        now = self.clock()
        took = now - self._since
        self.spent += took
        self._since = now
        return took

    @property
    def left(self) -> float:
        """Seconds that measuring may take now; below 0 where it took too many."""
        if self.share is None:
            return math.inf
        return self.share * self.trained - self.spent

    def images(self, most: int) -> int:
        """How many images can be looked at now, at most `most`; 0 for none."""
        if self.left == math.inf or (not self.each and self.left > self.fixed):
            return most
        if not self.each:
            return 0
        return max(0, min(most, int((self.left - self.fixed) / self.each)))
