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

from attnviz.capture import copies, kernels, products, scaling, squashing
from attnviz.capture.options import Options
from attnviz.capture.places import Call, Place, calls, place
from attnviz.capture.recorder import Recorder
from attnviz.capture.seen import Capture
from attnviz.capture.tags import PARAMETER, Tag, Tags

Rule = Callable[["Watcher", Any, tuple[Any, ...], dict[str, Any]], Any]

RULES: dict[Any, Rule] = {
    **copies.RULES,
    **kernels.RULES,
    **products.RULES,
    **scaling.RULES,
    **squashing.RULES,
}

_in_backward = torch._C._current_graph_task_id
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_AS_THEY_ARE: dict[Any, bool] = {}


class Watcher(TorchDispatchMode):
    """One watch of one model, while it is entered."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, options: Options, seen: Capture) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.names = {id(module): name for name, module in model.named_modules()}
        self.tags = Tags()
        self.recorder = Recorder(self, seen)
        self._parameters = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        rule = RULES.get(func)
        if rule is None:
            if func in _AS_THEY_ARE or not composite(func):
                _AS_THEY_ARE[func] = True
                return func(*args, **kwargs) if kwargs else func(*args)
            rule = decompose
        if _in_backward() != -1:
            return func(*args, **(kwargs or {}))
        return rule(self, func, args, kwargs or {})

    def place(self) -> Place | None:
        """Who runs the current op; None if it is not the watched model."""
        return place(self.names)

    def calls(self) -> list[Call]:
        """The running modules, innermost first."""
        return calls(self.names)

    def tag(self, tensor: Any) -> Tag | None:
        """What is known of a tensor."""
        return self.tags.get(tensor) if isinstance(tensor, Tensor) else None

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or a buffer, or was made of them alone."""
        if not self._parameters:
            self._know_parameters()
        tag = self.tags.get(tensor)
        return tag is not None and tag.kind == "parameter"

    def _know_parameters(self) -> None:
        self._parameters = True
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if type(tensor) is not nn.UninitializedParameter and tensor.layout is torch.strided:
                self.tags.put(tensor, PARAMETER)

    def close(self) -> None:
        """Finish the records and forget all tags."""
        self.recorder.finish()
        self.tags.clear()
        self._parameters = False


def composite(func: Any) -> bool:
    """Whether an op is only a recipe of other ops, as `inference_mode` delivers them."""
    return isinstance(func, torch._ops.OpOverload) and bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE)
    )


def decompose(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a composite op through its own recipe, with the mode on for its parts."""
    with watcher:
        out = func.decompose(*args, **kwargs)
    return func(*args, **kwargs) if out is NotImplemented else out
