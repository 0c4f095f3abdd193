"""The errors of a watch that ends and has seen nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import nn

from attnviz.capture.capture import Capture
from attnviz.capture.session import Session
from attnviz.errors import InputError, NothingSeenError

_LOOKED = (
    "softmax weights that meet values, fused attention, "
    "and sigmoid, hard-sigmoid, tanh or softmax gates that multiply a feature map"
)
_TELLING = ("attn", "attention", "gate", "excite", "cbam", "attend")


def check(session: Session, seen: Capture) -> None:
    """Raise if nothing was seen, or an edit met nothing.

    Raises:
        NothingSeenError: With what was looked for, what came nearest, and what to do.
        InputError: An edit's name that means none of the modules that were seen.
    """
    options = session.options
    for pattern in options.edit:
        if pattern not in session.recorder.edited:
            raise InputError(_unmet(pattern, seen, session))
    if len(seen):
        return
    name = type(session.model).__name__
    if not session.ops:
        raise NothingSeenError(
            f"watch: no op of {name} ran in this thread within the block; "
            f"expected a forward pass inside `with watch(model)`{_elsewhere(session.model)}"
        )
    if session.recorder.passed_over:
        raise NothingSeenError(
            f"watch: where={options.where!r} chose none of what {name} computed: "
            f"{_listed(session.recorder.passed_over)}{_near(options.where, session)}"
        )
    if session.foreign:
        raise NothingSeenError(
            f"watch: {name} ran on tensors whose values cannot be read: "
            f"{_listed(session.foreign)}; watch it on plain tensors, or pass empty=True"
        )
    raise NothingSeenError(
        f"watch: {name} ran, and none of its ops was attention or a gate; "
        f"looked for {_LOOKED}. {_candidates(session, seen)}"
    )


def _unmet(pattern: str, seen: Capture, session: Session) -> str:
    near = difflib.get_close_matches(pattern, list(seen), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"edit: {pattern!r} met nothing that {type(session.model).__name__} computed: {hint}"
        f"seen were {_listed(seen)}"
    )


def _near(where: object, session: Session) -> str:
    if not isinstance(where, str):
        return ""
    near = difflib.get_close_matches(where, session.recorder.passed_over, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def _candidates(session: Session, seen: Capture) -> str:
    if seen.unused:
        near = _listed(f"{record.name} ({record.op}, {record.source})" for record in seen.unused)
        return (
            f"nearest: {near}: computed and never multiplied with data, as far as its way is "
            "followed"
        )
    named = [
        f"{name} ({type(module).__name__})"
        for name, module in session.stack.modules.items()
        if any(word in type(module).__name__.lower() for word in _TELLING)
    ]
    if named:
        return (
            f"nearest by name: {_listed(named)}. If one of them attends, it ran outside this "
            "thread, was not reached, or calls a kernel that is no op of torch (flash-attn, "
            "xformers: load it with attn_implementation='sdpa' or 'eager')"
            f"{_elsewhere(session.model)}"
        )
    return (
        "nothing in it is named like attention either: for a plain CNN use "
        "attnviz.attribute(model, images, method='layer_gradcam')"
    )


def _elsewhere(model: nn.Module) -> str:
    if isinstance(model, nn.DataParallel):
        return "; DataParallel runs copies in other threads: watch and call model.module"
    if isinstance(model, torch.jit.ScriptModule):
        return "; a frozen or optimised script may run elsewhere: watch the Python model"
    return ""


def _listed(names: Iterable[str], most: int = 8) -> str:
    listed = list(dict.fromkeys(names))
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (", ".join(listed[:most]) or "nothing") + more
