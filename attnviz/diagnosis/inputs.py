"""What is wrong with the images themselves, or with them for this model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from attnviz.diagnosis.catalogue import finding
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import Finding

BYTES = 16.0
"""A pixel above this is a byte that nobody scaled: normalised photographs stay below 3."""

SHIFT, RATIO = 3.0, 4.0
"""How many standard deviations channel means, and by what factor spreads, may be off at the first
batch norm. Same-distribution photographs stay below 1 and 2."""


def input_findings(images: Tensor) -> Iterator[Finding]:
    """Findings that need no model."""
    finite = images.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        yield finding("input-not-finite", "input", images=int((~finite).sum()))
        images = images[finite]
    if not len(images):
        return
    low, high = float(images.min()), float(images.max())
    if high > BYTES:
        yield finding("input-range", "input", lowest=low, highest=high)
    flat = images.flatten(2)
    still = int((flat.amax(2) == flat.amin(2)).all(1).sum())
    if still:
        yield finding("input-constant", "input", images=still)
    copies = len(images) - len({row.double().cpu().numpy().tobytes() for row in images})
    if copies and not still:
        yield finding("input-repeated", "input", images=copies)


def statistics_findings(case: Examination) -> Iterator[Finding]:
    """Images against what the model's first batch norm saw in training."""
    module = _first_norm(case.model)
    if module is None or not case.trained:
        return
    mean, var = module.running_mean, module.running_var
    if mean is None or var is None:
        return
    heard: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: heard.append(args[0].detach()))
    try:
        case.attempt(case.few)
    finally:
        handle.remove()
    if not heard:
        return
    features = heard[0].float().transpose(0, 1).flatten(1)
    spread = var.float().sqrt().clamp_min(1e-6)
    shift = float(((features.mean(1) - mean.float()) / spread).abs().median())
    ratio = float((features.std(1) / spread).median())
    if shift > SHIFT or not 1 / RATIO < ratio < RATIO:
        yield finding("input-statistics", "input", shift=shift, ratio=ratio)


def _first_norm(model: nn.Module) -> nn.modules.batchnorm._BatchNorm | None:
    """The first batch norm that counted more than a few batches of training."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if module.running_mean is None or module.running_var is None:
            continue
        if module.num_batches_tracked is not None and int(module.num_batches_tracked) > 20:
            return module
        return None
    return None
