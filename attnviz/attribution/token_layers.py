"""The layer of tokens that a layer method explains by default: what enters the last attention.

Of a transformer that is the normed input of its last block, as is usual for Grad-CAM: behind it
only the class token may depend on the places. The last convolution of such a model is the stem that
cuts the image into patches, which knows nothing of the classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from attnviz.attribution.layer_layout import arrangement_of
from attnviz.capture import Record, watch
from attnviz.errors import AttnvizError, InputError
from attnviz.shapes import Images

_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, str | None]] = WeakKeyDictionary()
"""The layer by model and kind of image, None where there is none."""


@dataclass(frozen=True)
class _Step:
    """A module that begins or ends, in the order of the forward pass."""

    name: str
    shape: tuple[int, ...] | None
    ends: bool


def tokens_before_attention(model: nn.Module, images: Images) -> str | None:
    """The dotted name of the layer whose tokens enter the last attention; None where none do.

    Tokens are `(b, n, c)` or `(b, h, w, c)` with known places. A model in which a convolution runs
    after its last attention, or whose attention is between the places of a feature map
    `(b, c, h, w)`, has no such layer.

    Args:
        model: The model, in evaluation mode.
        images: `(b, c, h, w)`; the first is used.

    Raises:
        InputError: The model has several attentions, and the last belongs to none of its modules.
    """
    image = images[:1]
    known = _KNOWN.setdefault(model, {})
    key = (tuple(image.shape), image.dtype, image.device)
    if key not in known:
        known[key] = _found(model, image)
    return known[key]


def _found(model: nn.Module, image: Tensor) -> str | None:
    steps: list[_Step] = []
    try:
        with torch.no_grad(), watch(model, empty=True, features=True) as seen, _noted(model, steps):
            model(image)
    except AttnvizError:
        return None
    attention = [record for record in seen.values() if record.kind == "attention"]
    if not attention:
        return None
    modules = dict(model.named_modules())
    begin = _entry(attention[-1], steps)
    if begin is None and len(attention) > 1:
        raise InputError(
            "layer: the attention is written out in the model's own forward, so that no layer is "
            "known to put out the tokens that enter the last of it; pass layer=, a dotted name"
        )
    if begin is None or any(isinstance(modules[s.name], nn.Conv2d) for s in steps[begin:]):
        return None
    first = next(step for step in steps[begin:] if step.ends)
    own = [first] if "Norm" in type(modules[first.name]).__name__ else []  # ahead of projections
    for step in (*own, *reversed(steps[:begin])):
        if not step.ends or len(step.shape or ()) not in (3, 4) or (step.shape or (0,))[0] != 1:
            continue
        if [one.name for one in steps if one.ends].count(step.name) > 1:
            continue  # of a layer that runs several times the last call would be explained
        try:
            arrangement = arrangement_of(model, modules[step.name], image, name=step.name)
        except InputError:
            continue
        return None if arrangement.unchanged else step.name
    return None


def _entry(record: Record, steps: list[_Step]) -> int | None:
    """Where the module of an attention begins, or the one around it that takes whole tokens.

    A module may be given queries by head, or scores: the tokens are those of a module around it.
    """
    name = record.name.partition("#")[0]
    while name:
        begins = [i for i, step in enumerate(steps) if step.name == name and not step.ends]
        shape = steps[begins[-1]].shape if begins else None
        if shape is not None and not _by_head(shape, record):
            return begins[-1]
        name = name.rpartition(".")[0]
    return None


def _by_head(shape: tuple[int, ...], record: Record) -> bool:
    """Whether a tensor has an axis of heads, or folds heads into the batch."""
    b, heads, q, k = record.shape
    if len(shape) == 4:
        return any((shape[1], shape[2]) in ((heads, n), (n, heads)) for n in (q, k))
    return len(shape) == 3 and heads > 1 and shape[0] == b * heads


@contextmanager
def _noted(model: nn.Module, steps: list[_Step]) -> Iterator[None]:
    """Note which module begins and ends when, with the shape of its input or output."""

    def begins(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
            steps.append(_Step(name, tuple(given[0].shape) if given else None, False))

        return hook

    def ends(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else None
            steps.append(_Step(name, shape, True))

        return hook

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(begins(name), with_kwargs=True))
            handles.append(module.register_forward_hook(ends(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
