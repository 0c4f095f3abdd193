"""Which activations really run, and in which module.

DeepLIFT, guided backpropagation and deconvolution replace the gradients of activation modules by
hooks. An activation that runs outside of such a module (`F.relu`, `x.clamp(min=0)`, `x * (x > 0)`)
keeps its plain gradient, and the map looks like the method's all the same. So the operations of one
forward pass are compared with the modules in which they ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attnviz.errors import UnsupportedError
from attnviz.model_state import frozen
from attnviz.shapes import Images

_RECTIFIERS = frozenset({"relu", "clamp", "clamp_min", "threshold"})
_ACTIVATIONS = _RECTIFIERS | {
    "abs", "celu", "clamp_max", "elu", "erf", "ge", "gelu", "glu", "gt", "hardshrink",
    "hardsigmoid", "hardswish", "hardtanh", "heaviside", "le", "leaky_relu", "log_sigmoid_forward",
    "lt", "maximum", "minimum", "mish", "prelu", "_prelu_kernel", "relu6", "rrelu",
    "rrelu_with_noise", "rrelu_with_noise_functional", "selu", "sign", "silu", "softplus",
    "softshrink",
}  # fmt: skip
"""Operations with a kink or a curve, by name without overload and trailing underscore. Comparisons
are the first half of `x * (x > 0)` and of `torch.where(x > 0, x, 0)`."""

_CURVES = frozenset({"sigmoid", "tanh"})
_POOLS = frozenset(
    {"max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d",
     "adaptive_max_pool3d", "mkldnn_max_pool2d", "mkldnn_max_pool3d"}
)  # fmt: skip


@dataclass(frozen=True)
class Activation:
    """One operation with a kink or a curve that ran on something that depends on the image.

    Attributes:
        operation: ATen's name, such as `relu`.
        name: Dotted name of the innermost module that was running; empty for the model itself.
        module: That module.
    """

    operation: str
    name: str
    module: nn.Module

    def __str__(self) -> str:
        where = (
            f"{type(self.module).__name__} {self.name!r}" if self.name else "the model's forward"
        )
        return f"{self.operation} in {where}"


@dataclass
class _Trace:
    """What one forward pass ran.

    Attributes:
        activations: In order.
        calls: How often each module was called.
    """

    activations: list[Activation] = field(default_factory=list)
    calls: Counter[nn.Module] = field(default_factory=Counter)


class _Recorder(TorchDispatchMode):
    def __init__(self, trace: _Trace, running: list[tuple[str, nn.Module]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace, self._running = trace, running
        self._sigmoids: dict[int, tuple[Tensor, Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        operation = func.overloadpacket.__name__
        operation = operation.rstrip("_") if not operation.startswith("__") else operation
        of_image = [isinstance(one, Tensor) and one.requires_grad for one in args]
        name, module = self._running[-1]
        if any(of_image) and _bends(operation, args, kwargs or {}, of_image):
            self._trace.activations.append(Activation(operation, name, module))
        if operation == "mul" and self._is_swish(args):
            self._trace.activations.append(Activation("x * sigmoid(x)", name, module))
        result = func(*args, **(kwargs or {}))
        if operation == "sigmoid" and isinstance(result, Tensor):
            self._sigmoids[id(result)] = result, args[0]  # held, so that its id stays its own
        return result

    def _is_swish(self, args: tuple[Any, ...]) -> bool:
        """Whether a product is that of a tensor and its own sigmoid."""
        one, other = args[:2]
        return any(
            id(gate) in self._sigmoids and self._sigmoids[id(gate)][1] is values
            for gate, values in ((one, other), (other, one))
        )


def _bends(
    operation: str, args: tuple[Any, ...], kwargs: dict[str, Any], of_image: list[bool]
) -> bool:
    if operation in ("maximum", "minimum"):
        return of_image.count(True) == 1  # against a constant; of two features, each has its share
    if operation in ("clamp", "clamp_min", "clamp_max"):
        bounds = [*args[1:3], kwargs.get("min"), kwargs.get("max")]
        # A floor that keeps a divisor from zero is no activation.
        return any(isinstance(one, Tensor) or one == 0 or (one or 0) >= 1 for one in bounds)
    return operation in _ACTIVATIONS or operation in _CURVES or operation in _POOLS


def trace_of(model: nn.Module, image: Images) -> _Trace:
    """One forward pass of one image, its activations and calls recorded.

    Args:
        model: Any module in plain Python; its state is restored.
        image: `(1, c, h, w)`.
    """
    trace, running = _Trace(), [("", model)]
    with frozen(model, gradients=True), ExitStack() as stack:
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # so that only what depends on the image requires it
        for name, module in model.named_modules():
            for handle in _call_hooks(module, name, trace, running):
                stack.callback(handle.remove)
        with _Recorder(trace, running):
            model(image.detach().clone().requires_grad_())
    return trace


def _call_hooks(
    module: nn.Module, name: str, trace: _Trace, running: list[tuple[str, nn.Module]]
) -> Iterator[Any]:
    def enter(_module: nn.Module, _args: Any) -> None:
        trace.calls[module] += 1
        running.append((name, module))

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        running.pop()

    yield module.register_forward_pre_hook(enter, prepend=True)
    yield module.register_forward_hook(leave, always_call=True)


def check_guidable(name: str, model: nn.Module, image: Images) -> None:
    """Guided backpropagation and deconvolution: all activations that ran are `nn.ReLU` modules.

    Args:
        name: The method, for the message.
        model: In plain Python.
        image: `(1, c, h, w)`.

    Raises:
        UnsupportedError: Another activation ran, or none.
    """
    passing = _CURVES | _POOLS
    ran = [one for one in trace_of(model, image).activations if one.operation not in passing]
    others = [one for one in ran if not _is_guided(one)]
    if ran and not others:
        return
    what = f"it also has {_listed(others)}" if others else "it has no nn.ReLU that runs"
    raise UnsupportedError(
        f"{name}: expected a model whose activations all are nn.ReLU modules, since those are all "
        f"that Captum guides; {what}, and the map would be plain gradient there: "
        "use method='saliency', or call nn.ReLU modules in place of functions"
    )


def _is_guided(activation: Activation) -> bool:
    return isinstance(activation.module, nn.ReLU) and activation.operation in _RECTIFIERS


def check_rescalable(name: str, model: nn.Module, image: Images) -> None:
    """DeepLIFT: every activation that ran is a module with a rule of Captum's, and ran once.

    Args:
        name: The method, for the message.
        model: In plain Python.
        image: `(1, c, h, w)`.

    Raises:
        UnsupportedError: An activation without a rule, one that ran twice, or one with backward
            hooks of its own, which Captum leaves out.
    """
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR as RULES

    trace = trace_of(model, image)
    ruleless = [one for one in trace.activations if type(one.module) not in RULES]
    remedy = "or use method='integrated_gradients'"
    if ruleless:
        raise UnsupportedError(
            f"{name}: expected every activation and max-pooling to be a module that DeepLIFT has a "
            f"rule for ({', '.join(sorted(kind.__name__ for kind in RULES))}), got "
            f"{_listed(ruleless)}, which would pass plain gradients; call such modules in place of "
            f"functions, {remedy}"
        )
    names = {module: name for name, module in model.named_modules()}
    ruled = [module for module in trace.calls if type(module) in RULES]
    twice = [names[module] for module in ruled if trace.calls[module] > 1]
    if twice:
        raise UnsupportedError(
            f"{name}: expected every activation module to run once per forward, and {twice[0]!r} "
            f"runs twice or more; give each place its own module, {remedy}"
        )
    hooked = [names[module] for module in ruled if module._backward_hooks]
    if hooked:
        raise UnsupportedError(
            f"{name}: expected activation modules without backward hooks, since Captum leaves "
            f"hooked ones out; remove those of {hooked[0]!r}, {remedy}"
        )


def _listed(activations: list[Activation]) -> str:
    """The first four, each once; an activation module by its class."""
    unique = dict.fromkeys(
        f"{type(one.module).__name__} {one.name!r}"
        if type(one.module).__module__.startswith("torch.nn.modules.activation")
        else str(one)
        for one in activations
    )
    first = list(unique)[:4]
    return ", ".join(first) + (f" and {len(unique) - 4} more" if len(unique) > 4 else "")
