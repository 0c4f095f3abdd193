"""What `attnviz.evaluate` costs, beside a plain forward and other packages; kills and memory.

    uv run --group benchmarks python benchmarks/evaluate.py              # all parts, some minutes
    uv run --group benchmarks python benchmarks/evaluate.py cost memory  # these alone
    uv run --group benchmarks python benchmarks/evaluate.py --smoke      # all parts, small

cost    timm's ViT-tiny (random weights) on 1,000 JPEG files of 224² with masks: class row, rollout,
        received and all localisation metrics, thresholds from 32 other images, chance and the mask
        redrawn included, over the plain forward over the same loader. The doctor is left out, and
        so is the import of packages.
peers   the same maps and metrics by timm's `AttentionExtract` with Quantus, scikit-learn and
        scikit-image for what it lacks, and three maps of pytorch-grad-cam (Grad-CAM, Grad-CAM++,
        LayerCAM) with the same metrics, on `--peer-images` images: time an image over that of
        evaluate on `--peer-evaluated` images, its calibration and reference levels included.
memory  the largest memory of a process that evaluates 20,000 small images and saves the run, over
        that of one with 2,000.
kills   evaluations that are saved, killed (SIGKILL) at random moments and started again, until all
        are complete; their tables beside one that was not killed.

Times are processor time, of one thread unless OMP_NUM_THREADS says otherwise. Exit code 1 if a
limit is not met.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import attnviz as av
from attnviz.data import mask_folder
from attnviz.data.samples import Sample, Samples, batches
from attnviz.evaluation import evaluate
from attnviz.layers import MultiHeadAttention

LIMITS = {"cost": 1.6, "peers": 10.0, "memory": 1.1}
SIDE, BATCH = 224, 32
MAPS = ["class_row", "rollout", "received"]


def pictures(folder: Path, count: int) -> Samples:
    """Noise under a smooth gradient with a bright square each, as files, and their masks."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 200, (16, 8, 8, 3), dtype=np.uint8)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for k in range(count):
        pixels = np.array(Image.fromarray(coarse[k % 16]).resize((SIDE, SIDE)))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        y, x = draw.integers(0, SIDE - 64, 2)
        mask[y : y + 64, x : x + 64] = 255
        pixels[mask > 0] = 255
        Image.fromarray(pixels).save(folder / "images" / f"{k}.jpg", quality=90)
        Image.fromarray(mask).save(folder / "masks" / f"{k}.png")
    return mask_folder(folder / "images", folder / "masks", transform=as_input)


def as_input(picture: Image.Image) -> Tensor:
    shares = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return (shares - 0.5) / 0.5


def vit() -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()


def seconds(call: Callable[[], Any]) -> float:
    """Seconds of processor time, which other processes on the machine hardly change."""
    start = time.process_time()
    call()
    return time.process_time() - start


def forward(model: nn.Module, samples: Samples) -> None:
    with torch.no_grad():
        for batch in batches(samples, range(len(samples)), BATCH):
            model(batch.images)


def evaluated(model: nn.Module, samples: Samples, calibration: Samples) -> av.Evaluation:
    return evaluate(
        model, samples, calibration=calibration, maps=MAPS, target="predicted", findings=False,
        batch=BATCH, progress=False,
    )  # fmt: skip


