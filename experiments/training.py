"""Train one model with a plain loop.

All images lie on the device as bytes; patches are injected there, batch by batch. Attention runs
through the fused kernel without writing its weights out. After each epoch a running mean of the
weights is evaluated, and the one with the lowest validation loss is kept: single steps fluctuate,
and one that fits the validation images may fail on others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attnviz.cli.devices import computing
from attnviz.models import build_model
from attnviz.progress import Progress
from attnviz.runs import RunWriter
from experiments import checkpoints
from experiments.checkpoints import TrainingState
from experiments.loading import load_images
from experiments.questions import Asked, ask, patch_seed
from experiments.settings import Settings

EVAL_BATCH = 100

BEAT_EVERY = 30.0
"""Seconds between heartbeats of a run within an epoch."""

Watcher = Callable[[nn.Module, int], dict[str, float]]
"""Called after each epoch with the model and the epoch; what it returns joins the curves' row."""


@dataclass(frozen=True)
class Trained:
    """A trained model and what it took.

    Attributes:
        model: With its best epoch's weights, in eval mode.
        progress: How long and how far.
        images_per_second: Training images over training time.
    """

    model: nn.Module
    progress: TrainingState
    images_per_second: float


def device_of(settings: Settings) -> torch.device:
    """The device that a training runs on.

    Raises:
        InputError: It is not there.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return computing(name)


def pays_in_bf16(device: torch.device) -> bool:
    """Whether convolutions are quicker in bfloat16: on GPUs, and on CPUs that multiply it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities: dict[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # torch 2.9 has none
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


class Loader:
    """One split's images on a device, with patches and labels, batch by batch."""

    def __init__(self, settings: Settings, split: str, device: torch.device) -> None:
        pixels = torch.from_numpy(load_images(settings, split)).permute(0, 3, 1, 2)
        self.pixels = pixels.to(device)
        self.settings, self.split, self.seed = settings, split, patch_seed(settings, split)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, numbers: Tensor, *, offset: int = 0) -> Asked:
        """The images of these numbers; `offset` moves their patches elsewhere."""
        numbers = numbers.to(self.pixels.device)
        in_order = torch.arange(len(numbers), device=numbers.device)
        asked = ask(self.pixels[numbers], numbers + offset, self.settings, seed=self.seed,
                    order=in_order if self.split == "train" else numbers)  # fmt: skip
        return asked._replace(images=asked.images.contiguous(memory_format=torch.channels_last))

    def batches(self, size: int = EVAL_BATCH) -> list[Tensor]:
        """The numbers of all images, in order, `size` at a time."""
        return list(torch.arange(len(self)).split(size))


def train(
    settings: Settings, writer: RunWriter, *, watcher: Watcher | None = None, shown: bool = True
) -> Trained:
    """Train, writing curves and a checkpoint per epoch; goes on from a checkpoint if there is one.

    Args:
        settings: What to train, and how.
        writer: The run; its progress, curves and checkpoint are kept up to date.
        watcher: Measures something after each epoch, for the curves.
        shown: Whether progress is printed on stderr.

    Returns:
        The model of the best epoch.

    Raises:
        InputError: The data or the device are not there.
        RunError: The run cannot be written, or its checkpoint cannot be read.
    """
    device = device_of(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    train_set, val_set = (Loader(settings, split, device) for split in ("train", "val"))
    torch.manual_seed(settings.seed)
    model = build_model(settings.variant, **settings.model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging), use_buffers=True
    )
    kept: nn.Module = average.module
    best, progress = kept.state_dict(), TrainingState()
    if (writer.path / checkpoints.FILE).exists():
        best, progress = checkpoints.restore(
            writer.path / checkpoints.FILE, model, average, optimizer
        )
    if settings.compile:
        model.compile()  # the running mean is judged, and watched, as it is
    writer.keep_curves(progress.epoch)
    steps, beat = len(train_set) // settings.batch, _pulse(writer)
    bar = Progress(
        settings.epochs * steps,
        label=settings.run_id,
        unit="steps",
        initial=progress.epoch * steps,
        shown=shown,
    )
    with bar, _denormals_as_zero():
        while progress.epoch < settings.epochs:
            if progress.epoch - progress.best_epoch >= settings.patience:
                break
            start = time.perf_counter()
            row = _epoch(model, average, optimizer, train_set, settings, progress.epoch, bar, beat)
            progress.seconds += time.perf_counter() - start
            progress.epoch += 1
            row |= evaluate(kept, val_set, prefix="val_") | {"seconds": progress.seconds}
            row |= watcher(kept, progress.epoch) if watcher else {}
            if row["val_loss"] < progress.best_loss:
                progress.best_loss, progress.best_epoch = row["val_loss"], progress.epoch
                best = {name: value.clone() for name, value in kept.state_dict().items()}
            writer.curve(epoch=progress.epoch, **row)
            state = checkpoints.to_bytes(model, average, best, optimizer, progress)
            writer.write(checkpoints.FILE, state)
            writer.heartbeat(epoch=progress.epoch, epochs=settings.epochs, **row)
    kept.load_state_dict(best)
    seen = progress.epoch * steps * settings.batch
    return Trained(kept.eval(), progress, seen / max(progress.seconds, 1e-9))


