"""The compiler, kept from compiled code and from new code while any watch is on.

Modes do not see into compiled code, so it runs as it was written. The compiler's switches belong to
the whole process, while watches of several threads and tasks may overlap in any order: the first
one to begin sets the switches, and the last one to end restores what was set before.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnviz.capture.op_mode import OpMode

_COMPILERS = ("torch._dynamo", "torch.nn.attention.flex_attention")


class _Flags(OpMode):
    """A mode that is never left on the stack, for the flags that torch sets when one is entered.

    With them nothing new is compiled, even if the compiler is imported later.
    """

    on = False

    def set(self) -> None:
        """Set torch's flags."""
        try:
            self.on = TorchDispatchMode.__enter__(self) is self
        finally:
            self.__exit__()

    def restore(self) -> None:
        """Restore torch's flags, if they are set."""
        try:
            self.__enter__()
            if self.on:
                self.on = bool(TorchDispatchMode.__exit__(self, None, None, None))
        finally:
            self.__exit__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class _Switches:
    """The compiler's switches, and who holds them.

    A lock around more than one line would stay locked if an interrupt came when it is left.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holders: set[object] = set()
        self._flags: _Flags | None = None
        self._stance: Any = None

    def take(self, holder: object) -> None:
        """Add a holder; the first one sets the switches."""
        with self._lock: self._take(holder)  # noqa: E701  # fmt: skip

    def release(self, holder: object) -> None:
        """Remove a holder, if it is one; the last one restores the switches."""
        with self._lock: self._release(holder)  # noqa: E701  # fmt: skip

    def _take(self, holder: object) -> None:
        self._holders.add(holder)
        if self._flags is None:
            self._flags = _Flags()  # type: ignore[no-untyped-call]  # torch has no types here
        if not self._flags.on:
            self._flags.set()
        if self._stance is None and any(name in sys.modules for name in _COMPILERS):
            self._stance = torch.compiler.set_stance("force_eager")

    def _release(self, holder: object) -> None:
        self._holders.discard(holder)
        if self._holders:
            return
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
        if self._flags is not None:
            self._flags.restore()
            self._flags = None


_switches = _Switches()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled code as it was written, and compile nothing, within the block."""
    holder = object()
    try:
        try:
            _switches.take(holder)
            yield
        finally:
            _switches.release(holder)
    finally:
        _switches.release(holder)  # again: an interrupt may have kept the first one from it
