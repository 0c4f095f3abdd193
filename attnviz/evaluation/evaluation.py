"""`evaluate`: from a trained model and images whose places are known to scores, in one call.

answers    what the model answered, and which output a map explains
measuring  one batch: a forward pass, maps, attributions, scores
pieces     what has been computed so far, on disk
result     the table of scores, and what can be asked of it
saving     the run folder
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.attribution import methods
from attnviz.capture import watch
from attnviz.data.samples import Sample, Samples, batches, class_names
from attnviz.data.sources import samples_of
from attnviz.errors import InputError, unknown_name
from attnviz.evaluation.answers import Answers, Target, task_of, tensor_of
from attnviz.evaluation.examining import examined
from attnviz.evaluation.measuring import (
    Plan,
    last_convolution,
    measured,
    placed,
    sample_columns,
    usable,
    watched,
)
from attnviz.evaluation.pieces import Pieces, parts_of
from attnviz.evaluation.result import Evaluation
from attnviz.evaluation.saving import finished, opened
from attnviz.maps import CONSTRUCTIONS, drawings, maps_of, resized, watch_options
from attnviz.metrics import METRICS, baselines
from attnviz.metrics.thresholds import calibrate_all
from attnviz.model_state import frozen
from attnviz.progress import Progress

PIECE = 128
"""Images in a piece: what a kill can cost."""

LEVELS = 128
"""Masks from which chance and the redrawn mask are computed; evenly spaced over the data."""

CALIBRATION = 1024
"""The most calibration images that choose thresholds; evenly spaced over the split."""

_THRESHOLDED = ("iou", "max_iou", "max_box_acc", "max_box_acc_v2")


@dataclass(frozen=True)
class Job:
    """What a process needs to compute a piece."""

    answers: Answers
    samples: Samples
    plan: Plan
    threads: int


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    calibration: Any = None,
    maps: Sequence[str] | None = None,
    attributions: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
    metrics: Sequence[str] | None = None,
    target: Target = "label",
    classes: Sequence[str] | None = None,
    thing: str | None = None,
    faithfulness: int = 0,
    knockout: int = 0,
    findings: bool = True,
    rows: int = 0,
    device: torch.device | str | None = None,
    batch: int = 32,
    save: str | Path | None = None,
    variant: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: Any = None,
    progress: bool | None = None,
) -> Evaluation:
    """Run a model over images whose places are known, and score every map that it gives.

    One forward pass of each image draws all attention maps; attributions take the passes that
    their methods need beside it. The model is evaluated in eval mode and left as it was.

    Args:
        model: Any module from images `(b, c, h, w)` to outputs; see `attnviz.evaluation.answers`
            for the forms that are read.
        data: Images with masks, boxes or labels: whatever `attnviz.data.samples_of` reads.
        calibration: Other images of the same kind. Thresholds are chosen on them, and so is the
            best layer; without them metrics that need a threshold are left out.
        maps: Keys of `attnviz.maps.CONSTRUCTIONS`, drawn of every layer that they fit; None takes
            the primary map of each layer, and rollout where there is a class token. A model
            without a map of its own is given Grad-CAM at its last convolution.
        attributions: Names of `attnviz.attribution.methods()`, or name → arguments of
            `attnviz.attribute`.
        metrics: Localisation metrics; None takes all that can be computed.
        target: What attributions and gradient-weighted maps explain.
        classes: The names of the classes, by index; None takes the data set's own.
        thing: What the masks show, in one word; None takes the data set's own, or "object".
        faithfulness: How many images with a mask deletion, insertion, ROAD, average drop and
            increase are computed on; 0 leaves them out.
        knockout: How many images each head and gate is knocked out on; 0 leaves it out.
        findings: Whether the doctor examines the model on a few of the images.
        rows: Of how many images the whole attention is kept in the run.
        device: Where to compute; None is where the model is.
        batch: Images per forward pass.
        save: The run's folder; an interrupted evaluation goes on from there.
        variant: The model's name in tables; None takes its class's name.
        seed: Of its training, where that is known.
        settings: What else to note about it.
        workers: Processes of this machine, or the address of a Dask scheduler.
        progress: Whether to report progress on stderr; None does for more than one piece.

    Returns:
        The evaluation: `print(result)` shows the table.

    Raises:
        InputError: Data, labels, maps or metrics that cannot be right; it is said before the work
            where it can be known before.
        RunError: `save` holds another evaluation, or cannot be written.
    """
    samples = samples_of(data)
    if not len(samples):
        raise InputError("evaluate: expected at least one image, got none")
    classes = classes or class_names(samples)
    thing = thing or str(getattr(samples, "thing", "object"))
    held = None if calibration is None else samples_of(calibration)
    where = torch.device(device) if device is not None else device_of(model)
    with evaluating(model, where):
        answers, plan = planned(
            model, samples, maps, attributions, metrics, target, batch, str(where)
        )
        about = fingerprint(model, samples, plan, settings)
        with opened(save, about, samples, variant or type(model).__name__, seed, thing, classes,
                    settings) as place:  # fmt: skip
            if held is not None:
                thresholds = place.remembered("thresholds", lambda: calibrated(answers, held, plan))
                plan = replace(plan, thresholds=thresholds)
            job = Job(answers, samples, plan, torch.get_num_threads())
            parts = parts_of(len(samples), PIECE)
            computed(job, parts, place.pieces, workers=workers, progress=progress)
            result = Evaluation.of(
                place.pieces, parts, plan,
                variant=variant or type(model).__name__, seed=seed, thing=thing,
                classes=tuple(classes or ()), levels=Levels(samples, plan),
                layers=place.remembered("layers", lambda: layers_of(answers, samples, plan)),
                calibrated_on=0 if held is None else len(held),
            )  # fmt: skip
            result = examined(
                result, answers, samples,
                faithfulness=faithfulness, knockout=knockout, findings=findings,
            )  # fmt: skip
            path = finished(place, result, model, answers, samples, rows)
            return result if path is None else replace(result, facts={"run": str(path)})


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one without."""
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in eval mode on a device, and afterwards as it was."""
    before = device_of(model)
    try:
        model.to(device)
        with frozen(model, gradients=True):
            yield
    finally:
        model.to(before)


def planned(
    model: nn.Module,
    samples: Samples,
    maps: Sequence[str] | None,
    attributions: Sequence[str] | Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str] | None,
    target: Target,
    batch: int,
    device: str,
) -> tuple[Answers, Plan]:
    """What is to be computed, found out on the first image.

    Raises:
        InputError: An unknown map, method or metric; a model or data that cannot be evaluated.
    """
    named = (
        attributions
        if isinstance(attributions, Mapping)
        else {name: {"method": name} for name in attributions}
    )
    for name, options in named.items():
        method = options.get("method", name)
        if isinstance(method, str) and method not in methods():
            raise unknown_name("attribution", method, methods())
    keys = tuple(metrics if metrics is not None else METRICS)
    for key in keys:
        if key not in METRICS:
            raise unknown_name("metric", key, METRICS)
    if maps is not None:
        for key in maps:
            if key not in CONSTRUCTIONS:
                raise unknown_name("map", key, CONSTRUCTIONS)
    first = next(batches(samples, [0], 1)).to(device)
    with torch.no_grad(), watch(model, empty=True, features=True) as seen:
        outputs = model(first.images)
    task = "classes" if callable(target) else task_of(tensor_of(outputs), first)
    answers = Answers(model, target, task)
    records, _ = placed(model, first.images, seen)
    found = drawings(records, maps)
    plan = Plan(
        task=task,
        watch=watch_options({drawing.construction.key: drawing.construction for drawing in found}
                            .values()),
        maps=None if maps is None else tuple(maps),
        attributions={name: {"method": name, **options} for name, options in named.items()},
        metrics=keys,
        batch=batch,
        device=device,
    )  # fmt: skip
    if not len(maps_of(records, maps)) and not named and not plan.watch.get("keep_graph"):
        layer = last_convolution(model, first.images)
        grad_cam = {"layer_gradcam": {"method": "layer_gradcam", "layer": layer}}
        plan = replace(plan, attributions=grad_cam)
    return answers, plan


def fingerprint(
    model: nn.Module, samples: Samples, plan: Plan, settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What an interrupted evaluation must have in common with the one that goes on with it."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {
        "model": type(model).__name__,
        "weights": digest.hexdigest(),
        "images": len(samples),
        "maps": list(plan.maps or ()),
        "attributions": {name: {k: str(v) for k, v in options.items()}
                         for name, options in plan.attributions.items()},
        "metrics": list(plan.metrics),
        "batch": plan.batch,
        "piece": PIECE,
    }  # fmt: skip


def computed(
    job: Job,
    parts: Sequence[range],
    pieces: Pieces,
    *,
    workers: Any = None,
    progress: bool | None = None,
) -> None:
    """Compute the pieces that are missing, and keep each as it is done."""
    from attnviz.executors import Workers, executor_of

    missing = [part for part in parts if part not in pieces]
    total = sum(map(len, parts))
    bar = Progress(
        total,
        label="evaluate",
        unit="images",
        initial=total - sum(map(len, missing)),
        shown=len(parts) > 1 if progress is None else progress,
    )

    def keep(executor: Executor | None) -> None:
        one = partial(piece_of, job)
        results = map(one, missing) if executor is None else executor.map(one, missing)
        for part, (arrays, text) in zip(missing, results, strict=True):
            pieces.put(part, arrays, text)
            bar.update(len(part))

    with bar:
        if workers is None or not missing:
            keep(None)
            return
        if not isinstance(workers, Workers):
            local = isinstance(workers, int)
            workers = Workers(workers) if local else Workers(scheduler=str(workers))
        with executor_of(workers) as executor:
            keep(executor)


def piece_of(job: Job, part: range) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Everything about one piece's images: arrays in the order of the images, and text."""
    torch.set_num_threads(job.threads)
    arrays: dict[str, np.ndarray] = {}
    samples: dict[int, Sample] = {}
    for found in batches(job.samples, part, job.plan.batch):
        samples |= dict(zip(found.indices, found.samples, strict=True))
        places = [index - part.start for index in found.indices]
        seen = measured(job.answers, found, job.plan)
        maps = {f"maps/{name}": one.numpy() for name, one in seen.maps.items()}
        for name, values in ({f"column/{k}": v for k, v in seen.columns.items()} | maps).items():
            _fill(arrays, name, values, places, len(part))
    numbers, text = sample_columns([samples[index] for index in part])
    return arrays | {f"column/{key}": column for key, column in numbers.items()}, text


