"""The module and the grids of each attention and gate: read from the running modules.

In a stream the first batch of a size shows them; for later batches they are looked up by the place
and the number of times that it ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from attnviz.capture.call_stack import Call, CallStack, Place
from attnviz.capture.grids import Geometry, geometry
from attnviz.capture.record import Grid, Windows
from attnviz.capture.windows import Cuts
from attnviz.token_places import Places


class Scope(NamedTuple):
    """The module that attends or gates, its dotted name, and the grids of its tokens."""

    name: str
    module: nn.Module
    shape: Geometry


class Scopes:
    """Modules and grids of one watch.

    Attributes:
        maps: Sizes of the feature maps that were convolved in this forward pass.
    """

    def __init__(self, stack: CallStack, windows: Cuts) -> None:
        self.maps: set[Grid] = set()
        self._stack, self._windows = stack, windows
        self._sizes: dict[torch.Size, dict[Any, Any]] = {}
        self._known: dict[Any, Any] | None = None
        self._batch: int | None = None
        self._counts: Counter[Any] = Counter()

    def begin(self, batch: torch.Size) -> bool:
        """Begin a stream's next batch; whether it is the first of its size."""
        self._batch, size = batch[0], batch[1:]
        first = size not in self._sizes
        self._known = self._sizes.setdefault(size, {})
        return first

    def at(self, where: Place, queries: int, keys: int, width: int | None = None) -> Scope:
        """The scope of the current op, or of the function that made its operand.

        Args:
            where: The place of either.
            queries: How many queries there are.
            keys: How many keys; 0 for a gate.
            width: The width of queries and keys, where it is known.
        """

        def find() -> Scope:
            calls = self._stack.calls(ends=not keys)
            name, module = self._named(where, calls)
            return Scope(name, module, geometry(calls))

        scope: Scope = self._once((where.name, where.source, queries, keys), find)
        if self._batch is None or scope.shape.images is None:
            return scope
        return scope._replace(shape=replace(scope.shape, images=self._batch))

    def windows(self, keys: Places, tokens: int) -> Windows | None:
        """The windows that hold so many keys each, where these were cut as they are placed."""
        count = len(keys.cell) // tokens
        return self._windows.holding(keys.cell, count) if count > 1 else None

    def cut(self, scope: Scope, where: Place, total: int, k: int) -> bool:
        """Whether an operand's leading axis is exactly the windows of all images."""
        images = scope.shape.images
        if not images or total == images:
            return False
        key = ("cut", scope.name, where.source, total // images, k)
        return bool(self._once(key, lambda: self._windows.find(total, k) is not None))

    def finish(self) -> None:
        """A forward pass has ended."""
        self._counts.clear()
        self.maps.clear()

    def _once(self, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        """What `find` returns; in a stream, what it returned for another batch of this size."""
        if self._known is None:
            return find()
        self._counts[key] += 1
        counted = (*key, self._counts[key])
        if counted not in self._known:
            self._known[counted] = find()
        return self._known[counted]

    def _named(self, where: Place, calls: list[Call]) -> tuple[str, nn.Module]:
        """The module that attends; for a softmax that is a module of its own, the one around it."""
        module = where.module
        plain = not module._modules and not module._parameters
        if not plain or not where.name or (calls and calls[0].module is module):
            return where.name, module
        parent = where.name.rpartition(".")[0]
        return parent, self._stack.modules[parent]
