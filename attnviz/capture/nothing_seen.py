"""What to say when a watch ends and saw nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import nn

from attnviz.capture.capture import Capture
from attnviz.capture.dispatch import Watcher
from attnviz.errors import InputError, NothingSeenError

_LOOKED = (
    "softmax weights that meet values, fused attention, "
    "and sigmoid, hard-sigmoid, tanh or softmax gates that multiply a feature map"
)
_TELLING = ("attn", "attention", "gate", "excite", "cbam", "attend")


def check(watcher: Watcher, seen: Capture) -> None:
    """Raise if nothing was seen, or an edit met nothing.

    Raises:
        NothingSeenError: With what was looked for, what came nearest, and what to do.
        InputError: An edit's name that means none of the modules that were seen.
    """
    options = watcher.options
    for pattern in options.edit:
        if pattern not in watcher.recorder.edited:
            raise InputError(_unmet(pattern, seen, watcher))
    if len(seen):
        return
    name = type(watcher.model).__name__
    if not watcher.ops:
        raise NothingSeenError(
            f"watch: no op of {name} ran in this thread within the block; "
            f"expected a forward pass inside `with watch(model)`{_elsewhere(watcher.model)}"
        )
    if watcher.recorder.passed_over:
        raise NothingSeenError(
            f"watch: where={options.where!r} chose none of what {name} computed: "
            f"{_listed(watcher.recorder.passed_over)}{_near(options.where, watcher)}"
        )
    raise NothingSeenError(
        f"watch: {name} ran, and none of its ops was attention or a gate; "
        f"looked for {_LOOKED}. {_candidates(watcher, seen)}"
    )


def _unmet(pattern: str, seen: Capture, watcher: Watcher) -> str:
    near = difflib.get_close_matches(pattern, list(seen), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"edit: {pattern!r} met nothing that {type(watcher.model).__name__} computed: {hint}"
        f"seen were {_listed(seen)}"
    )


def _near(where: object, watcher: Watcher) -> str:
    if not isinstance(where, str):
        return ""
    near = difflib.get_close_matches(where, watcher.recorder.passed_over, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def _candidates(watcher: Watcher, seen: Capture) -> str:
    if seen.unused:
        near = _listed(f"{record.name} ({record.op}, {record.source})" for record in seen.unused)
        return f"nearest: {near}: computed and never multiplied with data"
    listening = [
        f"{name} ({type(module).__name__})"
        for name, module in watcher.modules.items()
        if any(word in type(module).__name__.lower() for word in _TELLING)
    ]
    if listening:
        return (
            f"nearest by name: {_listed(listening)}. If one of them attends, it ran outside this "
            f"thread, was not reached, or does so in another way{_elsewhere(watcher.model)}"
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
