"""Who attends or gates, and on which grids: read off the running modules, and remembered.

In a stream the first batch of a size tells all of it; the batches after it find it by the place and
the number of times that the place was met.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from attnviz.capture.call_stack import Call, Place
from attnviz.capture.grids import Geometry, geometry
from attnviz.capture.provenance import Squash
from attnviz.capture.record import Record, Windows, changed

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher


class Look(NamedTuple):
    """Who attends or gates, and on which grids."""

    name: str
    module: nn.Module
    shape: Geometry


@dataclass(slots=True)
class Plan:
    """What a stream's first batch of some size showed.

    Attributes:
        known: Looks, and what else was found, by the place and how often it was met.
        reached: The modules within which something chosen was computed.
        scopes: The outermost of them, once all are known.
    """

    known: dict[Any, Any] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    scopes: list[nn.Module] = field(default_factory=list)


class Looks:
    """Places and grids of one watch.

    Attributes:
        plan: In a stream, what is known of batches of the current size.
        learning: Whether that is being found out by the current batch.
    """

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.plan: Plan | None = None
        self.learning = False
        self._plans: dict[torch.Size, Plan] = {}
        self._changing: set[torch.Size] = set()
        self._batch: int | None = None
        self._counts: Counter[Any] = Counter()
        self._innermost = ""

    def begin(self, batch: torch.Size) -> list[nn.Module] | None:
        """A stream's next batch: within which modules to look; None if it has to be learned."""
        self._batch, size = batch[0], batch[1:]
        if size in self._changing:
            self.plan, self.learning = None, False
            return None
        self.learning = size not in self._plans
        self.plan = self._plans.setdefault(size, Plan())
        return None if self.learning else self.plan.scopes

    def mistrust(self, batch: torch.Size) -> None:
        """What a model does with batches of this size depends on more than their size."""
        self._changing.add(batch[1:])

    def learned(self) -> None:
        """The places and grids of batches of this size are those of the pass just seen."""
        assert self.plan is not None  # a batch has begun
        names = self.plan.reached
        self.plan.scopes = [
            self.watcher.modules[name]
            for name in sorted(names)
            if not any(name != other and _within(name, other) for other in names)
        ]

    def at(
        self,
        where: Place,
        queries: int,
        keys: int,
        squash: Squash | None = None,
        width: int | None = None,
    ) -> Look:
        """Who runs the current op, or ran the function it is about."""
        key = (where.name, where.source, queries, keys)
        if self.plan is not None and not self.learning:
            known: Look | None = self.plan.known.get(self._counted(key))
            if known is not None:
                return known._replace(shape=self._of_batch(known.shape))
        calls = self.watcher.calls(ends=not keys)
        name, module = self._named(where, calls)
        maps = self.watcher.maps
        look = Look(name, module, geometry(calls, queries, keys, maps=maps, width=width))
        if self.plan is not None and self.learning:
            self._innermost = _common(calls, squash)
            self.plan.known[self._counted(key)] = look
        return look

    def chosen(self) -> None:
        """What was looked at last is to be kept: remember where it was computed."""
        if self.plan is not None and self.learning:
            self.plan.reached.add(self._innermost)

    def windowed(self, record: Record, sizes: Sequence[int], images: int | None) -> Record:
        """The record with its windows, where as many were cut as its weights have."""
        b, _, q, k = sizes
        if images is None or b == images or q > k or (k - q > 1 and q > 1):
            return record
        key = ("windows", record.name, record.source, b // images, q, k)
        cuts = self.watcher.windows
        windows: Windows | None = self._once(key, lambda: cuts.around(b, k))
        if windows is None or b != images * windows.count:
            return record
        prefix = k - windows.size[0] * windows.size[1]
        query = windows.size if q == k else None
        return changed(
            record, windows=windows, query_grid=query, key_grid=windows.size, prefix=prefix
        )

    def cut(self, look: Look, where: Place, total: int, k: int) -> bool:
        """Whether an operand's leading axis is exactly the windows of all images."""
        images = look.shape.images
        if not images or total == images:
            return False
        key = ("cut", look.name, where.source, total // images, k)
        return bool(self._once(key, lambda: self.watcher.windows.find(total, k) is not None))

    def finish(self) -> None:
        """A forward pass has ended."""
        self._counts.clear()
        self.watcher.maps.clear()

    def _once(self, key: tuple[Any, ...], find: Any) -> Any:
        if self.plan is None:
            return find()
        counted = self._counted(key)
        if self.learning:
            self.plan.known[counted] = find()
        return self.plan.known.get(counted)

    def _counted(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        self._counts[key] += 1
        return (*key, self._counts[key])

    def _of_batch(self, shape: Geometry) -> Geometry:
        if shape.images is None or self._batch is None:
            return shape
        return replace(shape, images=self._batch)

    def _named(self, where: Place, calls: list[Call]) -> tuple[str, nn.Module]:
        """The module that attends: an activation's own module lends its parent's name."""
        module = where.module
        plain = not module._modules and not module._parameters
        if not plain or not where.name or (calls and calls[0].module is module):
            return where.name, module
        parent = where.name.rpartition(".")[0]
        return parent, self.watcher.modules[parent]


def _within(name: str, other: str) -> bool:
    """Whether a module lies inside another one, by their dotted names."""
    return not other or name.startswith(f"{other}.")


def _common(calls: list[Call], squash: Squash | None) -> str:
    """The innermost module that ran from the logits to the product."""
    running = [call.name for call in calls]
    for earlier in [] if squash is None else [squash.running, squash.scores_running]:
        if earlier is not None:
            running = [name for name in running if name in earlier]
    return running[0] if running else ""
