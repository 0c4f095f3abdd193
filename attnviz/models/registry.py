"""Which models there are, and how a name becomes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn

from attnviz.errors import InputError, unknown_name
from attnviz.layers import CBAM, ConvAttention, MultiHeadAttention
from attnviz.models.reference import PatchNet


@dataclass(frozen=True)
class Variant:
    """A reference model's name and what it is.

    Attributes:
        name: What `build_model` takes.
        summary: One sentence.
        map: Its primary map: the construction that shows where this model looks.
        build: Makes the model, untrained; its keyword arguments are the model's settings.
    """

    name: str
    summary: str
    map: str
    build: Callable[..., nn.Module]


def _patch_net(attention: Callable[..., nn.Module], **fixed: Any) -> Callable[..., nn.Module]:
    def build(*, placement: int = 3, width: int = 32, **settings: Any) -> nn.Module:
        make = partial(attention, **fixed, **settings)
        return PatchNet(make, placement=placement, width=width)

    return build


def _cnn(*, width: int = 32) -> nn.Module:
    return PatchNet(width=width)


_VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("cnn", "three convolutions and no attention", "layer_gradcam", _cnn),
        Variant(
            "mha_reshape",
            "multi-head attention as published, its tokens scrambled by a reshape",
            "received",
            _patch_net(MultiHeadAttention, tokens="reshaped"),
        ),
        Variant(
            "mha",
            "multi-head attention between places",
            "received",
            _patch_net(MultiHeadAttention),
        ),
        Variant(
            "mha_conv1d",
            "multi-head attention by 1 × 1 convolutions, full-width heads",
            "received",
            _patch_net(ConvAttention),
        ),
        Variant(
            "cbam_channel",
            "CBAM's channel gate alone, the published default",
            "channel_gated",
            _patch_net(CBAM, spatial=False),
        ),
        Variant(
            "cbam",
            "CBAM: a channel gate, then a 7 × 7 spatial gate",
            "gate_map",
            _patch_net(CBAM),
        ),
    )
}


def variants() -> Mapping[str, Variant]:
    """All reference models by name, in the order in which tables list them."""
    return MappingProxyType(_VARIANTS)


def build_model(name: str, **settings: Any) -> nn.Module:
    """A reference model, untrained, in training mode.

    Args:
        name: One of `variants()`.
        settings: The model's own, such as `placement=0`, `heads=8` or `dropout=0.0`.

    Returns:
        A module from images `(b, 3, h, w)` in [−1, 1] to logits `(b,)`.

    Raises:
        InputError: An unknown name (the nearest one is offered) or setting.

    Example:
        >>> import torch
        >>> build_model("cbam")(torch.zeros(2, 3, 96, 96)).shape
        torch.Size([2])
    """
    if name not in _VARIANTS:
        raise unknown_name("variant", name, _VARIANTS)
    try:
        return _VARIANTS[name].build(**settings)
    except TypeError as error:
        raise InputError(
            f"build_model: {name!r} does not take {settings!r}: {error}; "
            f"see {inspect.signature(PatchNet)}"
        ) from error
