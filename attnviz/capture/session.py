"""The state of one watch of one model: the running modules, tags of tensors, and records.

Every rule is given the session. It lies below the rules and imports none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from attnviz.capture.attention_records import AttentionRecords
from attnviz.capture.call_stack import CallStack
from attnviz.capture.capture import Capture
from attnviz.capture.collector import Collector
from attnviz.capture.gate_records import GateRecords
from attnviz.capture.lineage import Lineage
from attnviz.capture.options import Options
from attnviz.capture.provenance import Squash, Tag, Tags
from attnviz.capture.recorder import Recorder
from attnviz.capture.sampled_parts import SampledParts
from attnviz.capture.scopes import Scopes
from attnviz.capture.windows import Cuts


class Session:
    """One watch of one model.

    Attributes:
        model: The model.
        options: The watch's options.
        stack: Its running modules.
        tags: What is known of tensors.
        windows: Cuts of feature maps into windows.
        lineage: Which elements of tensors are which places.
        scopes: Modules and grids.
        collector: Keeps the records.
        recorder: Chooses, places and edits records.
        parts: Gathers the parts of deformable attention.
        attention: Makes records of attention.
        gates: Makes records of gates.
        ops: How many ops ran, of any kind but views.
        foreign: Kinds of tensors without values that a rule could read, of those that were met:
            classes that handle their ops themselves, and `"meta"`.
    """

    def __init__(self, model: nn.Module, options: Options, seen: Capture) -> None:
        self.model = model
        self.options = options
        self.stack = CallStack(model)
        self.tags = Tags()
        self.windows = Cuts()
        self.scopes = Scopes(self.stack, self.windows)
        self.collector = Collector(options, seen)
        self.lineage = Lineage(self.is_parameter, self.stack.given)
        self.recorder = Recorder(options, self.stack, self.scopes, self.collector, self.lineage)
        self.parts = SampledParts(self.recorder)
        self.attention = AttentionRecords(self.recorder, self.parts)
        self.gates = GateRecords(self.recorder, self.parts)
        self.ops = 0
        self.foreign: dict[str, None] = {}
        self.knows_parameters = False

    def softmax(self, out: Tensor, axis: int, source: Tag | None) -> None:
        """Tag a result that sums to one along an axis.

        Args:
            out: The result.
            axis: The axis.
            source: The tag of the tensor that it was computed from, if that has one.
        """
        place = self.stack.place()
        if place is None:
            return
        squash = Squash("softmax", place, tuple(out.shape), size=out.shape[axis])
        if source is not None and source.kind in ("scores", "parameter"):
            squash.scores, squash.factor = source.scores, source.factor
            squash.learned = source.kind == "parameter"
        squash.twice = source is not None and source.kind == "softmax" and not source.mixed
        if squash.twice and source is not None and source.squash is not None:
            source.squash.used = True
            squash.scores = source.squash.scores
        self.recorder.made(squash)
        self.tags.put(out, Tag("softmax", tuple(out.shape), out.stride(), axis, squash))

    def gate(self, out: Tensor, op: str, source: Tag | None) -> None:
        """Tag a result in a closed interval, as gates are.

        Args:
            out: The result.
            op: The function's name, such as `"sigmoid"`.
            source: The tag of the tensor that it was computed from, if that has one.
        """
        place = self.stack.place()
        if place is None or out.dim() < 1:
            return
        squash = Squash(op, place, tuple(out.shape))
        squash.outer = source is not None and source.kind == "outer"
        if source is not None and source.kind == "scores":
            squash.scores, squash.factor = source.scores, source.factor
        self.recorder.made(squash)
        self.tags.put(out, Tag("gate", tuple(out.shape), out.stride(), None, squash))

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or a buffer, or was made of them alone."""
        tag = self.tags.get(tensor)
        return tag is not None and tag.kind == "parameter"

    def are_parameters(self, values: Iterable[Any]) -> bool:
        """Whether values hold nothing but parameters and numbers."""
        for value in values:
            if isinstance(value, Tensor):
                if value.dim() and not self.is_parameter(value):
                    return False
            elif isinstance(value, (list, tuple)) and not self.are_parameters(value):
                return False
        return True

    def know_parameters(self) -> None:
        """Tag the parameters that the model has now; some are made late, or exchanged."""
        self.knows_parameters = True
        self.tags.fix(self._tensors())

    def finish(self) -> None:
        """Finish the records of one forward pass."""
        self.gates.finish()
        self.parts.finish()
        self.recorder.finish(self.gates.no_gates())
        self.lineage.finish()

    def close(self) -> None:
        """Drop all tags."""
        self.tags.clear()
        self.lineage.clear()
        self.knows_parameters = False

    def _tensors(self) -> Iterator[Tensor]:
        """The model's parameters and buffers."""
        for module in self.stack.modules.values():
            for own in (module._parameters, module._buffers):
                yield from (tensor for tensor in own.values() if tensor is not None)
