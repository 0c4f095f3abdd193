"""To be told of softmaxes and of gates' functions alone, while everything else runs as it is.

A kernel at the highest of torch's dispatch keys, one that torch declares for tests of its own and
registers nothing for, is called for these functions and falls through for all others. Above
autograd and autocast a function is still what the model called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from attnviz.capture.op_mode import new_operators, take_key

Told = Callable[[Tensor], None]

_C: Any = torch._C
_NAME = "TESTING_ONLY_GenericMode"
_FUNCTIONS = (
    "softmax.int", "_softmax", "_safe_softmax", "sigmoid", "sigmoid_", "hardsigmoid",
    "hardsigmoid_", "tanh", "tanh_",
)  # fmt: skip
_KEY = _C._parse_dispatch_key(_NAME)
_HIGHER_ORDER: set[str] = set()


class _Running(threading.local):
    """Who is told, in this thread."""

    told: Told | None = None


_running = _Running()


@contextmanager
def listening(told: Told) -> Iterator[None]:
    """Within it `told(out)` is called with what each of these functions returned in this thread.

    Only where `can_listen()`; of two that are nested the inner one is told.
    """
    on = _C._dispatch_tls_is_dispatch_key_included(_KEY)
    outer = _running.told if on else None  # an interrupt may have left one
    try:
        _running.told = told
        with _C._IncludeDispatchKeyGuard(_KEY):  # switched off by torch, whatever interrupts us
            yield
    finally:
        _running.told = outer


def _called(function: Any, /, *args: Any, **kwargs: Any) -> Any:
    with _C._ExcludeDispatchKeyGuard(_C.DispatchKeySet(_KEY)):
        out = function(*args, **kwargs)
    if _running.told is not None:  # or this is another thread, which inherited the key
        _running.told(out)
    return out


def can_listen() -> bool:
    """Whether the key is free, and taken from now on."""
    if not _key_is_ours():
        return False
    for op in new_operators(_HIGHER_ORDER):
        op.fallthrough(_KEY)
    return True


@cache
def _key_is_ours() -> bool:
    kernels = {}
    for name in _FUNCTIONS:
        packet, _, overload = name.partition(".")
        function = getattr(getattr(torch.ops.aten, packet), overload or "default")
        kernels[name] = partial(_called, function)
    return take_key(_NAME, torch.library.fallthrough_kernel, kernels, above_modes=True)
