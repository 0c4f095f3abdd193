"""Attribution methods by name: the Captum class of each and the arguments it takes.

A method is data, not a class: methods differ in their arguments, and in how the work of an image
can be cut into pieces that fit into memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from attnviz.attribution.activations import check_guidable, check_rescalable
from attnviz.errors import InputError, UnsupportedError, unknown_name
from attnviz.shapes import Images

RESERVED = frozenset(
    {
        "inputs",
        "target",
        "baselines",
        "additional_forward_args",
        "return_convergence_delta",
        "internal_batch_size",
        "perturbations_per_eval",
        "return_input_shape",
        "show_progress",
        "attr_dim_summation",
        "kwargs",
    }
)
"""Captum's arguments that attnviz sets itself."""


@dataclass(frozen=True)
class Method:
    """A Captum method and its arguments.

    Attributes:
        name: The value of `attribute(method=)`.
        captum: The class in `captum.attr`; empty for an object of the user's own.
        summary: The meaning of a place's value, in one line.
        channels: Default reduction of channels to one number.
        layer: Whether it explains a layer's places.
        gradient: Whether the images must require a gradient.
        copies: Rows of a forward that one image needs at once, or the option that gives them.
        split: Captum's argument that cuts an image's rows into pieces.
        alone: One image at a time, each from the same seed: random numbers of an image must not
            depend on the images around it.
        superpixels: Whether it removes regions.
        distribution: Whether a tensor of baselines is a distribution that every image samples.
        complete: Whether the attributions of an image should add up to `f(x) − f(baseline)`.
        defaults: Options where they differ from Captum's, or Captum has none.
    """

    name: str
    captum: str
    summary: str
    channels: Literal["sum", "mean"] = "sum"
    layer: bool = False
    gradient: bool = True
    copies: int | str = 1
    split: str | None = None
    alone: bool = False
    superpixels: bool = False
    distribution: bool = False
    complete: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "saliency",
            "Saliency",
            "gradient of the output (Simonyan 2013; signed, where Captum takes it absolute)",
            defaults={"abs": False},
        ),
        Method(
            "input_x_gradient",
            "InputXGradient",
            "input times its gradient (Shrikumar 2016)",
            complete=True,
        ),
        Method(
            "integrated_gradients",
            "IntegratedGradients",
            "gradient along the way from a baseline (Sundararajan 2017)",
            gradient=False,
            copies="n_steps",
            split="internal_batch_size",
            complete=True,
            defaults={"n_steps": 50},
        ),
        Method(
            "gradient_shap",
            "GradientShap",
            "expected gradient between noisy input and baselines (Lundberg 2017, Erion 2021)",
            gradient=False,
            copies="n_samples",
            alone=True,
            distribution=True,
            complete=True,
            defaults={"n_samples": 16},
        ),
        Method(
            "deep_lift",
            "DeepLift",
            "change of activations against a baseline, rescale rule; products of two activations "
            "(attention, gates) pass as plain gradients (Shrikumar 2017)",
            copies=2,
            complete=True,
        ),
        Method(
            "guided_backprop",
            "GuidedBackprop",
            "gradient through nn.ReLU modules, negative ones cut (Springenberg 2014)",
        ),
        Method(
            "guided_gradcam",
            "GuidedGradCam",
            "guided backpropagation times Grad-CAM (Selvaraju 2017)",
            layer=True,
        ),
        Method(
            "layer_gradcam",
            "LayerGradCam",
            "a layer's channels, weighed by their mean gradient (Selvaraju 2017)",
            layer=True,
        ),
        Method(
            "occlusion",
            "Occlusion",
            "drop of the output when a sliding window is blanked (Zeiler 2014)",
            channels="mean",
            gradient=False,
            split="perturbations_per_eval",
        ),
        Method(
            "feature_ablation",
            "FeatureAblation",
            "drop of the output when a superpixel is blanked",
            channels="mean",
            gradient=False,
            split="perturbations_per_eval",
            superpixels=True,
        ),
        Method(
            "kernel_shap",
            "KernelShap",
            "Shapley value of a superpixel, by weighted regression (Lundberg 2017)",
            channels="mean",
            gradient=False,
            split="perturbations_per_eval",
            alone=True,
            superpixels=True,
            defaults={"n_samples": 512},
        ),
    )
}

