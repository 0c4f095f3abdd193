"""The mode that sees every op of a model and follows its data.

An op that no rule speaks of runs at once. A rule runs its op, bit for bit as it was called, and
looks at what came out; only an edit puts something else in its place.

It works below autograd and below autocast, where `nn.MultiheadAttention`'s and
`nn.TransformerEncoderLayer`'s fast paths still are what they are: a mode at the function level
makes torch leave them, and the outputs change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attnviz.capture import copies, kernels, products, scaling, squashing, windowing
from attnviz.capture.options import Options
from attnviz.capture.places import Call, Place, calls, place
from attnviz.capture.record import Grid
from attnviz.capture.recorder import Recorder
from attnviz.capture.seen import Capture
from attnviz.capture.tags import Tags

Rule = Callable[["Watcher", Any, tuple[Any, ...], dict[str, Any]], Any]

RULES: dict[Any, Rule] = {
    **copies.RULES,
    **kernels.RULES,
    **products.RULES,
    **scaling.RULES,
    **squashing.RULES,
    **windowing.RULES,
}

_in_backward = torch._C._current_graph_task_id
_RECIPE = torch._C.DispatchKey.CompositeImplicitAutograd
_KERNELS = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA, torch._C.DispatchKey.MPS)
_WHOLE: set[Any] = set()


class _Writes(dict[Any, bool]):
    """Whether an op writes into its first argument, found once per op."""

    def __contains__(self, func: object) -> bool:
        known = self.get(func)
        if known is None:
            schema = getattr(func, "_schema", None)
            known = self[func] = bool(schema is not None and schema.is_mutable)
        return known


_WRITES = _Writes()


class Watcher(TorchDispatchMode):
    """One watch of one model, while it is entered.

    Attributes:
        model: The model.
        names: Each module's dotted name, by its identity.
        modules: Each module by its name.
        maps: Sizes of the feature maps that were convolved in this forward pass.
        ops: How many ops ran, of any kind.
        trusted: Whether recomputed weights were checked before, on the same model.
        learning: Whether to note in which modules something was found, for a stream.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, options: Options, seen: Capture) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.model = model
        self.options = options
        self.modules = named(model)
        self.names = {id(module): name for name, module in self.modules.items()}
        self.tags = Tags()
        self.windows = windowing.Cuts()
        self.maps: set[Grid] = set()
        self.recorder = Recorder(self, seen)
        self.ops = 0
        self.trusted = False
        self.learning = False
        self._parameters = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper it asks for costs as much as a rule, and imports torch._dynamo

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.ops += 1
        rule = RULES.get(func)
        if rule is None:
            if func in _WHOLE or not learn_rule(func):
                if func in _WRITES and self.recorder.keeper.aliased:
                    self._preserve(args[0])
                return func(*args, **kwargs) if kwargs else func(*args)
            rule = RULES[func]
        if _in_backward() != -1:
            return func(*args, **(kwargs or {}))
        if func in _WRITES and self.recorder.keeper.aliased:
            self._preserve(args[0])
        return rule(self, func, args, kwargs or {})

    def _preserve(self, tensor: Any) -> None:
        if torch._C._len_torch_dispatch_stack():
            with torch._C._DisableTorchDispatch():
                self.recorder.keeper.preserve(tensor)
        else:
            self.recorder.keeper.preserve(tensor)

    def place(self) -> Place | None:
        """Who runs the current op; None if it is not the watched model."""
        return place(self.names)

    def calls(self) -> list[Call]:
        """The running modules, innermost first."""
        return calls(self.names)

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or a buffer, or was made of them alone."""
        if not self._parameters:
            self._know_parameters()
        tag = self.tags.get(tensor)
        return tag is not None and tag.kind == "parameter"

    def _know_parameters(self) -> None:
        self._parameters = True
        self.tags.fix(
            tensor
            for module in self.modules.values()
            for own in (module._parameters, module._buffers)
            for tensor in own.values()
            if tensor is not None
        )

    def running(self) -> frozenset[str] | None:
        """The names of the running modules, if they are to be noted."""
        return frozenset(call.name for call in self.calls()) if self.learning else None

    def scopes(self) -> list[nn.Module]:
        """The modules within which everything found so far was computed, none inside another."""
        names = sorted(set(self.recorder.looks.reached))
        outer = [
            name
            for name in names
            if not any(name != other and within(name, other) for other in names)
        ]
        return [self.modules[name] for name in outer]

    def finish(self) -> None:
        """Finish the records of a forward pass."""
        self.recorder.finish()

    def close(self) -> None:
        """Forget all tags."""
        self.tags.clear()
        self._parameters = False


def within(name: str, other: str) -> bool:
    """Whether a module lies inside another one, by their dotted names."""
    return not other or name.startswith(f"{other}.")


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


def hide_from_compiler() -> None:
    """Keep the compiler, where it is loaded, from compiling this mode along with its ops."""
    frames: Any = torch._C._dynamo.eval_frame
    skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
    frames.set_code_exec_strategy(Watcher.__torch_dispatch__.__code__, skip)


def learn_rule(func: Any) -> bool:
    """Find the rule of an op that is met for the first time; whether it has one.

    `inference_mode` delivers ops that are only recipes of other ops; higher-order ops are known by
    name, for they are imported with the compiler, and late.
    """
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    if not isinstance(func, torch._ops.OpOverload):
        if getattr(func, "_name", "") == "flex_attention":
            RULES[func] = kernels.flexible
            return True
    elif has(func.name(), _RECIPE) and not any(has(func.name(), key) for key in _KERNELS):
        RULES[func] = decompose
        return True
    _WHOLE.add(func)
    return False


def decompose(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a composite op through its own recipe, with the mode on for its parts."""
    with watcher:
        out = func.decompose(*args, **kwargs)
    return func(*args, **kwargs) if out is NotImplemented else out
