"""One request, asked of any method: which places did something for this output?"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnviz.attribution.layers import find_layer
from attnviz.attribution.method_table import (
    Method,
    built,
    checked_options,
    described,
    named,
)
from attnviz.attribution.request import ExplainedModel, Request, bytes_per_image
from attnviz.baseline_images import Blank, blank_like
from attnviz.errors import InputError, unknown_name
from attnviz.inputs import check_images
from attnviz.maps.geometry import Grid, Interpolation, resized
from attnviz.model_state import frozen
from attnviz.progress import Progress
from attnviz.shapes import Images
from attnviz.targets import Target, indices_per_image, output_rows

MEMORY = 512 * 2**20
"""Default budget: half a gibibyte of what the graph keeps."""

Sign = Literal["positive", "abs", "signed"]
Channels = Literal["sum", "mean", "max_abs", "norm"]

_CHANNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda a: a.sum(1),
    "mean": lambda a: a.mean(1),
    "max_abs": lambda a: a.gather(1, a.abs().argmax(1, keepdim=True))[:, 0],
    "norm": lambda a: a.norm(dim=1),
}
_SIGNS: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": lambda a: a.clamp(min=0),
    "abs": torch.abs,
    "signed": lambda a: a,
}


def attribute(
    model: nn.Module,
    images: Images,
    *,
    method: Any = "layer_gradcam",
    layer: str | nn.Module | None = None,
    target: Target = None,
    sign: Sign = "positive",
    channels: Channels | None = None,
    baseline: Blank | None = None,
    value_range: tuple[int | float, int | float] = (-1.0, 1.0),
    size: Grid | Literal["own"] | None = None,
    interpolation: Interpolation = "bilinear",
    memory: int = MEMORY,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Float[Tensor, "b H W"]:
    """What each place of an image did for one output of the model, by a method of Captum.

    The model is asked in evaluation mode and left as it was: modes, hooks, gradients and in-place
    flags. An image's map depends on the image, the target and the seed, and not on the images
    around it or on the memory budget (up to rounding; methods that draw at random start from the
    same seed for each image).

    Args:
        model: Any module from images to `(b,)`, `(b, 1)` or `(b, n)` outputs.
        images: `(b, c, h, w)`.
        method: A name of `methods()`, or a Captum object with `.attribute`, made for this model.
            (Of Captum's own, `FeaturePermutation` alone mixes the images of a batch.)
        layer: For layer methods a dotted name or a module that puts out `(b, c, h, w)`. None takes
            the last convolution only where that cannot be mistaken: the model's single `nn.Conv2d`,
            or the last of those that all lie in one plain `nn.Sequential`.
        target: Which output, for all images or one index per image; needed for `n > 1`.
        sign: `positive` cuts negative values, `abs` folds them, `signed` keeps them.
        channels: Before the sign, how channels become one: `sum`, `mean`, `max_abs` (the largest
            in size, with its sign) or `norm` (Euclidean). None takes `sum` where channels share an
            attribution and `mean` where they were removed together (occlusion, superpixels).
        baseline: What a method compares with or fills in: a name of
            `attnviz.baseline_images.BLANKS`, a number, an image or images. None is Captum's, which
            is 0. For `gradient_shap` a tensor `(n, c, h, w)` is the distribution that every image
            draws from.
        value_range: What black and white are, for the baselines of these names.
        size: `(h, w)` of the maps; None takes the images', `"own"` keeps a layer's grid.
        interpolation: How a layer's map becomes larger, after the sign.
        memory: Bytes that the model's graph may keep at once. At least one row always runs.
        seed: Start of everything random, for each image the same.
        progress: Print on stderr how many rows were sent through the model.
        **options: Further arguments of Captum's `.attribute`, such as `n_steps`; for superpixels
            `segments` and `compactness`, or a `feature_mask` of one's own.

    Returns:
        `(b, h, w)`, raw float32 on the images' device, detached.

    Raises:
        InputError: An unknown name, option, layer or target; several outputs and no target;
            outputs that are not one row per image; a layer without places; an object that was
            made for another model.
        UnsupportedError: A guided method on a model with activations other than `nn.ReLU` modules,
            DeepLIFT on one that runs an activation module twice, or a method that sets hooks (both
            of these, and Grad-CAM) on a compiled or scripted model.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(),
        ...                             torch.nn.Linear(4 * 36, 1))
        >>> attribute(model, torch.rand(2, 3, 8, 8), method="integrated_gradients").shape
        torch.Size([2, 8, 8])
    """
    reduce = _reduction(channels, sign)
    check_images(images)
    label = method if isinstance(method, str) else type(method).__name__
    with (
        frozen(model, gradients=True),
        Progress(None, label=label, unit="rows", shown=progress) as bar,
    ):
        images = images.detach().clone()
        explained = ExplainedModel(model, len(images), target, bar)
        request = _request(
            explained, images, method, layer, target, baseline, value_range, seed, options
        )
        rows = _rows(model, request, memory)
        fallback = request.method.channels
        parts = [reduce(answer, fallback) for answer in request.attributions(rows)]
        maps = torch.cat(parts) if parts else images.new_zeros(0, *images.shape[-2:])
    return resized(maps, _size(size, images), interpolation)


def _request(
    explained: ExplainedModel,
    images: Images,
    method: Any,
    layer: str | nn.Module | None,
    target: Target,
    baseline: Blank | None,
    value_range: tuple[int | float, int | float],
    seed: int,
    options: dict[str, Any],
) -> Request:
    chosen = named(method) if isinstance(method, str) else described(method)
    if layer is not None and not chosen.layer:
        raise InputError(f"{chosen.name}: expected no layer=, since it explains the images")
    index: Tensor | None
    if chosen.captum:
        place = find_layer(explained.model, layer) if chosen.layer else None
        explainer, index = built(chosen, explained, place), indices_per_image(target, images)
    else:
        explainer, index = method, _outside_indices(method, explained.model, images, target)
    options = checked_options(chosen, explainer, options)
    blanks = _baselines(chosen, explainer, images, baseline, value_range)
    return Request(chosen, explainer, images, index, *blanks, options, seed)


def _outside_indices(
    explainer: Any, model: nn.Module, images: Tensor, target: Target
) -> Tensor | None:
    """The target for an object made elsewhere, whose forward is asked how many outputs it has."""
    name = type(explainer).__name__
    if not _takes(explainer, "target"):
        if target is not None:
            raise InputError(f"{name}: expected no target=, since it explains none of the outputs")
        return None
    inner = getattr(explainer, "attribution_method", explainer)
    forward = getattr(inner, "forward_func", None) or getattr(inner, "model", None)
    if forward is None or not len(images):
        return None if target is None else indices_per_image(target, images)
    if isinstance(forward, nn.Module) and not _related(forward, model):
        raise InputError(
            f"{name}: expected an object made for this model, got one made for another "
            f"{type(forward).__name__}; make it anew with {name}(model)"
        )
    with torch.no_grad():
        outputs = forward(images[:1])
    output_rows(outputs, len(images), target)
    return None if outputs.ndim == 1 else indices_per_image(target, images)


def _takes(explainer: Any, argument: str) -> bool:
    parameters = inspect.signature(explainer.attribute).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _related(one: nn.Module, other: nn.Module) -> bool:
    """Whether one of two modules is, or holds, the other."""
    return any(module is other for module in one.modules()) or any(
        module is one for module in other.modules()
    )


def _baselines(
    method: Method,
    explainer: Any,
    images: Images,
    baseline: Blank | None,
    value_range: tuple[int | float, int | float],
) -> tuple[Tensor | None, Tensor | None]:
    """Each image's own baseline, and the distribution that all draw from: one of them, or none."""
    if baseline is None and not method.distribution:
        return None, None
    if not _takes(explainer, "baselines"):
        raise InputError(f"{method.name}: expected no baseline=, since it compares with none")
    if method.distribution and isinstance(baseline, Tensor) and baseline.ndim == 4:
        return None, baseline.detach().to(images)
    blank = 0.0 if baseline is None else baseline
    return blank_like(images, blank, value_range=value_range), None


def _rows(model: nn.Module, request: Request, memory: int) -> int:
    """How many rows of a forward fit into the budget; asked of the model only where it matters."""
    images = request.images
    if memory < 1:
        raise InputError(f"memory: expected a number of bytes, got {memory}")
    if len(images) * request.copies <= 1 and request.method.split is None:
        return 1
    return max(1, memory // bytes_per_image(model, images[:1])) if len(images) else 1


def _reduction(channels: str | None, sign: str) -> Callable[[Tensor, str], Tensor]:
    if channels is not None and channels not in _CHANNELS:
        raise unknown_name("channels", channels, _CHANNELS)
    if sign not in _SIGNS:
        raise unknown_name("sign", sign, _SIGNS)

    def reduce(attributions: Tensor, fallback: str) -> Tensor:
        return _SIGNS[sign](_CHANNELS[channels or fallback](attributions.float()))

    return reduce


def _size(size: Grid | Literal["own"] | None, images: Tensor) -> Grid | None:
    if size == "own":
        return None
    return (int(images.shape[-2]), int(images.shape[-1])) if size is None else size
