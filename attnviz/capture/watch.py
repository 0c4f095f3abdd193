"""`watch`: the attention and the gates of a model, while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from attnviz.capture.capture import Capture
from attnviz.capture.compiler import uncompiled
from attnviz.capture.dispatch import Watcher
from attnviz.capture.edits import read_edits
from attnviz.capture.nothing_seen import check
from attnviz.capture.options import Choice, Options
from attnviz.capture.reductions import read_reductions
from attnviz.capture.session import Session
from attnviz.errors import InputError


@contextmanager
def watch(
    model: nn.Module,
    *,
    where: Choice = None,
    heads: int | Sequence[int] | None = None,
    to: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    reduce: Any = None,
    edit: Mapping[str, Any] | None = None,
    keep_graph: bool = False,
    features: bool = False,
    operands: bool = False,
    empty: bool = False,
) -> Iterator[Capture]:
    """Record every attention map and every gate that a model computes within the block.

    The model is not changed: no hook is registered, and whatever was switched on is off again when
    the block ends, however it ends. Outputs and gradients are bit-identical with gradients enabled
    and under `torch.no_grad()`. Under `torch.inference_mode()` they agree to 1e-6: on some
    processors torch computes a linear layer of a non-contiguous input differently while any
    dispatch mode is on. Only this thread's forward passes are seen, and only this model's.

    Args:
        model: Any module, in the mode it is in.
        where: Which modules: a glob on the dotted name such as `"blocks.*.attn"`, `"attention"` or
            `"gate"`, several of these, or a function `(name, module) -> bool`. All if not given.
        heads: Keep these heads only; they count from 0.
        to: Keep tensors on this device, such as `"cpu"`.
        dtype: Keep them in this type, such as `torch.float16`.
        reduce: Keep this instead of attention weights: `"received"`, `"class_row"`, `"head_mean"`,
            `"rollout"`, `"entropy"`, `"distance"`, `reductions.rows(3, 17)`, a function of a
            record, several of them, or a mapping of names to them. Results are in
            `record.reduced`. Gates are kept as they are.
        edit: Replace weights or gates while the model runs: from names or globs to functions of
            the values, or to the names of ready edits (`"uniform"`, `"zero"`, …; see
            `attnviz.capture.edits`). `name#1` means a module's second call.
        keep_graph: Keep the values in the model's graph, for `record.gradient(outputs)`.
        features: Keep what each gate multiplies, in `record.features`.
        operands: Keep queries and keys, where found, in `record.query` and `record.key`.
        empty: Whether seeing nothing is no error.

    Yields:
        The capture, which fills while the model runs.

    Raises:
        NothingSeenError: The block ended, and nothing was seen.
        InputError: A model that is no module, an unknown reduction or edit, an edit that met
            nothing, or `reduce` together with `keep_graph`.
        UnsupportedError: An edit of something that holds no weights.
    """
    check_model("watch", model)
    options = read_options(where, heads, to, dtype, reduce, edit, keep_graph, features, operands)
    seen = Capture()
    session = Session(model, options, seen)
    watcher = Watcher(session)
    torch.clear_autocast_cache()  # a cast that is made anew is seen to come from a parameter
    with uncompiled():
        try:
            try:
                with watcher:
                    yield seen
                session.finish()
            finally:
                watcher.close()
        finally:
            watcher.close()  # again: an interrupt may have kept the first one from it
    if not empty:
        check(session, seen)


def check_model(function: str, model: object) -> None:
    """Check that a model is a module.

    Raises:
        InputError: It is not.
    """
    if not isinstance(model, nn.Module):
        parts = getattr(model, "components", None)
        if isinstance(parts, Mapping) and any(isinstance(p, nn.Module) for p in parts.values()):
            raise InputError(_pipeline(function, model, parts))
        if isinstance(getattr(model, "model", None), nn.Module):
            name = type(model).__name__
            raise InputError(
                f"{function}: expected a model (torch.nn.Module), got {name}, which holds one: "
                f"watch its attribute .model, and call the {name} within the block"
            )
        raise InputError(
            f"{function}: expected a model (torch.nn.Module), got {type(model).__name__}; "
            "wrap a function in a module whose forward calls it"
        )


def _pipeline(function: str, pipeline: object, parts: Mapping[str, object]) -> str:
    """Which module of a pipeline to watch."""
    modules = [name for name, part in parts.items() if isinstance(part, nn.Module)]
    denoiser = next((name for name in modules if name in ("unet", "transformer")), None)
    named = f"pipeline.{denoiser}, its denoiser" if denoiser else "one of its modules"
    return (
        f"{function}: expected a model (torch.nn.Module), got the pipeline "
        f"{type(pipeline).__name__}: watch {named}, and call the pipeline within the block; it has "
        + ", ".join(modules)
    )


def read_options(
    where: Choice,
    heads: int | Sequence[int] | None,
    to: torch.device | str | None,
    dtype: torch.dtype | None,
    reduce: Any,
    edit: Mapping[str, Any] | None,
    keep_graph: bool,
    features: bool,
    operands: bool,
) -> Options:
    """A watch's options from what the caller wrote.

    Raises:
        InputError: An unknown name, or options that exclude each other.
    """
    if reduce is not None and keep_graph:
        raise InputError(
            "watch: reduce= drops the weights and keep_graph=True keeps them; choose one"
        )
    return Options(
        where,
        (heads,) if isinstance(heads, int) else None if heads is None else tuple(heads),
        None if to is None else torch.device(to),
        dtype,
        read_reductions(reduce),
        read_edits(edit),
        keep_graph,
        features,
        operands,
    )
