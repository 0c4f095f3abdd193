"""The mode that runs each op of a model by its rule.

An op without a rule runs at once. A rule runs its op exactly as it was called and reads the result;
only an edit puts something else in its place.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnviz.capture import rules  # noqa: F401  # fills the table of rules
from attnviz.capture.compiler import hide
from attnviz.capture.followed_ops import Followed, follow, followed, tensors
from attnviz.capture.op_mode import OpMode, apart, modes
from attnviz.capture.provenance import PARAMETER
from attnviz.capture.registry import FOUND, RULES, Rule
from attnviz.capture.rules.elementwise import multiplier
from attnviz.capture.rules.fused_kernels import foreign
from attnviz.capture.session import Session

_in_backward = torch._C._current_graph_task_id
_RECIPE = torch._C.DispatchKey.CompositeImplicitAutograd
_KERNELS = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA, torch._C.DispatchKey.MPS)


class Known(NamedTuple):
    """What is known of an op.

    Attributes:
        plain: Whether there is nothing to do but to run it.
        rule: Its rule, if it has one.
        nested: Whether the rule accepts nested tensors.
        writes: Whether the op writes into its first argument.
        composite: Whether it is written in terms of other ops, and has no rule of its own.
        fixed: Whether its rule reads what is made of parameters alone.
        followed: How places are followed through it; None if they stay as they are.
    """

    plain: bool
    rule: Rule | None
    nested: bool
    writes: bool
    composite: bool
    fixed: bool
    followed: Followed | None


class Watcher(OpMode):
    """Runs the ops of this thread for one session, while it is entered.

    Attributes:
        session: The session; None once the watch is closed. A closed one that another thread
            still has on its stack only passes ops on, until it is dropped.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.session: Session | None = session

    def __enter__(self) -> OpMode:
        """Follow the ops of this thread; watches of this thread that were closed are dropped."""
        for mode in modes():
            if isinstance(mode, Watcher) and mode.session is None:
                mode.__exit__()
        return super().__enter__()

    def close(self) -> None:
        """Follow no more ops, and drop the session."""
        session, self.session = self.session, None
        self.__exit__()
        if session is not None:
            session.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an op by its rule, if it has one."""
        known, session = FOUND.get(func) or _learn(func), self.session
        if known.plain or session is None:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        session.ops += 1
        backward = _in_backward() != -1
        if known.writes and not (backward and known.rule) and session.collector.shares(args[0]):
            _preserve(session, args[0])
        if backward:
            return func(*args, **kwargs)
        if types:
            return _run_on_subclass(session, func, types, args, kwargs)
        if not session.knows_parameters:
            session.know_parameters()
        rule = known.rule
        first = args[0] if args else None
        if isinstance(first, Tensor):
            if first.is_meta:
                session.foreign["meta"] = None
                return func(*args, **kwargs)
            if rule is not None and not known.nested and first.is_nested:
                rule = None
            elif session.is_parameter(first):
                if not known.fixed and session.are_parameters((*args, *kwargs.values())):
                    return _fixed(session, func, args, func(*args, **kwargs))
                if known.writes:
                    session.tags.written(first)
        if rule is None and known.composite:
            return self._decomposed(func, args, kwargs)
        out = func(*args, **kwargs) if rule is None else rule(session, func, args, kwargs)
        if known.followed is not None:
            follow(session.lineage, known.followed, args, kwargs, out)
        return out

    def _decomposed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a composite op through the ops that it is written in, which are followed.

        Outside of `inference_mode` torch itself does so, before a mode is called.
        """
        with self:
            out = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if out is NotImplemented else out


hide(Watcher.__torch_dispatch__)  # the mode is off while it runs, so that nothing else does


def _run_on_subclass(
    session: Session, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run an op on tensors that handle their ops themselves, such as fake or quantised ones.

    No rule can read them. Those of a device mesh are left to unwrap: the ops on their local
    tensors come to this mode once more, after ops on meta tensors that only find out shapes.
    """
    mesh = sys.modules.get("torch.distributed.tensor")
    if mesh is not None and any(issubclass(kind, mesh.DTensor) for kind in types):
        return NotImplemented
    session.foreign.update(dict.fromkeys(kind.__name__ for kind in types))
    return func(*args, **kwargs)


def _fixed(session: Session, func: Any, args: Any, out: Any) -> Any:
    """Tag what was made of parameters alone: it does not depend on the input.

    Logits of learned queries stay logits under a scale or a mask.
    """
    first = args[0]
    tag = session.tags.get(first)
    logits = tag is not None and tag.scores is not None
    for made in out if isinstance(out, (list, tuple)) else (out,):
        if isinstance(made, Tensor):
            if tag is not None and logits and made.shape == first.shape:
                factor = tag.factor * multiplier(func, args)
                session.tags.put(made, replace(tag, factor=factor))
            else:
                session.tags.put(made, PARAMETER)
    return out


@apart
def _preserve(session: Session, tensor: Tensor) -> None:
    session.collector.preserve(tensor)


def _learn(func: Any) -> Known:
    """What is known of an op that runs for the first time."""
    entry = RULES.get(str(func)) or foreign(str(func))
    schema = getattr(func, "_schema", None)
    writes = bool(schema is not None and schema.is_mutable)
    composite = entry is None and _is_composite(func)
    views = getattr(func, "is_view", False) or str(func) == "aten._unsafe_view.default"
    plain = entry is None and not writes and not composite and (views or tensors(func) == 0)
    found = Known(
        plain,
        None if entry is None else entry.rule,
        entry is not None and entry.nested,
        writes,
        composite,
        entry is not None and entry.fixed,
        followed(func),
    )
    FOUND[func] = found
    return found


def _is_composite(func: Any) -> bool:
    """Whether an op is a composite of others on every backend; ops of TorchScript are none."""
    if not isinstance(func, torch._ops.OpOverload) or not torch._C._dispatch_has_kernel(
        func.name()
    ):
        return False
    has, name = torch._C._dispatch_has_kernel_for_dispatch_key, func.name()
    return has(name, _RECIPE) and not any(has(name, key) for key in _KERNELS)
