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
_SOFTMAXES: tuple[Any, ...] = (
    torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax,
    torch.log_softmax, Tensor.log_softmax, F.log_softmax, torch.special.log_softmax,
)  # fmt: skip
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
    """One product of features with a factor that is repeated along some of their axes.

    Attributes:
        module: Dotted name of the innermost module that ran it.
        factor: What the features are multiplied by, with their axes; 1 along which it is repeated.
        nodes: The nodes of the autograd graph that made the operands; None without gradients.
    """

    module: str
    factor: Tensor
    nodes: tuple[Any, ...] = ()


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
        if func in _FACTORS:
            factor = _FACTORS[func](*args, **(kwargs or {}))
            if factor is not None:
                nodes = tuple(one.grad_fn for one in args if isinstance(one, Tensor))
                self.products.append(Product(self._module, factor.detach().clone(), nodes))
        result = func(*args, **(kwargs or {}))
        op = _OPS.get(func)
        if op is None:
            return result
        first = result[0] if isinstance(result, tuple) else result
        if not isinstance(first, Tensor):
            return result
        self.calls.append(Call(self._module, op, first))
        other = self.replace.get(len(self.calls) - 1)
        if other is None:
            return result
        return (other(first), *result[1:]) if isinstance(result, tuple) else other(first)

    @property
    def _module(self) -> str:
        return self.running[-1] if self.running else ""


def _of_product(one: Any, other: Any, **_: Any) -> Tensor | None:
    """The smaller operand, if it is repeated along some axes of the larger one."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return None
    small, large = sorted((_once(one), _once(other)), key=Tensor.numel)
    if small.dim() != large.dim() or large.dim() < 3 or len(small) != len(large):
        return None
    pairs = list(zip(small.shape[1:], large.shape[1:], strict=True))
    fits = all(n in (1, m) for n, m in pairs) and any(n != m for n, m in pairs)
    return small if fits and small.numel() > len(small) else None


def _of_sum(start: Any, one: Any, other: Any, *, value: float = 1, **_: Any) -> Tensor | None:
    """Of `start + value · one · other`, where `start` is one of them or zero."""
    factor = _of_product(one, other)
    if factor is None or not isinstance(start, Tensor):
        return None
    if not bool(start.any()):
        return factor * value
    features = max((one, other), key=Tensor.numel)
    same = start.shape == features.shape and bool((start == features).all())
    return 1 + factor * value if same else None


def _of_mixture(start: Any, end: Any, weight: Any, **_: Any) -> Tensor | None:
    """Of `start + weight · (end − start)`, where one of the two is zero."""
    if not (isinstance(start, Tensor) and isinstance(end, Tensor)):
        return None
    features, inverse = (end, False) if not bool(start.any()) else (start, True)
    factor = _of_product(weight, features)
    if factor is None or (inverse and bool(end.any())):
        return None
    return 1 - factor if inverse else factor


def _of_einsum(equation: Any, *operands: Any, **_: Any) -> Tensor | None:
    """Of `einsum("bchw,bc->bchw", x, g)` and the like, without a sum over an axis of several."""
    tensors = operands[0] if operands and isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or len(tensors) != 2 or "->" not in equation:
        return None
    inputs, output = equation.replace(" ", "").split("->")
    names = inputs.split(",")
    for features, own, factor, axes in (
        (tensors[0], names[0], tensors[1], names[1]), (tensors[1], names[1], tensors[0], names[0]),
    ):  # fmt: skip
        kept = [i for i, axis in enumerate(axes) if axis in own]
        summed = [factor.shape[i] for i in range(len(axes)) if i not in kept]
        if own != output or "." in own or any(n != 1 for n in summed):
            continue
        order = sorted(kept, key=lambda i: own.index(axes[i]))
        sizes = {axes[i]: factor.shape[i] for i in kept}
        aligned = factor.permute(*order, *(i for i in range(len(axes)) if i not in kept))
        return _of_product(aligned.reshape([sizes.get(axis, 1) for axis in own]), features)
    return None


def _once(x: Tensor) -> Tensor:
    """One of the copies along axes that were expanded."""
    for axis, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if axis and size > 1 and stride == 0:
            x = x.narrow(axis, 0, 1)
    return x


_FACTORS: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys(_PRODUCTS, _of_product),
    **dict.fromkeys((torch.addcmul, Tensor.addcmul, Tensor.addcmul_), _of_sum),
    **dict.fromkeys((torch.lerp, Tensor.lerp, Tensor.lerp_), _of_mixture),
    torch.einsum: _of_einsum,
}
"""From an operation to what it multiplies features by."""


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
