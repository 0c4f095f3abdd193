"""Small models and images for trainings that take milliseconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 16


class Gated(nn.Module):
    """Convolution, batch norm, dropout and a spatial gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.drop = nn.Dropout(0.3)
        self.gate = nn.Conv2d(6, 1, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.drop(self.stem(images))
        return self.head((x * self.gate(x).sigmoid()).mean((2, 3)))


class Attending(nn.Module):
    """Patches, one self-attention, and a mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = x + self.attend(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x).mean(1))


class Plain(nn.Module):
    """Convolutions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


def scenes(count: int = 8) -> list[dict]:
    """Noise with a bright square in a known place, label 1; without one, label 0."""
    torch.manual_seed(11)
    found = []
    for number in range(count):
        image, mask = torch.rand(3, SIDE, SIDE) * 0.5, torch.zeros(SIDE, SIDE, dtype=torch.bool)
        if number % 2 == 0:
            mask[4:10, 2 + number % 4 : 8 + number % 4] = True
            image[:, mask] += 0.5
        found.append({"image": image, "mask": mask, "label": 1 - number % 2, "name": f"s{number}"})
    return found


def epoch_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """One epoch of training on fresh random images."""
    model.train()
    total = 0.0
    for _ in range(2):
        images, labels = torch.rand(4, 3, SIDE, SIDE), torch.randint(0, 2, (4,))
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / 2
