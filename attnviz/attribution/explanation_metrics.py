"""Infidelity and sensitivity of a map (Yeh et al. 2019), batched and seeded.

Sensitivity is Captum's. Infidelity is the same number as `captum.metrics.infidelity` without
normalisation; with it, Captum's fitted scale may be negative, and ours may not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attnviz.attribution.attribution import MEMORY, attribute
from attnviz.attribution.method_table import described, named
from attnviz.attribution.request import ExplainedModel, bytes_per_image, without_notices
from attnviz.inputs import AnyMaps, check_images, check_takes_images, maps_of_images
from attnviz.model_state import frozen, seeded
from attnviz.shapes import Images, Scores
from attnviz.targets import Target, indices_per_image


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

    `E[(β·I·a − (f(x) − f(x − I)))²]` over Gaussian noise `I` (Yeh et al. 2019, definition 2.1). A
    map's value is spread evenly over the channels of its place. `β ≥ 0` is the scale that fits
    best: a map that points the wrong way scores as an empty one.

    Args:
        model: Any module from images to `(b,)`, `(b, 1)` or `(b, n)` outputs.
        images: `(b, c, h, w)`.
        maps: `(b, h, w)`, signed, at the images' size, tensor or numpy.
        target: Which output; needed for `n > 1`.
        noise: Standard deviation of the noise, in the images' unit.
        samples: Draws per image.
        normalize: Scale each map so that it fits best first, since maps have no common unit;
            otherwise `β = 1`.
        memory: Bytes that the graphs of one forward's rows may keep.
        seed: Start of the noise, the same for each image.

    Returns:
        `(b,)`, 0 or more, in the output's unit squared. NaN for a map that is not finite.

    Raises:
        InputError: Maps that do not fit the images, or as `attribute`.
    """
    maps = maps_of_images(images, maps)
    check_takes_images(model, operation="infidelity")
    with frozen(model):
        images = images.detach().clone()
        explained = ExplainedModel(model, len(images), target)
        index = indices_per_image(target, images)
        spread = (maps.to(images) / images.shape[1])[:, None].expand_as(images)
        rows = max(1, memory // bytes_per_image(model, images[:1])) if len(images) else 1
        scores = []
        for i in range(len(images)):
            with seeded(seed, images.device):
                noises = noise * torch.stack([torch.randn_like(images[i]) for _ in range(samples)])
            predicted = (noises * spread[i]).flatten(1).sum(1).double()
            drops = _drops(explained, images[i], noises, index[i], rows)
            scale = _fitted_scale(predicted, drops) if normalize else 1.0
            scores.append((scale * predicted - drops).square().mean())
    return torch.stack(scores).float() if scores else images.new_zeros(0).float()


def _drops(model: nn.Module, image: Tensor, noises: Tensor, index: Tensor, rows: int) -> Tensor:
    """`f(x) − f(x − I)` for each noise, `(samples,)` float64, `rows` in one forward."""
    versions = torch.cat([image[None], image - noises])
    outputs = [
        model(versions[start : start + rows])[:, int(index)].double()
        for start in range(0, len(versions), rows)
    ]
    whole = torch.cat(outputs)
    return whole[0] - whole[1:]


def _fitted_scale(predicted: Tensor, drops: Tensor) -> Tensor:
    """The scale of at least 0 that fits predictions to drops best by least squares.

    Not below 0: a negative scale would turn a map into its opposite, and score both the same.
    """
    power = predicted.square().sum()
    if not bool(power > 0):
        return power  # 0, or NaN for a map that is not finite
    return ((predicted * drops).sum() / power).clamp(min=0)


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
        **how: Arguments of `attribute`: `method`, `layer`, `target`, `sign`, …

    Returns:
        `(b,)`, 0 or more; for a map that is zero everywhere Captum gives the change itself.

    Raises:
        InputError: As `attribute`.
    """
    from captum.metrics import sensitivity_max

    check_images(images)
    target, scores = how.pop("target", None), []
    index = None if target is None else indices_per_image(target, images)
    for i in range(len(images)):
        own = {**_of_image(how, i, len(images)), "target": None if index is None else int(index[i])}

        def explain(x: Any, own: dict[str, Any] = own) -> tuple[Tensor]:
            x = x[0] if isinstance(x, tuple) else x
            return (attribute(model, x, seed=seed, **own),)

        with seeded(seed, images.device), without_notices(), torch.no_grad():
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
    """Arguments of `attribute` for the i-th of `b` images, with its own where there is one each."""
    method = how.get("method", "layer_gradcam")
    shared = (named(method) if isinstance(method, str) else described(method)).distribution
    each = ("feature_mask",) if shared else ("feature_mask", "baseline")

    def own(name: str, value: Any) -> Any:
        one_each = name in each and isinstance(value, Tensor) and value.ndim == 4
        return value[i : i + 1] if one_each and len(value) == b else value

    return {name: own(name, value) for name, value in how.items()}
