"""The methods by name: which Captum class each is, and what it needs to be asked for a map.

A method is data, not a class: what differs between them is which arguments they take, and how an
image's work can be cut into pieces that fit into memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from attnviz.errors import InputError, UnsupportedError, unknown_name

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
"""Captum's arguments that attnviz answers for."""


@dataclass(frozen=True)
class Method:
    """How a Captum method is asked for a map.

    Attributes:
        name: What `attribute(method=)` takes.
        captum: The class in `captum.attr`; empty for an object of the user's own.
        summary: What a place's value means, in one line.
        channels: How channels become one number where the caller does not say.
        layer: Whether it explains a layer's places.
        gradient: Whether the images themselves have to ask for a gradient.
        copies: Rows of a forward that one image needs at once, or the option that says so.
        split: Captum's argument that cuts an image's rows into pieces.
        alone: One image at a time, all from the same seed: what is drawn for an image must not
            depend on the images around it.
        superpixels: Whether it removes regions.
        distribution: Whether a tensor of baselines is what every image draws from, not one each.
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
    defaults: Mapping[str, Any] = field(default_factory=dict)


CATALOGUE: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "saliency",
            "Saliency",
            "gradient of the output (Simonyan 2013; signed, where Captum takes it absolute)",
            defaults={"abs": False},
        ),
        Method("input_x_gradient", "InputXGradient", "input times its gradient (Shrikumar 2016)"),
        Method(
            "integrated_gradients",
            "IntegratedGradients",
            "gradient along the way from a baseline (Sundararajan 2017)",
            gradient=False,
            copies="n_steps",
            split="internal_batch_size",
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
            defaults={"n_samples": 16},
        ),
        Method(
            "deep_lift",
            "DeepLift",
            "change of activations against a baseline, rescale rule; products of two activations "
            "(attention, gates) pass as plain gradients (Shrikumar 2017)",
            copies=2,
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

_UNGUIDED: set[type[nn.Module]] = {
    nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Hardswish, nn.Softplus,
}  # fmt: skip
_HOOKING = {"deep_lift", "guided_backprop", "guided_gradcam", "layer_gradcam"}
_DISTRIBUTION = ("GradientShap", "DeepLiftShap")
_RANDOM = ("NoiseTunnel", "Lime", "LimeBase", "KernelShap", "ShapleyValueSampling", *_DISTRIBUTION)


def methods() -> dict[str, str]:
    """Each method's name and what it says, in one line."""
    return {name: method.summary for name, method in CATALOGUE.items()}


def named(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: There is none.
    """
    if name not in CATALOGUE:
        raise unknown_name("attribution method", name, CATALOGUE)
    return CATALOGUE[name]


def built(method: Method, model: nn.Module, layer: nn.Module | None) -> Any:
    """The Captum object for a model.

    Raises:
        UnsupportedError: A guided method on a model whose activations it would not guide, or one
            that sets hooks on a compiled or scripted model; or Captum is not installed.
    """
    attr = _captum(method.name)
    if method.name in _HOOKING:
        _need_hooks(method, model)
    if method.name.startswith("guided"):
        _need_guidable(method, model)
    make = getattr(attr, method.captum)
    explainer = make(model, layer) if method.layer else make(model)
    if method.name == "kernel_shap":
        from attnviz.attribution.regions import LeastSquares

        explainer.interpretable_model = LeastSquares()
    return explainer


def _captum(name: str) -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise UnsupportedError(
            f"{name}: expected captum to be installed; pip install captum"
        ) from error
    return captum.attr


def _need_hooks(method: Method, model: nn.Module) -> None:
    """Compiled and scripted modules run without the hooks that Captum sets, some silently."""
    for module in model.modules():
        compiled = type(module).__name__ == "OptimizedModule"
        if compiled or isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedError(
                f"{method.name}: expected a model in plain Python, since this method sets hooks, "
                f"got a {'compiled' if compiled else 'scripted'} {type(module).__name__}; pass "
                f"{'the module that was compiled (._orig_mod)' if compiled else 'the original'}"
            )


def _need_guidable(method: Method, model: nn.Module) -> None:
    """Captum guides `nn.ReLU` and nothing else; what is left out would look like a guided map."""
    kinds = {type(module) for module in model.modules()}
    unguided = sorted(kind.__name__ for kind in kinds & _UNGUIDED)
    if unguided or nn.ReLU not in kinds:
        what = f"it also has {', '.join(unguided)}" if unguided else "it has no nn.ReLU"
        raise UnsupportedError(
            f"{method.name}: expected a model whose activations all are nn.ReLU modules, since "
            f"those are all that Captum guides; {what}, and the map would be plain gradient: "
            "use method='saliency'"
        )


def described(explainer: Any) -> Method:
    """What can be told of a Captum object that somebody else made.

    Raises:
        InputError: It has no `attribute`.
    """
    if isinstance(explainer, type) or not callable(getattr(explainer, "attribute", None)):
        raise InputError(
            f"method: expected a name ({', '.join(CATALOGUE)}) or an object with .attribute, such "
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
        alone=foreign or name.endswith(_RANDOM),  # who knows what it draws
        distribution=name.endswith(_DISTRIBUTION),
        defaults={"n_steps": takes["n_steps"].default} if "n_steps" in takes else {},
    )


def checked_options(method: Method, explainer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with the method's defaults below them.

    Raises:
        InputError: An option that the method does not have, or that attnviz answers for.
    """
    takes = inspect.signature(explainer.attribute).parameters
    known = set(takes) - RESERVED | ({"segments", "compactness"} if method.superpixels else set())
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values()) and not method.captum
    for name in options:
        if name in RESERVED or not (name in known or open_ended):
            raise unknown_name(f"option of {method.name}", name, known)
    return {**method.defaults, **options}
