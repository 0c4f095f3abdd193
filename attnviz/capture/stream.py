"""`stream`: a whole data set through a watched model, in the memory of one batch.

The first batch is watched op by op, and the first of each other size of image. It tells in which
modules attention and gates are computed; from then on only these are watched, and everything else
runs as if nobody looked. Where all that is kept is the very result of a softmax or of a gate's
function, batches of the same shape are looked at there alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.capture.capture import Capture
from attnviz.capture.dispatch import Watcher
from attnviz.capture.nothing_seen import check
from attnviz.capture.options import Choice
from attnviz.capture.trail import Trail
from attnviz.capture.watch import eager, read_options
from attnviz.errors import InputError
from attnviz.progress import tracked


def stream(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    reduce: Any,
    where: Choice = None,
    heads: int | Sequence[int] | None = None,
    to: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    edit: Mapping[str, Any] | None = None,
    features: bool = False,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Iterator[tuple[Tensor, Capture]]:
    """Run a model over a data set and yield each batch with what was seen of it.

    The model runs under `torch.no_grad()`, in the mode it is in. Its outputs are in `seen.output`,
    and the loader's own item, labels and all, in `seen.batch`.

    Where weights and gates are what a softmax or a gate's function returned, a model in eval mode
    that takes another path than on the first batch is noticed: it runs on that batch once more, and
    is watched op by op from then on. Elsewhere it is expected to attend in the same modules.

    Args:
        model: Any module.
        loader: Batches of images, or tuples or mappings that hold them first.
        reduce: What to keep instead of attention weights; see `watch`. None keeps the weights of
            the current batch.
        where: Which modules; see `watch`.
        heads: Which heads.
        to: Where to keep what is kept.
        dtype: In which type.
        edit: What to replace while the model runs.
        features: Keep what gates multiply.
        device: Where to move images before the model runs; the model's own device if not given.
        progress: Whether to print progress on stderr; if not given, where stderr is a terminal.

    Yields:
        `(images, seen)`, the images on the model's device.

    Raises:
        NothingSeenError: The first batch of a size showed neither attention nor gates.
        InputError: A batch without a tensor.
    """
    options = read_options(where, heads, to, dtype, reduce, edit, False, features, False)
    shown = sys.stderr.isatty() if progress is None else progress
    target = torch.device(device) if device is not None else _device(model)
    watcher = Watcher(model, options, Capture())
    trails: dict[torch.Size, Trail] = {}
    torch.clear_autocast_cache()
    try:
        for batch in tracked(loader, label="watch", unit="batches", shown=shown):
            images = _images(batch).to(target)
            with eager(), torch.no_grad():
                seen = _followed(watcher, trails, images)
                if seen is None:
                    seen = _met(watcher, trails, images)
            seen.batch = batch
            watcher.recorder.keeper.seen = Capture()
            yield images, seen
            del images, seen, batch  # the next batch needs the memory
    finally:
        watcher.close()


def _followed(
    watcher: Watcher, trails: Mapping[torch.Size, Trail], images: Tensor
) -> Capture | None:
    """What is seen if the model does what it did before; None if not, or if that is not known."""
    trail = trails.get(images.shape)
    if trail is None or not trail.whole or not _is_repeatable(watcher):
        return None
    watcher.recorder.keeper.seen = seen = Capture()
    with trail.followed(watcher.recorder.keeper):
        seen.output = watcher.model(images)
    if trail.whole:
        return seen
    watcher.recorder.looks.mistrust(images.shape)
    return None


def _met(watcher: Watcher, trails: dict[torch.Size, Trail], images: Tensor) -> Capture:
    """What is seen by following the ops: of the whole model, or where something is known to be."""
    watcher.recorder.keeper.seen = seen = Capture()
    looks = watcher.recorder.looks
    scopes = looks.begin(images.shape)
    lays = images.shape not in trails and _is_repeatable(watcher)
    trail = trails.setdefault(images.shape, Trail(watcher.names)) if lays else None
    with (
        nullcontext() if trail is None else trail.laid(watcher.recorder.keeper),
        _watched(watcher, scopes),
    ):
        seen.output = watcher.model(images)
        watcher.finish()
    if looks.learning:
        check(watcher, seen)
        looks.learned()
        watcher.trusted = True
    return seen


def _is_repeatable(watcher: Watcher) -> bool:
    """Whether a batch may run twice, and records hold nothing but weights and gates."""
    options = watcher.options
    return not (
        options.edit or options.features or options.operands
        or any(module.training for module in watcher.modules.values())
    )  # fmt: skip


@contextmanager
def _watched(watcher: Watcher, scopes: Sequence[nn.Module] | None) -> Iterator[None]:
    """Watch the whole model, or only while some of its modules run."""
    if scopes is None:
        with watcher:
            yield
        return
    own: list[tuple[nn.Module, Any]] = []  # other libraries put a forward of theirs there, too
    try:
        for module in scopes:
            own.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _entered(watcher, module.forward)
        yield
    finally:
        for module, forward in own:
            module.__dict__["forward"] = forward
            if forward is None:
                del module.__dict__["forward"]


def _entered(watcher: Watcher, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A module's forward, watched. No hook: hooks switch fast paths off."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with nullcontext() if watcher.on else watcher:  # a module may run within itself
            return forward(*args, **kwargs)

    return run


def _device(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _images(batch: Any) -> Tensor:
    """The first tensor of a batch."""
    if isinstance(batch, Tensor):
        return batch
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            if isinstance(value, Tensor):
                return value
    raise InputError(
        "stream: expected batches that are a tensor of images or hold one, "
        f"got {type(batch).__name__}"
    )
