"""`attribute`: what each place of an image did for one output, by a method of Captum."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnviz.attribution.completeness import Attribution, warn_if_incomplete
from attnviz.attribution.layer_layout import Arrangement, Layout, arrangement_of, feature_maps
from attnviz.attribution.layers import find_layer
from attnviz.attribution.method_table import (
    METHODS,
    Method,
    built,
    captum_class,
    check_model,
    checked_options,
    described,
    named,
)
from attnviz.attribution.request import ExplainedModel, Request, bytes_per_image
from attnviz.baseline_images import Blank, ValueRange, blank_like
from attnviz.errors import InputError, unknown_name
from attnviz.inputs import check_images, check_takes_images
from attnviz.maps.geometry import Grid, Interpolation, resized
from attnviz.model_state import frozen
from attnviz.progress import Progress
from attnviz.shapes import Images, Scores
from attnviz.targets import Target, indices_per_image, output_rows, target_scores

MEMORY = 512 * 2**20
"""Default budget: half a gibibyte of what the graph keeps."""

Sign = Literal["positive", "abs", "signed"]
Channels = Literal["sum", "mean", "max_abs", "norm", "first", "last"]

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


@overload
def attribute(
    model: nn.Module, images: Images, *, check: Literal[True], **arguments: Any
) -> Attribution: ...
@overload
def attribute(
    model: nn.Module, images: Images, *, check: Literal[False] = False, **arguments: Any
) -> Float[Tensor, "b H W"]: ...
def attribute(
    model: nn.Module,
    images: Images,
    *,
    method: Any = "layer_gradcam",
    layer: str | nn.Module | None = None,
    layout: Layout | None = None,
    target: Target = None,
    sign: Sign = "positive",
    channels: Channels | None = None,
    baseline: Blank | None = None,
    value_range: ValueRange = (-1.0, 1.0),
    size: Grid | Literal["own"] | None = None,
    interpolation: Interpolation = "bilinear",
    check: bool = False,
    memory: int = MEMORY,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Float[Tensor, "b H W"] | Attribution:
    """What each place of an image did for one output of the model, by a method of Captum.

    The model runs in evaluation mode and is left as it was: modes, hooks, gradients and in-place
    flags. An image's map depends on the image, the target and the seed, and not on the images
    around it or on the memory budget (up to rounding; methods that draw at random start from the
    same seed for each image).

    A map that would be another method's is refused: a layer whose places are not proved, and for
    DeepLIFT, guided backpropagation and deconvolution activations that run outside of the modules
    that these methods change (one more forward pass of one image finds them). DeepLIFT's
    completeness is always checked, with a warning where it fails.

    Args:
        model: Any module from images to `(b,)`, `(b, 1)` or `(b, n)` outputs.
        images: `(b, c, h, w)`.
        method: A name of `methods()`, or a Captum object with `.attribute`, made for this model.
            (Of Captum's own, `FeaturePermutation` alone mixes the images of a batch.)
        layer: For layer methods a dotted name or a module that puts out feature maps or tokens.
            None takes the normed tokens that enter the last block of a transformer, and of other
            models the last convolution only where that cannot be mistaken: the model's single
            `nn.Conv2d`, or the last of those that all lie in one plain `nn.Sequential`. Of a layer
            that runs several times the last call is explained.
        layout: How the layer's output lies: `"first"` for `(b, c, h, w)`, `"last"` for
            `(b, h, w, c)`, the places of its tokens `(b, n, c)` (what `attnviz.locate` returns, or
            an object with `.grid` `(h, w)` and `.cell` `(n,)`, -1 for tokens that are no place), or
            a function that rearranges the output into `(b, c, h, w)`. None measures it once: the
            output of one image is compared with that of the image at twice its height and twice
            its width; tokens lie where `attnviz.locate` finds them, which is checked by changing
            the pixels of some places.
        target: Which output, for all images or one index per image; needed for `n > 1`.
        sign: `positive` cuts negative values, `abs` folds them, `signed` keeps them.
        channels: Before the sign, how channels become one: `sum`, `mean`, `max_abs` (the largest
            in size, with its sign) or `norm` (Euclidean). None takes `sum` where channels share an
            attribution and `mean` where they were removed together (occlusion, superpixels).
            `first` and `last` set the axis of a layer's channels, as `layout` does.
        baseline: What a method compares with or fills in: a name of
            `attnviz.baseline_images.BLANKS`, a number, an image or images. None is Captum's, which
            is 0. For `gradient_shap` a tensor `(n, c, h, w)` is the distribution that every image
            draws from.
        value_range: What black and white are, for the baselines of these names.
        size: `(h, w)` of the maps; None takes the images', `"own"` keeps a layer's grid.
        interpolation: How a layer's map becomes larger, after the sign.
        check: Return the maps with their completeness error, for methods whose attributions add
            up to `f(x) − f(baseline)`: integrated gradients, gradient SHAP, DeepLIFT and input
            times gradient.
        memory: Bytes that the model's graph may keep at once. At least one row always runs.
        seed: Start of everything random, for each image the same.
        progress: Print on stderr how many rows were sent through the model.
        **options: Further arguments of Captum's `.attribute`, such as `n_steps`; for superpixels
            `segments` and `compactness`, or a `feature_mask` of one's own.

    Returns:
        `(b, h, w)`, raw float32 on the images' device, detached; with `check=True` an
        `Attribution` that holds them.

    Raises:
        InputError: An unknown name, option, layer or target; several outputs and no target;
            outputs that are not one row per image; a layer without proved places; an object that
            was made for another model; a check of a method that claims no completeness.
        UnsupportedError: Guided backpropagation, deconvolution or DeepLIFT on activations that it
            would pass plain gradients, DeepLIFT on an activation module that runs twice, or a
            method that sets hooks (these, and Grad-CAM) on a compiled or scripted model.

    Warns:
        CompletenessWarning: DeepLIFT's attributions do not add up, with the error.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(),
        ...                             torch.nn.Linear(4 * 36, 1))
        >>> attribute(model, torch.rand(2, 3, 8, 8), method="integrated_gradients").shape
        torch.Size([2, 8, 8])
        >>> attribute(model, torch.rand(2, 3, 8, 8), method="deep_lift", check=True).complete
        tensor([True, True])
    """
    if channels == "first" or channels == "last":
        layout, channels = channels, None
    reduce = _reduction(channels, sign)
    check_images(images)
    chosen = named(method) if isinstance(method, str) else described(method)
    _check_arguments(chosen, layer, layout, check)
    if chosen.captum:
        check_takes_images(model, operation=chosen.name)
    with (
        frozen(model, gradients=True),
        Progress(None, label=chosen.name, unit="rows", shown=progress) as bar,
    ):
        images = images.detach().clone()
        explained = ExplainedModel(model, len(images), target, bar)
        with _explainer(chosen, method, explained, images, layer, layout, options) as explainer:
            if chosen.captum:
                index: Tensor | None = indices_per_image(target, images)
            else:
                index = _own_indices(explainer, model, images, target)
            options = checked_options(chosen, explainer, options)
            blanks = _baselines(chosen, explainer, images, baseline, value_range)
            request = Request(chosen, explainer, images, index, *blanks, options, seed)
            rows = _rows(model, request, memory)
            parts, sums = [], []
            for attributions in request.attributions(rows):
                parts.append(reduce(attributions, chosen.channels))
                sums.append(_sums(attributions))
        maps = torch.cat(parts) if parts else images.new_zeros(0, *images.shape[-2:])
        maps = resized(maps, _size(size, images), interpolation)
        if not (check or ("DeepLift" in type(explainer).__name__ and chosen.complete)):
            return maps
        total, magnitude = torch.cat([images.new_zeros(2, 0).double(), *sums], 1)
        change = _change(model, request, target, rows)
    result = Attribution(maps, total.float(), change.float(), magnitude.float())
    if check:
        return result
    warn_if_incomplete(chosen.name, result)
    return maps


def _check_arguments(method: Method, layer: object, layout: Layout | None, check: bool) -> None:
    if layer is not None and not method.layer:
        raise InputError(f"{method.name}: expected no layer=, since it explains the images")
    if layout is not None and not method.layer:
        raise InputError(
            f"{method.name}: expected no layout= (or channels='first', 'last'), which says how the "
            "output of a layer lies; it belongs to layer_gradcam and guided_gradcam"
        )
    if check and not method.complete:
        complete = [name for name, one in METHODS.items() if one.complete]
        raise InputError(
            f"{method.name}: expected check=True for methods whose attributions should add up to "
            f"the change of the output ({', '.join(complete)}); this one does not claim it"
        )


@contextmanager
def _explainer(
    chosen: Method,
    method: Any,
    explained: ExplainedModel,
    images: Images,
    layer: str | nn.Module | None,
    layout: Layout | None,
    options: dict[str, Any],
) -> Iterator[Any]:
    """The Captum object, once model and layer are known to suit it."""
    model = explained.model
    if not chosen.captum:
        _check_object(chosen, method, model, images)
        yield method
        return
    check_model(chosen, captum_class(chosen), model, images)
    if not chosen.layer:
        yield built(chosen, explained, None)
        return
    module = find_layer(model, layer, images)
    of_input = bool(options.get("attribute_to_layer_input", False))
    if not len(images):
        yield built(chosen, explained, module)
        return
    arrangement = arrangement_of(
        model, module, images, layout=layout, name=_name_of(module, model), of_input=of_input
    )
    with feature_maps(module, arrangement, of_input=of_input) as view:
        yield built(chosen, explained, view)


def _name_of(layer: nn.Module, model: nn.Module) -> str:
    return next((name for name, module in model.named_modules() if module is layer), "")


def _check_object(chosen: Method, explainer: Any, model: nn.Module, images: Images) -> None:
    """The same checks for a Captum object of the user's own, on the model that it was made for."""
    inner = getattr(explainer, "attribution_method", explainer)
    forward = getattr(inner, "forward_func", None) or getattr(inner, "model", None) or model
    if isinstance(forward, nn.Module) and not _related(forward, model):
        raise InputError(
            f"{chosen.name}: expected an object made for this model, got one made for another "
            f"{type(forward).__name__}; make it anew with {chosen.name}(model)"
        )
    hooked = getattr(inner, "model", forward)
    check_model(chosen, type(inner), hooked if isinstance(hooked, nn.Module) else model, images)
    layer = getattr(getattr(inner, "grad_cam", inner), "layer", None)
    if not isinstance(layer, nn.Module) or "Neuron" in type(inner).__name__ or not len(images):
        return
    arrangement: Arrangement = arrangement_of(forward, layer, images, name=_name_of(layer, model))
    if not arrangement.unchanged:
        raise InputError(
            f"{chosen.name}: expected a layer that puts out (b, c, h, w), which is how Captum "
            f"takes its output, and it puts out its channels elsewhere; use "
            "method='layer_gradcam' with layer=, which rearranges it"
        )


