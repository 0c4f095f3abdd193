"""Records with their places: the one entry of all that draws maps of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from attnviz.capture import Record
from attnviz.places.layout import Layout
from attnviz.places.measurement import locate


def placed(
    model: nn.Module,
    images: Tensor,
    seen: Mapping[str, Record],
    given: Layout | None = None,
    *,
    inputs: Callable[[Any], Any] | None = None,
    proven: bool = False,
    channels: int | None = None,
) -> dict[str, Record]:
    """Records with places that are given, measured by `locate`, or proven, in this order.

    Where a record has none of these, its maps are refused.

    Args:
        model: The model.
        images: `(b, c, h, w)`, or of volumes and video as `locate` takes them; the first one is
            measured with.
        seen: Its records.
        given: Places that stand instead of measured ones, for some or all records.
        inputs: As of `locate`.
        proven: Whether proven places will do: nothing is measured if all records have them.
        channels: As of `locate`.
    """
    known = given or Layout({})
    if not any(_unknown(one, proven) and name not in known for name, one in seen.items()):
        return known.onto(seen)
    measured = locate(model, images[:1], inputs=inputs, channels=channels)
    return Layout({**measured, **known}).onto(seen)


def are_proven(seen: Mapping[str, Record]) -> bool:
    """Whether the places of every attention's queries and keys were followed while watching."""
    return not any(_unknown(one, True) for one in seen.values())


def unplaced(records: Mapping[str, Record]) -> dict[str, str]:
    """For each record whose keys have no known places, the reason."""
    return {
        name: one.places.keys.reason
        for name, one in records.items()
        if one.places is not None and not one.places.keys.known
    }


def _unknown(record: Record, proven: bool) -> bool:
    places = record.places
    if record.kind != "attention":
        return places is not None and not places.keys.known
    return not proven or places is None or not (places.queries.known and places.keys.known)