def _epoch(
    model: nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    train_set: Loader,
    settings: Settings,
    epoch: int,
    bar: Progress,
    beat: Callable[[], None],
) -> dict[str, float]:
    """One pass over the training images; the last, incomplete batch is left out."""
    model.train()
    order = torch.randperm(
        len(train_set), generator=torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
    )
    steps = len(order) // settings.batch
    offset = epoch * len(train_set) if settings.redraw else 0
    device = train_set.pixels.device
    losses, hits = torch.zeros((), device=device), torch.zeros((), device=device)
    for step, numbers in enumerate(order[: steps * settings.batch].split(settings.batch)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, epoch * steps + step, settings.epochs * steps)
        asked = train_set.batch(numbers, offset=offset)
        with _autocast(settings, device):
            logits = model(asked.images)
        loss = F.binary_cross_entropy_with_logits(logits.float(), asked.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        losses += loss.detach()
        hits += ((logits > 0) == asked.labels.bool()).float().mean()
        told: dict[str, str] = {}
        if bar.due and step % 5 == 0:  # reading them waits for a GPU
            told = {"loss": f"{losses / (step + 1):.3f}", "accuracy": f"{hits / (step + 1):.3f}"}
        bar.update(notes=told)
        beat()
    return {"train_loss": float(losses / steps), "train_accuracy": float(hits / steps)}


def _pulse(writer: RunWriter) -> Callable[[], None]:
    """A heartbeat now and then, so that an epoch of an hour is not taken for a death."""
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT_EVERY:
            writer.heartbeat()
            last = time.monotonic()

    return beat


@contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """A saturated softmax is full of numbers below 1e-38, each a hundred times as slow on a CPU."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _autocast(settings: Settings, device: torch.device) -> torch.autocast:
    wanted = {"auto": pays_in_bf16(device), "bf16": True, "fp32": False}[settings.precision]
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """The rate of a step: constant, or one cycle (Smith and Topin 2018).

    The cycle rises from a 25th of the highest rate over the first 30 % of the steps and falls to
    nothing over the rest, both along half a cosine.
    """
    if settings.schedule == "constant":
        return settings.lr
    rise = 0.3 * steps
    low, at = (1 / 25, step / rise) if step < rise else (0.0, 1 - (step - rise) / (steps - rise))
    half = 0.5 - 0.5 * float(torch.cos(torch.tensor(torch.pi * at)))
    return settings.lr * (low + (1 - low) * half)


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, *, prefix: str = "") -> dict[str, float]:
    """Mean loss and accuracy over a split, in float32."""
    model.eval()
    logits, labels = [], []
    for numbers in loader.batches():
        asked = loader.batch(numbers)
        logits.append(model(asked.images).float())
        labels.append(asked.labels)
    out, truth = torch.cat(logits), torch.cat(labels)
    loss = F.binary_cross_entropy_with_logits(out, truth)
    accuracy = ((out > 0) == truth.bool()).float().mean()
    return {f"{prefix}loss": float(loss), f"{prefix}accuracy": float(accuracy)}
