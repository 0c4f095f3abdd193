"""Registry of the reference models, and construction by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from attnviz import layers
from attnviz.errors import InputError, unknown_name
from attnviz.layers import CBAM, ConvAttention, MultiHeadAttention
from attnviz.models.reference import LAST_PLACEMENT, PatchNet
from attnviz.models.transformer import VisionTransformer


@dataclass(frozen=True)
class Variant:
    """A reference model: name, summary, constructor.

    Attributes:
        name: What `build_model` takes.
        summary: One sentence.
        build: Makes the model, untrained; its keyword arguments are the model's settings.
    """

    name: str
    summary: str
    build: Callable[..., nn.Module]


def _patch_net(
    attention: Callable[..., nn.Module], *, at: int = LAST_PLACEMENT, **fixed: Any
) -> Callable[..., nn.Module]:
    def build(*, placement: int = at, width: int = 32, **settings: Any) -> nn.Module:
        make = partial(attention, **fixed, **settings)
        return PatchNet(make, placement=placement, width=width)

    return build


def _learned_query(
    *, placement: int = LAST_PLACEMENT, width: int = 32, **settings: Any
) -> nn.Module:
    """Build `LearnedQuery`; before the last convolution its result is added, not pooled."""
    added = placement < LAST_PLACEMENT
    make = partial(layers.LearnedQuery, added=added, **settings)
    return PatchNet(make, placement=placement, width=width)


def _linear_tokens_channels(
    *, placement: int = LAST_PLACEMENT, width: int = 32, side: int = 96, **settings: Any
) -> nn.Module:
    """Linear layers across the places fit images of one `side`."""
    places = (side >> min(placement, 2)) ** 2  # one pool after each of the first two convolutions
    make = partial(layers.LinearTokens, tokens="channels", places=places, **settings)
    return PatchNet(make, placement=placement, width=width)


def _cnn(*, width: int = 32) -> nn.Module:
    return PatchNet(width=width)


_VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("cnn", "three convolutions and no attention", _cnn),
        Variant(
            "mha_reshape",
            "multi-head attention as published, its tokens scrambled by a reshape",
            _patch_net(MultiHeadAttention, tokens="reshaped"),
        ),
        Variant(
            "mha",
            "multi-head attention between places",
            _patch_net(MultiHeadAttention),
        ),
        Variant(
            "mha_conv1d",
            "multi-head attention by 1 × 1 convolutions, full-width heads",
            _patch_net(ConvAttention),
        ),
        Variant(
            "cbam_channel",
            "CBAM's channel gate alone, the published default",
            _patch_net(CBAM, spatial=False),
        ),
        Variant(
            "cbam",
            "CBAM: a channel gate, then a 7 × 7 spatial gate",
            _patch_net(CBAM),
        ),
        Variant(
            "mha_position",
            "mha with a positional code added to its tokens",
            _patch_net(MultiHeadAttention, position=True),
        ),
        Variant(
            "mha_early",
            "nn.MultiheadAttention between the pixels, before the first convolution",
            _patch_net(layers.EarlyAttention, at=0),
        ),
        Variant(
            "pointwise",
            "query, key and value by 1 × 1 convolutions, between places",
            _patch_net(layers.PointwiseAttention, at=2),
        ),
        Variant(
            "pointwise_channels",
            "the same as published: its product contracts places and so weighs channels",
            _patch_net(layers.PointwiseAttention, at=2, over="channels"),
        ),
        Variant(
            "linear_tokens",
            "linear query, key and value after batch norm, between places",
            _patch_net(layers.LinearTokens),
        ),
        Variant(
            "linear_tokens_channels",
            "the same as published: tokens and channels are swapped before the linear layers",
            _linear_tokens_channels,
        ),
        Variant(
            "raw_scores",
            "the smallest self-attention as published, without a softmax",
            _patch_net(layers.RawScores, softmax=False),
        ),
        Variant(
            "raw_scores_softmax",
            "the same with its softmax",
            _patch_net(layers.RawScores),
        ),
        Variant(
            "non_local",
            "a non-local block with residual",
            _patch_net(layers.NonLocal),
        ),
        Variant(
            "learned_query",
            "one learned query over all places instead of the global mean",
            _learned_query,
        ),
        Variant(
            "vit",
            "a small vision transformer: a class token and three blocks of four heads",
            VisionTransformer,
        ),
        Variant(
            "se",
            "squeeze and excitation: a channel gate",
            _patch_net(layers.SqueezeExcite),
        ),
        Variant(
            "eca",
            "efficient channel attention: a channel gate with three weights",
            _patch_net(layers.EfficientChannelGate),
        ),
        Variant(
            "bam",
            "bottleneck attention: one gate for each channel and place",
            _patch_net(layers.BottleneckGate),
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
        InputError: An unknown name (the nearest one is offered) or setting, or settings of which no
            model can be made.

    Examples:
        >>> import torch
        >>> build_model("cbam")(torch.zeros(2, 3, 96, 96)).shape
        torch.Size([2])
    """
    if name not in _VARIANTS:
        raise unknown_name("variant", name, _VARIANTS)
    try:
        return _VARIANTS[name].build(**settings)
    except InputError:
        raise
    except TypeError as error:
        raise InputError(
            f"build_model: {name!r} does not take {settings!r}: {error}; "
            f"see {inspect.signature(_VARIANTS[name].build)}"
        ) from error
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f"build_model: there is no {name!r} of {settings!r}: {error}") from error


def reference_of(variant: str, settings: Mapping[str, Any]) -> str | None:
    """The reference model of a run, by its settings; None where it has none.

    A run of one's own may be called `cnn` too, so its variant alone does not suffice.

    Args:
        variant: The run's.
        settings: The run's; `factory` is `attnviz:<name>`. Runs of `experiments` before that was
            noted are recognised by their settings `variant` and `question`.
    """
    factory = settings.get("factory")
    if isinstance(factory, str):
        source, _, name = factory.partition(":")
        return name if source == "attnviz" else None
    return variant if settings.get("variant") == variant and "question" in settings else None


def rebuild_model(
    name: str, settings: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> nn.Module:
    """A trained reference model, in evaluation mode, on the CPU.

    It is built without memory first (on torch's `meta` device) and then given its weights, so that
    settings of an enormous model fail on the shapes and not on the machine.

    Args:
        name: One of `variants()`.
        settings: A run's; `model` in it holds what `build_model` takes.
        weights: Its parameters and buffers.

    Raises:
        InputError: An unknown name or setting, or weights of another model.
    """
    given = settings.get("model")
    own = dict(given) if isinstance(given, Mapping) else {}
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in weights.items()}
    try:
        with torch.device("meta"):
            model = build_model(name, **own)
        model.load_state_dict(tensors, assign=True)
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())[:200]
        raise InputError(f"the weights do not fit {name!r} with {own}: {message}") from error
    return model.eval()
