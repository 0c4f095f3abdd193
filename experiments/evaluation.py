"""Measure a trained model and fill its run: the one place where maps, metrics and runs meet.

Thresholds come from the validation images; every score is of the test images, on maps upsampled
bilinearly to the image's size. Only images with something to look at have a score.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attnviz.diagnosis import diagnose
from attnviz.errors import InputError
from attnviz.maps import resized
from attnviz.metrics import agreement, baselines, localization
from attnviz.metrics.thresholds import calibrate_all
from attnviz.models import variants
from attnviz.models.pixels import as_bytes
from attnviz.runs import Run, RunWriter, save_dataset
from attnviz.statistics.summary import summarised
from experiments import checkpoints
from experiments.faithfulness import chosen_images, faithful_columns, knocked_out
from experiments.leaks import split_findings
from experiments.loading import about, groups, load_images
from experiments.maps import ROWS_BYTES, Seen, look
from experiments.questions import Asked
from experiments.settings import Settings
from experiments.training import Loader, Trained, device_of

ROWS = 16
"""For how many test images a run keeps the whole attention, where there is room for it."""

DIAGNOSED = 32
"""How many test images the doctor sees."""

WHOLE_BYTES = 32 << 20
"""Where one image's attention takes more than this the doctor sees crops: it keeps some forty."""


def measure_run(
    trained: Trained, settings: Settings, writer: RunWriter, *, peak: int | None = None
) -> Run:
    """Look, score, and write everything but what training has written already.

    Args:
        trained: The model and what training took.
        settings: Of the run.
        writer: The run; it is finished.
        peak: The most bytes that the training held at once.

    Returns:
        The complete run.
    """
    device = device_of(settings)
    val, test = (Loader(settings, split, device) for split in ("val", "test"))
    calibration, seen = look(trained.model, val), look(trained.model, test, rows=ROWS)
    table = _answers(seen) | _groups(settings)
    thresholds: dict[str, dict[str, float]] = {}
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for name, grid_maps in seen.maps.items():
        taus = _thresholds(calibration.maps[name], calibration.masks)
        maps = _upsampled(grid_maps, seen.masks)
        scores = localization(maps, seen.masks, threshold=taus)
        rows, columns = grid_maps.shape[-2:]
        levels = baselines(
            seen.masks,
            (rows, columns),
            tuple(scores),
            threshold=taus,
            calibration=calibration.masks if calibration.masks.any() else None,
        )
        thresholds[name] = taus
        metrics[name] = {
            key: summarised(key, score.numpy(), levels[key], group=table.get("group"))
            for key, score in scores.items()
        }
        table |= {f"{name}/{key}": score.numpy() for key, score in scores.items()}
    table |= _agreements(seen)
    numbers = chosen_images(seen.masks, settings.faithful)
    asked = test.batch(numbers).images
    for name, answered in faithful_columns(trained.model, asked, seen.maps, numbers).items():
        metrics[name] |= {
            key: summarised(key, column, group=table.get("group"))
            for key, column in answered.items()
        }
        table |= {f"{name}/{key}": column for key, column in answered.items()}
    held = ROWS_BYTES // max(1, seen.whole)
    _write(writer, seen, table)
    writer.weights({k: v.cpu().numpy() for k, v in trained.model.state_dict().items()})
    few = _cropped(test.batch(torch.arange(min(DIAGNOSED, len(test)))), seen.whole)
    findings = diagnose(trained.model, *few) + split_findings(settings)
    summary = {
        "accuracy": float(np.mean(table["correct"])),
        "loss": float(_loss(seen.logits, seen.labels).mean()),
        "map": variants()[settings.variant].map,
        "layers": seen.layers,
        "threshold": {name: taus.get("max_iou") for name, taus in thresholds.items()},
        "thresholds": thresholds,
        "metrics": metrics,
        "knockout": knocked_out(trained.model, asked[:held]),
        "findings": findings.as_dicts(),
        "diagnosis": findings.headline,
        "peak_bytes": peak,
        **_cost(trained),
    }
    writer.drop(checkpoints.FILE)
    return writer.finish(summary)


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
            "ask for more"
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


def _answers(seen: Seen) -> dict[str, Any]:
    """The columns that say what the model answered, one row per test image."""
    logits, labels = seen.logits.float(), seen.labels.long()
    prediction = (logits > 0).long()
    corners = {name: seen.boxes[:, n].numpy() for n, name in enumerate(("x0", "y0", "x1", "y1"))}
    return {
        "index": np.arange(len(logits)),
        "label": labels.numpy(),
        "logit": logits.numpy(),
        "probability": logits.sigmoid().numpy(),
        "prediction": prediction.numpy(),
        "correct": (prediction == labels).numpy(),
        "loss": _loss(logits, seen.labels).numpy(),
        **corners,
    }


def _groups(settings: Settings) -> dict[str, Any]:
    """The column that names the photograph of each test image, where several share one."""
    named = groups(settings, "test")
    return {} if named is None else {"group": np.asarray(named, dtype=object)}


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    loss: Tensor = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.float(), labels, reduction="none"
    )
    return loss


def _thresholds(grid_maps: Tensor, masks: Tensor) -> dict[str, float]:
    """The τ of each metric that needs one, best on the validation images."""
    maps = _upsampled(grid_maps, masks)
    if localization(maps, masks, ["iou"], threshold=0.5)["iou"].isnan().all():
        return {}  # every map is constant: there is nothing to choose a threshold by
    taus = calibrate_all(maps, masks, ("iou", "max_box_acc", "max_box_acc_v2"))
    return taus | {"max_iou": taus["iou"]}


def _upsampled(grid_maps: Tensor, masks: Tensor) -> Tensor:
    height, width = masks.shape[-2:]
    return resized(grid_maps, (height, width), "bilinear")


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


def _agreements(seen: Seen) -> dict[str, Any]:
    """How far each map agrees with Captum's layer Grad-CAM, image by image."""
    cam = seen.maps.get("layer_gradcam")
    if cam is None:
        return {}
    columns: dict[str, Any] = {}
    for name, maps in seen.maps.items():
        if name != "layer_gradcam" and maps.shape == cam.shape:
            agreed = agreement(maps, cam)
            columns |= {
                f"{name}/agreement_{key}": np.asarray(value) for key, value in agreed.items()
            }
    return columns


def _write(writer: RunWriter, seen: Seen, table: Mapping[str, Any]) -> None:
    writer.samples(pd.DataFrame(dict(table)))
    for name, maps in seen.maps.items():
        writer.maps(name, maps.numpy(), about={"layer": seen.layers[name]})
    for name, heads in seen.heads.items():
        writer.maps(f"{name}.heads", heads.numpy(), about={"layer": seen.layers[name]})
    for name, gates in seen.gates.items():
        writer.gates(name, gates.numpy(), about={"layer": seen.layers[name]})
    for name, rows in seen.rows.items():
        writer.rows(name, rows.numpy(), about=seen.grids[name])


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
