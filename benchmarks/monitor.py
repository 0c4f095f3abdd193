"""Monitor's share of a training's time, for a ViT-Tiny and a small CNN, at its defaults.

    uv run python benchmarks/monitor.py [vit] [cnn] [--seconds 24 120] [--epoch 8] [--cpu]

Each model trains for so many seconds on random images, in epochs of so many; a short and a long
training by default. The three lines that the monitor takes are marked. Printed are the share that
the monitor's own clock measured, from its construction to the end of the run, how many epochs were
measured, the first of them, and on how many images. With `--cpu` all times are the processor's, of
one thread, as on a machine that does nothing else. Below are what the first measurement took in
forward passes of one image, beside what the monitor expected, and what was not measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import attnviz as av
from attnviz.training import preparation
from attnviz.training.monitor import EXPECTED

CLOCK = time.process_time if "--cpu" in sys.argv else time.perf_counter
OWN = {"clock": CLOCK} if "--cpu" in sys.argv else {}


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
    end = CLOCK() + length
    while CLOCK() < end:
        loss = F.cross_entropy(model(torch.randn(8, 3, side, side)), torch.arange(8) % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def trained(model: nn.Module, side: int, seconds: float, length: float, folder: Path) -> av.Monitor:
    calibration = scenes(side)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with av.start_run(folder) as run:  # the first line
        monitor = av.Monitor(calibration, run=run, **OWN)  # the second
        for epoch in range(1, max(2, round(seconds / length)) + 1):
            epoch_of(model, optimizer, side, length)
            monitor(model, epoch)  # the third
    return monitor


def told(monitor: av.Monitor) -> str:
    """A row of the table."""
    rows = [row for row in monitor.rows if "monitor_images" in row]
    counts = [row["monitor_images"] for row in rows]
    share = monitor.budget.spent / monitor.budget.trained
    found = [row["epoch"] for row in monitor.rows if "findings" in row]
    return (
        f"{monitor.budget.trained:.0f} s | {100 * share:.2f} % | {len(rows)} of "
        f"{len(monitor.rows)} | {rows[0]['epoch'] if rows else '–'} | "
        f"{f'{min(counts)} to {max(counts)}' if rows else '–'} | {found[0] if found else '–'}"
    )


def costs(model: nn.Module, side: int) -> str:
    """What the steps of the first measurement take, in forward passes of one image."""
    monitor = av.Monitor(scenes(side), budget=None, pinned=0, **OWN)
    epoch_of(model, torch.optim.SGD(model.parameters(), lr=0.0), side, 0.0)
    begun = CLOCK()
    monitor(model, 1)
    first = CLOCK() - begun
    forward, each, doctor = monitor._ready.forward, monitor._ready.each, monitor._examining
    found = first - doctor - each * len(monitor.data)
    return (
        f"forward pass of one image {1000 * forward:.0f} ms; finding the map {found / forward:.0f} "
        f"of it ({preparation.FIRST} s + {preparation.WATCHED} expected), an image "
        f"{each / forward:.1f}, the findings {doctor / forward:.0f} ({EXPECTED} expected)"
    )


def main() -> None:
    how = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], metavar="MODEL")
    parser.add_argument("--seconds", type=float, nargs="+", default=[24.0, 120.0])
    parser.add_argument("--epoch", type=float, default=8.0)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(
        "| model | trained | share | epochs measured | first | images | findings from |\n"
        "| --- | --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    notes = []
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a short training was not measured
        for key in args.models or MODELS:
            name, make, side = MODELS[key]
            for seconds in args.seconds:
                monitor = trained(make(), side, seconds, args.epoch, Path(root, f"{key}{seconds}"))
                print(f"| {name} | {told(monitor)} |", flush=True)
                notes += [f"{name}, {seconds:.0f} s: no {k}: {v}"
                          for k, v in monitor.not_measured.items()]  # fmt: skip
            notes.append(f"{name}: {costs(make(), side)}")
    print("\n" + "\n".join(notes))


MODELS = {"vit": ("ViT-Tiny, 224 px", vit, 224), "cnn": ("CNN, 64 px", cnn, 64)}

if __name__ == "__main__":
    main()
