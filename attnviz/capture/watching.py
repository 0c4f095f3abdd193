"""`watch`: look into any model while it runs, without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from attnviz.capture.dispatch import Watcher
from attnviz.capture.options import Choose, Options
from attnviz.capture.seen import Capture


@contextmanager
def watch(
    model: nn.Module,
    *,
    where: Choose = None,
    keep_graph: bool = False,
    features: bool = False,
    operands: bool = False,
) -> Iterator[Capture]:
    """See every attention map and every gate that a model computes within the block."""
    seen = Capture()
    watcher = Watcher(model, Options(where=where, keep_graph=keep_graph,
                                     features=features, operands=operands), seen)  # fmt: skip
    try:
        with watcher:
            yield seen
    finally:
        watcher.close()
