"""Captum's methods as maps: `(b, h, w)`, raw float32, one per image.

The only room that knows Captum. A method is asked by name (`methods()` lists them) or as a Captum
object of one's own; which output is explained is never guessed, how channels become one number and
which sign counts is said by argument, and how much runs at once follows from a memory budget.

The numbers are Captum's own; what is added is around them. Two of its defaults are changed, since
they would hide a decision: `saliency` is signed (`sign="abs", channels="max_abs"` is Simonyan's
map), and regressions of `kernel_shap` see 512 samples instead of 25.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnviz.attribution.asking import (
    Explained,
    Question,
    bytes_per_image,
    check_images,
    paired,
    rows_of_outputs,
)
from attnviz.attribution.catalogue import (
    Method,
    built,
    checked_options,
    described,
    methods,
    named,
)
from attnviz.attribution.layers import find_layer
from attnviz.attribution.state import seeded, undisturbed, unremarked
from attnviz.attribution.superpixels import superpixels
from attnviz.blanks import Blank, blank_like
from attnviz.errors import InputError, unknown_name
from attnviz.maps.places import Grid, Interpolation, resized
from attnviz.metrics.inputs import AnyMaps
from attnviz.shapes import Images, Scores
from attnviz.targets import Target, as_indices

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
        baseline: What a method compares with or fills in: a name of `attnviz.blanks.BLANKS`, a
            number, an image or images. None is Captum's, which is 0. For `gradient_shap` a tensor
            `(n, c, h, w)` is the distribution that every image draws from.
        value_range: What black and white are, for the baselines of these names.
        size: `(h, w)` of the maps; None takes the images', `"own"` keeps a layer's grid.
        interpolation: How a layer's map becomes larger, after the sign.
        memory: Bytes that the model's graph may keep at once. At least one row always runs.
        seed: Start of everything random, for each image the same.
        progress: Show a bar of rows sent through the model.
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
    from tqdm import tqdm

    reduce = _reduction(channels, sign)
    check_images(images)
    with undisturbed(model), tqdm(disable=not progress, unit="row") as bar:
        images = images.detach().clone()
        explained = Explained(model, len(images), target, bar)
        question = _question(
            explained, images, method, layer, target, baseline, value_range, seed, options
        )
        bar.set_description(question.method.name)
        rows = _rows(model, question, memory)
        fallback = question.method.channels
        parts = [reduce(answer, fallback) for answer in question.answers(rows)]
        maps = torch.cat(parts) if parts else images.new_zeros(0, *images.shape[-2:])
    return resized(maps, _size(size, images), interpolation)


def infidelity(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    *,
    target: Target = None,
    noise: int | float = 0.1,
    samples: int = 32,
    normalize: bool = True,
    memory: int = MEMORY,
    seed: int = 0,
) -> Scores:
    """How badly a map predicts what noise on the image does to the output; lower is better.

    `E[(I · a − (f(x) − f(x − I)))²]` over Gaussian noise `I` (Yeh et al. 2019, definition 2.1), by
    `captum.metrics.infidelity`. A map's value is spread evenly over the channels of its place.

    Args:
        model: Any module from images to `(b,)`, `(b, 1)` or `(b, n)` outputs.
        images: `(b, c, h, w)`.
        maps: `(b, h, w)`, signed, at the images' size, tensor or numpy.
        target: Which output; needed for `n > 1`.
        noise: Standard deviation of the noise, in the images' unit.
        samples: Draws per image.
        normalize: Scale each map so that it fits best first, since maps have no common unit.
        memory: Bytes that the draws of one image may hold at once.
        seed: Start of the noise, the same for each image.

    Returns:
        `(b,)`, 0 or more, in the output's unit squared. NaN for a map that is not finite.

    Raises:
        InputError: Maps that do not fit the images, or as `attribute`.
    """
    from captum.metrics import infidelity as captums

    maps = paired(images, maps)

    def disturb(x: Tensor) -> tuple[Tensor, Tensor]:
        # Row by row: one large draw is not the same numbers as several small ones.
        disturbance = noise * torch.stack([torch.randn_like(row) for row in x])
        return disturbance, x - disturbance

    with undisturbed(model), torch.no_grad():
        images = images.detach().clone()
        explained, index = Explained(model, len(images), target), _indices(target, images)
        spread = (maps.to(images) / images.shape[1])[:, None].expand_as(images)
        most = memory // bytes_per_image(model, images[:1]) if len(images) else 1
        scores = []
        for i in range(len(images)):
            with seeded(seed, images.device), unremarked():
                scores.append(
                    captums(
                        explained,
                        disturb,
                        images[i : i + 1],
                        spread[i : i + 1],
                        target=index[i : i + 1],
                        n_perturb_samples=samples,
                        max_examples_per_batch=min(samples, max(1, most)),
                        normalize=normalize,
                    )
                )
    return torch.cat([images.new_zeros(0), *scores]).float()


def sensitivity(
    model: nn.Module,
    images: Images,
    *,
    radius: int | float = 0.02,
    samples: int = 10,
    seed: int = 0,
    **how: Any,
) -> Scores:
    """How much a map changes when the image hardly does; lower is better.

    `max ‖Φ(x + δ) − Φ(x)‖ / ‖Φ(x)‖` over uniform `δ` of at most `radius` per pixel (Yeh et al.
    2019, definition 3.1, relative to the map's own norm), by `captum.metrics.sensitivity_max`.

    Args:
        model: Any module from images to outputs.
        images: `(b, c, h, w)`.
        radius: Largest change of a pixel, in the images' unit.
        samples: Draws per image.
        seed: Start of the changes, the same for each image; the method's own draws start here too.
        **how: What `attribute` is asked with: `method`, `layer`, `target`, `sign`, …

    Returns:
        `(b,)`, 0 or more; for a map that is zero everywhere Captum gives the change itself.

    Raises:
        InputError: As `attribute`.
    """
    from captum.metrics import sensitivity_max

    check_images(images)
    target, scores = how.pop("target", None), []
    index = None if target is None else _indices(target, images)
    for i in range(len(images)):
        own = {**_of_image(how, i, len(images)), "target": None if index is None else int(index[i])}

        def explain(x: Any, own: dict[str, Any] = own) -> tuple[Tensor]:
            x = x[0] if isinstance(x, tuple) else x
            return (attribute(model, x, seed=seed, **own),)

        with seeded(seed, images.device), unremarked(), torch.no_grad():
            scores.append(
                sensitivity_max(
                    explain,
                    images[i : i + 1].detach(),
                    perturb_radius=radius,
                    n_perturb_samples=samples,
                )
            )
    return torch.cat([images.new_zeros(0), *scores]).float()


def _of_image(how: dict[str, Any], i: int, b: int) -> dict[str, Any]:
    """What `attribute` is asked with for the i-th of `b` images: of what is one each, its own."""
    method = how.get("method", "layer_gradcam")
    shared = (named(method) if isinstance(method, str) else described(method)).distribution
    each = ("feature_mask",) if shared else ("feature_mask", "baseline")

    def own(name: str, value: Any) -> Any:
        one_each = name in each and isinstance(value, Tensor) and value.ndim == 4
        return value[i : i + 1] if one_each and len(value) == b else value

    return {name: own(name, value) for name, value in how.items()}


def _question(
    explained: Explained,
    images: Images,
    method: Any,
    layer: str | nn.Module | None,
    target: Target,
    baseline: Blank | None,
    value_range: tuple[int | float, int | float],
    seed: int,
    options: dict[str, Any],
) -> Question:
    chosen = named(method) if isinstance(method, str) else described(method)
    if layer is not None and not chosen.layer:
        raise InputError(f"{chosen.name}: expected no layer=, since it explains the images")
    index: Tensor | None
    if chosen.captum:
        place = find_layer(explained.model, layer) if chosen.layer else None
        explainer, index = built(chosen, explained, place), _indices(target, images)
    else:
        explainer, index = method, _outside_indices(method, explained.model, images, target)
    options = checked_options(chosen, explainer, options)
    blanks = _baselines(chosen, explainer, images, baseline, value_range)
    return Question(chosen, explainer, images, index, *blanks, options, seed)


def _indices(target: Target, images: Tensor) -> Tensor:
    """One index per image for Captum; how many outputs there are is known at the first forward."""
    chosen = as_indices(0 if target is None else target).to(images.device).long()
    if chosen.ndim and chosen.shape != images.shape[:1]:
        raise InputError(
            f"target: expected one index or {len(images)} of them (one per image), "
            f"got shape {tuple(chosen.shape)}"
        )
    return chosen.expand(len(images))


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
        return None if target is None else _indices(target, images)
    if isinstance(forward, nn.Module) and not _related(forward, model):
        raise InputError(
            f"{name}: expected an object made for this model, got one made for another "
            f"{type(forward).__name__}; make it anew with {name}(model)"
        )
    with torch.no_grad():
        outputs = forward(images[:1])
    rows_of_outputs(outputs, len(images), target)
    return None if outputs.ndim == 1 else _indices(target, images)


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


def _rows(model: nn.Module, question: Question, memory: int) -> int:
    """How many rows of a forward fit into the budget; asked of the model only where it matters."""
    images = question.images
    if memory < 1:
        raise InputError(f"memory: expected a number of bytes, got {memory}")
    if len(images) * question.copies <= 1 and question.method.split is None:
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


__all__ = [
    "MEMORY",
    "attribute",
    "find_layer",
    "infidelity",
    "methods",
    "sensitivity",
    "superpixels",
]
