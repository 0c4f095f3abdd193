"""The torch mode that hands every op of this thread to a watch, and code that runs outside of it.

One `TorchDispatchMode` is enough for every version of torch. It works below autograd and autocast,
where the fast paths of `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` are still taken; a
mode at the function level switches them off, and the outputs change.

Watches may overlap without being nested (asyncio tasks, generators that take turns), so a mode is
taken off the stack from wherever it is in it, and not simply the one on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

P = ParamSpec("P")
T = TypeVar("T")

_C: Any = torch._C
_push, _pop = _C._push_on_torch_dispatch_stack, partial(_C._pop_torch_dispatch_stack, None)
_ABOVE = _C._dispatch_keyset_full() - _C._dispatch_keyset_full_after(_C.DispatchKey.Python)
_ABOVE = _ABOVE.remove(_C.DispatchKey.Python)
_AUTOGRAD = _C.DispatchKeySet(_C.DispatchKey.AutogradFunctionality)
for _key in ("AutogradOther", "AutogradNestedTensor", "ADInplaceOrView"):
    _AUTOGRAD = _AUTOGRAD.add(getattr(_C.DispatchKey, _key))


class OpMode(TorchDispatchMode):
    """A mode that can leave the stack in any order.

    The flags that torch's own modes set for the compiler are left alone: they belong to the whole
    process, and modes of several threads would leave them switched on.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper it asks for costs as much as a rule, and imports torch._dynamo

    def __enter__(self) -> OpMode:
        """Put the mode on top of this thread's stack."""
        _push(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Take the mode off this thread's stack, every time that it is on it."""
        while any(mode is self for mode in modes()):
            _take_off(self)


def modes() -> list[TorchDispatchMode]:
    """The modes that are on in this thread, the innermost last."""
    return [_C._get_dispatch_stack_at(i) for i in range(_C._len_torch_dispatch_stack())]


def _take_off(mode: TorchDispatchMode) -> None:
    """Take the topmost entry of a mode off the stack, and leave those above it.

    An interrupt may arrive on any line; whatever was taken off is put back nevertheless.
    """
    above: list[TorchDispatchMode] = []
    try:
        try:
            above.extend(iter(_pop, mode))
        finally:
            _put_back(above)
    finally:
        _put_back(above)


def _put_back(above: list[TorchDispatchMode]) -> None:
    while above:
        _push(above.pop())


def apart(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function with autograd, autocast and all dispatch modes off."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with _C._ExcludeDispatchKeyGuard(_ABOVE):
            if not _C._len_torch_dispatch_stack():
                return function(*args, **kwargs)
            with _C._DisableTorchDispatch():
                return function(*args, **kwargs)

    return run


@contextmanager
def differentiated() -> Iterator[None]:
    """Within `apart`, switch autograd on again, and nothing else.

    Checkpointing around it does not count the tensors that are saved here: they would be missing
    when it runs the function again.
    """
    included, excluded = _C._dispatch_tls_local_include_set(), _C._dispatch_tls_local_exclude_set()
    with (
        _C._ForceDispatchKeyGuard(included, excluded - _AUTOGRAD),
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
    ):
        yield


def as_called(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an op that calls other ops with the autocast that the model's own call had.

    Within a mode autocast is off. Where another mode follows, that one is left to decide.
    """
    if _C._len_torch_dispatch_stack():
        return func(*args, **kwargs)
    with _C._RestorePythonTLSSnapshot(), _C._DisableTorchDispatch():
        return func(*args, **kwargs)
