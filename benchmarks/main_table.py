"""The main tutorial's whole table by the published code and by ours, on one machine.

    uv run python benchmarks/main_table.py time [--steps 2] [--images 4000] [--epochs 50]
    uv run python benchmarks/main_table.py loss [--images 320] [--epochs 8] [--batch 32]

`time` measures training steps of all six variants and multiplies up to the whole table; no epoch is
run to its end, and the table says over how many steps it was timed. The published way: one image
after the other through a `DataLoader` without workers, to a float tensor and normalised; a patch
put in image by image, seeded by the place in the batch; float32, contiguous, attention written out,
probabilities and their loss, Adam. Ours: `experiments.training.train` as it is. Neither is charged
for its validation.

`loss` trains both for the same epochs on the same images and patches, 48 × 48 so that the published
1 × 1-convolution form ends within minutes, and gives the test loss of each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from attnviz.runs import open_run, start_run
from attnviz.text import table
from experiments.evaluation import environment
from experiments.loading import load_images
from experiments.published import build_published, published_loss
from experiments.running import run_training
from experiments.settings import Settings
from experiments.training import Loader, device_of, train

VARIANTS = ("cnn", "mha_reshape", "mha", "mha_conv1d", "cbam_channel", "cbam")
_EPOCHS = 3  # of our own timing; the first warms up


class OneByOne(torch.utils.data.Dataset[Tensor]):
    """A data set that converts images to tensors on access."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        image = torch.from_numpy(self.pixels[index]).permute(2, 0, 1).contiguous().float() / 255
        mean = std = torch.full((3, 1, 1), 0.5)
        return (image - mean) / std


