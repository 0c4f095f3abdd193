"""`diagnose`: what is wrong with this attention, with evidence and remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from attnviz.diagnosis.asking import at_rest
from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.effects import effect_findings
from attnviz.diagnosis.examination import Examination, is_trained
from attnviz.diagnosis.findings import Finding, Findings
from attnviz.diagnosis.gating import gate_findings
from attnviz.diagnosis.inputs import input_findings, statistics_findings
from attnviz.diagnosis.rules.localization import aim_findings, padding_findings
from attnviz.diagnosis.running import leak_findings, running_findings
from attnviz.diagnosis.spread import spread_findings
from attnviz.diagnosis.tokens import order_findings, token_findings
from attnviz.diagnosis.weights import applied_findings, weight_findings
from attnviz.errors import InputError
from attnviz.inputs import AnyMasks, as_tensor
from attnviz.shapes import Images

Rule: TypeAlias = Callable[[Examination], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    running_findings,
    statistics_findings,
    token_findings,
    weight_findings,
    applied_findings,
    order_findings,
    gate_findings,
    effect_findings,
    spread_findings,
    padding_findings,
    aim_findings,
)
"""What is asked of every model, in this order."""

_EXPLAINED = {"batch-attention", "gate-over-batch", "wrong-axis"}  # faults that leak by themselves
_FOLLOWS = {
    "scrambled-output": ("no-effect",),
    "duplicate-heads": ("near-uniform", "collapsed-heads"),
    "saturated-heads": ("collapsed-heads",),
}
"""What is a consequence of what, at one module."""


def diagnose(
    model: nn.Module,
    images: Images,
    masks: AnyMasks | None = None,
    *,
    padding: AnyMasks | None = None,
    trained: bool | None = None,
    name: str = "",
) -> Findings:
    """Say what is wrong with a model's attention and gates, with evidence and remedy.

    The model is run in evaluation mode a few times on the first images (on all of them only where
    masks are given): as they are, in a smaller batch, at another size, with one spot changed, and
    with other weights put in the place of its own. It is left as it came: modes, buffers,
    gradients, hooks and random numbers.

    Args:
        model: Any module from images to tensors. Compiled and scripted models are refused as by
            `attnviz.watch`.
        images: `(b, c, h, w)`, as the model was trained on; eight or more tell most.
        masks: `(b, h, w)`, tensor or numpy, True where the thing is that the model should find.
            Without it nothing is said of where attention points.
        padding: `(b, h, w)`, tensor or numpy, True where an image is filled up. Without it borders
            of one colour, a sixteenth of the image or more, count as padding.
        trained: Whether the weights are trained. If not given it is read off the norm layers. What
            random weights do by nature (flat rows, equal heads, dead gates) is withheld from
            untrained models, and a note where it is not known.
        name: What the headline calls it.

    Returns:
        The findings, the worst first; empty if nothing is wrong. Severities are explained at
        `attnviz.diagnosis.SEVERITIES`, codes in `docs/doctor`.

    Raises:
        InputError: Images, masks or padding of the wrong shape or type; a model that returns no
            tensors.
        UnsupportedError: A model that cannot be watched.

    Example:
        >>> import torch
        >>> from attnviz.models import build_model
        >>> found = diagnose(build_model("mha_reshape"), torch.randn(4, 3, 96, 96).clamp(-1, 1))
        >>> found.errors.codes
        ('scrambled-tokens',)
    """
    masks = None if masks is None else as_tensor(masks, "masks")
    padding = None if padding is None else as_tensor(padding, "padding")
    _check(model, images, masks, padding)
    images = images.detach()
    found = list(input_findings(images))
    usable = images.isfinite().flatten(1).all(1)
    if not bool(usable.any()):
        return Findings(found, name=name)
    if not bool(usable.all()):
        images = images[usable]
        masks = None if masks is None else masks[usable]
        padding = None if padding is None else padding[usable]
    trained = is_trained(model) if trained is None else trained
    training = sum(module.training for module in model.modules())
    with at_rest(model):
        case = Examination(
            model, images, masks=masks, padding=padding, trained=trained, left_in_training=training
        )
        found += examined(case)
    counts = {"attention": len(case.attention()), "gates": len(case.gates())}
    return Findings(found, name=name, checked=counts)


def examined(case: Examination) -> list[Finding]:
    """All findings of one examination."""
    found = [one for rule in RULES for one in rule(case)]
    found = [one for one in found if not _superseded(one, found)]
    if not _EXPLAINED & {one.code for one in found}:
        found += leak_findings(case)
    if not case.records and not any(one.severity == "error" for one in found):
        found.append(finding("nothing-seen", "model"))
    elif case.trained is False:
        found.append(finding("untrained", "model"))
    return found


def _superseded(one: Finding, found: list[Finding]) -> bool:
    """Whether another finding at the same module says what this one follows from."""
    causes = _FOLLOWS.get(one.code, ())
    return any(other.code in causes and other.where == one.where for other in found)


def _check(model: nn.Module, images: Tensor, masks: Tensor | None, padding: Tensor | None) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"diagnose: expected a torch module, got {type(model).__name__}; "
            "wrap what you have in one that takes images"
        )
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        came = (
            f"{images.dtype} {tuple(images.shape)}"
            if isinstance(images, Tensor)
            else type(images).__name__
        )
        raise InputError(
            f"diagnose: expected images as a floating-point tensor (b, c, h, w), got {came}"
        )
    if not len(images):
        raise InputError("diagnose: expected one image or more, got none")
    wanted = (images.shape[0], *images.shape[2:])
    for what, one in (("masks", masks), ("padding", padding)):
        if one is not None and (tuple(one.shape) != wanted or one.dtype != torch.bool):
            raise InputError(
                f"diagnose: expected {what} as booleans {wanted}, got {one.dtype} "
                f"{tuple(one.shape)}; compare with a threshold, {what} = {what} > 0.5"
            )
