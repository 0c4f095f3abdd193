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

Told = Callable[[Tensor], None]

_C: Any = torch._C
_NAME = "TESTING_ONLY_GenericMode"
_FUNCTIONS = (
    "softmax.int", "_softmax", "_safe_softmax", "sigmoid", "sigmoid_", "hardsigmoid",
    "hardsigmoid_", "tanh", "tanh_",
)  # fmt: skip
_KEY = _C._parse_dispatch_key(_NAME)
_LIBRARIES: list[torch.library.Library] = []
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
    table = torch._ops._higher_order_ops  # operators that are no kernels have a table of their own
    for name, op in table.items() if len(table) > len(_HIGHER_ORDER) else ():
        if name not in _HIGHER_ORDER:
            _HIGHER_ORDER.add(name)
            op.fallthrough(_KEY)
    return True


@cache
def _key_is_ours() -> bool:
    after = _C._dispatch_keyset_full_after(_C.DispatchKey.Python)
    if _KEY is None or after.has(_KEY) or _C._dispatch_has_backend_fallback(_KEY):
        return False
    if _C._dispatch_get_registrations_for_dispatch_key(_NAME):
        return False
    everywhere, aten = (torch.library.Library(name, "IMPL") for name in ("_", "aten"))
    everywhere.fallback(torch.library.fallthrough_kernel, _NAME)
    for name in _FUNCTIONS:
        packet, _, overload = name.partition(".")
        function = getattr(getattr(torch.ops.aten, packet), overload or "default")
        aten.impl(name, partial(_called, function), _NAME)
    torch._ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS.append(_KEY)
    _LIBRARIES.extend((everywhere, aten))  # a library that is collected takes its kernels along
    return True
