"""Time of a training step beside the published code's, in one run, on the same batch.

    uv run python benchmarks/training_step.py [--batch 32] [--steps 12]

Both take the same weights, images and optimizer. The published form runs as published: float32,
contiguous, probabilities and their loss, Adam without fusion. Ours runs as `experiments` trains.
Steps of the two alternate; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attnviz.models import PatchNet, build_model
from experiments.published import as_published, published_loss
from experiments.training import pays_in_bf16

VARIANTS = ("cnn", "mha_reshape", "mha", "mha_conv1d", "cbam_channel", "cbam")


def ours(model: PatchNet, images: Tensor, labels: Tensor) -> Callable[[], None]:
    model = model.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    cast = torch.autocast(images.device.type, torch.bfloat16, enabled=pays_in_bf16(images.device))

    def step() -> None:
        with cast:
            logits = model(images)
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def published(model: PatchNet, images: Tensor, labels: Tensor) -> Callable[[], None]:
    net = as_published(model)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, foreach=False)

    def step() -> None:
        optimizer.zero_grad()
        loss = published_loss(net(images), labels)
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.rand(args.batch, 3, 96, 96, device=device) * 2 - 1
    labels = (torch.arange(args.batch, device=device) % 2).float()
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, {where}, batch {args.batch}, medians of {args.steps} steps")
    print("| variant | published ms | ours ms | published / ours |\n| --- | --- | --- | --- |")
    for variant in args.variants:
        torch.manual_seed(0)
        model = build_model(variant).to(device)
        both = published(copy.deepcopy(model), images, labels), ours(model, images, labels)
        for step in both:
            step()
        times = [[seconds(step, device) for step in both] for _ in range(args.steps)]
        theirs, mine = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        print(f"| {variant} | {theirs:.0f} | {mine:.0f} | {theirs / mine:.1f} × |", flush=True)


if __name__ == "__main__":
    main()