def cost(args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """The forward runs before and after the evaluation, so that a slower machine slows both."""
    with tempfile.TemporaryDirectory() as folder:
        samples = pictures(Path(folder, "test"), args.images)
        held = pictures(Path(folder, "held"), 32)
        model = vit()
        forward(model, held)
        before = seconds(lambda: forward(model, samples))
        mine = seconds(lambda: evaluated(model, samples, held))
        after = seconds(lambda: forward(model, samples))
    plain = (before + after) / 2
    print(
        f"  {args.images} images, {torch.get_num_threads()} threads: forward {before:.1f} s and "
        f"{after:.1f} s, evaluate {mine:.1f} s"
    )
    yield "evaluate over the plain forward", mine / plain


def peers(args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    count = args.peer_evaluated
    with tempfile.TemporaryDirectory() as folder:
        samples = pictures(Path(folder, "test"), count)
        held = pictures(Path(folder, "held"), 32)
        model = vit()
        forward(model, held)
        mine = seconds(lambda: evaluated(model, samples, held)) / count
        batch = next(batches(samples, range(args.peer_images), args.peer_images))
    print(f"  evaluate: {1e3 * mine:.1f} ms an image, {len(MAPS)} maps, {count} images")
    for name, maps in (("timm and Quantus", by_timm), ("grad-cam and Quantus", by_grad_cam)):
        maps(vit(), batch.images[:1])  # imports
        scored_by_peers(np.random.default_rng(0).random((1, SIDE, SIDE)), batch.masks[:1])
        start = time.process_time()
        drawn = maps(vit(), batch.images)
        for one in drawn:
            scored_by_peers(one, batch.masks)
        each = (time.process_time() - start) / args.peer_images
        told = f"{len(drawn)} maps, {args.peer_images} images"
        print(f"  {name}: {1e3 * each:.1f} ms an image, {told}", flush=True)
        yield f"{name} over evaluate", each / mine


def by_timm(model: nn.Module, images: Tensor) -> list[np.ndarray]:
    """Class row, rollout and received from timm's own extraction of attention."""
    from timm.layers import set_fused_attn
    from timm.utils import AttentionExtract

    set_fused_attn(False)
    try:
        extract = AttentionExtract(vit(), method="fx")
        with torch.no_grad():
            weights = list(extract(images).values())
    finally:
        set_fused_attn(True)
    flow = torch.eye(weights[0].shape[-1])
    for one in weights:
        mixed = one.mean(1) + torch.eye(one.shape[-1])
        flow = (mixed / mixed.sum(-1, keepdim=True)) @ flow
    last = weights[-1].mean(1)
    rows = [last[:, 0, 1:], flow[:, 0, 1:], last.mean(1)[:, 1:]]
    return [upsampled(row.reshape(-1, 14, 14)) for row in rows]


def by_grad_cam(model: nn.Module, images: Tensor) -> list[np.ndarray]:
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM

    def places(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].reshape(len(tokens), 14, 14, -1).permute(0, 3, 1, 2)

    maps = []
    for kind in (GradCAM, GradCAMPlusPlus, LayerCAM):
        with kind(model, [model.blocks[-1].norm1], reshape_transform=places) as cam:
            maps.append(np.concatenate([cam(part, None) for part in images.split(BATCH)]))
    return maps


def upsampled(maps: Tensor) -> np.ndarray:
    large = torch.nn.functional.interpolate(maps[:, None], (SIDE, SIDE), mode="bilinear")
    return large[:, 0].numpy()


def scored_by_peers(maps: np.ndarray, masks: Tensor) -> dict[str, list[float]]:
    """The localisation metrics of the table, each by the package that has it."""
    import quantus
    from sklearn.metrics import average_precision_score

    kinds = {
        "pointing_game": quantus.PointingGame,
        "energy_pointing_game": quantus.RelevanceMassAccuracy,
        "relevance_rank_accuracy": quantus.RelevanceRankAccuracy,
        "topk_intersection": quantus.TopKIntersection,
        "pixel_auroc": quantus.AUC,
        "sparseness": quantus.Sparseness,
        "complexity": quantus.Complexity,
    }
    batch = {
        "x_batch": np.zeros((len(maps), 3, SIDE, SIDE), dtype=np.float32),
        "y_batch": np.zeros(len(maps), dtype=np.int64),
        "s_batch": masks[:, None].numpy(),
    }
    scores = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, kind in kinds.items():
            metric = kind(disable_warnings=True, display_progressbar=False)
            scores[key] = metric(model=nn.Identity(), a_batch=maps[:, None].copy(), **batch)
    scores["pixel_ap"] = [
        average_precision_score(mask.ravel(), one.ravel())
        for one, mask in zip(maps, masks.numpy(), strict=True)
    ]
    scores["iou and boxes"] = [
        overlap(one, mask) for one, mask in zip(maps, masks.numpy(), strict=True)
    ]
    return scores


def overlap(one: np.ndarray, mask: np.ndarray) -> float:
    """IoU and the box of the largest component at one threshold, as wsolevaluation does it."""
    from skimage.measure import label, regionprops

    above = (one - one.min()) / (one.max() - one.min() + 1e-12) >= 0.5
    regions = regionprops(label(above))
    largest = max(regions, key=lambda region: region.area, default=None)
    box = (0, 0, 0, 0) if largest is None else largest.bbox
    return float((above & mask).sum() / max((above | mask).sum(), 1)) + 0.0 * box[0]


@dataclass
class Small:
    """Small images that are made from their number alone."""

    count: int
    side: int = 32

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index >= self.count:
            raise IndexError(index)
        draw = np.random.default_rng(index)
        image = torch.from_numpy(draw.random((3, self.side, self.side), dtype=np.float32))
        mask = torch.zeros(self.side, self.side, dtype=torch.bool)
        y, x = draw.integers(0, self.side - 8, 2)
        mask[y : y + 8, x : x + 8] = True
        image[:, mask] = 1
        return Sample(image, mask, label=index % 2, value_range=((0.0,), (1.0,)))


class Attending(nn.Module):
    """A stem, attention over 8 × 8 places, a head of two classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = MultiHeadAttention(16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, 2)`."""
        found: Tensor = self.head(self.attention(self.stem(x)).mean((2, 3)))
        return found


def memory(args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    peaks = []
    for count in (args.small // 10, args.small):
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, "child", "--small", str(count), "--out", folder]
            told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        peaks.append(int(told[-1]) / 1024)
        print(f"  {count} images: at most {peaks[-1]:.0f} MiB, {float(told[-2]):.0f} s")
    yield f"memory of {args.small} images over that of {args.small // 10}", peaks[1] / peaks[0]


def child(args: argparse.Namespace) -> None:
    """Evaluate in a process of its own; print how long it took and the most memory it held."""
    torch.set_num_threads(1)
    took = seconds(lambda: small(args.small, Path(args.out, "run")))
    print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def small(count: int, path: Path | None) -> av.Evaluation:
    return evaluate(
        Attending(), Small(count), calibration=Small(64), findings=False, batch=64, save=path,
        progress=False,
    )  # fmt: skip


def kills(args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    torch.set_num_threads(1)
    count = args.kill_images
    start = time.perf_counter()
    whole = small(count, None).samples
    took = time.perf_counter() - start
    draw = np.random.default_rng(args.seed)
    done, same, runs = 0, True, 0
    with tempfile.TemporaryDirectory() as folder:
        while done < args.kills:
            path = Path(folder, f"run-{runs}")
            while done < args.kills and not complete(path):
                done += killed(lambda path=path: small(count, path), draw.uniform(0, took / 2))
            if not complete(path):
                small(count, path)
            table = av.open_run(path).samples()
            same &= table.equals(whole)
            runs += 1
    print(f"  {done} kills of {runs} evaluations of {count} images, {took:.1f} s each")
    yield f"tables of {runs} evaluations that were killed, unlike the one that was not", 1.0 - same


def complete(path: Path) -> bool:
    return (path / "run.json").exists() and av.open_run(path).state == "complete"


def killed(work: Callable[[], Any], after: float) -> bool:
    """Whether a process that does the work was still at it when it was killed."""
    process = os.fork()
    if not process:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


PARTS = {"cost": cost, "peers": peers, "memory": memory, "kills": kills}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "child"], default=list(PARTS))
    parser.add_argument("--images", type=int, default=1000, help="of cost")
    parser.add_argument("--peer-images", type=int, default=32, help="of the other packages")
    parser.add_argument("--peer-evaluated", type=int, default=200, help="of evaluate in peers")
    parser.add_argument("--small", type=int, default=20_000, help="images of memory")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kill-images", type=int, default=1536, help="images of kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--smoke", action="store_true", help="small sizes, no limits")
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.parts == ["child"]:
        child(args)
        return 0
    if args.smoke:
        args.images, args.peer_images, args.peer_evaluated, args.small = 64, 1, 32, 2000
        args.kills, args.kill_images = 5, 512
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    failed = False
    for part in args.parts:
        print(part)
        for what, ratio in PARTS[part](args):
            limit = LIMITS.get(part, 0.0)
            met = ratio >= limit if part == "peers" else ratio <= limit
            failed |= not met and not args.smoke
            sign = "≥" if part == "peers" else "≤"
            print(f"  {what}: {ratio:.2f} (limit {sign} {limit:g}{'' if met else ', not met'})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
