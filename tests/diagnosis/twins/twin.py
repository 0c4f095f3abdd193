"""A faulty program beside its mended twin, and the small network that layers are put into."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.diagnosis import Findings, diagnose

C = 24  # channels: neither a square nor the number of places
HEADS = 4
SIDE = 8  # places in a row
SIZE = 4 * SIDE


class Net(nn.Module):
    """Two convolutions, the layer in question, the mean over places, two logits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, C, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.layer = layer
        self.head = nn.Linear(C, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer(self.stem(images))
        return self.head(x.mean((2, 3)) if x.dim() == 4 else x.mean(1))


def noise(n: int = 8) -> Tensor:
    """`(n, 3, 32, 32)` images of noise."""
    images = torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return images.clamp(-1, 1)


def large_noise() -> Tensor:
    """`(2, 3, 96, 96)` images of noise: as many rows of features as channels."""
    images = torch.randn(2, 3, 4 * C, 4 * C, generator=torch.Generator().manual_seed(1))
    return images.clamp(-1, 1)


@dataclass(frozen=True)
class Twin:
    """A faulty program and its mended twin.

    Attributes:
        code: The finding that the faulty one must have and the mended one must not have.
        severity: Of that finding.
        faulty: Makes the faulty subject: a model, images, a training, a split.
        mended: Makes the mended one.
        shown: The functions or classes whose source shows the difference.
        examine: From the subject to the findings; by default `diagnose` on noise.
        images: The images, or None for noise.
        ask: Options of `diagnose`.
    """

    code: str
    severity: str
    faulty: Callable[[], Any]
    mended: Callable[[], Any]
    shown: tuple[Any, Any]
    examine: Callable[[Any], Findings] | None = None
    images: Callable[[], Tensor] = noise
    ask: dict[str, Any] = field(default_factory=dict)

    def make(self, mended: bool) -> Any:
        """The subject, of fixed random weights."""
        torch.manual_seed(3)
        return (self.mended if mended else self.faulty)()

    def findings(self, mended: bool) -> Findings:
        """The findings on the subject."""
        subject = self.make(mended)
        if self.examine is not None:
            return self.examine(subject)
        return diagnose(subject, self.images(), **self.ask)

    def source(self, mended: bool) -> str:
        """The lines that differ, for the documentation."""
        return textwrap.dedent(inspect.getsource(self.shown[mended])).rstrip()


def layer_twin(
    code: str,
    severity: str,
    faulty: type[nn.Module],
    mended: type[nn.Module],
    step: str = "forward",
    *,
    images: Callable[[], Tensor] = noise,
    **ask: Any,
) -> Twin:
    """A twin of two layers in the small network, which differ in one method."""
    shown = (getattr(faulty, step), getattr(mended, step))
    nets = partial(_net, faulty), partial(_net, mended)
    return Twin(code, severity, *nets, shown, images=images, ask=ask)


def _net(layer: type[nn.Module]) -> Net:
    return Net(layer()).eval()