def _fill(
    arrays: dict[str, np.ndarray], name: str, values: np.ndarray, places: list[int], count: int
) -> None:
    """Put a batch's values where they belong; maps of another size take the first one's grid."""
    kind = np.float32 if name.startswith("maps/") else np.float64
    if name not in arrays:
        arrays[name] = np.full((count, *values.shape[1:]), np.nan, kind)
    whole = arrays[name]
    if values.shape[1:] != whole.shape[1:]:
        h, w = whole.shape[1:]
        values = resized(torch.from_numpy(values), (h, w), "bilinear").numpy()
    whole[places] = values


def calibrated(answers: Answers, samples: Samples, plan: Plan) -> dict[str, dict[str, float]]:
    """For each map the thresholds that are best on the calibration split.

    A map that is constant on every image has none.
    """
    wanted = [key for key in plan.metrics if key in _THRESHOLDED]
    if not wanted:
        return {}
    count = len(samples)
    chosen = np.unique(np.linspace(0, count - 1, min(count, CALIBRATION)).round().astype(int))
    plain = replace(plan, metrics=())
    small: dict[str, list[Tensor]] = {}
    masks: list[Tensor] = []
    for found in batches(samples, chosen.tolist(), plan.batch):
        if not bool(found.masks.any()):
            continue
        seen = measured(answers, found, plain)
        size = found.masks.shape[-2:] if not masks else masks[0].shape[-2:]
        masks.append(_at(found.masks, size))
        for name, one in seen.maps.items():
            small.setdefault(name, []).append(one)
    if not masks:
        raise InputError("evaluate: expected calibration images with masks, got none")
    goal = torch.cat(masks)
    thresholds = {}
    for name, parts in small.items():
        h, w = goal.shape[1:]
        large = torch.cat([resized(one, (h, w), "bilinear") for one in parts])
        try:
            thresholds[name] = calibrate_all(large, goal, wanted)
        except InputError:  # no image whose map can be thresholded
            continue
    return thresholds


