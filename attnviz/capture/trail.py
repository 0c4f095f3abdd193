"""The short way of a stream: of a batch like one before, only softmaxes and gates are looked at.

The first batch of a shape leaves a trail: which runs of which functions there were, in order, and
which part of what they returned became a record. Where every record is such a part, untouched, the
batches after it need not be followed op by op. A batch that leaves the trail, because the model
took another path, is noticed and has to be watched again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnviz.capture.call_stack import Place, place
from attnviz.capture.collector import Keeper
from attnviz.capture.listening import can_listen, listening
from attnviz.capture.op_mode import apart
from attnviz.capture.provenance import Tag, Tags
from attnviz.capture.record import Record, changed

_functorch: Any = torch._C._functorch
Cut = tuple[tuple[int, ...], tuple[int, ...], int]


@dataclass(slots=True)
class Run:
    """One run of a softmax or of a gate's function.

    Attributes:
        number: Which of a forward pass's runs it is.
        place: Who ran it, and where in the source; None if that was not the watched model.
        cut: Shape, strides and offset of what it returned.
        touched: Whether the model wrote into it.
        made: The records made of it, without their tensors, and which part of it each holds.
    """

    number: int
    place: Place | None
    cut: Cut
    touched: bool = False
    made: list[tuple[Record, Cut]] = field(default_factory=list)


class Trail:
    """What one forward pass ran, and another one on a batch of the same shape is expected to.

    Attributes:
        whole: Whether it tells of every record.
        unused: What was computed and never met the data.
    """

    def __init__(self, names: dict[int, str]) -> None:
        self.whole = can_listen()
        self.unused: list[Record] = []
        self._names = names
        self._runs: list[Run] = []
        self._tags = Tags()
        self._last = 0
        self._met = 0
        self._lost = False

    @contextmanager
    def laid(self, keeper: Keeper) -> Iterator[None]:
        """Note what a forward pass runs, while it is watched."""
        if not self.whole:
            yield
            return
        keeper.trail = self
        try:
            with listening(self._laid):
                yield
            self.unused = keeper.seen.unused
        finally:
            keeper.trail = None
            self._tags.clear()

    @contextmanager
    def followed(self, keeper: Keeper) -> Iterator[None]:
        """Keep the records of a forward pass; `whole` is False afterwards if it was another one."""
        self._met, self._lost = 0, False
        keeper.begin()

        def met(out: Tensor) -> None:
            self._follow(keeper, out)

        with listening(met):
            yield
        self.whole = not self._lost and self._met == len(self._runs)
        keeper.finish()
        keeper.seen.unused = self.unused

    def _laid(self, out: Tensor) -> None:
        cut = _cut(out)
        if cut is None:
            self.whole = False
            return
        run = Run(len(self._runs), place(self._names), cut)
        self._runs.append(run)
        self._tags.put(out, Tag("run", extra=run))

    def kept(self, record: Record | None) -> None:
        """A record was made; None for one that has to be followed op by op.

        It is a fused kernel's, or was changed after it was kept.
        """
        values = None
        if record is not None:
            values = record.weights if record.kind == "attention" else record.scale
        tag = None if values is None else self._tags.get(values)
        if record is None or values is None or tag is None or record.dropout:
            self.whole = False
            return
        run: Run = tag.extra
        known = run.place is not None and not run.touched
        self.whole = self.whole and known and run.number >= self._last
        self._last = run.number
        cut = _cut(values)
        assert cut is not None  # it lies in what the run returned
        run.made.append((changed(record, weights=None, scale=None), cut))

    def written(self, tensor: Tensor) -> None:
        """The model writes into a tensor."""
        tag = self._tags.get(tensor)
        if tag is not None:
            tag.extra.touched = True

    @apart
    def _follow(self, keeper: Keeper, out: Tensor) -> None:
        run = self._runs[self._met] if self._met < len(self._runs) else None
        self._met += 1
        if run is None or run.cut != _cut(out) or run.place != place(self._names):
            self._lost = True
            return
        for record, cut in run.made:
            values = out.as_strided(*cut)
            field = "weights" if record.kind == "attention" else "scale"
            keeper.keep(changed(record, **{field: values}))


def _cut(tensor: Tensor) -> Cut | None:
    """Shape, strides and offset; None of what has none, as nested tensors and those of `vmap`."""
    if (
        tensor.is_nested
        or tensor.layout is not torch.strided
        or _functorch.is_functorch_wrapped_tensor(tensor)
    ):
        return None
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
