"""`evaluate`: from a trained model and images whose places are known to scores, in one call.

answers      the model's outputs, and which of them a map explains
measuring    one batch: a forward pass, maps, attributions, scores
calibration  thresholds, the best layer and the best head, chosen on other images
pieces       what has been computed so far, on disk
result       the table of scores, and queries of it
saving       the run folder
"""

from __future__ import annotations

import hashlib
import math
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

from attnviz.attribution import default_layer, methods
from attnviz.attribution.layers import find_layer
from attnviz.attribution.method_table import METHODS as ATTRIBUTIONS
from attnviz.capture import watch
from attnviz.data.samples import (
    Sample,
    Samples,
    batches,
    channel_axis,
    class_names,
    scored_size,
)
from attnviz.data.sources import samples_of
from attnviz.errors import InputError, unknown_name
from attnviz.evaluation.answers import Answers, Target, named_target, target_of, task_of, tensor_of
from attnviz.evaluation.calibration import calibrated
from attnviz.evaluation.examining import check_numbers, examined
from attnviz.evaluation.identity import Look, spaced
from attnviz.evaluation.measuring import (
    Measured,
    Plan,
    measured,
    reduced_where_drawn,
    reference_levels,
    rolled_out,
    sample_columns,
    usable,
    watched,
)
from attnviz.evaluation.pieces import Pieces, largest_grid, on_grid, parts_of
from attnviz.evaluation.result import Evaluation
from attnviz.evaluation.saving import finished, opened
from attnviz.maps import CONSTRUCTIONS, DrawnMaps, drawings, watch_options
from attnviz.metrics import METRICS
from attnviz.metrics.reference_levels import LEVELS
from attnviz.metrics.registry import check_axes, of_any_axes
from attnviz.model_state import frozen
from attnviz.places import Layout, placed, unplaced
from attnviz.progress import Progress
from attnviz.runs import RunWriter

PIECE = 128
"""Images in a piece: what a kill can cost."""

LEVEL_PIXELS = 400 * 96 * 96
"""Pixels of the masks from which chance and the redrawn mask are computed; the masks are evenly
spaced over the data."""