_HOOKING = ("DeepLift", "Guided", "Deconvolution", "Layer", "GradCam")
_DISTRIBUTION = ("GradientShap", "DeepLiftShap")
_COMPLETE = ("IntegratedGradients", "InputXGradient", "DeepLift", *_DISTRIBUTION)
_RANDOM = ("NoiseTunnel", "Lime", "LimeBase", "KernelShap", "ShapleyValueSampling", *_DISTRIBUTION)


def methods() -> dict[str, str]:
    """Each method's name and the meaning of its values, in one line."""
    return {name: method.summary for name, method in METHODS.items()}


def named(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: There is none.
    """
    if name not in METHODS:
        raise unknown_name("attribution method", name, METHODS)
    return METHODS[name]


def built(method: Method, model: nn.Module, layer: nn.Module | None) -> Any:
    """The Captum object for a model.

    Raises:
        UnsupportedError: Captum is not installed.
    """
    make = captum_class(method)
    explainer = make(model, layer) if method.layer else make(model)
    if method.name == "kernel_shap":
        from attnviz.attribution.regions import LeastSquares

        explainer.interpretable_model = LeastSquares()
    return explainer


def check_model(method: Method, explainer: type, model: nn.Module, images: Images) -> None:
    """Refuse a model for which the method would give another method's map.

    Args:
        method: The method, for messages.
        explainer: Captum's class.
        model: The model that Captum sets hooks on.
        images: `(b, c, h, w)`; the first is used.

    Raises:
        UnsupportedError: A compiled or scripted model where the method sets hooks; activations
            that DeepLIFT, guided backpropagation or deconvolution would pass plain gradients.
    """
    name = explainer.__name__
    if any(part in name for part in _HOOKING):
        _check_hookable(method, model)
    if not len(images):
        return
    if "DeepLift" in name:
        check_rescalable(method.name, model, images[:1])
    elif "Guided" in name or "Deconvolution" in name:
        check_guidable(method.name, model, images[:1])


def captum_class(method: Method) -> Any:
    """The method's class in `captum.attr`.

    Raises:
        UnsupportedError: Captum is not installed.
    """
    try:
        import captum.attr
    except ImportError as error:
        raise UnsupportedError(
            f"{method.name}: expected captum to be installed; pip install captum"
        ) from error
    return getattr(captum.attr, method.captum)


def _check_hookable(method: Method, model: nn.Module) -> None:
    """Compiled and scripted modules run without the hooks that Captum sets, some silently."""
    for module in model.modules():
        compiled = type(module).__name__ == "OptimizedModule"
        if compiled or isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedError(
                f"{method.name}: expected a model in plain Python, since this method sets hooks, "
                f"got a {'compiled' if compiled else 'scripted'} {type(module).__name__}; pass "
                f"{'the module that was compiled (._orig_mod)' if compiled else 'the original'}"
            )


def described(explainer: Any) -> Method:
    """The method that a Captum object of the user's own is.

    Raises:
        InputError: It has no `attribute`.
    """
    if isinstance(explainer, type) or not callable(getattr(explainer, "attribute", None)):
        raise InputError(
            f"method: expected a name ({', '.join(METHODS)}) or an object with .attribute, such "
            f"as captum.attr.Saliency(model), got {explainer!r}"
        )
    name = type(explainer).__name__
    foreign = not type(explainer).__module__.startswith("captum.")
    takes = inspect.signature(explainer.attribute).parameters
    splits = [s for s in ("internal_batch_size", "perturbations_per_eval") if s in takes]
    return Method(
        name,
        "",
        "",
        split=splits[0] if splits else None,
        copies="n_steps" if "n_steps" in takes else 1,
        alone=foreign or name.endswith(_RANDOM),  # another object may draw at random
        distribution=name.endswith(_DISTRIBUTION),
        complete=name in _COMPLETE and bool(getattr(explainer, "multiplies_by_inputs", True)),
        defaults={"n_steps": takes["n_steps"].default} if "n_steps" in takes else {},
    )


def checked_options(method: Method, explainer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with the method's defaults below them.

    Raises:
        InputError: An option that the method does not have, or that attnviz sets itself.
    """
    takes = inspect.signature(explainer.attribute).parameters
    known = set(takes) - RESERVED | ({"segments", "compactness"} if method.superpixels else set())
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values()) and not method.captum
    for name in options:
        if name in RESERVED or not (name in known or open_ended):
            raise unknown_name(f"option of {method.name}", name, known)
    return {**method.defaults, **options}
