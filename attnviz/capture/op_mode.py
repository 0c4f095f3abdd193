"""How the ops of a model reach a watch: by a dispatch key that torch leaves unused, or by a mode.

A mode hands every op to Python, and with the caches as cold as a large convolution leaves them
that costs more than all that a watch does with it; two in three ops of a transformer are views,
which no rule speaks of. A kernel of our own at a key below autograd and autocast is called by torch
itself, is not called for views, and costs nothing in threads where it is switched off.

The key is one that torch declares and registers nothing for. Where that is no longer so, where the
key lies above modes (as before torch 2.11), or where a mode is on or a parameter is a tensor of a
class of its own, the watch is a mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

P = ParamSpec("P")
T = TypeVar("T")
Saw = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

_C: Any = torch._C
_NAME = "Fake"
_KEY = _C._parse_dispatch_key(_NAME)
_include = _C._dispatch_tls_set_dispatch_key_included
_PLAIN = frozenset((Tensor, nn.Parameter, nn.Buffer))
_VIEWS = (
    "view", "_unsafe_view", "_reshape_alias", "expand", "t", "transpose.int", "permute",
    "select.int", "slice.Tensor", "split.Tensor", "split_with_sizes", "unbind.int", "unsqueeze",
    "squeeze", "squeeze.dim", "squeeze.dims", "unfold", "diagonal", "as_strided",
    "empty.memory_format", "empty_strided",
)  # fmt: skip
_LIBRARIES: list[torch.library.Library] = []
_HIGHER_ORDER: set[str] = set()
_ABOVE = _C._dispatch_keyset_full() - _C._dispatch_keyset_full_after(_C.DispatchKey.Python)
_ABOVE = _ABOVE.remove(_C.DispatchKey.Python)
_ABOVE = _ABOVE if _KEY is None else _ABOVE.add(_KEY)
_AUTOGRAD = _C.DispatchKeySet(_C.DispatchKey.AutogradFunctionality)
for _key in ("AutogradOther", "AutogradNestedTensor", "ADInplaceOrView"):
    _AUTOGRAD = _AUTOGRAD.add(getattr(_C.DispatchKey, _key))


class _Running(threading.local):
    """The watches that are on in this thread, the innermost last."""

    def __init__(self) -> None:
        self.watches: tuple[ByKey, ...] = ()

    def become(self, watches: tuple[ByKey, ...]) -> None:
        """Let these be on."""
        self.watches = watches
        _include(_KEY, bool(watches))


_running = _Running()


class ByKey:
    """A watch that is called by torch's dispatcher, at a key of its own."""

    masked = False

    def __init__(self, saw: Saw) -> None:
        self.saw = saw

    def __enter__(self) -> None:
        _know_higher_order()
        _running.become((*_running.watches, self))

    def __exit__(self, *_: object) -> None:
        watches = _running.watches  # an interrupt may have taken this one away before
        _running.become(watches[:-1] if watches and watches[-1] is self else watches)


class ByMode(TorchDispatchMode):
    """A watch that is one of torch's modes.

    Attributes:
        masked: Whether autograd and autocast are off while it is called, for the op itself, too.
    """

    supports_higher_order_operators = True
    masked = True

    def __init__(self, saw: Saw) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.saw = saw

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper it asks for costs as much as a rule, and imports torch._dynamo

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.saw(func, args, kwargs or {})


def _intercept(func: Any, /, *args: Any, **kwargs: Any) -> Any:
    """An op, at our key: for the innermost watch, with that one off."""
    watches = _running.watches
    if not watches:  # a thread of autograd's own, which inherits the key
        with _C._ExcludeDispatchKeyGuard(_C.DispatchKeySet(_KEY)):
            return func(*args, **kwargs)
    try:  # what is set is set whole, so that an interrupt between two lines leaves it right
        _running.watches = watches[:-1]
        if len(watches) == 1:
            _include(_KEY, False)
        return watches[-1].saw(func, args, kwargs)
    finally:
        _running.watches = watches
        _include(_KEY, True)


