"""Monitor's share of a training's time, for a ViT-Tiny and a small CNN, at its defaults.

    uv run python benchmarks/monitor.py [--seconds 120] [--epoch 8]

Each model trains for so many seconds on random images, in epochs of so many. The three lines that
the monitor takes are marked. Printed are the share that the monitor's own clock measured, from its
construction to the end, the largest number of images that an epoch was measured on, and how many
epochs were measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import attnviz as av


def scenes(side: int, count: int = 64) -> list[dict]:
    """Noise, half of it with a bright square in a known place."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for k in range(count):
        image, mask = torch.randn(3, side, side, generator=draw), torch.zeros(side, side) > 0
        if k % 2:
            mask[side // 4 : side // 2, side // 4 : side // 2] = True
            image[:, mask] += 2
        found.append({"image": image.clamp(-1, 1), "mask": mask, "label": k % 2})
    return found


def vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", num_classes=2)


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for narrow, wide in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


def epoch_of(model: nn.Module, optimizer: torch.optim.Optimizer, side: int, length: float) -> None:
    """Train for `length` seconds."""
    model.train()
    end = time.perf_counter() + length
    while time.perf_counter() < end:
        loss = F.cross_entropy(model(torch.randn(8, 3, side, side)), torch.arange(8) % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def measured(model: nn.Module, side: int, seconds: float, length: float, folder: Path) -> str:
    calibration = scenes(side)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with av.start_run(folder) as run:  # the first line
        monitor = av.Monitor(calibration, run=run)  # the second
        for epoch in range(1, max(2, round(seconds / length)) + 1):
            epoch_of(model, optimizer, side, length)
            monitor(model, epoch)  # the third
    rows = [row for row in monitor.rows if "monitor_images" in row]
    share = monitor.budget.spent / monitor.budget.trained
    most = max(row["monitor_images"] for row in rows)
    return (
        f"{100 * share:5.2f} % | {monitor.budget.trained:.0f} s | {len(rows)} of "
        f"{len(monitor.rows)} | {most}"
    )


def main() -> None:
    how = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--epoch", type=float, default=8.0)
    args = parser.parse_args()
    torch.manual_seed(0)
    print("| model | share | trained | epochs measured | images at most |")
    print("| --- | --- | --- | --- | --- |", flush=True)

    with tempfile.TemporaryDirectory() as root:
        for name, make, side in (("ViT-Tiny, 224 px", vit, 224), ("CNN, 64 px", cnn, 64)):
            told = measured(make(), side, args.seconds, args.epoch, Path(root, name.split(",")[0]))
            print(f"| {name} | {told} |", flush=True)


if __name__ == "__main__":
    main()
