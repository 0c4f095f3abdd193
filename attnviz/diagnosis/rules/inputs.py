"""Faults of the images, by themselves and for this model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.registry import Observation, observed, rule

BYTES = 16.0
"""A pixel above this is an unscaled byte: normalised photographs stay below 3."""

SHIFT, RATIO = 3.0, 4.0
"""Standard deviations that channel means, and the factor that spreads, may be off at the first
batch norm. Photographs of the training distribution stay below 1 and 2."""

_BATCHES = 20  # batches after which running statistics describe the training images


@rule(
    code="input-not-finite",
    severity="error",
    summary="Images hold NaN or infinity.",
    meaning="{images} images hold NaN or infinite values",
    evidence={"images": "number of such images"},
    remedy="find them with images.isfinite().flatten(1).all(1), and repair the loader",
    appearance="Empty for these images.",
    cause="A decoder that failed, or a division by a standard deviation of zero.",
    method="Every pixel is tested. Such images are left out of the other rules.",
    subject="images",
)
def not_finite(images: Tensor) -> Iterator[Observation]:
    broken = int((~images.isfinite().flatten(1).all(1)).sum())
    if broken:
        yield observed("input", images=broken)


@rule(
    code="input-range",
    severity="warning",
    summary="Pixels are bytes, not scaled values.",
    meaning="pixels lie between {lowest:.3g} and {highest:.3g}: these are bytes, and models are "
    "trained on values around 0 to 1",
    evidence={"lowest": "smallest finite pixel", "highest": "largest finite pixel"},
    threshold=f"a pixel above {BYTES:g}",
    remedy="images = images.float() / 127.5 - 1, or the model's own normalisation",
    appearance="Saturated features and arbitrary maps.",
    cause="`images.float()` without a division.",
    method=f"A pixel is above {BYTES:.0f}.",
    subject="images",
)
def unscaled(images: Tensor) -> Iterator[Observation]:
    finite = images[images.isfinite()]
    if finite.numel() and float(finite.max()) > BYTES:
        yield observed("input", lowest=float(finite.min()), highest=float(finite.max()))


@rule(
    code="input-constant",
    severity="warning",
    summary="Some images are one flat colour.",
    meaning="{images} images are one flat colour: they contain nothing to attend to",
    evidence={"images": "number of such images"},
    remedy="check the loader for images that failed to decode",
    appearance="Flat.",
    cause="Files that failed to decode, or padding taken for an image.",
    method="Every channel of an image has one value.",
    subject="images",
)
def constant(images: Tensor) -> Iterator[Observation]:
    flat = images.flatten(2)
    same = int((flat.amax(2) == flat.amin(2)).all(1).sum())
    if same:
        yield observed("input", images=same)


@rule(
    code="input-repeated",
    severity="note",
    summary="Some images are copies of others.",
    meaning="{images} images are exact copies of others in the batch",
    evidence={"images": "number of copies beyond the first"},
    remedy="check the loader's indices; copies make intervals too narrow",
    appearance="The same map twice.",
    cause="A sampler that draws an index twice. Copies make confidence intervals too narrow.",
    method="Images are compared byte for byte.",
    subject="images",
    explained_by=("input-constant",),
)
def repeated(images: Tensor) -> Iterator[Observation]:
    images = images[images.isfinite().flatten(1).all(1)]
    copies = len(images) - len({row.double().cpu().numpy().tobytes() for row in images})
    if copies:
        yield observed("input", images=copies)


@rule(
    code="input-statistics",
    severity="warning",
    summary="Images differ from those of the training.",
    meaning="images differ from those of the training: at the first batch norm channel means are "
    "{shift:.1f} standard deviations off, and the spread is {ratio:.2g} times that of the training",
    evidence={
        "shift": "median over channels of |mean − running mean| / running standard deviation",
        "ratio": "median over channels of the standard deviation over the running one",
    },
    threshold=f"shift above {SHIFT:g}, or ratio outside 1/{RATIO:g} to {RATIO:g}",
    remedy="normalise as in training: the same mean, standard deviation, channel order and range",
    appearance="Faint, or the same everywhere.",
    cause="Another mean, standard deviation, range or channel order than in training.",
    method=f"At the first batch norm that has counted more than {_BATCHES} batches, the shift is "
    f"above {SHIFT:.0f} or the ratio outside 1/{RATIO:.0f} to {RATIO:.0f}. Trained models only.",
)
def statistics(case: Examination) -> Iterator[Observation]:
    module = _first_norm(case.model)
    if module is None or not case.trained:
        return
    mean, var = module.running_mean, module.running_var
    if mean is None or var is None:
        return
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    try:
        case.attempt(case.few)
    finally:
        handle.remove()
    if not inputs:
        return
    features = inputs[0].float().transpose(0, 1).flatten(1)
    spread = var.float().sqrt().clamp_min(1e-6)
    shift = float(((features.mean(1) - mean.float()) / spread).abs().median())
    ratio = float((features.std(1) / spread).median())
    if shift > SHIFT or not 1 / RATIO < ratio < RATIO:
        yield observed("input", shift=shift, ratio=ratio)


def _first_norm(model: nn.Module) -> nn.modules.batchnorm._BatchNorm | None:
    """The first batch norm with running statistics, if they are of enough batches."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if module.running_mean is None or module.running_var is None:
            continue
        batches = module.num_batches_tracked
        return module if batches is not None and int(batches) > _BATCHES else None
    return None
