"""The layer that a layer method explains: by name, by module, or the model's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attnviz.attribution.token_layers import tokens_before_attention
from attnviz.errors import InputError, unknown_name
from attnviz.shapes import Images


def find_layer(
    model: nn.Module, layer: str | nn.Module | None, images: Images | None = None
) -> nn.Module:
    """The module that `layer` means.

    None takes the tokens that enter the last attention of a transformer (see
    `attnviz.attribution.token_layers`), and the last convolution of other models where it is
    unambiguous: the model has a single `nn.Conv2d`, or all of them are direct children of one
    `nn.Sequential` without nested modules. A residual network, or one with convolutions inside its
    attention, has no such layer: the last one defined may lie on a side path.

    Args:
        model: The model.
        layer: A dotted name, a module of the model, or None.
        images: `(b, c, h, w)` by which a transformer is recognised, or None.

    Returns:
        The module.

    Raises:
        InputError: A name or module that the model does not have, or None in a model where the
            last convolution could be several.
    """
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        if not any(layer is module for module in modules.values()):
            raise InputError(
                f"layer: expected a module of the model, got a {type(layer).__name__} that is "
                "none of them"
            )
        return layer
    if layer is not None:
        if layer not in modules:
            raise unknown_name("layer", layer, [name for name in modules if name])
        found: nn.Module = modules[layer]
        return found
    tokens = None if images is None or not len(images) else tokens_before_attention(model, images)
    return _last_convolution(modules) if tokens is None else modules[tokens]


def default_layer(model: nn.Module, images: Images) -> str:
    """The dotted name of the layer of Grad-CAM where none is named.

    Of a transformer the tokens that enter its last attention, else the last convolution.

    Raises:
        InputError: There is neither.
    """
    return tokens_before_attention(model, images) or last_convolution(model, images)


def _last_convolution(modules: dict[str, nn.Module]) -> nn.Module:
    names = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    if not names:
        raise InputError(
            "layer: the model has no nn.Conv2d to take by itself; pass layer=, the dotted name of "
            "a module that puts out (b, c, h, w)"
        )
    parents = {name.rpartition(".")[0] for name in names}
    chain = modules[parents.pop()] if len(parents) == 1 else None
    plain = isinstance(chain, nn.Sequential) and not any(
        list(child.children()) for child in chain.children()
    )
    if len(names) > 1 and not plain:
        raise InputError(
            f"layer: the last convolution is not certain among {', '.join(names[-6:])}; "
            "pass layer=, a dotted name or a module"
        )
    return modules[names[-1]]


def last_convolution(model: nn.Module, images: Tensor) -> str:
    """The dotted name of the last convolution that runs and still has more than one place.

    Raises:
        InputError: There is none.
    """
    found: list[str] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise InputError(
            "layer: no nn.Conv2d of the model puts out a feature map (b, c, h, w) of several "
            "places; name a method without a layer, such as integrated_gradients"
        )
    return found[-1]
