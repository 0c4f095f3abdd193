"""Calls of sigmoid, softmax, attention kernels and products in a forward pass.

A `TorchFunctionMode` meets each call above autograd, whatever happens to the result later; the
capture follows results to the product that uses them. A result that the capture does not follow is
judged here by whether the output has a gradient by it, and by replacing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SIGMOIDS: tuple[Any, ...] = (
    torch.sigmoid, Tensor.sigmoid, torch.sigmoid_, Tensor.sigmoid_, torch.special.expit,
    F.sigmoid, F.hardsigmoid, F.logsigmoid,
)  # fmt: skip
_SOFTMAXES: tuple[Any, ...] = (torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax)
_KERNELS: tuple[Any, ...] = (F.scaled_dot_product_attention, F.multi_head_attention_forward)
_PRODUCTS: tuple[Any, ...] = (
    torch.mul, torch.multiply, Tensor.mul, Tensor.mul_, Tensor.multiply,
    Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__,
)  # fmt: skip
_OPS = (
    dict.fromkeys(_SIGMOIDS, "sigmoid")
    | dict.fromkeys(_SOFTMAXES, "softmax")
    | dict.fromkeys(_KERNELS, "attention")
)


@dataclass(frozen=True)
class Call:
    """One call of a sigmoid, a softmax or an attention kernel.

    Attributes:
        module: Dotted name of the innermost module that ran it.
        op: `"sigmoid"`, `"softmax"` or `"attention"`.
        result: Its result.
    """

    module: str
    op: str
    result: Tensor


@dataclass(frozen=True)
class Product:
    """One product of a feature map with a data-dependent factor that is broadcast over it.

    Attributes:
        module: Dotted name of the innermost module that ran it.
        factor: `(b, c, 1, 1)` or `(b, 1, h, w)`.
    """

    module: str
    factor: Tensor


class CallMode(TorchFunctionMode):
    """Record calls, and replace the results of some of them.

    Args:
        running: Names of the modules that run, the innermost last.
        replace: From the number of a call to the function that replaces its result.
    """

    def __init__(
        self, running: list[str], replace: Mapping[int, Callable[[Tensor], Tensor]] | None = None
    ) -> None:
        super().__init__()
        self.running, self.replace = running, dict(replace or {})
        self.calls: list[Call] = []
        self.products: list[Product] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; record and replace its result."""
        if func in _PRODUCTS and len(args) == 2:
            self._product(*args)
        result = func(*args, **(kwargs or {}))
        op = _OPS.get(func)
        first = result[0] if isinstance(result, tuple) else result
        if op is None or not isinstance(first, Tensor):
            return result
        self.calls.append(Call(self._module, op, first))
        other = self.replace.get(len(self.calls) - 1)
        if other is None:
            return result
        return (other(first), *result[1:]) if isinstance(result, tuple) else other(first)

    @property
    def _module(self) -> str:
        return self.running[-1] if self.running else ""

    def _product(self, one: Any, other: Any) -> None:
        if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
            return
        small, large = (one, other) if one.numel() < other.numel() else (other, one)
        if small.dim() != 4 or large.dim() != 4 or len(small) != len(large):
            return
        channel = small.shape[1] == large.shape[1] and small.shape[2:] == (1, 1)
        spatial = small.shape[1] == 1 and small.shape[2:] == large.shape[2:]
        if (channel or spatial) and small.numel() < large.numel():
            self.products.append(Product(self._module, small.detach().clone()))


@contextmanager
def recorded_calls(
    model: nn.Module, replace: Mapping[int, Callable[[Tensor], Tensor]] | None = None
) -> Iterator[CallMode]:
    """Record the calls of a forward pass, with the names of the modules that run them."""
    running: list[str] = []

    def enter(name: str, _module: nn.Module, _args: Any) -> None:
        running.append(name)

    def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
        if running:
            running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with CallMode(running, replace) as mode:
            yield mode
    finally:
        for handle in handles:
            handle.remove()
