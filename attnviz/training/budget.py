"""How much of a training's time measuring may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from attnviz.errors import InputError

Clock = Callable[[], float]
"""A monotonic clock: seconds from any beginning."""


@dataclass
class Budget:
    """The account of a training's time: what it took, and what measuring took beside it.

    Time between two measurements is training, and earns its share. A measurement whose expected
    cost has not been earned waits.

    Attributes:
        share: What measuring may take of the training time; None sets no limit.
        clock: Where time is read.
        trained: Seconds of training so far.
        spent: Seconds of measuring so far.
        held: Seconds that are kept for the end.
    """

    share: float | None
    clock: Clock = time.perf_counter
    trained: float = 0.0
    spent: float = 0.0
    held: float = 0.0
    _since: float = field(init=False)
    _measuring: bool = field(init=False, default=True)

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
        self._since, self._measuring = now, True

    def end(self) -> None:
        """End a stretch of measuring."""
        now = self.clock()
        self.spent += now - self._since
        self._since, self._measuring = now, False

    @property
    def left(self) -> float:
        """Seconds that measuring may take now; below 0 where it took too many."""
        if self.share is None:
            return math.inf
        running = self.clock() - self._since if self._measuring else 0.0
        return self.share * self.trained - self.spent - running - self.held

    def allows(self, seconds: float) -> bool:
        """Whether a measurement of this cost has been earned."""
        return seconds <= self.left

    def price(self, seconds: float) -> str:
        """In words: how long a training has to be for a measurement of this cost."""
        if self.share is None:
            return f"about {seconds:.2g} s"
        needed = self.trained + max(0.0, seconds - self.left) / self.share
        return (
            f"about {seconds:.2g} s, which {self.share:.2g} of {needed:.0f} s of training pays for "
            f"({self.trained:.0f} s so far)"
        )

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """No limit within the block; what is spent is counted."""
        share, self.share = self.share, None
        try:
            yield
        finally:
            self.share = share
