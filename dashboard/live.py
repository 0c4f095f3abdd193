"""Live forward passes of a run's model: an injected patch, heads removed, gates held open.

The only module of the dashboard that needs torch; pages import it when they are opened. A model is
rebuilt from the name of a reference model, or by the factory that the command line names; nothing
that a run could point at is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn

from attnviz.attribution import attribute
from attnviz.capture import Record, edits, watch
from attnviz.cli.model_arguments import build as named_model
from attnviz.errors import AttnvizError, InputError
from attnviz.evaluation.answers import tensor_of
from attnviz.maps import primary
from attnviz.models.pixels import as_bytes
from attnviz.models.pixels import as_input as scaled
from attnviz.patches import inject_patch
from attnviz.places import placed, unplaced
from attnviz.text import first_line

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
        logits: One score per output; a single one above zero means yes.
        views: Its maps: of each attention and gate, of each head, and layer Grad-CAM.
        switches: What can be changed in it.
        missing: Layer → why its map is not shown.
    """

    logits: tuple[float, ...]
    views: tuple[View, ...]
    switches: tuple[Switch, ...]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The output with the largest score; of a single one, 1 for yes and 0 for no."""
        if len(self.logits) == 1:
            return int(self.logits[0] > 0)
        return int(np.argmax(self.logits))

    @property
    def logit(self) -> float:
        """The score of a single output, or the largest of several."""
        return self.logits[0] if len(self.logits) == 1 else max(self.logits)

    @property
    def probability(self) -> float:
        """Of yes; of several classes, of the one with the largest score."""
        if len(self.logits) == 1:
            return float(1 / (1 + np.exp(-self.logits[0])))
        shares = np.exp(np.asarray(self.logits) - max(self.logits))
        return float(1 / shares.sum())


@dataclass(frozen=True)
class Recorded:
    """What a run noted of how its model sees images.

    Attributes:
        mean: Subtracted from each channel of pixels from 0 to 1.
        std: By which each channel is divided.
        cam: The layer of its Grad-CAM, or None.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    cam: str | None = None

    @classmethod
    def of(cls, run: Any) -> Recorded:
        """What a run noted; the reference models' range where it noted none."""
        cam = None
        if "layer_gradcam" in run.map_names:
            layer = run.about("maps/layer_gradcam").get("layer")
            cam = layer if isinstance(layer, str) and layer else None
        if run.mean is None or run.std is None:
            return cls(cam=cam)
        return cls(tuple(run.mean), tuple(run.std), cam)


def build(factory: str, settings: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Any:
    """The model that the command line named, with a run's weights.

    Args:
        factory: As `attnviz dashboard --model` takes it; never from a run.
        settings: Arguments of the factory.
        weights: The run's.

    Raises:
        InputError: There is no such factory, or the weights are of another model.
    """
    model = named_model(factory, **settings)
    state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights do not fit {factory}: {first_line(error)}") from error
    return model.eval().requires_grad_(False)


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


def as_input(image: np.ndarray, recorded: Recorded | None = None) -> torch.Tensor:
    """An image `(h, w, 3)` uint8 as a model takes it, `(1, 3, h, w)`; from −1 to 1 by default."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if recorded is None:
        return scaled(pixels)
    mean, std = (torch.tensor(one).view(1, -1, 1, 1) for one in (recorded.mean, recorded.std))
    return (pixels.float() / 255 - mean) / std


def ask(
    model: nn.Module,
    image: np.ndarray,
    off: Sequence[str] = (),
    recorded: Recorded | None = None,
) -> Answer:
    """Run the model on an image, with some of its heads or gates switched.

    Args:
        model: In eval mode.
        image: `(h, w, 3)` uint8.
        off: Keys of `Switch`; unknown ones are left out.
        recorded: How the run's model sees images; the reference models' way unless given.
    """
    pixels = as_input(image, recorded)
    with _ONE_AT_A_TIME:
        logits, records, missing = _watched(model, pixels, {})
        switches = _switches(records)
        edit = _edit([switch for switch in switches if switch.key in off])
        if edit:
            logits, records, missing = _watched(model, pixels, edit)
        views = [view for record in records for view in _views(record, missing)]
        layer = recorded.cam if recorded and recorded.cam else _last_conv(model)
        if not edit and layer:
            target = None if len(logits) == 1 else int(np.argmax(logits))
            cam = attribute(
                model, pixels, method="layer_gradcam", layer=model.get_submodule(layer),
                target=target, size="own",
            )  # fmt: skip
            views.append(View("layer_gradcam", cam[0].numpy(), "layer_gradcam"))
    return Answer(logits, tuple(views), switches, missing)


def _watched(
    model: nn.Module, pixels: torch.Tensor, edit: Mapping[str, Any]
) -> tuple[tuple[float, ...], list[Record], dict[str, str]]:
    """Scores, records with their measured places, and why the places of others are not known."""
    edited = dict(edit) or None
    with torch.no_grad(), watch(model, features=True, edit=edited, empty=True) as seen:
        outputs = model(pixels)
    found = placed(model, pixels, seen)
    logits = tensor_of(outputs).detach().float().flatten().tolist()
    return tuple(logits), list(found.values()), unplaced(found)


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


def _views(record: Record, missing: dict[str, str]) -> list[View]:
    construction = primary(record)
    if construction is None:
        return []
    key, draw = construction.key, construction.draw
    try:
        whole = View(record.name, draw(record)[0].numpy(), key)
        if not construction.per_head:
            return [whole]
        each = draw(record, heads="each")[0]
    except AttnvizError as error:
        missing[record.name] = str(error)
        return []
    heads = (View(f"{record.name} · head {i}", one.numpy(), key) for i, one in enumerate(each, 1))
    return [whole, *heads]


def _last_conv(model: nn.Module) -> str | None:
    """The last convolution of the features, whose channels still have places; None without any."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    inside = [name for name in names if name.startswith("features.")]
    return (inside or names or [None])[-1]