def _sums(attributions: Tensor) -> Tensor:
    """`(2, b)`: sum and absolute sum of each image's attributions."""
    flat = attributions.double().flatten(1)
    return torch.stack([flat.sum(1), flat.abs().sum(1)])


def _change(model: nn.Module, request: Request, target: Target, rows: int) -> Scores:
    """`f(x) − f(baseline)` of the explained output, `(b,)`, a few rows in one forward."""
    index = request.target

    def outputs(images: Tensor, chosen: Target) -> Tensor:
        with torch.no_grad():
            parts = [
                target_scores(
                    model(images[start : start + rows]),
                    chosen[start : start + rows] if isinstance(chosen, Tensor) else chosen,
                ).double()
                for start in range(0, len(images), rows)
            ]
        return torch.cat([images.new_zeros(0).double(), *parts])

    of_images = outputs(request.images, index)
    if request.distribution is None:
        baseline = request.baseline
        blank = torch.zeros_like(request.images) if baseline is None else baseline
        return of_images - outputs(blank, index)
    if index is None:
        return of_images - outputs(request.distribution, None).mean()
    means = {one: outputs(request.distribution, one).mean() for one in set(index.tolist())}
    return of_images - torch.stack([means[one] for one in index.tolist()])


def _own_indices(explainer: Any, model: nn.Module, images: Tensor, target: Target) -> Tensor | None:
    """The target for a given explainer; the number of outputs is taken from its forward."""
    name = type(explainer).__name__
    if not _takes(explainer, "target"):
        if target is not None:
            raise InputError(f"{name}: expected no target=, since it explains none of the outputs")
        return None
    inner = getattr(explainer, "attribution_method", explainer)
    forward = getattr(inner, "forward_func", None) or getattr(inner, "model", None)
    if forward is None or not len(images):
        return None if target is None else indices_per_image(target, images)
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
    value_range: ValueRange,
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
    """How many rows of a forward fit into the budget; measured only where it matters."""
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
