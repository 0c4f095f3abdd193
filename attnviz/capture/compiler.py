"""Compiled models run uncompiled while any watch is on: modes do not see into compiled code."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_COMPILERS = ("torch._dynamo", "torch.nn.attention.flex_attention")


class _Stance:
    """The compiler's stance, which belongs to the process, held by any number of watches.

    The first holder sets it, the last one restores what was set before. Watches of several threads
    and tasks may overlap in any order.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holders: set[object] = set()
        self._set: Any = None

    def take(self, holder: object) -> None:
        """Add a holder; the first one makes compiled code run as it was written."""
        with self._lock:
            self._holders.add(holder)
            if self._set is None:
                self._set = torch.compiler.set_stance("force_eager")

    def release(self, holder: object) -> None:
        """Remove a holder, if it is one; the last one restores the stance."""
        with self._lock:
            self._holders.discard(holder)
            if not self._holders and self._set is not None:
                self._set.__exit__(None, None, None)
                self._set = None


_stance = _Stance()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled code as it was written, within the block."""
    if not any(name in sys.modules for name in _COMPILERS):
        yield  # nothing is compiled
        return
    holder = object()
    try:
        try:
            _stance.take(holder)
            yield
        finally:
            _stance.release(holder)
    finally:
        _stance.release(holder)  # again: an interrupt may have kept the first one from it
