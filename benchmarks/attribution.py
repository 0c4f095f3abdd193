"""Cost of attribution beside Captum's own call, pytorch-grad-cam, and a lower bound.

    uv run python benchmarks/attribution.py                # two to three minutes
    uv run python benchmarks/attribution.py --images 4 --ig-images 2 --steps 8 --repeats 2   # smoke

Layer Grad-CAM: `attribute` beside `captum.attr.LayerGradCam` and pytorch-grad-cam (left out, by
name, where it is not installed) on the same trained-size reference model and images; all three
give maps on the layer's grid, and the largest difference is printed. pytorch-grad-cam scales its
maps and resizes them, which its users cannot switch off; its values are compared by rank.

Integrated Gradients: `attribute` within its memory budget, beside its floor, which is as many
forwards and gradients of the images as there are steps, in the same batches, and nothing else.

Candidates take turns within one process, each of which is printed to stderr as it ends; a ratio is
the median of the ratios of the turns. Peak memory is that of a fresh process per candidate above
what it held before (Linux; on CUDA the allocator's); ours is taken for twice the images again,
since a budget that grows with the images is none.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.attribution import MEMORY, attribute
from attnviz.attribution.request import bytes_per_image
from attnviz.models import build_model

LAYER = "features.conv3"
LIMITS = {("layer_gradcam", "captum"): 1.1, ("integrated_gradients", "floor"): 1.1}
LEAST = {("layer_gradcam", "pytorch-grad-cam"): 2.0}
GROWTH = 1.1
"""Maximum growth of our peak for twice the images."""
MIB = 2**20

Call = Callable[[], Tensor]


def model_and_images(variant: str, images: int, device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = build_model(variant).to(device).eval()
    coarse = torch.rand(images, 3, 12, 12) * 2 - 1
    return model, nn.functional.interpolate(coarse, (96, 96), mode="bilinear").to(device)


def ours_gradcam(model: nn.Module, images: Tensor) -> Tensor:
    return attribute(model, images, method="layer_gradcam", layer=LAYER, size="own", sign="signed")


def captums_gradcam(model: nn.Module, images: Tensor) -> Tensor:
    from captum.attr import LayerGradCam

    return LayerGradCam(model, model.get_submodule(LAYER)).attribute(images)[:, 0].detach()


def peers_gradcam(model: nn.Module, images: Tensor) -> Tensor:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import BinaryClassifierOutputTarget

    targets = [BinaryClassifierOutputTarget(1)] * len(images)
    with GradCAM(model=model, target_layers=[model.get_submodule(LAYER)]) as cam:
        return torch.from_numpy(cam(input_tensor=images, targets=targets))


def ours_integrated(model: nn.Module, images: Tensor, steps: int) -> Tensor:
    return attribute(model, images, method="integrated_gradients", n_steps=steps, sign="signed")


def captums_integrated(model: nn.Module, images: Tensor, steps: int, rows: int | None) -> Tensor:
    from captum.attr import IntegratedGradients

    explainer = IntegratedGradients(model)
    attributions = explainer.attribute(images, n_steps=steps, internal_batch_size=rows)
    return attributions.sum(1).detach()


def floor(model: nn.Module, images: Tensor, steps: int) -> Tensor:
    """Steps × (forward + gradient) of the images, in batches of the rows that fit the budget."""
    rows = max(1, MEMORY // bytes_per_image(model, images[:1]))
    together = max(1, rows // len(images))  # steps in one batch, as Captum splits them
    done, total = 0, torch.zeros_like(images)
    while done < steps:
        count = min(together, steps - done)
        batch = images.repeat(count, 1, 1, 1).requires_grad_()
        total += torch.autograd.grad(model(batch).sum(), batch)[0].view(count, *images.shape).sum(0)
        done += count
    return total


def seconds(calls: Mapping[str, Call], repeats: int, device: str) -> dict[str, list[float]]:
    """Each call's times, the calls taking turns in an order that moves on."""
    names, taken = list(calls), {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            calls[name]()
            if device != "cpu":
                torch.cuda.synchronize()
            took = time.perf_counter() - start
            say(f"  turn {turn} of {repeats}, {name}: {took:.2f} s")
            if turn:  # the first turn warms up
                taken[name].append(took)
    return taken


def say(line: str) -> None:
    """Print progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def ratio(taken: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    pairs = zip(taken[ours], taken[theirs], strict=True)
    return statistics.median(mine / other for mine, other in pairs)


def _measure(kind: str, settings: dict[str, Any], pipe: Any) -> None:
    """In a process of its own: the peak of one call above what was held before it."""
    warnings.simplefilter("ignore")
    device = settings["device"]
    model, images = model_and_images(settings["variant"], settings["images"], device)
    steps = settings["steps"]
    calls: dict[str, Call] = {
        "attnviz": partial(ours_integrated, model, images, steps),
        "floor": partial(floor, model, images, steps),
        "captum, all at once": partial(captums_integrated, model, images, steps, None),
    }
    with torch.no_grad():
        model(images[:1])
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _resident("VmHWM")
        calls[kind]()
        pipe.send(_resident("VmHWM") - before)
    else:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        calls[kind]()
        pipe.send(torch.cuda.max_memory_allocated() - before)


def _resident(field: str) -> int:
    """Bytes of this process (Linux): getrusage's peak would be that of the parent, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak(kind: str, settings: dict[str, Any]) -> int | None:
    """Bytes, or None where the system killed the process for lack of memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(kind, settings, sender))
    process.start()
    sender.close()
    try:
        found: int | None = receiver.recv()
    except EOFError:
        found = None
    process.join()
    return found


def gradcam(args: argparse.Namespace) -> dict[str, Any]:
    model, images = model_and_images(args.variant, args.images, args.device)
    calls: dict[str, Call] = {
        "attnviz": partial(ours_gradcam, model, images),
        "captum": partial(captums_gradcam, model, images),
    }
    try:
        import pytorch_grad_cam  # noqa: F401 - only whether it is there
    except ImportError as error:
        print(f"pytorch-grad-cam left out: {error}")
    else:
        calls["pytorch-grad-cam"] = partial(peers_gradcam, model, images)
    taken = seconds(calls, args.repeats, args.device)
    apart = (ours_gradcam(model, images) - captums_gradcam(model, images)).abs().max()
    report = report_of("layer_gradcam", taken)
    report["largest difference to captum"] = float(apart)
    if "pytorch-grad-cam" in calls:
        report["rank correlation with pytorch-grad-cam"] = _alike(model, images)
    return report


def _alike(model: nn.Module, images: Tensor) -> float:
    """Mean Spearman correlation of the positive maps at the images' size."""
    from attnviz.metrics import agreement

    mine = attribute(model, images, method="layer_gradcam", layer=LAYER).cpu()
    return float(agreement(mine, peers_gradcam(model, images))["spearman"].nanmean())


def integrated(args: argparse.Namespace) -> dict[str, Any]:
    model, images = model_and_images(args.variant, args.ig_images, args.device)
    rows = max(1, MEMORY // bytes_per_image(model, images[:1]))
    calls: dict[str, Call] = {
        "attnviz": partial(ours_integrated, model, images, args.steps),
        "floor": partial(floor, model, images, args.steps),
    }
    report = report_of("integrated_gradients", seconds(calls, args.ig_repeats, args.device))
    few = images[:2]
    theirs = captums_integrated(model, few, args.steps, None)
    apart = (ours_integrated(model, few, args.steps) - theirs).abs().max()
    report["largest difference to captum"] = float(apart)
    report["rows at once"] = rows
    return report | peaks(args)


def peaks(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of each candidate, and ours once more for twice the images at half the steps."""
    report: dict[str, Any] = {}
    settings = {"variant": args.variant, "device": args.device}
    few, steps = args.ig_images, args.steps
    found = {}
    for kind, count, each in (
        ("attnviz", few, steps),
        ("attnviz", 2 * few, max(1, steps // 2)),
        ("floor", few, steps),
        ("captum, all at once", min(few, args.captum_images), steps),
    ):
        say(f"  peak memory, {kind}, {count} images, {each} steps")
        bytes_ = found[kind, count] = peak(kind, settings | {"images": count, "steps": each})
        shown = None if bytes_ is None else bytes_ / MIB
        report[f"peak MiB, {kind}, {count} images, {each} steps"] = shown
    small, large = found["attnviz", few], found["attnviz", 2 * few]
    if small and large:
        report["peak of twice the images / peak"] = large / small
        report[f"peak grows at most {GROWTH} ×"] = large / small <= GROWTH
    return report


def report_of(method: str, taken: Mapping[str, list[float]]) -> dict[str, Any]:
    report: dict[str, Any] = {"method": method}
    for name, times in taken.items():
        report[f"seconds, {name}"] = statistics.median(times)
    for name in taken:
        if name != "attnviz":
            value = ratio(taken, "attnviz", name)
            report[f"attnviz / {name}"] = value
            if (method, name) in LIMITS:
                report[f"within {LIMITS[method, name]} of {name}"] = value <= LIMITS[method, name]
            if (method, name) in LEAST:
                wanted = LEAST[method, name]
                report[f"{name} at least {wanted:g} × slower"] = 1 / value >= wanted
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="cnn")
    parser.add_argument("--images", type=int, default=64, help="for Grad-CAM")
    parser.add_argument("--repeats", type=int, default=9, help="for Grad-CAM")
    parser.add_argument("--ig-images", type=int, default=8)
    parser.add_argument("--ig-repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--captum-images", type=int, default=4, help="all steps at once is large")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=UserWarning, module="captum")
    settings = f"{args.variant}, 96 × 96, {args.device}, {args.threads} threads"
    reports = []
    for kind, ask, images in (
        ("layer Grad-CAM", gradcam, args.images),
        ("integrated gradients", integrated, args.ig_images),
    ):
        say(f"{kind}: {images} images")
        reports.append(ask(args))
        if not args.json:
            print(f"\n{kind}: {images} images, {settings}")
            for name, value in reports[-1].items():
                shown = f"{value:.4g}" if isinstance(value, float) else value
                print(f"  {name:52} {shown}", flush=True)
    if args.json:
        print(json.dumps({"settings": vars(args), "reports": reports}, indent=1))


if __name__ == "__main__":
    main()