HEAD_METRICS = ("energy_pointing_game", "pointing_game", "pixel_auroc")
"""By which heads are scored where no metrics are named."""


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
    target: Target | str = "label",
    classes: Sequence[str] | None = None,
    thing: str | None = None,
    faithfulness: int | Sequence[int] | Mapping[str, Any] = 0,
    knockout: int | Sequence[int] = 0,
    findings: bool = True,
    rows: int = 0,
    layers: bool = False,
    heads: bool = False,
    device: torch.device | str | None = None,
    batch: int = 32,
    save: str | Path | RunWriter | None = None,
    variant: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    layout: Layout | None = None,
    workers: Any = None,
    progress: bool | None = None,
) -> Evaluation:
    """Run a model over images whose places are known, and score every map that it gives.

    One forward pass of each image draws all attention maps; attributions take the passes that
    their methods need beside it. The model is evaluated in eval mode and left as it was.

    Args:
        model: Any module from images `(b, c, h, w)` to outputs; see `attnviz.evaluation.answers`
            for the forms that are read. Or from volumes `(b, c, d, h, w)` or videos: these have the
            maps of attention and gates, scores, heads and whole attention; attributions,
            faithfulness, knockout and the doctor are of images.
        data: Images with masks, boxes or labels: whatever `attnviz.data.samples_of` reads.
        calibration: Other images of the same kind. Thresholds are chosen on them, and so are the
            best layer and head; without them metrics that need a threshold are left out and no
            layer or head is chosen.
        maps: Keys of `attnviz.maps.CONSTRUCTIONS`; None takes the primary map of each kind of
            record, and rollout where there is a class token. A model without a map of its own is
            given Grad-CAM at its last convolution.
        attributions: Names of `attnviz.attribution.methods()`, or name → arguments of
            `attnviz.attribute`.
        metrics: Localisation metrics; None takes all that can be computed.
        target: What attributions and gradient-weighted maps explain: the output of the image's
            label, the predicted one, one of this index or class name, or a function of the outputs.
            It is noted in the run, and runs of other targets are not compared with it.
        classes: The names of the classes, by index; None takes the data set's own.
        thing: What the masks show, in one word; None takes the data set's own, or "object".
        faithfulness: How many images with a mask deletion, insertion, ROAD, average drop and
            increase are computed on, or the numbers of these images, or a mapping with one of
            them as `images` and arguments of `attnviz.faithfulness.faithfulness_scores`; 0 leaves
            them out.
        knockout: How many images each head and gate is knocked out on, or their numbers; 0 leaves
            it out.
        findings: Whether the doctor examines the model on a few of the images.
        rows: Of how many images the whole attention is kept in the run, as far as it takes no
            more than 128 MiB.
        layers: Draw and score every layer that a map fits, not only the last one.
        heads: Draw and score every head as well, by the metrics named, or by three where none are.
        device: Where to compute; None is where the model is.
        batch: Images per forward pass.
        save: The run's folder; an interrupted evaluation goes on from there. Or the writer of a run
            that holds more than this evaluation: what is computed is kept there until
            `Evaluation.write` puts the result into the run, which the caller finishes.
        variant: The model's name in tables; None takes its class's name.
        seed: Of its training, where that is known.
        settings: What else to note about it.
        layout: Places of tokens by the name of the record, which stand instead of those that
            `attnviz.locate` measures, such as those of a published map.
        workers: Processes of this machine, or the address of a Dask scheduler.
        progress: Whether to report progress on stderr; None does for more than one piece.

    Returns:
        The evaluation: `print(result)` shows the table.

    Raises:
        InputError: Data, labels, maps or metrics that cannot be right; it is said before the work
            where it can be known before.
        RunError: `save` holds another evaluation, or cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            "evaluate: expected a model, an instance of torch.nn.Module, got "
            f"{_described(model)}; attnviz.build_model and the command line make one of a name"
        )
    samples = samples_of(data)
    if not len(samples):
        raise InputError("evaluate: expected at least one image, got none")
    check_numbers("faithfulness", faithfulness, len(samples))
    check_numbers("knockout", knockout, len(samples))
    classes = classes or class_names(samples)
    thing = thing or str(getattr(samples, "thing", "object"))
    variant = variant or type(model).__name__
    explained = target_of(target, classes)
    held = None if calibration is None else samples_of(calibration)
    where = device_of(model) if device is None else _device(device)
    with evaluating(model, where):
        look = Look(samples)
        answers, plan, found = planned(
            model, samples, maps, attributions, metrics, explained, batch, str(where),
            layers=layers, heads=heads, layout=layout, look=look,
        )  # fmt: skip
        if samples[0].image.ndim == 4:
            if faithfulness or knockout:
                raise InputError(
                    "evaluate: faithfulness and knockout are of images (b, c, h, w), got volumes; "
                    "leave both out"
                )
            findings = False
        about = {} if save is None else fingerprint(model, samples, plan, explained, look, held)
        with opened(save, about, samples, variant, seed, thing, classes, settings) as place:
            chosen: dict[str, Any] = {}
            if held is not None:
                chosen = place.remembered("calibrated", lambda: calibrated(answers, held, plan))
                plan = replace(plan, thresholds=chosen["thresholds"])
            job = Job(answers, samples, plan, torch.get_num_threads())
            parts = parts_of(len(samples), PIECE)
            computed(job, parts, place.pieces, workers=workers, progress=progress)
            result = Evaluation.of(
                place.pieces, parts, plan,
                variant=variant, seed=seed, thing=thing, classes=tuple(classes or ()),
                target=named_target(explained), levels=Levels(samples, plan, held), layers=found,
                calibrated_on=0 if held is None else len(held), chosen=chosen.get("chosen", {}),
            )  # fmt: skip
            result = examined(
                result, answers, samples, plan,
                faithfulness=faithfulness, knockout=knockout, findings=findings, rows=rows,
            )  # fmt: skip
            path = finished(place, result, model)
            return result if path is None else replace(result, facts={"run": str(path)})


def _described(model: Any) -> str:
    """What is no model, in a message."""
    if isinstance(model, type):
        return f"the class {model.__name__}"
    return repr(model) if isinstance(model, str) else type(model).__name__


def _device(device: torch.device | str) -> torch.device:
    """A device that is here.

    Raises:
        InputError: There is none of that name.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(
            f"evaluate: device: expected one that torch has here, such as 'cpu' or 'cuda', got "
            f"{device!r} ({said})"
        ) from error
    return found


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
    *,
    layers: bool = False,
    heads: bool = False,
    layout: Layout | None = None,
    proven: bool = False,
    look: Look | None = None,
) -> tuple[Answers, Plan, dict[str, Any]]:
    """What is to be computed, found out on the first image, and the layers of the maps.

    Args: as of `evaluate`, and `look`, what some images show of all; None reads them.

    Raises:
        InputError: An unknown map, method or metric; a model or data that cannot be evaluated.
    """
    for what, given in (("maps", maps), ("attributions", attributions), ("metrics", metrics)):
        if isinstance(given, str):
            raise InputError(f"evaluate: {what}: expected a list of names, got the text {given!r}")
    named = (
        attributions
        if isinstance(attributions, Mapping)
        else {name: {"method": name} for name in attributions}
    )
    for name, options in named.items():
        if not isinstance(options, Mapping):
            raise InputError(
                f"evaluate: attributions: expected arguments of {name} by name, such as {{}}, got "
                f"{options!r}"
            )
        method = options.get("method", name)
        if isinstance(method, str) and method not in methods():
            raise unknown_name("attribution", method, methods())
    keys = tuple(metrics if metrics is not None else METRICS)
    for key in keys:
        if key not in METRICS:
            raise unknown_name("metric", key, METRICS)
    for key in maps or ():
        if key not in CONSTRUCTIONS:
            raise unknown_name("map", key, CONSTRUCTIONS)
    first = next(batches(samples, [0], 1)).to(device)
    flat = first.images.ndim == 4
    if not flat and named:
        raise InputError(
            f"evaluate: attributions are of images (b, c, h, w), got {tuple(first.images.shape)}; "
            "leave attributions= out"
        )
    if metrics is None:
        keys = of_any_axes(keys, first.masks)
    check_axes(keys, first.masks)
    with torch.no_grad(), watch(model, empty=True, features=True) as seen:
        outputs = model(first.images)
    with_layers = {
        name: _with_layer(model, first.images, name, options) for name, options in named.items()
    }
    labels = (look or Look(samples)).labels
    task = task_of(tensor_of(outputs), len(first), labels, target)
    answers = Answers(model, target, task)
    answers.check_target(answers.scores(outputs).shape[1])
    channels = 1 + channel_axis(first.samples[0])
    records = placed(model, first.images, seen, layout, proven=proven, channels=channels)
    chosen = {drawing.construction.key: drawing.construction
              for drawing in drawings(records, maps)}  # fmt: skip
    plan = Plan(
        task=task,
        watch=rolled_out(watch_options(chosen.values()), records, batch),
        maps=None if maps is None else tuple(maps),
        attributions=with_layers,
        metrics=keys,
        heads=(keys if metrics is not None else HEAD_METRICS) if heads else (),
        batch=batch,
        device=device,
        layout=layout,
        proven=proven,
        channels=channels,
    )  # fmt: skip
    drawn = watched(answers, first, plan)[2] if chosen else DrawnMaps({}, {})
    names = tuple(drawn) if layers else _last_layers(drawn)
    reduced: dict[str, set[str]] = {}
    for name in names:
        drawing = drawn.drawings[name]
        reduced.setdefault(str(drawing.construction.reduce), set()).add(drawing.layer)
        if drawing.construction.subject == "layers":
            reduced.setdefault("head_mean", set()).update(one.name for one in drawing.records)
    plan = replace(
        plan, names=names, heads=tuple(usable(plan.heads, None)),
        watch=reduced_where_drawn(plan.watch, reduced),
    )  # fmt: skip
    if not names and not named:
        if not flat:
            raise InputError(
                "evaluate: no attention or gate of the model has a map of these volumes "
                f"({'; '.join(drawn.left_out.values()) or 'none was seen'})"
            )
        grad_cam = {"method": "layer_gradcam", "layer": _own_layer(model, first.images)}
        plan = replace(plan, attributions={"layer_gradcam": grad_cam})
    return answers, plan, _layers(drawn, plan, unplaced(records))


