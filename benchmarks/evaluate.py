"""What `attnviz.evaluate` costs, beside a plain forward and other packages; kills and memory.

    uv run --group benchmarks python benchmarks/evaluate.py              # all parts, some minutes
    uv run --group benchmarks python benchmarks/evaluate.py cost memory  # these alone
    uv run --group benchmarks python benchmarks/evaluate.py --smoke      # all parts, small

cost    timm's ViT-tiny (random weights) on 1,000 JPEG files of 224² with masks: class row, rollout,
        received and all localisation metrics, thresholds from 32 other images, chance and the mask
        redrawn included, over the plain forward over the same loader. The doctor is left out, and
        so is the import of packages.
peers   the same table by timm's `AttentionExtract` (class row, rollout, received) and by three maps
        of pytorch-grad-cam (Grad-CAM, Grad-CAM++, LayerCAM): read by the same loader, scored by
        Quantus, scikit-learn and scikit-image at the size of the image. "Scores alone" is reading,
        drawing and scoring, measured on `--peer-images` images. "Whole table" adds its other
        columns: thresholds from the 32 other images (100 are tried, for IoU and the box of the
        largest component at once), and the levels chance, centre, fixed and redrawn on as many
        masks as evaluate uses: a map of noise, a Gaussian and the mean of the masks, each scored
        like a map, and the mask pooled to the grid and made larger in two ways, each scored at the
        best of 20 thresholds. These are measured on `--peer-masks` masks and scaled to
        `--peer-evaluated` images, on which evaluate is measured whole. Intervals and bounds, on
        evaluate's side alone, cost next to nothing; so do packages, which are imported before.
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
from attnviz.evaluation.evaluation import LEVEL_PIXELS
from attnviz.layers import MultiHeadAttention

LIMITS = {"cost": 1.6, "peers": 10.0, "memory": 1.1}
SIDE, BATCH = 224, 32
MAPS = ["class_row", "rollout", "received"]
V2 = (0.3, 0.5, 0.7)


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
        evaluated(model, pictures(Path(folder, "few"), 8), held)  # imports
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
        evaluated(model, pictures(Path(folder, "few"), 8), held)  # imports
        mine = seconds(lambda: evaluated(model, samples, held)) / count
        few = min(count, args.peer_images)
        reading = seconds(lambda: read(samples, few)) / few
        images, masks = read(samples, few)
    print(
        f"  evaluate, whole table: {1e3 * mine:.1f} ms an image, {len(MAPS)} maps, {count} images"
    )
    beside = levels_by_peers(masks[: args.peer_masks]) * level_masks(count) / count
    for name, maps in (("timm and Quantus", by_timm()), ("grad-cam and Quantus", by_grad_cam())):
        scored_by_peers(maps(images[:1])[0], masks[:1])  # imports
        start = time.process_time()
        drawn = maps(images)
        drawing = (time.process_time() - start) / few
        scoring = seconds(lambda drawn=drawn: [scored_by_peers(one, masks) for one in drawn]) / few
        alone = reading + drawing + scoring
        cuts = calibrated_by_peers(drawn, masks[: args.peer_masks])
        whole = alone + beside + (reading + drawing + cuts) * len(held) / count
        print(
            f"  {name}: scores alone {1e3 * alone:.1f} ms an image (reading {1e3 * reading:.1f}, "
            f"{len(drawn)} maps {1e3 * drawing:.1f}, scores {1e3 * scoring:.1f}), "
            f"whole table {1e3 * whole:.1f} ms; scores alone over evaluate's whole table "
            f"{alone / mine:.2f}",
            flush=True,
        )
        yield f"{name} over evaluate, whole table", whole / mine


def read(samples: Samples, count: int) -> tuple[Tensor, Tensor]:
    parts = list(batches(samples, range(count), BATCH))
    return torch.cat([part.images for part in parts]), torch.cat([part.masks for part in parts])


def level_masks(count: int) -> int:
    """How many masks evaluate takes chance and the redrawn mask from."""
    return min(count, max(32, LEVEL_PIXELS // SIDE**2))


def levels_by_peers(masks: Tensor) -> float:
    """Seconds a mask that its reference levels take."""

    def large(cells: Tensor, mode: str = "bilinear") -> np.ndarray:
        return torch.nn.functional.interpolate(cells, (SIDE, SIDE), mode=mode)[:, 0].numpy()

    def levels() -> None:
        for drawn in (large(noise), centre, fixed):
            scored_by_peers(drawn, masks)
        cells = torch.nn.functional.adaptive_avg_pool2d(masks[:, None].float(), 14)
        for drawn in (large(cells, "nearest"), large(cells)):
            tried(drawn, masks.numpy(), 20)
            scored_by_peers(drawn, masks)

    noise = torch.rand(len(masks), 1, 14, 14, generator=torch.Generator().manual_seed(0))
    line = np.exp(-((np.arange(SIDE) - (SIDE - 1) / 2) ** 2) / (2 * (SIDE / 4) ** 2))
    centre = np.broadcast_to(np.outer(line, line), masks.shape).astype(np.float32)
    fixed = np.broadcast_to(masks.numpy().mean(0, dtype=np.float32), masks.shape)
    scored_by_peers(centre[:1], masks[:1])  # imports
    return seconds(levels) / len(masks)


def calibrated_by_peers(drawn: list[np.ndarray], masks: Tensor) -> float:
    """Seconds an image that trying 100 thresholds on each of its maps takes."""
    return seconds(lambda: [tried(maps, masks.numpy(), 100) for maps in drawn]) / len(masks)


def tried(maps: np.ndarray, masks: np.ndarray, steps: int) -> np.ndarray:
    """IoU and box overlap at each threshold, the mean over the maps."""
    found = np.zeros((steps, 2))
    for one, mask in zip(maps, masks, strict=False):
        scaled, goal = scaled_map(one), corners(mask)
        for step in range(steps):
            above = scaled >= step / steps
            found[step] += iou(above, mask), box_fit(above, goal)
    return found / len(masks)


Draw = Callable[[Tensor], list[np.ndarray]]
"""From images to maps of their size."""


def by_timm() -> Draw:
    """Class row, rollout and received from timm's own extraction of attention."""
    from timm.layers import set_fused_attn
    from timm.utils import AttentionExtract

    set_fused_attn(False)
    extract = AttentionExtract(vit(), method="fx")
    set_fused_attn(True)

    def draw(images: Tensor) -> list[np.ndarray]:
        parts = [of_weights(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        return [np.concatenate(maps) for maps in zip(*parts, strict=True)]

    def of_weights(images: Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            weights = list(extract(images).values())
        flow = torch.eye(weights[0].shape[-1])
        for one in weights:
            mixed = one.mean(1) + torch.eye(one.shape[-1])
            flow = (mixed / mixed.sum(-1, keepdim=True)) @ flow
        last = weights[-1].mean(1)
        rows = [last[:, 0, 1:], flow[:, 0, 1:], last.mean(1)[:, 1:]]
        return [upsampled(row.reshape(-1, 14, 14)) for row in rows]

    return draw


def by_grad_cam() -> Draw:
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM

    model = vit()

    def places(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].reshape(len(tokens), 14, 14, -1).permute(0, 3, 1, 2)

    def draw(images: Tensor) -> list[np.ndarray]:
        maps = []
        for kind in (GradCAM, GradCAMPlusPlus, LayerCAM):
            with kind(model, [model.blocks[-1].norm1], reshape_transform=places) as cam:
                maps.append(np.concatenate([cam(part, None) for part in images.split(BATCH)]))
        return maps

    return draw


def upsampled(maps: Tensor) -> np.ndarray:
    large = torch.nn.functional.interpolate(maps[:, None], (SIDE, SIDE), mode="bilinear")
    return large[:, 0].numpy()


def scored_by_peers(maps: np.ndarray, masks: Tensor) -> dict[str, Any]:
    """The localisation metrics of the table, each by the package that has it."""
    import quantus

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
    scores: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, kind in kinds.items():
            metric = kind(disable_warnings=True, display_progressbar=False)
            scores[key] = metric(model=nn.Identity(), a_batch=maps[:, None].copy(), **batch)
    energy, goals = np.array(scores["energy_pointing_game"]), masks.numpy()
    scores["mass_lift"] = energy * SIDE**2 / goals.sum((1, 2))
    for one, mask in zip(maps, goals, strict=True):
        for key, value in (by_value(one, mask) | by_cut(one, mask)).items():
            scores.setdefault(key, []).append(value)
    return scores


def by_value(one: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Average precision and the best IoU from one curve, and the IoU at the mask's own area."""
    from sklearn.metrics import precision_recall_curve

    area = mask.sum()
    precision, recall, _ = precision_recall_curve(mask.ravel(), one.ravel())
    hits = recall * area
    union = np.divide(hits, precision, out=np.full_like(hits, np.inf), where=precision > 0) + area
    above = one >= np.partition(one, one.size - area, axis=None)[one.size - area]
    return {
        "pixel_ap": float(-np.sum(np.diff(recall) * precision[:-1])),
        "oracle_iou": float((hits / (union - hits)).max()),
        "iou_at_area": float((above & mask).sum() / (above | mask).sum()),
    }


def by_cut(one: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """IoU and boxes, each at its own threshold."""
    scaled, goal = scaled_map(one), corners(mask)
    overlap = iou(scaled >= 0.5, mask)
    first, second = (box_fit(scaled >= tau, goal) for tau in (0.4, 0.6))
    accuracy = {
        "max_box_acc": float(first >= 0.5),
        "max_box_acc_v2": float(np.mean([second >= v for v in V2])),
    }
    return {"iou": overlap, "max_iou": overlap, **accuracy}


def scaled_map(one: np.ndarray) -> np.ndarray:
    return (one - one.min()) / (one.max() - one.min() + 1e-12)


def iou(above: np.ndarray, mask: np.ndarray) -> float:
    return float((above & mask).sum() / max((above | mask).sum(), 1))


def box_fit(above: np.ndarray, goal: tuple[int, ...]) -> float:
    """The IoU of the box of the largest component with the box of the mask."""
    from skimage.measure import label, regionprops

    regions = regionprops(label(above))
    largest = max(regions, key=lambda region: region.area, default=None)
    box = (0, 0, 0, 0) if largest is None else largest.bbox
    sides = [min(box[i + 2], goal[i + 2]) - max(box[i], goal[i]) for i in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, goal)]
    return float(both / (sum(areas) - both))


def corners(mask: np.ndarray) -> tuple[int, ...]:
    y, x = mask.nonzero()
    return int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1


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
    parser.add_argument("--peer-masks", type=int, default=4, help="of their levels and thresholds")
    parser.add_argument("--peer-evaluated", type=int, default=1000, help="of evaluate in peers")
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
        args.images, args.peer_images, args.peer_masks = 64, 1, 1
        args.peer_evaluated, args.small = 32, 2000
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