def published_batches(settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches for ever, as published: a generator per place in the batch puts the patch in."""
    images = OneByOne(load_images(settings, "train"))
    loader = torch.utils.data.DataLoader(images, settings.batch, shuffle=True, drop_last=True)
    while True:
        for batch in loader:
            labels = torch.randint(0, 2, (len(batch),)).float()
            for place in range(len(batch)):
                y, x = np.random.default_rng(place).integers(0, settings.side - settings.size, 2)
                if labels[place]:
                    batch[place, :, y : y + settings.size, x : x + settings.size] = settings.fill
            yield batch, labels


def published_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    optimizer.zero_grad()
    loss = published_loss(net(images), labels)
    loss.backward()
    optimizer.step()


def published_seconds(settings: Settings, steps: int) -> float:
    """The median of some steps, a batch's loading included; one more before warms up."""
    device = device_of(settings)
    torch.manual_seed(0)
    net = build_published(settings.variant).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    batches, times = published_batches(settings), []
    for _ in range(steps + 1):
        start = time.perf_counter()
        images, labels = next(batches)
        published_step(net, optimizer, images.to(device), labels.to(device))
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def our_seconds(settings: Settings) -> float:
    """A step of `experiments.training.train`, by its own clock; the first epoch warms up."""
    with tempfile.TemporaryDirectory() as root:
        writer = start_run(Path(root), "timed", variant=settings.variant,
                           settings=settings.as_dict(), seed=0)  # fmt: skip
        train(settings, writer)
        writer.stop("timed")
        seconds = [row["seconds"] for row in open_run(writer.path).curve_rows()]
    return float(np.median(np.diff(seconds))) / (settings.train_images // settings.batch)


def time_table(args: argparse.Namespace) -> None:
    """Seconds a step, and what they make of the whole table."""
    total = args.epochs * (args.images // args.batch)
    rows, sums = [], [0.0, 0.0]
    for variant in VARIANTS:
        settings = Settings(variant=variant, batch=args.batch, train_images=args.batch * 8,
                            val_images=4, test_images=4, epochs=_EPOCHS, follow=0)  # fmt: skip
        ours, theirs = our_seconds(settings), published_seconds(settings, args.steps)
        sums = [sums[0] + theirs * total, sums[1] + ours * total]
        rows.append((variant, f"{theirs * 1e3:.0f}", f"{ours * 1e3:.0f}",
                     f"{theirs * total / 3600:.2f}", f"{ours * total / 3600:.3f}",
                     f"{theirs / ours:.1f} ×"))  # fmt: skip
        print(f"{variant} timed", file=sys.stderr, flush=True)
    rows.append(("all six", "", "", f"{sums[0] / 3600:.2f}", f"{sums[1] / 3600:.3f}",
                 f"{sums[0] / sums[1]:.1f} ×"))  # fmt: skip
    print(
        f"{args.images:,} images of 96 × 96, {args.epochs} epochs, batch {args.batch}; {_where()}"
    )
    print(f"timed over {args.steps} published steps and {8 * (_EPOCHS - 1)} of ours (medians), "
          "multiplied up")  # fmt: skip
    print(table(("variant", "published ms a step", "ours", "published h", "ours h", "ratio"), rows))


def published_losses(settings: Settings) -> tuple[list[float], float]:
    """The test loss after each epoch of the published loop, on our images and patches.

    Returns:
        The losses, and the seconds that the training steps took.
    """
    device = device_of(settings)
    train_set, test_set = (Loader(settings, split, device) for split in ("train", "test"))
    torch.manual_seed(settings.seed)
    net = build_published(settings.variant).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    losses, spent = [], 0.0
    for _ in range(settings.epochs):
        start = time.perf_counter()
        net.train()
        order = torch.randperm(len(train_set))
        whole = len(order) // settings.batch * settings.batch
        for numbers in order[:whole].split(settings.batch):
            asked = train_set.batch(numbers)
            published_step(net, optimizer, asked.images.contiguous(), asked.labels)
        spent += time.perf_counter() - start
        net.eval()
        with torch.no_grad():
            asked = test_set.batch(torch.arange(len(test_set)))
            parts = [net(part.contiguous()) for part in asked.images.split(25)]
        losses.append(float(published_loss(torch.cat(parts), asked.labels)))
    return losses, spent


def loss_table(args: argparse.Namespace) -> None:
    """Both trained to the end, small; lowest and last test loss, and the seconds it took."""
    rows, sums = [], [0.0, 0.0]
    for variant in VARIANTS:
        settings = Settings(
            variant=variant, side=48, size=8, train_images=args.images, val_images=100,
            test_images=200, epochs=args.epochs, patience=args.epochs, batch=args.batch,
            redraw=False, follow=1, test_curve=True,
        )  # fmt: skip
        theirs, took = published_losses(settings)
        with tempfile.TemporaryDirectory() as root:
            run = run_training(settings, Path(root))
            ours, mine = run.curves()["test_loss"].tolist(), float(run.summary["seconds"])
        sums = [sums[0] + took, sums[1] + mine]
        rows.append((variant, *(f"{loss:.4f}" for loss in (min(theirs), theirs[-1], min(ours),
                     ours[-1])), f"{took:.0f}", f"{mine:.0f}"))  # fmt: skip
        print(f"{variant} trained", file=sys.stderr, flush=True)
    rows.append(("all six", "", "", "", "", f"{sums[0]:.0f}", f"{sums[1]:.0f}"))
    print(f"{args.images:,} images of 48 × 48, {args.epochs} epochs, batch {args.batch}, test loss "
          f"on 200; {_where()}")  # fmt: skip
    print("seconds of training alone, without tests and maps")
    print(table(("variant", "published lowest", "last", "ours lowest", "last", "published s",
                 "ours s"), rows))  # fmt: skip


def _where() -> str:
    facts = environment(Settings())
    return f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("time", "loss"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="published steps that are timed")
    parser.add_argument("--images", type=int, help="default: 4000 for time, 320 for loss")
    parser.add_argument("--epochs", type=int, help="default: 50 for time, 8 for loss")
    args = parser.parse_args()
    args.images = args.images or {"time": 4000, "loss": 320}[args.what]
    args.epochs = args.epochs or {"time": 50, "loss": 8}[args.what]
    {"time": time_table, "loss": loss_table}[args.what](args)


if __name__ == "__main__":
    main()