def _last_layers(drawn: DrawnMaps) -> tuple[str, ...]:
    """Of each construction the map of the last layer that has one."""
    last: dict[str, str] = {}
    for name, drawing in drawn.drawings.items():
        last.setdefault(drawing.construction.key, name)
    return tuple(last.values())


def _with_layer(
    model: nn.Module, images: Tensor, name: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of an attribution, with the layer that it explains where it explains one."""
    full = {"method": name, **options}
    method = ATTRIBUTIONS.get(full["method"]) if isinstance(full["method"], str) else None
    if method is not None and method.layer and full.get("layer") is None:
        full["layer"] = default_layer(model, images)
    elif isinstance(full.get("layer"), nn.Module):
        chosen = find_layer(model, full["layer"])
        full["layer"] = next(name for name, one in model.named_modules() if one is chosen)
    return full


def _own_layer(model: nn.Module, images: Tensor) -> str:
    try:
        return default_layer(model, images)
    except InputError as error:
        raise InputError(
            f"evaluate: the model has neither attention nor gates with a map ({error}); name an "
            "attribution, such as attributions=['integrated_gradients']"
        ) from error


def _layers(drawn: DrawnMaps, plan: Plan, unmeasured: Mapping[str, str]) -> dict[str, Any]:
    """For each map the layer it comes from, and why others are missing."""
    chosen = {name: drawn.drawings[name] for name in plan.names or ()}
    layers = {name: drawing.layer for name, drawing in chosen.items()}
    layers |= {
        name: str(options["layer"])
        for name, options in plan.attributions.items()
        if options.get("layer") is not None
    }
    keys = {drawing.construction.key for drawing in chosen.values()}
    missing = {
        key: "the model has no attention or gate that this map is of"
        + ("" if plan.names else f"; {', '.join(plan.attributions)} is scored instead")
        for key in plan.maps or ()
        if key not in keys
    }
    return {
        "layers": layers,
        "about": {name: str(drawing.construction) for name, drawing in chosen.items()},
        "options": dict(plan.attributions),
        "left_out": missing
        | {name: why for name, why in drawn.left_out.items() if name.split(".")[0] not in keys},
        "primary": drawn.primary,
        "unmeasured": {name: why for name, why in unmeasured.items() if name in layers.values()},
        "earlier": 0 if plan.names is None else len(drawn) - len(plan.names),
    }


def fingerprint(
    model: nn.Module,
    samples: Samples,
    plan: Plan,
    target: Target,
    look: Look,
    held: Samples | None,
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
        "data": look.digest,
        "calibration": None if held is None else Look(held).digest,
        "target": named_target(target),
        "maps": list(plan.maps or ()),
        "attributions": {name: {k: str(v) for k, v in options.items()}
                         for name, options in plan.attributions.items()},
        "metrics": list(plan.metrics),
        "layers": list(plan.names or ()),
        "heads": list(plan.heads),
        "batch": plan.batch,
        "layout": None if plan.layout is None else plan.layout.to_dict()["places"],
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
    found: dict[str, list[tuple[list[int], np.ndarray]]] = {}
    samples: dict[int, Sample] = {}
    for batch in batches(job.samples, part, job.plan.batch):
        samples |= dict(zip(batch.indices, batch.samples, strict=True))
        places = [index - part.start for index in batch.indices]
        for name, values in _arrays(measured(job.answers, batch, job.plan)).items():
            found.setdefault(name, []).append((places, values))
    arrays = {name: _whole(name, parts, len(part)) for name, parts in found.items()}
    numbers, text = sample_columns([samples[index] for index in part])
    return arrays | {f"column/{key}": column for key, column in numbers.items()}, text


def _arrays(seen: Measured) -> dict[str, np.ndarray]:
    """What a piece keeps of a batch, by name."""
    return {
        **{f"column/{name}": values for name, values in seen.columns.items()},
        **{f"by head/{name}": values for name, values in seen.head_scores.items()},
        **{f"maps/{name}": one.numpy() for name, one in seen.maps.items()},
        **{
            f"grid/{name}": np.tile(one.shape[1:], (len(one), 1)) for name, one in seen.maps.items()
        },
        **{f"heads/{name}": one.numpy() for name, one in seen.heads.items()},
        **{f"gates/{name}": one.numpy() for name, one in seen.gates.items()},
    }


def _whole(name: str, parts: Sequence[tuple[list[int], np.ndarray]], count: int) -> np.ndarray:
    """An array of all images from its batches, NaN where none has the image."""
    shape = largest_grid([values.shape[1:] for _, values in parts])
    kind = np.float32 if name.startswith(("maps/", "heads/", "gates/")) else np.float64
    whole = np.full((count, *shape), np.nan, kind)
    for places, values in parts:
        whole[places] = on_grid(values, shape)
    return whole


class Levels:
    """Reference levels of every metric, on evenly spaced masks of the data, read once.

    Most levels depend on a map's grid alone, and are shared by the maps of one grid; of metrics
    with a threshold chance and centre depend on it.

    Args:
        samples: The data set.
        plan: What is computed.
        held: The calibration split, for the best map that is the same for all images.
    """

    def __init__(self, samples: Samples, plan: Plan, held: Samples | None = None) -> None:
        self.plan = plan
        self.masks, self.ignored = _spaced_masks(samples)
        kept, without = ([], []) if held is None or len(self.masks) != 1 else _spaced_masks(held)
        same = len(kept) == 1 and kept[0].shape[1:] == self.masks[0].shape[1:]
        self.calibration = kept[0] if same and without == [None] else None
        self._known: dict[Any, dict[str, dict[str, float]]] = {}

    def __call__(self, name: str, grid: tuple[int, ...]) -> dict[str, dict[str, float]]:
        """Metric → level → its mean over the masks, for a map on this grid."""
        threshold = self.plan.thresholds.get(name)
        keys = usable(self.plan.metrics, threshold)
        own = [key for key in keys if METRICS[key].thresholded]
        if grid not in self._known:
            shared = [key for key in keys if key not in own]
            self._known[grid] = self._means(grid, shared)
        if own and (grid, *own) not in self._known:
            self._known[grid, *own] = self._means(grid, own, levels=("fixed", "redrawn", "bound"))
        found = dict(self._known[grid])
        if own:
            at_tau = self._means(grid, own, threshold, levels=("chance", "centre"))
            found |= {key: at_tau[key] | self._known[grid, *own][key] for key in at_tau}
        return {key: found[key] for key in keys if key in found}

    def _means(
        self,
        grid: tuple[int, ...],
        keys: Sequence[str],
        threshold: Mapping[str, float] | None = None,
        levels: Sequence[str] = LEVELS,
    ) -> dict[str, dict[str, float]]:
        return reference_levels(
            self.masks, grid, keys, threshold, self.calibration, levels, self.ignored
        )


def _spaced_masks(samples: Samples) -> tuple[list[Tensor], list[Tensor | None]]:
    """Masks with something in them of evenly spaced images, by size, and their ignored pixels."""
    first = samples[0]
    pixels = math.prod(scored_size(first))
    chosen = spaced(len(samples), max(32, LEVEL_PIXELS // pixels))
    found: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
    for batch in batches(samples, chosen, 32):
        filled = batch.masks.flatten(1).any(1)
        if bool(filled.any()):
            ignore = torch.zeros_like(batch.masks) if batch.ignore is None else batch.ignore
            part = batch.masks[filled], ignore[filled]
            found.setdefault(tuple(batch.masks.shape[1:]), []).append(part)
    by_size = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in found.values()]
    return (
        [masks for masks, _ in by_size],
        [ignore if bool(ignore.any()) else None for _, ignore in by_size],
    )
