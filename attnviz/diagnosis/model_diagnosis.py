"""`diagnose`: faults of a model's attention and gates, with evidence and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.diagnosis.examination import Examination, is_trained
from attnviz.diagnosis.findings import Findings
from attnviz.diagnosis.registry import findings_of
from attnviz.errors import InputError
from attnviz.inputs import AnyMasks, check_images, check_takes_images, masks_of_images
from attnviz.model_state import frozen
from attnviz.shapes import Images


def diagnose(
    model: nn.Module,
    images: Images,
    masks: AnyMasks | None = None,
    *,
    padding: AnyMasks | None = None,
    groups: Sequence[Any] | None = None,
    trained: bool | None = None,
    name: str = "",
) -> Findings:
    """Diagnose a model's attention and gates: faults, with evidence and remedy.

    The model runs in evaluation mode a few times on the first images (on all of them only where
    masks are given): plain, in a smaller batch, at another size, with a perturbed patch, and with
    replaced attention weights and gates. Modes, buffers, gradients, hooks and random states are
    restored.

    Args:
        model: Any module from images to tensors. Compiled and scripted models are refused as by
            `attnviz.watch`.
        images: `(b, c, h, w)`, as the model was trained on, eight or more.
        masks: `(b, h, w)`, tensor or numpy, True on the object that the model should find.
            Without masks localization is not judged.
        padding: `(b, h, w)`, tensor or numpy, True on padding. Without it borders
            of one colour, a sixteenth of the image or more, count as padding.
        groups: The photograph of each image, any names or numbers: crops of one photograph count as
            one. Without it each image is independent.
        trained: Whether the weights are trained. By default this is read from the norm layers. What
            random weights show by nature (flat rows, equal heads, dead gates) is not judged for
            untrained models, and a note where it is not known.
        name: Name in the headline.

    Returns:
        The findings, the worst first; empty if nothing is wrong. Severities are explained at
        `attnviz.diagnosis.SEVERITIES`, codes in `docs/doctor`.

    Raises:
        InputError: Images, masks or padding of the wrong shape or type; a model of several inputs,
            or one that returns no tensors.
        UnsupportedError: A model that cannot be watched.

    Examples:
        >>> import torch
        >>> from attnviz.models import build_model
        >>> found = diagnose(build_model("mha_reshape"), torch.randn(4, 3, 96, 96).clamp(-1, 1))
        >>> found.errors.codes
        ('scrambled-tokens',)
    """
    _check(model, images)
    if masks is not None:
        masks = masks_of_images(images, masks, "masks", operation="diagnose")
    if padding is not None:
        padding = masks_of_images(images, padding, "padding", operation="diagnose")
    numbers = None if groups is None else _numbered(groups, len(images))
    images = images.detach()
    found = findings_of("images", images)
    usable = images.isfinite().flatten(1).all(1)
    if not bool(usable.any()):
        return Findings(found, name=name, unexamined=("every image holds NaN or infinity",))
    if not bool(usable.all()):
        images = images[usable]
        masks = None if masks is None else masks[usable]
        padding = None if padding is None else padding[usable]
        numbers = None if numbers is None else numbers[usable]
    trained = is_trained(model) if trained is None else trained
    training = sum(module.training for module in model.modules())
    with frozen(model):
        case = Examination(
            model, images, masks=masks, padding=padding, groups=numbers, trained=trained,
            left_in_training=training,
        )  # fmt: skip
        found += findings_of("model", case)
    counts = {"attention": len(case.attention()), "gates": len(case.gates())}
    return Findings(found, name=name, checked=counts)


def _numbered(groups: Sequence[Any], images: int) -> Tensor:
    if len(groups) != images:
        raise InputError(
            f"diagnose: expected groups of {images} images, got {len(groups)}; one name an image"
        )
    names = {name: number for number, name in enumerate(dict.fromkeys(map(str, groups)))}
    return torch.tensor([names[str(name)] for name in groups])


def _check(model: nn.Module, images: Tensor) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"diagnose: expected a torch module, got {type(model).__name__}; "
            "wrap what you have in one that takes images"
        )
    check_images(images, operation="diagnose")
    check_takes_images(model, operation="diagnose")
    if not len(images):
        raise InputError("diagnose: expected one image or more, got none")
