"""The maps of a model: what a watch saw, as pictures of places.

Every attention over places gives `received`, every spatial gate `gate_map`, every channel gate
`channel_gated`, and every model Captum's `layer_gradcam` at its last convolution, so that a plain
CNN has a map too. Where a model attends more than once, the later maps carry the layer's name.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attnviz.attribution import attribute
from attnviz.capture import Record, watch
from attnviz.errors import NothingSeenError
from attnviz.maps import channel_gated, gate_map, received
from experiments.training import Loader

WATCH_BATCH = 25  # 25 images of 4 × 576 × 576 weights are 133 MB


@dataclass
class Seen:
    """What one pass over a split left, all on the CPU.

    Attributes:
        maps: Name → raw maps `(n, h, w)` on the model's own grid.
        heads: Name → the same, head by head, `(n, heads, h, w)`.
        gates: Name → gate values, `(n, c)` or `(n, h, w)`.
        rows: Name → whole attention of the first images `(k, heads, q, keys)`.
        layers: Map name → the dotted name of the layer it comes from.
        logits: `(n,)`.
        labels: `(n,)`.
        masks: `(n, h, w)`.
        boxes: `(n, 4)`.
    """

    maps: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)
    gates: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
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
        rows: For how many of the first images the whole attention is kept.
        gradcam: Whether to ask Captum for `layer_gradcam` as well.
    """
    parts: defaultdict[tuple[str, str], list[Tensor]] = defaultdict(list)
    seen = Seen()
    chosen = torch.arange(len(loader)) if numbers is None else numbers
    for first in range(0, len(chosen), WATCH_BATCH):
        asked = loader.batch(chosen[first : first + WATCH_BATCH])
        capture, logits = _watched(model, asked.images, whole=first < rows)
        for record in capture.values():
            _keep(record, parts, seen, first=first, rows=rows)
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


def _watched(model: nn.Module, images: Tensor, *, whole: bool) -> tuple[dict[str, Record], Tensor]:
    """What a batch shows; only where `whole` is asked for are the weights ever written out."""
    reduce = None if whole else "received"
    try:
        with torch.no_grad(), watch(model, features=True, reduce=reduce) as capture:
            logits = model(images)
    except NothingSeenError:  # a plain CNN
        with torch.no_grad():
            return {}, model(images)
    return dict(capture), logits


def _keep(
    record: Record,
    parts: defaultdict[tuple[str, str], list[Tensor]],
    seen: Seen,
    *,
    first: int,
    rows: int,
) -> None:
    if record.kind == "attention":
        if record.key_grid is None or record.prefix or not (record.shape or record.reduced):
            return  # over channels, or without weights: nothing that could be drawn as places
        name = _named("received", record, seen)
        parts["maps", name].append(received(record))
        parts["heads", name].append(received(record, heads="each"))
        if first < rows and record.weights is not None:
            parts["rows", name].append(record.weights[: rows - first])
    elif record.axis == "spatial" and record.scale is not None:
        name = _named("gate_map", record, seen)
        parts["maps", name].append(gate_map(record))
        parts["gates", name].append(record.scale[:, 0])
    elif record.axis == "channel" and record.scale is not None:
        name = _named("channel_gated", record, seen)
        parts["maps", name].append(channel_gated(record))
        parts["gates", name].append(record.scale[:, :, 0, 0])


def _named(construction: str, record: Record, seen: Seen) -> str:
    """The construction's name; of a second layer with the layer's name behind it."""
    layer = seen.layers.setdefault(construction, record.name)
    if layer == record.name:
        return construction
    name = f"{construction}.{record.name}"
    seen.layers[name] = record.name
    return name
