"""The maps of a model: what a watch saw, as pictures of places.

Every attention over places gives `received`, every spatial gate `gate_map`, every channel gate
`channel_gated`, and every model Captum's `layer_gradcam` at its last convolution, so that a plain
CNN has a map too. Where a model attends more than once, the later maps carry the layer's name.

A model with a class token gives what that token looks at instead: `class_row` is of the last block,
the earlier ones carry the block's name, and `rollout` is of all blocks together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.attribution import attribute
from attnviz.capture import Record, watch
from attnviz.errors import NothingSeenError
from attnviz.maps import channel_gated, class_row, gate_map, received, rollout
from experiments.training import Loader

WATCH_BATCH = 25

ROWS_BYTES = 128 << 20
"""What the whole attention that a run keeps may take: 24 images of 4 × 576 × 576 in float32."""


Parts = defaultdict[tuple[str, str], list[Tensor]]
"""What each batch left, by where it belongs in `Seen` and its name."""


@dataclass
class Seen:
    """What one pass over a split left, all on the CPU.

    Attributes:
        maps: Name → raw maps `(n, h, w)` on the model's own grid.
        heads: Name → the same, head by head, `(n, heads, h, w)`.
        gates: Name → gate values, `(n, c)` or `(n, h, w)`.
        rows: Name → whole attention of the first images `(k, heads, q, keys)`.
        grids: Name of rows → what it takes to read them: the layer, grids, leading tokens.
        layers: Map name → the dotted name of the layer it comes from.
        whole: How many bytes one image's whole attention takes, in float32.
        logits: `(n,)`.
        labels: `(n,)`.
        masks: `(n, h, w)`.
        boxes: `(n, 4)`.
    """

    maps: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)
    gates: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    grids: dict[str, dict[str, Any]] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    whole: int = 0
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    labels: Tensor = field(default_factory=lambda: torch.empty(0))
    masks: Tensor = field(default_factory=lambda: torch.empty(0))
    boxes: Tensor = field(default_factory=lambda: torch.empty(0))


def look(
    model: nn.Module,
    loader: Loader,
    *,
    numbers: Tensor | None = None,
    rows: int = 0,
    gradcam: bool = True,
) -> Seen:
    """Run a split through the model and keep its maps.

    Args:
        model: In eval mode.
        loader: The split.
        numbers: Which of its images; all if not given.
        rows: For how many of the first images the whole attention is kept; for fewer where that
            would take more than `ROWS_BYTES`.
        gradcam: Whether to ask Captum for `layer_gradcam` as well.
    """
    parts: Parts = defaultdict(list)
    seen = Seen()
    chosen = torch.arange(len(loader)) if numbers is None else numbers
    for first in range(0, len(chosen), WATCH_BATCH):
        asked = loader.batch(chosen[first : first + WATCH_BATCH])
        capture, logits = _watched(model, asked.images, reduce=_reductions(model))
        _keep_all(list(capture.values()), parts, seen)
        seen.whole = _whole(capture.values())
        if not first and rows and seen.whole:
            count = min(rows, ROWS_BYTES // seen.whole)
            _keep_rows(model, asked.images[:count], parts, seen)
        if gradcam:
            cam = attribute(model, asked.images, method="layer_gradcam", layer="features.conv3",
                            size="own")  # fmt: skip
            parts["maps", "layer_gradcam"].append(cam)
            seen.layers["layer_gradcam"] = "features.conv3"
        for name, value in zip(("masks", "boxes", "labels"), asked[1:], strict=True):
            parts["answers", name].append(value)
        parts["answers", "logits"].append(logits)
    whole = {
        key: torch.cat([part.detach().cpu() for part in found]) for key, found in parts.items()
    }
    for (room, name), tensor in whole.items():
        if room == "answers":
            setattr(seen, name, tensor)
        else:
            getattr(seen, room)[name] = tensor
    return seen


def _reductions(model: nn.Module) -> tuple[str, ...]:
    """What a watch keeps of attention in the place of its weights."""
    return ("class_row", "rollout") if hasattr(model, "class_token") else ("received",)


def _watched(
    model: nn.Module, images: Tensor, *, reduce: Sequence[str] | None
) -> tuple[dict[str, Record], Tensor]:
    """What a batch shows; where it is reduced the weights are never written out."""
    try:
        with torch.no_grad(), watch(model, features=True, reduce=reduce) as capture:
            logits = model(images)
    except NothingSeenError:  # a plain CNN
        with torch.no_grad():
            return {}, model(images)
    return dict(capture), logits


def _keep_all(records: list[Record], parts: Parts, seen: Seen) -> None:
    attending = [record for record in records if "class_row" in record.reduced]
    for record in reversed(attending):  # the last block answers, and so has the plain name
        name = _named("class_row", record, seen)
        parts["maps", name].append(class_row(record))
        parts["heads", name].append(class_row(record, heads="each"))
    if attending:
        parts["maps", "rollout"].append(rollout(attending))
        seen.layers["rollout"] = attending[-1].name
    for record in records:
        if record not in attending:
            _keep(record, parts, seen)


def _keep(record: Record, parts: Parts, seen: Seen) -> None:
    if record.kind == "attention":
        if not _over_places(record):
            return
        name = _named("received", record, seen)
        parts["maps", name].append(received(record))
        parts["heads", name].append(received(record, heads="each"))
    elif record.axis == "spatial" and record.scale is not None:
        name = _named("gate_map", record, seen)
        parts["maps", name].append(gate_map(record))
        parts["gates", name].append(record.scale[:, 0])
    elif record.axis == "channel" and record.scale is not None:
        name = _named("channel_gated", record, seen)
        parts["maps", name].append(channel_gated(record))
        parts["gates", name].append(record.scale[:, :, 0, 0])


def _over_places(record: Record) -> bool:
    """Not over channels, and not without weights: something that can be drawn as places."""
    return record.key_grid is not None and not record.prefix and bool(record.reduced)


def _whole(records: Iterable[Record]) -> int:
    """What one image's weights take, those of all layers together."""
    shapes = [record.shape for record in records if record.kind == "attention" and record.shape]
    return sum(4 * math.prod(shape[1:]) for shape in shapes)


def _keep_rows(model: nn.Module, images: Tensor, parts: Parts, seen: Seen) -> None:
    """The whole weights of the layers that have a map."""
    if not len(images):
        return
    names = {layer: name for name, layer in seen.layers.items() if name != "rollout"}
    for record in _watched(model, images, reduce=None)[0].values():
        if record.weights is not None and record.name in names:
            name = names[record.name]
            parts["rows", name].append(record.weights)
            seen.grids[name] = {
                "layer": record.name,
                "query_grid": _listed(record.query_grid, record.weights.shape[2]),
                "key_grid": _listed(record.key_grid, record.weights.shape[3]),
                "prefix": record.prefix,
            }


def _listed(grid: tuple[int, int] | None, tokens: int) -> list[int] | None:
    """A grid as JSON has it; one learned query is a grid of one place."""
    if grid is None:
        return [1, 1] if tokens == 1 else None
    return list(grid)


def _named(construction: str, record: Record, seen: Seen) -> str:
    """The construction's name; of a second layer with the layer's name behind it."""
    layer = seen.layers.setdefault(construction, record.name)
    if layer == record.name:
        return construction
    name = f"{construction}.{record.name}"
    seen.layers[name] = record.name
    return name