def _at(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks at another size, a pixel being inside where most of what it covers is."""
    h, w = size
    return resized(masks.float(), (int(h), int(w)), "bilinear") > 0.5


def layers_of(answers: Answers, samples: Samples, plan: Plan) -> dict[str, Any]:
    """For each map the layer it comes from, and why others are missing."""
    first = next(batches(samples, [0], 1)).to(plan.device)
    _, _, drawn = watched(answers, first, plan)
    layers = {name: drawing.layer for name, drawing in drawn.drawings.items()}
    layers |= {
        name: str(options["layer"])
        for name, options in plan.attributions.items()
        if options.get("layer") is not None
    }
    about = {name: str(drawing.construction) for name, drawing in drawn.drawings.items()}
    with torch.no_grad(), watch(answers.model, empty=True) as seen:
        answers.model(first.images)
    unmeasured = placed(answers.model, first.images, seen)[1]
    return {
        "layers": layers,
        "about": about,
        "left_out": drawn.left_out,
        "primary": drawn.primary,
        "unmeasured": {name: why for name, why in unmeasured.items() if name in layers.values()},
    }


class Levels:
    """Reference levels of every metric, on evenly spaced masks of the data, read once.

    Args:
        samples: The data set.
        plan: What is computed.
    """

    def __init__(self, samples: Samples, plan: Plan) -> None:
        self.plan = plan
        spaced = np.linspace(0, len(samples) - 1, min(len(samples), LEVELS)).round().astype(int)
        found = list(batches(samples, np.unique(spaced).tolist(), LEVELS))
        masks = [batch.masks[batch.masks.flatten(1).any(1)] for batch in found]
        self.masks = [one for one in masks if len(one)]

    def __call__(self, name: str, grid: tuple[int, int]) -> dict[str, dict[str, float]]:
        """Metric → level → its mean over the masks, for a map on this grid."""
        threshold = self.plan.thresholds.get(name)
        keys = usable(self.plan.metrics, threshold)
        total: dict[str, dict[str, float]] = {}
        for masks in self.masks:
            found = baselines(masks, grid, keys, threshold=threshold or None)
            for key, levels in found.items():
                sums = total.setdefault(key, {})
                for level, value in levels.items():
                    sums[level] = sums.get(level, 0.0) + value * len(masks)
        count = sum(map(len, self.masks))
        return {k: {level: v / count for level, v in sums.items()} for k, sums in total.items()}
