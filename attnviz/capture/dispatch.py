"""The watcher that sees the ops of a model and follows its data.

An op that no rule speaks of runs at once. A rule runs its op, bit for bit as it was called, and
looks at what came out; only an edit puts something else in its place.

It works below autograd and below autocast, where `nn.MultiheadAttention`'s and
`nn.TransformerEncoderLayer`'s fast paths still are what they are: a mode at the function level
makes torch leave them, and the outputs change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.capture.call_stack import Call, Place, call, calls, place
from attnviz.capture.capture import Capture
from attnviz.capture.op_mode import ByKey, ByMode, apart, are_plain, interceptor
from attnviz.capture.options import Options
from attnviz.capture.provenance import PARAMETER, Tags
from attnviz.capture.record import Grid
from attnviz.capture.recorder import Recorder
from attnviz.capture.rules import activations, copies, elementwise, fused_kernels, products, windows

Rule = Callable[["Watcher", Any, tuple[Any, ...], dict[str, Any]], Any]

RULES: dict[Any, Rule] = {
    **copies.RULES,
    **fused_kernels.RULES,
    **products.RULES,
    **elementwise.RULES,
    **activations.RULES,
    **windows.RULES,
}
_OF_NESTED = frozenset(fused_kernels.RULES.values())
"""Rules that know what to say of nested tensors, which have no shape."""

_in_backward = torch._C._current_graph_task_id
_RECIPE = torch._C.DispatchKey.CompositeImplicitAutograd
_KERNELS = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA, torch._C.DispatchKey.MPS)
_KNOWN: dict[Any, tuple[Rule | None, bool]] = {}
"""Of each op that was met: its rule, and whether it writes into its first argument."""


class Watcher:
    """One watch of one model, while it is entered.

    Attributes:
        model: The model.
        names: Each module's dotted name, by its identity.
        modules: Each module by its name.
        maps: Sizes of the feature maps that were convolved in this forward pass.
        ops: How many ops ran, of any kind but views.
        trusted: Whether recomputed weights were checked before, on the same model.
    """

    def __init__(self, model: nn.Module, options: Options, seen: Capture) -> None:
        self.model = model
        self.options = options
        self.modules = named(model)
        self.names = {id(module): name for name, module in self.modules.items()}
        self.tags = Tags()
        self.windows = windows.Cuts()
        self.maps: set[Grid] = set()
        self.recorder = Recorder(self, seen)
        self.ops = 0
        self.trusted = False
        self._parameters = False
        self._plain: bool | None = None
        self._ways: list[ByKey | ByMode] = []

    def __enter__(self) -> Watcher:
        """Be given the ops that this thread runs."""
        if self._plain is None:
            self._plain = are_plain(self._tensors())
        way = self._ways[-1] if self._ways else interceptor(self.saw, plain=self._plain)
        way.__enter__()
        self._ways.append(way)
        return self

    def __exit__(self, *error: Any) -> None:
        """Be given no more."""
        self._ways.pop().__exit__(*error)

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op, by its rule where it has one."""
        self.ops += 1
        rule, writes = _KNOWN.get(func) or learn(func)
        backward = _in_backward() != -1
        if writes and not (backward and rule) and self.recorder.keeper.minds(args[0]):
            self._preserve(args[0])
        if backward:
            return func(*args, **kwargs)
        if not self._parameters:
            self.know_parameters()
        first = args[0] if args else None
        if isinstance(first, Tensor):
            if first.is_nested and rule not in _OF_NESTED:
                rule = None
            elif self.is_parameter(first):
                if self._alone((*args, *kwargs.values())):
                    return self._fixed(func(*args, **kwargs))
                if writes:
                    self.tags.written(first)
        return func(*args, **kwargs) if rule is None else rule(self, func, args, kwargs)

    def _fixed(self, out: Any) -> Any:
        """What was made of parameters alone does not depend on the input."""
        for made in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(made, Tensor):
                self.tags.put(made, PARAMETER)
        return out

    @property
    def masked(self) -> bool:
        """Whether autograd and autocast are off while an op is seen."""
        return self._ways[-1].masked

    @apart
    def _preserve(self, tensor: Tensor) -> None:
        self.recorder.keeper.preserve(tensor)

    def place(self) -> Place | None:
        """Who runs the current op; None if it is not the watched model."""
        return place(self.names)

    def calls(self, *, ends: bool = False) -> list[Call]:
        """The running modules, innermost first; if `ends`, with the outermost one's shapes only."""
        return calls(self.names, ends=ends)

    def call(self) -> object:
        """What stands for the model's own running call, and for no other; None if there is none."""
        return call(self.names)

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or a buffer, or was made of them alone."""
        tag = self.tags.get(tensor)
        return tag is not None and tag.kind == "parameter"

    def know_parameters(self) -> None:
        """Tag the parameters that the model has now; some are made late, or exchanged."""
        self._parameters = True
        self.tags.fix(self._tensors())

    def _alone(self, values: Iterable[Any]) -> bool:
        """Whether parameters, and numbers, are all that there is."""
        for value in values:
            if isinstance(value, Tensor):
                if value.dim() and not self.is_parameter(value):
                    return False
            elif isinstance(value, (list, tuple)) and not self._alone(value):
                return False
        return True

    def _tensors(self) -> Iterator[Tensor]:
        """The model's parameters and buffers."""
        for module in self.modules.values():
            for own in (module._parameters, module._buffers):
                yield from (tensor for tensor in own.values() if tensor is not None)

    def running(self) -> frozenset[str] | None:
        """The names of the running modules, if they are to be noted."""
        if not self.recorder.looks.learning:
            return None
        return frozenset(call.name for call in self.calls())

    @property
    def on(self) -> bool:
        """Whether ops are being given."""
        return bool(self._ways)

    def finish(self) -> None:
        """Finish the records of a forward pass."""
        self.recorder.finish()

    def close(self) -> None:
        """Forget all tags."""
        self.tags.clear()
        self._parameters = False


def named(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by the dotted names they had before `torch.compile` wrapped any of them.

    The same as `named_modules`, several times faster: it is done for every watch.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(module: nn.Module, name: str) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        found.setdefault(name, module)
        for child, inner in module._modules.items():
            if inner is not None:
                own = name if child == "_orig_mod" else f"{name}.{child}" if name else child
                if child == "_orig_mod":
                    found[own] = inner
                visit(inner, own)

    visit(model, "")
    return found


def learn(func: Any) -> tuple[Rule | None, bool]:
    """What is to be done with an op that is met for the first time."""
    schema = getattr(func, "_schema", None)
    _KNOWN[func] = known = find_rule(func), bool(schema is not None and schema.is_mutable)
    return known


def find_rule(func: Any) -> Rule | None:
    """The rule of an op, if it has one.

    `inference_mode` delivers ops that are only recipes of other ops; higher-order ops are known by
    name, for they are imported with the compiler, and late.
    """
    rule = RULES.get(func)
    if rule is not None:
        return rule
    if not isinstance(func, torch._ops.OpOverload):
        return fused_kernels.flexible if getattr(func, "_name", "") == "flex_attention" else None
    has, name = torch._C._dispatch_has_kernel_for_dispatch_key, func.name()
    recipe = has(name, _RECIPE) and not any(has(name, key) for key in _KERNELS)
    return decompose if recipe else None


def decompose(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a composite op through its own recipe, its parts are seen."""
    with watcher:
        out = func.decompose(*args, **kwargs)
    return func(*args, **kwargs) if out is NotImplemented else out
