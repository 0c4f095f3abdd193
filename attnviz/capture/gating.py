"""Which axes a gate ranges over, and its one shape for all memory layouts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How a gate's axes are to be read.

    Attributes:
        axis: `"channel"`, `"spatial"`, `"rows"`, `"columns"`, `"branch"`, `"element"`.
        single: The axes that are repeated, to be kept at size one.
        lead: Axes missing in front.
        last: Whether channels are the last axis.
    """

    axis: str
    single: tuple[int, ...]
    lead: int
    last: bool

    def present(self, gate: Tensor) -> Tensor:
        """The gate as `(b, c, 1, 1)`, `(b, 1, h, w)`, or as it is."""
        for i in self.single:
            if i >= self.lead and gate.stride(i - self.lead) == 0:
                gate = gate.narrow(i - self.lead, 0, 1)
        gate = gate.reshape(*(1,) * self.lead, *gate.shape)
        if self.last:
            gate = gate.movedim(-1, 1)
        while gate.dim() < 4:
            gate = gate.unsqueeze(-1)
        return gate

    def restore(self, scale: Tensor, like: Tensor) -> Tensor:
        """A scale as presented, in the gate's own shape."""
        dims = like.dim() + self.lead
        while scale.dim() > max(dims, 1):
            scale = scale.squeeze(-1)
        if self.last:
            scale = scale.movedim(1, -1)
        for _ in range(self.lead):
            scale = scale.squeeze(0)
        return scale.expand_as(like)


def arrange(gate: Tensor, other: Tensor, repeated: list[int]) -> Arrangement:
    """Read a gate against what it multiplies: `(b, c, …)`, or `(b, …, c)` where it tells."""
    dims, lead = other.dim(), other.dim() - gate.dim()
    places = set(range(2, dims))
    single, given = tuple(repeated), set(range(1, dims)) - set(repeated)
    shape = tuple(other.shape)
    varies = {i for i in given if shape[i] > 1}
    if varies == {1} or (not varies and 1 in given):
        return Arrangement("channel", single, lead, False)
    if varies == {dims - 1} and set(range(1, dims - 1)) <= {i for i in range(dims) if i in single or
                                                            shape[i] == 1}:  # fmt: skip
        if dims == 3:
            return Arrangement("channel", single, lead, True)
        if dims > 3 and 1 in repeated and set(range(1, dims - 1)) & set(repeated):
            return _last_axis(single, lead, dims, shape)
    if 1 in repeated and varies <= places and (dims - 1) in varies:
        return Arrangement("spatial", single, lead, False)
    if dims - 1 in repeated and 1 in varies:
        axis = "spatial" if dims == 3 or dims - 2 in varies else "rows"
        return Arrangement(axis, single, lead, dims - 2 in varies)
    return Arrangement("element", single, lead, False)


def _last_axis(
    single: tuple[int, ...], lead: int, dims: int, shape: tuple[int, ...]
) -> Arrangement:
    """Only the last axis varies: channels behind the places."""
    return Arrangement("channel", single, lead, True)
