"""Tiny networks to explain."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain(classes: int = 1, *, inplace: bool = False, seed: int = 0) -> nn.Module:
    """Two convolutions in a row, batch norm, dropout, linear: `(b, classes)`."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.ReLU(inplace=inplace),
        ),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(20, classes),
    )


class Squeezed(nn.Module):
    """The same with `(b,)` outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[:, 0]


def images(b: int = 3, side: tuple[int, int] = (10, 12), seed: int = 1) -> Tensor:
    """Soft blobs between -1 and 1, each image the same whatever `b` is."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(8, 3, 4, 4, generator=draw)[:b] * 2 - 1
    return (
        nn.functional.interpolate(coarse, side, mode="bilinear")
        if b
        else coarse.new_zeros(0, 3, *side)
    )
