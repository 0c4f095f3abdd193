"""Live forward passes of a run's model: an injected patch, heads removed, gates held open.

The only module of the dashboard that needs torch; pages import it when they are opened. A model is
rebuilt from its name and settings, never from anything a run could point at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn

from attnviz.attribution import attribute
from attnviz.capture import Record, edits, watch
from attnviz.maps import primary
from attnviz.models.pixels import as_bytes
from attnviz.models.pixels import as_input as scaled
from attnviz.patches import inject_patch

_ONE_AT_A_TIME = Lock()  # readers share the models


@dataclass(frozen=True)
class Switch:
    """A head or gate that can be switched while the model runs.

    Attributes:
        key: How the address names it: the layer, and the head where it is one.
        words: What it does.
        layer: The dotted name of the attention or gate.
        head: Counted from 0; None for a gate.
    """

    key: str
    words: str
    layer: str
    head: int | None


@dataclass(frozen=True)
class View:
    """One map of the model's answer, `(h, w)`, with the name to show."""

    name: str
    values: np.ndarray
    construction: str


@dataclass(frozen=True)
class Answer:
    """The model's output and its maps.

    Attributes:
        logit: Above zero means "there is a patch".
        views: Its maps: of each attention and gate, of each head, and layer Grad-CAM.
        switches: What can be changed in it.
    """

    logit: float
    views: tuple[View, ...]
    switches: tuple[Switch, ...]

    @property
    def probability(self) -> float:
        """Of a patch."""
        return float(1 / (1 + np.exp(-self.logit)))


def patched(
    image: np.ndarray,
    *,
    x: int,
    y: int,
    size: int,
    shape: str = "square",
    fill: float = 1.0,
    opacity: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """An image with a patch whose upper left corner is at `(x, y)`, and its mask.

    The patch is `attnviz.inject_patch`'s own, drawn into a window of its size, the only place where
    it fits there.

    Args:
        image: `(h, w, 3)` uint8.
        x: Of the corner; moved inside where the patch would leave the image.
        y: Of the corner.
        size: Of the patch; 0 leaves the image as it is.
        shape: One of `attnviz.patches.SHAPES`.
        fill: Grey from −1 to 1.
        opacity: From 0 to 1, above 0.

    Returns:
        `(h, w, 3)` uint8 and `(h, w)` bool.
    """
    mask = np.zeros(image.shape[:2], bool)
    if not size:
        return image, mask
    x = int(np.clip(x, 0, image.shape[1] - size))
    y = int(np.clip(y, 0, image.shape[0] - size))
    window = as_input(image[y : y + size, x : x + size])
    drawn = inject_patch(window, size=size, seed=0, shape=shape, fill=fill, opacity=opacity)
    out = image.copy()
    pixels = as_bytes(drawn.images[0]).permute(1, 2, 0)
    out[y : y + size, x : x + size] = pixels.numpy()
    mask[y : y + size, x : x + size] = drawn.masks[0].numpy()
    return out, mask


def as_input(image: np.ndarray) -> torch.Tensor:
    """An image `(h, w, 3)` uint8 as the models take it, `(1, 3, h, w)` from −1 to 1."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return scaled(pixels)


def ask(model: nn.Module, image: np.ndarray, off: Sequence[str] = ()) -> Answer:
    """Run the model on an image, with some of its heads or gates switched.

    Args:
        model: In eval mode.
        image: `(h, w, 3)` uint8.
        off: Keys of `Switch`; unknown ones are left out.
    """
    pixels = as_input(image)
    with _ONE_AT_A_TIME:
        logit, records = _watched(model, pixels, {})
        switches = _switches(records)
        edit = _edit([switch for switch in switches if switch.key in off])
        if edit:
            logit, records = _watched(model, pixels, edit)
        views = [view for record in records for view in _views(record)]
        if not edit:
            cam = attribute(
                model, pixels, method="layer_gradcam", layer=_last_conv(model), size="own"
            )
            views.append(View("layer_gradcam", cam[0].numpy(), "layer_gradcam"))
    return Answer(logit, tuple(views), switches)


def _watched(
    model: nn.Module, pixels: torch.Tensor, edit: Mapping[str, Any]
) -> tuple[float, list[Record]]:
    edited = dict(edit) or None
    with torch.no_grad(), watch(model, features=True, edit=edited, empty=True) as seen:
        logit = model(pixels)
    return float(logit.flatten()[0]), list(seen.values())


def _switches(records: Sequence[Record]) -> tuple[Switch, ...]:
    found = []
    for record in records:
        if record.kind == "attention" and record.weights is not None:
            found += [
                Switch(f"{record.name}.{head}", f"{record.name}: head {head + 1} off",
                       record.name, head)
                for head in range(record.weights.shape[1])
            ]  # fmt: skip
        elif record.kind == "gate":
            found.append(Switch(record.name, f"{record.name}: gate at one", record.name, None))
    return tuple(found)


def _edit(switched: Sequence[Switch]) -> dict[str, Any]:
    heads: dict[str, list[int]] = {}
    edit: dict[str, Any] = {}
    for switch in switched:
        if switch.head is None:
            edit[switch.layer] = edits.constant(1.0)
        else:
            heads.setdefault(switch.layer, []).append(switch.head)
    return edit | {layer: edits.head_off(*which) for layer, which in heads.items()}


def _views(record: Record) -> list[View]:
    construction = primary(record)
    if construction is None:
        return []
    key, draw = construction.key, construction.draw
    whole = View(record.name, draw(record)[0].numpy(), key)
    if not construction.per_head:
        return [whole]
    each = draw(record, heads="each")[0]
    return [whole, *(View(f"head {i}", one.numpy(), key) for i, one in enumerate(each, 1))]


def _last_conv(model: nn.Module) -> str:
    """The last convolution of the features, whose channels still have places."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    inside = [name for name in names if name.startswith("features.")]
    return (inside or names)[-1]
