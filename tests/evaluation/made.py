"""Small data sets and models for the tests of `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import attnviz as av
from attnviz.data.samples import Sample
from attnviz.layers import MultiHeadAttention


@dataclass
class Patches:
    """Noise with a white patch; every image anew from its number, as a file on disk would be."""

    count: int
    side: int = 32
    seed: int = 0
    classes: int = 1
    read: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index >= self.count:
            raise IndexError(index)
        self.read.append(index)
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        clean = torch.rand(1, 3, self.side, self.side, generator=generator) * 2 - 1
        numbers = torch.tensor([index])
        images, masks, boxes = av.inject_patch(clean, size=8, seed=self.seed, indices=numbers)
        label = index % max(2, self.classes)
        return Sample(
            images[0], masks[0], boxes, None, label, group=f"g{index % 3}", name=f"{index}.png"
        )


@dataclass
class Listed:
    """Samples from a list."""

    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class Attending(nn.Module):
    """A stem, attention over 8 × 8 places written out, and a head of `classes` outputs."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = MultiHeadAttention(16)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.attention(self.stem(x)).mean((2, 3)))
        return found


class SeveralSizes(Patches):
    """Noise with a white patch, in three sizes that take turns."""

    def __getitem__(self, index: int) -> Sample:
        made = super().__getitem__(index)
        h, w = [(32, 32), (24, 40), (40, 32)][index % 3]
        image, mask = torch.zeros(3, h, w), torch.zeros(h, w, dtype=torch.bool)
        image[:, : min(h, 32), : min(w, 32)] = made.image[:, :h, :w]
        mask[4:12, 8:20] = True
        return Sample(image, mask, label=index % 2, name=made.name, value_range=((-1,), (1,)))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
