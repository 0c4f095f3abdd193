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
from importlib import import_module
from typing import Any

import torch
from torch.utils import _python_dispatch

_COMPILERS = ("torch._dynamo", "torch.nn.attention.flex_attention")


def hide(function: Any) -> None:
    """Keep the compiler from a function and all that it calls."""
    frames: Any = torch._C._dynamo.eval_frame  # there without the compiler, which is imported late
    skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
    frames.set_code_exec_strategy(function.__code__, skip)


class _Switches:
    """Compiler switches that a watch sets, with a count of the watches that hold them.

    Torch's modes set flags that keep the compiler, even one that is imported later, from new code;
    a stance keeps it from the code that it has compiled. Every line may be interrupted, and is
    right when it is done again. A lock around more than one line would stay locked if an interrupt
    came when it is left.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holders: set[object] = set()
        self._flags: dict[str, bool] | None = None
        self._stance: Any = None

    def take(self, holder: object) -> None:
        """Add a holder; the first one sets the switches."""
        with self._lock: self._take(holder)  # noqa: E701  # fmt: skip

    def release(self, holder: object) -> None:
        """Remove a holder, if it is one; the last one restores the switches."""
        with self._lock: self._release(holder)  # noqa: E701  # fmt: skip

    def _take(self, holder: object) -> None:
        self._holders.add(holder)
        flags = vars(_python_dispatch)
        if self._flags is None:
            self._flags = {name: flags[name] for name in flags if name.startswith("_is_in_")}
        flags.update(dict.fromkeys(self._flags, True))
        if any(name in sys.modules for name in _COMPILERS):
            if self._stance is None:
                self._stance = import_module("torch._dynamo.eval_frame")._stance
            torch.compiler.set_stance("force_eager")

    def _release(self, holder: object) -> None:
        self._holders.discard(holder)
        if self._holders:
            return
        if self._stance is not None:
            vars(import_module("torch._dynamo.eval_frame"))["_stance"] = self._stance
            self._stance = None
        if self._flags is not None:
            vars(_python_dispatch).update(self._flags)
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
