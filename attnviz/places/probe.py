"""Forward passes with attention replaced: the queries and keys of every record, nothing mixed.

Without attention a token depends on its own place alone, however deep it lies: what is left of a
block works on each token by itself, or on its neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.capture import Record, edits, watch
from attnviz.capture.sampled_parts import IN_PARTS
from attnviz.token_places import Places, RecordPlaces

Given = Callable[[Any], Any]
"""From images to what the model is called with."""


class Sides(NamedTuple):
    """Queries and keys of one record, `(b, heads, tokens, d)`; None where they are not at hand."""

    queries: Tensor | None
    keys: Tensor | None


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of a record from one unchanged forward pass.

    Attributes:
        kind: `"attention"` or `"gate"`.
        shape: Of its weights.
        masked: `(b, k)`, keys that get exactly nothing from every query and head.
        fixed: Why it cannot be replaced, if so.
        proven: The places that the watch has followed, where it has.
        in_parts: Whether its weights meet the values in parts, and can be replaced by zero alone.
    """

    kind: str
    shape: tuple[int, ...]
    masked: Tensor | None = None
    fixed: str = ""
    proven: RecordPlaces | None = None
    in_parts: bool = False

    @property
    def unproven_gate(self) -> bool:
        """Whether it is a gate on a feature map whose places were not followed."""
        known = self.proven is None or self.proven.keys.known
        return self.kind == "gate" and not known

    def proven_side(self, side: int) -> Places | None:
        """The proven places of queries (0) or keys (1); None where there are none."""
        if self.proven is None:
            return None
        places = (self.proven.queries, self.proven.keys)[side]
        return places if places.known and places.grid is not None else None


class Probe:
    """Runs one model with its attention replaced.

    Attributes:
        facts: What the unchanged pass showed, by record.
        matrices: By record, what stands in the place of its attention, `(q, k)` or `(b, 1, q, k)`;
            zeros where nothing does.
        passes: Forward passes so far.
        output: What the model put out in the latest pass.
        random: Whether the model drew random numbers.
    """

    def __init__(self, model: nn.Module, given: Given) -> None:
        self.model = model
        self.given = given
        self.facts: dict[str, Facts] = {}
        self.matrices: dict[str, Tensor] = {}
        self.passes = 0
        self.output: Any = None
        self.random = False
        self._gates: dict[str, Tensor] = {}
        self._state = random_state()

    def unchanged(self, images: Any) -> None:
        """One pass as it is, for the list of records."""
        with self._watched(reduce={"masked": _masked}, features=True) as seen:
            self._run(self.given(images))
        self.random = not same_state(self._state, random_state())
        for name, record in seen.items():
            masked = record.reduced.get("masked")
            fixed = "" if record.shape else record.note or "it holds no weights"
            self.facts[name] = Facts(
                record.kind, tuple(record.shape), masked, fixed, record.places,
                IN_PARTS in record.note,
            )  # fmt: skip

    def tokens(self, images: Any, args: Any = None) -> dict[str, Sides]:
        """The queries and keys of every record, with attention replaced.

        Args:
            images: The images.
            args: What to call the model with instead of what is made of them.
        """
        found: dict[str, Sides] = {}
        replacing = {
            name: edits.zero if fact.in_parts else self._edit(name, found)
            for name, fact in self.facts.items()
            if fact.in_parts or not fact.fixed
        }
        features = any(fact.unproven_gate for fact in self.facts.values())
        kept = {"operands": True, "features": features}
        with self._watched(edit=replacing, **kept, reduce={"nothing": lambda record: None}):
            self.output = self._run(self.given(images) if args is None else args)
        return found

    def _edit(self, name: str, found: dict[str, Sides]) -> Callable[[Tensor, Record], Tensor]:
        def replaced(values: Tensor, record: Record) -> Tensor:
            if record.kind == "gate":
                if self.facts[name].unproven_gate and record.features is not None:
                    tokens = record.features.flatten(2).mT[:, None]
                    found[name] = Sides(None, _copy(tokens))
                return self._gates.setdefault(name, values.detach().clone())
            found[name] = Sides(_copy(record.query), _copy(record.key))
            matrix = self.matrices.get(name)
            if matrix is None:
                return torch.zeros_like(values)
            return matrix.to(values).expand_as(values).clone()

        return replaced

    def _run(self, args: Any) -> Any:
        self.passes += 1
        set_random_state(self._state)
        if isinstance(args, Mapping):
            return self.model(**args)
        return self.model(*args) if isinstance(args, tuple) else self.model(args)

    @contextmanager
    def _watched(self, **options: Any) -> Iterator[Any]:
        with torch.no_grad(), _uncast(self.model), watch(self.model, empty=True, **options) as seen:
            yield seen


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _masked(record: Record) -> Tensor | None:
    weights = record.weights
    return None if weights is None or weights.dim() != 4 else (weights == 0).all(1).all(1)


def _uncast(model: nn.Module) -> AbstractContextManager[Any]:
    """Autocast off: places do not depend on it, and are found more exactly without."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def random_state() -> tuple[Any, ...]:
    """The states of all generators that a model may draw from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    drawn = np.random.get_state()  # noqa: NPY002 - the generator that models draw from
    return torch.get_rng_state(), cuda, random.getstate(), drawn


def same_state(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether no number was drawn by torch or numpy between two states.

    Python's own generator is left out: checks of types at run time draw from it.
    """
    on_cuda = one[1] is None or all(map(torch.equal, one[1], other[1]))
    drawn = all(np.array_equal(a, b) for a, b in zip(one[3], other[3], strict=True))
    return torch.equal(one[0], other[0]) and on_cuda and drawn


def set_random_state(state: Sequence[Any]) -> None:
    """Put all generators back into a state."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state_all(state[1])
    random.setstate(state[2])
    np.random.set_state(state[3])  # noqa: NPY002 - as above
