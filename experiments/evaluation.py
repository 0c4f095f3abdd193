"""Measure a trained model with `attnviz.evaluate` and fill its run.

Thresholds come from the validation images; every score is of the test images, on maps upsampled
bilinearly to the image's size. Only images with a patch have a score.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attnviz.capture import watch
from attnviz.diagnosis import Findings, diagnose
from attnviz.errors import InputError
from attnviz.evaluation import Evaluation, evaluate
from attnviz.evaluation.saving import attention_bytes
from attnviz.metrics import agreement
from attnviz.models.pixels import as_bytes
from attnviz.runs import Run, RunWriter, save_dataset
from experiments import checkpoints
from experiments.leaks import split_findings
from experiments.loading import about, load_images
from experiments.places import published_layout
from experiments.questions import Asked
from experiments.settings import Settings
from experiments.splits import Split, with_patch
from experiments.training import Loader, Trained, device_of
from experiments.training import evaluate as loss_and_accuracy

GRADCAM = {"layer_gradcam": {"method": "layer_gradcam", "layer": "features.conv3"}}
"""The attribution that every model is given, at its last convolution."""

BATCH = 25
"""Images per forward pass."""

ROWS = 16
"""For how many test images a run keeps the whole attention, where there is room for it."""

STEPS = 16
"""Of deletion and insertion."""

DIAGNOSED = 32
"""How many test images the doctor sees."""

WHOLE_BYTES = 32 << 20
"""Where one image's attention takes more than this the doctor sees crops: it keeps some forty."""

PINNED = 8
"""How many test images' maps are kept at every epoch."""


def measure_run(
    trained: Trained, settings: Settings, writer: RunWriter, *, peak: int | None = None
) -> Run:
    """Evaluate, and write everything but what training has written already.

    An evaluation that was interrupted goes on where it stopped.

    Args:
        trained: The model and what training took.
        settings: Of the run.
        writer: The run; it is finished.
        peak: The most bytes that the training held at once.

    Returns:
        The complete run.
    """
    val, test = Split(settings, "val"), Split(settings, "test")
    some = with_patch(test, settings.faithful)
    result = evaluate(
        trained.model,
        test,
        calibration=val if with_patch(val, 1) else None,
        attributions=GRADCAM,
        faithfulness={"images": some, "steps": STEPS} if some else 0,
        knockout=some,
        findings=False,
        rows=ROWS,
        layers=True,
        heads=True,
        layout=published_layout(trained.model, test[0].image[None]),
        batch=BATCH,
        save=writer,
        variant=settings.variant,
        seed=settings.seed,
        progress=False,
    )
    result = replace(
        result, samples=pd.concat([result.samples, pd.DataFrame(_agreements(result))], axis=1)
    )
    findings = examined(trained.model, settings)
    summary = result.write(writer, trained.model) | {
        "loss": float(result.samples["loss"].mean()),
        "threshold": {name: result.thresholds.get(name, {}).get("max_iou") for name in result.maps},
        **findings_summary(findings),
        "peak_bytes": peak,
        **_cost(trained),
    }
    writer.drop(checkpoints.FILE)
    return writer.finish({"knockout": []} | summary)


class EpochScores:
    """Measures the model's primary map after each epoch.

    Scores are of the first validation images that have something to find, and join the curves as
    `val_<metric>`. The maps of the first such test images are kept as `<map>@<epoch>`.

    Args:
        settings: Of the training; `follow` says how many validation images are scored.
        writer: The run.
    """

    def __init__(self, settings: Settings, writer: RunWriter) -> None:
        self.writer = writer
        self.scored, self.pinned = (
            Split(settings, name, with_patch(Split(settings, name), count))
            for name, count in (("val", settings.follow), ("test", PINNED))
        )
        self.test = Loader(settings, "test", device_of(settings)) if settings.test_curve else None

    def __call__(self, model: nn.Module, epoch: int) -> dict[str, float]:
        """Keep the pinned maps, and give the scores for the curves."""
        row = {} if self.test is None else loss_and_accuracy(model, self.test, prefix="test_")
        if len(self.pinned):
            result = self._evaluated(model, self.pinned, ())
            about = {"epoch": epoch, "images": self.pinned.numbers}
            name = f"{result.primary}@{epoch:04d}"
            self.writer.maps(name, result.raw(result.primary), about=about)
        if len(self.scored):
            metrics = ("energy_pointing_game", "pointing_game")
            result = self._evaluated(model, self.scored, metrics)
            row |= {
                f"val_{key}": float(result.samples[f"{result.primary}/{key}"].mean())
                for key in metrics
            }
        return row

    def _evaluated(self, model: nn.Module, split: Split, metrics: tuple[str, ...]) -> Evaluation:
        layout = published_layout(model, split[0].image[None])
        return evaluate(
            model, split, metrics=metrics, findings=False, layout=layout, batch=BATCH,
            progress=False,
        )  # fmt: skip


