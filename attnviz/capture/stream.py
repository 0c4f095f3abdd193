"""`stream`: a whole data set through a watched model, in the memory of one batch.

Every batch is watched op by op. The first batch of each size of image shows the modules and grids
of attention and gates, which are looked up for the batches after it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.capture.capture import Capture
from attnviz.capture.compiler import uncompiled
from attnviz.capture.dispatch import Watcher
from attnviz.capture.nothing_seen import check
from attnviz.capture.options import Choice
from attnviz.capture.session import Session
from attnviz.capture.watch import check_model, read_options
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
    keep_graph: bool = False,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Iterator[tuple[Tensor, Capture]]:
    """Run a model over a data set and yield each batch with what was seen of it.

    The model runs under `torch.no_grad()`, in the mode it is in; with `keep_graph=True` with
    gradients, for maps that are weighted by them. Its outputs are in `seen.output`, and the
    loader's own item, labels and all, in `seen.batch`.

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
        keep_graph: Keep the graph of each batch, from weights to outputs, until the next batch.
        device: Where to move images before the model runs; the model's own device if not given.
        progress: Whether to print progress on stderr; if not given, where stderr is a terminal.

    Yields:
        `(images, seen)`, the images on the model's device.

    Raises:
        NothingSeenError: The first batch of a size showed neither attention nor gates.
        InputError: A model that is no module, or a batch without a tensor.
    """
    check_model("stream", model)
    options = read_options(where, heads, to, dtype, reduce, edit, keep_graph, features, False)
    shown = sys.stderr.isatty() if progress is None else progress
    target = torch.device(device) if device is not None else _device(model)
    session = Session(model, options, Capture())
    watcher = Watcher(session)
    torch.clear_autocast_cache()
    try:
        for batch in tracked(loader, label="watch", unit="batches", shown=shown):
            images = _images(batch).to(target)
            with torch.set_grad_enabled(keep_graph):
                seen = _watched(watcher, session, images)
            seen.batch = batch
            session.collector.seen = Capture()
            yield images, seen
            del images, seen, batch  # the next batch needs the memory
    finally:
        watcher.close()


def _watched(watcher: Watcher, session: Session, images: Tensor) -> Capture:
    """The capture of one batch."""
    session.collector.seen = seen = Capture()
    first = session.scopes.begin(images.shape)
    with uncompiled():
        try:
            seen.output = _run(watcher, session, images)
        finally:
            watcher.__exit__()  # again: an interrupt may have kept the first one from it
    if first:
        check(session, seen)
        session.recorder.trusted = True
    return seen


def _run(watcher: Watcher, session: Session, images: Tensor) -> Any:
    with watcher:
        out = session.model(images)
        session.finish()
    return out


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