def interceptor(saw: Saw, *, plain: bool) -> ByKey | ByMode:
    """What hands the ops of this thread to `saw(func, args, kwargs)` while it is entered.

    Args:
        saw: Runs the op, and looks at it.
        plain: Whether all parameters are plain tensors.
    """
    if plain and not _C._len_torch_dispatch_stack() and _key_is_ours():
        return ByKey(saw)
    return ByMode(saw)


def watches() -> int:
    """How many watches and other modes are on in this thread."""
    return len(_running.watches) + int(_C._len_torch_dispatch_stack())


def are_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor handles its ops itself; the ops within would be seen in their place."""
    return all(
        type(tensor) in _PLAIN or not _C._dispatch_keys(tensor).has(_C.DispatchKey.Python)
        for tensor in tensors
    )


def apart(function: Callable[P, T]) -> Callable[P, T]:
    """What a watch computes for itself: not differentiated, not cast, and seen by nobody else."""

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
    """Within what is apart, autograd as it was; still not cast, and seen by nobody else.

    What it saves is no business of a checkpoint around it, which would miss it when it runs again.
    """
    included, excluded = _C._dispatch_tls_local_include_set(), _C._dispatch_tls_local_exclude_set()
    with (
        _C._ForceDispatchKeyGuard(included, excluded - _AUTOGRAD),
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
    ):
        yield


def as_called(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an op that calls others, which autocast may have to cast, from within a mode."""
    if _C._len_torch_dispatch_stack():
        return func(*args, **kwargs)  # for the next mode; the last one sees to it
    with _C._RestorePythonTLSSnapshot(), _C._DisableTorchDispatch():
        return func(*args, **kwargs)


def hide_from_compiler() -> None:
    """Keep the compiler, where it is loaded, from compiling a watch along with its ops."""
    frames: Any = torch._C._dynamo.eval_frame
    skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
    for function in (_intercept, ByMode.__torch_dispatch__):
        frames.set_code_exec_strategy(function.__code__, skip)


@cache
def _key_is_ours() -> bool:
    """Whether our key is free, and taken from now on."""
    passed = dict.fromkeys(_VIEWS, torch.library.fallthrough_kernel)
    return take_key(_NAME, _intercept, passed, above_modes=False)


def take_key(name: str, otherwise: Any, kernels: Mapping[str, Any], *, above_modes: bool) -> bool:
    """Take a dispatch key that torch declares and leaves unused; False where that is not so.

    Args:
        name: The key's.
        otherwise: What is called for ops that `kernels` does not name.
        kernels: What is called for ops of aten by their names; those that this torch lacks are
            left out.
        above_modes: On which side of torch's modes it has to lie.
    """
    key = _C._parse_dispatch_key(name)
    after = _C._dispatch_keyset_full_after(_C.DispatchKey.Python)
    if key is None or after.has(key) is above_modes or _C._dispatch_has_backend_fallback(key):
        return False
    if _C._dispatch_get_registrations_for_dispatch_key(name):
        return False
    everywhere, aten = (torch.library.Library(space, "IMPL") for space in ("_", "aten"))
    everywhere.fallback(otherwise, name)
    known = set(_C._dispatch_get_all_op_names())
    for op, kernel in kernels.items():
        if f"aten::{op}" in known:
            aten.impl(op, kernel, name)
    torch._ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS.append(key)
    _LIBRARIES.extend((everywhere, aten))  # a library that is collected takes its kernels along
    return True


def _know_higher_order() -> None:
    for op in new_operators(_HIGHER_ORDER):
        op.py_impl(_KEY)(partial(_intercept, op))


def new_operators(known: set[str]) -> Iterator[Any]:
    """Operators that are no kernels and have a table of their own: those that are not yet known."""
    table = torch._ops._higher_order_ops
    for name, op in table.items() if len(table) > len(known) else ():
        if name not in known:
            known.add(name)
            yield op