def keep_test_set(root: Path, settings: Settings) -> str:
    """Keep the test images with their patches beside the runs that share them; their digest.

    Raises:
        InputError: There are none, or none of them has anything to find, or nothing else.
    """
    test = Loader(settings, "test", torch.device("cpu"))
    asked = test.batch(torch.arange(len(test)))
    if not asked.masks.any():
        raise InputError(
            f"--test-images: expected at least one image with a patch, got none among {len(test)}; "
            "use more"
        )
    if asked.masks.flatten(1).all(1).any():
        raise InputError(
            f"--size: expected a patch that leaves some of the image, got one that covers all of "
            f"its {settings.side} × {settings.side} pixels"
        )
    pixels = as_bytes(asked.images).permute(0, 2, 3, 1)
    for split in ("train", "val"):  # read now, so that a lack of images begins no run
        load_images(settings, split)
    info = {
        "data": settings.data,
        "question": settings.question,
        "split": "test",
        "side": settings.side,
        "patch": {"shape": settings.shape, "size": settings.size, "fill": settings.fill,
                  "opacity": settings.opacity},
        "data_seed": settings.data_seed,
        **about(settings),
    }  # fmt: skip
    return save_dataset(
        root,
        images=pixels.contiguous().numpy(),
        masks=asked.masks.numpy(),
        boxes=asked.boxes.numpy(),
        labels=asked.labels.long().numpy(),
        info=info,
    )


def environment(settings: Settings) -> dict[str, Any]:
    """What a number may depend on: versions, processor, threads."""
    device = device_of(settings)
    packages = ("attnviz", "torch", "torchvision", "numpy", "captum", "scikit-image")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": name,
        "threads": settings.threads or torch.get_num_threads(),
        **{package: version(package) for package in packages},
    }


def examined(model: nn.Module, settings: Settings) -> Findings:
    """The doctor's findings on the split and on the first test images.

    Where attention is large, on crops of them.
    """
    test = Split(settings, "test")
    asked = test.asked(test.numbers[:DIAGNOSED])
    device = next(model.parameters()).device
    with torch.no_grad(), watch(model, empty=True, reduce=("received",)) as seen:
        model(asked.images[:1].to(device))
    images, masks = _cropped(asked, attention_bytes(seen))
    return diagnose(model, images.to(device), masks.to(device)) + split_findings(settings)


def findings_summary(findings: Findings) -> dict[str, Any]:
    """What a run's summary keeps of them."""
    return {"findings": findings.as_dicts(), "diagnosis": findings.headline}


def _cropped(asked: Asked, whole: int) -> tuple[Tensor, Tensor]:
    """Images and masks; squares around the patches where all pixels attend to all others."""
    side = min(asked.images.shape[2:])
    while whole > WHOLE_BYTES:
        side, whole = side // 2, whole // 16
    height, width = asked.images.shape[2:]
    middle = (asked.boxes[:, :2] + asked.boxes[:, 2:]) // 2
    x0 = (middle[:, 0] - side // 2).clamp(0, width - side).tolist()
    y0 = (middle[:, 1] - side // 2).clamp(0, height - side).tolist()
    crops = [
        (image[:, y : y + side, x : x + side], mask[y : y + side, x : x + side])
        for image, mask, x, y in zip(asked.images, asked.masks, x0, y0, strict=True)
    ]
    images, masks = zip(*crops, strict=True)
    return torch.stack(images), torch.stack(masks)


def _agreements(result: Evaluation) -> dict[str, np.ndarray]:
    """How far each map agrees with Captum's layer Grad-CAM, image by image."""
    cam = torch.from_numpy(result.raw("layer_gradcam"))
    columns: dict[str, np.ndarray] = {}
    for name in result.maps:
        maps = torch.from_numpy(result.raw(name))
        if name != "layer_gradcam" and maps.shape == cam.shape:
            columns |= {
                f"{name}/agreement_{key}": np.asarray(value)
                for key, value in agreement(maps, cam).items()
            }
    return columns


def _cost(trained: Trained) -> dict[str, Any]:
    return {
        "seconds": round(trained.progress.seconds, 3),
        "images_per_second": round(trained.images_per_second, 1),
        "epochs": trained.progress.epoch,
        "best_epoch": trained.progress.best_epoch,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
